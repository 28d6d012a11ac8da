//! `attention` and its segments. With a scale of 1000, a row gets the value of its best key and
//! nothing of the others, so all numbers are exact: q = 1 takes the largest visible key, q = -1 the
//! smallest.

use std::ffi::CStr;
use std::mem::size_of;

use xattn_c::ops::attention::*;
use xattn_c::xattn_status;

use super::ops::BOTH;
use super::table::{Case, Seen, gives, out, row, says};
use super::world::Value::{At, Int, Null, Real};
use super::world::{F32, I32, Sets, U32, World};

pub fn cases() -> Vec<Case> {
    vec![attention(), first(), second()]
}

fn world(device: &CStr) -> World {
    let segment = |k, v| [("k", At(k)), ("v", At(v))];
    let queries: &[u64] = &[1, 2, 1, 1];
    let keys: &[u64] = &[1, 4, 1, 1];
    World::new(device)
        .tensor("q", F32, queries, &[1., -1.])
        .tensor("turned", F32, queries, &[-1., 1.])
        .tensor("ones", F32, queries, &[1., 1.])
        .tensor("k", F32, keys, &[1., 2., 3., 4.])
        .tensor("k2", F32, keys, &[4., 3., 2., 1.])
        .tensor("v", F32, keys, &[10., 20., 30., 40.])
        .tensor("v2", F32, keys, &[50., 60., 70., 80.])
        // Two entries: those of `k` and `v`, and those of `k2` and `v2`.
        .tensor("entries", F32, &[2, 4, 1, 1], &[1., 2., 3., 4., 4., 3., 2., 1.])
        .tensor("values", F32, &[2, 4, 1, 1], &[10., 20., 30., 40., 50., 60., 70., 80.])
        .tensor("more_k", F32, &[1, 2, 1, 1], &[0., 9.])
        .tensor("more_k2", F32, &[1, 2, 1, 1], &[9., 0.])
        .tensor("more_v", F32, &[1, 2, 1, 1], &[80., 90.])
        .tensor("more_v2", F32, &[1, 2, 1, 1], &[81., 91.])
        .tensor("more_entries", F32, &[2, 2, 1, 1], &[0., 9., -8., 8.])
        .tensor("more_values", F32, &[2, 2, 1, 1], &[80., 90., 82., 92.])
        .tensor("lengths", U32, &[1], &[2.])
        .tensor("length_1", U32, &[1], &[1.])
        .tensor("length_0", U32, &[1], &[0.])
        .tensor("bits", U32, &[1, 1], &[6.])
        .tensor("bit_2", U32, &[1, 1], &[2.])
        .tensor("rows_1_to_3", U32, &[2], &[1., 3.])
        .tensor("rows_0_to_1", U32, &[2], &[0., 1.])
        .tensor("rows_one_each", U32, &[3], &[0., 1., 2.])
        .tensor("slot_1", U32, &[1], &[1.])
        .tensor("media_1_2", I32, &[1, 2], &[1., 2.])
        .tensor("media_2_1", I32, &[1, 2], &[2., 1.])
        .tensor("media_0_1", I32, &[1, 2], &[0., 1.])
        .tensor("media_3_1", I32, &[1, 2], &[3., 1.])
        .tensor("blocks", U32, &[1, 2, 1], &[2., 1.])
        .tensor("blocks2", U32, &[1, 2, 1], &[1., 3.])
        .tensor("plan", U32, &[1, 3, 2], &[2., 0., 0., 1., 1., 2.])
        .tensor("short_plan", U32, &[1, 2, 2], &[1., 0., 0., 1.])
        .tensor("offset", U32, &[1], &[2.])
        .tensor("out", F32, queries, &[-7.; 2])
        .tensor("out2", F32, queries, &[-7.; 2])
        .tensor("lse", F32, &[1, 2, 1], &[-7.; 2])
        .tensor("visible", U32, &[1, 2], &[7.; 2])
        .record("first", "xattn_segment", &segment("k", "v"))
        .record("first2", "xattn_segment", &segment("k2", "v"))
        .record("second", "xattn_segment", &segment("more_k", "more_v"))
        .record(
            "args",
            "xattn_attention_args",
            &[("scale", Real(1000.)), ("q", At("q")), ("first", At("first")), ("out", At("out"))],
        )
}

unsafe fn run(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_attention(world.handle("device"), world.at("args")) }
}

const ENTRIES: Sets = &[("first.k", At("entries")), ("first.v", At("values"))];
const TWO_ENTRIES: &str = "attention: first.k: expected 1 entries, one per problem, got f32[2, 4, 1, 1]";

pub fn attention() -> Case {
    const SAME_MEDIA: Sets = &[("visibility", Int(1)), ("media_index", At("media_1_2")), ("keys_per_media", Int(2))];
    const PRECEDING: Sets = &[("visibility", Int(2)), ("media_index", At("media_1_2")), ("keys_per_media", Int(2))];
    const NO_MEDIA: Sets = &[("visibility", Int(1)), ("media_index", At("media_0_1")), ("keys_per_media", Int(2))];
    const BEYOND: Sets = &[("visibility", Int(1)), ("media_index", At("media_3_1")), ("keys_per_media", Int(2))];
    const MASKED: Sets = &[("first.lengths", At("length_0"))];
    const ALL_MEDIA: Sets = &[("media_index", At("media_1_2")), ("keys_per_media", Int(2))];
    const CAUSAL: Sets = &[("visibility", Int(3)), ("q", At("ones")), ("causal_prefix", Int(1))];
    const PREFIX: Sets = &[("q", At("ones")), ("causal_prefix", Int(1))];
    const BITS: Sets = &[("visibility", Int(4)), ("q", At("ones")), ("keys_per_media", Int(2))];
    const BLOCKS: Sets = &[("q", At("ones")), ("media_bits", At("blocks")), ("keys_per_media", Int(2))];
    const OWN_BLOCKS: Sets =
        &[("visibility", Int(4)), ("q", At("ones")), ("media_bits", At("blocks")), ("keys_per_media", Int(2))];
    let null = |name: &str, of: &str| says(format!("attention: {name}: expected a {of}, got null"));
    let beside = |name, values: &[f64]| Seen::Gives(vec![("out", vec![40., 10.]), (name, values.to_vec())]);
    Case {
        of: "xattn_attention_args",
        size: size_of::<xattn_attention_args>(),
        record: "args",
        call: "attention",
        argument: "args",
        prefix: "",
        first_size: 128,
        devices: BOTH,
        world,
        run,
        base: out(&[40., 10.]),
        rows: vec![
            row("scale", Real(0.), out(&[25., 25.])),
            row("scale", Real(-1000.), out(&[10., 40.])),
            row("scale", Real(f32::NAN), says("attention: scale: expected a finite number, got NaN")),
            row("empty_no_media", Int(1), out(&[25., 10.])).from(NO_MEDIA, out(&[0., 10.])),
            row("empty_no_media", Int(2), out(&[40., 10.])).from(NO_MEDIA, out(&[0., 10.])),
            row("empty_beyond_media", Int(1), out(&[25., 10.])).from(BEYOND, out(&[0., 10.])),
            row("empty_beyond_media", Int(2), out(&[40., 10.])).from(BEYOND, out(&[0., 10.])),
            row("empty_masked", Int(1), out(&[25., 25.])).from(MASKED, out(&[0., 0.])),
            row("empty_masked", Int(2), out(&[40., 10.])).from(MASKED, out(&[0., 0.])),
            row("q", At("turned"), out(&[10., 40.])),
            row("q", Null, null("q", "xattn_tensor")),
            row("q_offsets", At("rows_one_each"), out(&[40., 80.])).from(ENTRIES, says(TWO_ENTRIES)),
            row("first", At("first2"), out(&[10., 40.])),
            row("first", Null, null("first", "xattn_segment")),
            row("second", At("second"), out(&[90., 80.])),
            row("visibility", Int(1), out(&[20., 30.])).beside(ALL_MEDIA),
            row("visibility", Int(2), out(&[20., 10.])).beside(ALL_MEDIA),
            row("visibility", Int(3), out(&[10., 20.])).from(PREFIX, out(&[40., 40.])),
            row("visibility", Int(4), out(&[40., 20.])).from(BLOCKS, out(&[40., 40.])),
            row("media_index", At("media_2_1"), out(&[40., 10.])).from(SAME_MEDIA, out(&[20., 30.])),
            row("media_index", At("media_2_1"), out(&[40., 10.])).from(PRECEDING, out(&[20., 10.])),
            row("media_index", Null, null("media_index", "xattn_tensor")).from(SAME_MEDIA, out(&[20., 30.])),
            // A plan never changes the result.
            row(
                "plan",
                At("short_plan"),
                says("attention: plan: expected shape [batch, 1 + rows, 2] = [1, 3, 2], got u32[1, 2, 2]"),
            )
            .from(SAME_MEDIA, out(&[20., 30.])),
            row("plan", Null, out(&[20., 30.])).from(
                &[
                    ("visibility", Int(1)),
                    ("media_index", At("media_1_2")),
                    ("keys_per_media", Int(2)),
                    ("plan", At("short_plan")),
                ],
                says("attention: plan: expected shape [batch, 1 + rows, 2] = [1, 3, 2], got u32[1, 2, 2]"),
            ),
            row("media_bits", At("blocks"), out(&[40., 20.])).from(BITS, null("media_bits", "xattn_tensor")),
            row("media_bits", At("blocks2"), out(&[20., 40.])).from(OWN_BLOCKS, out(&[40., 20.])),
            row("keys_per_media", Int(1), out(&[10., 20.])).from(SAME_MEDIA, out(&[20., 30.])),
            row("keys_per_media", Int(1), out(&[20., 10.])).from(OWN_BLOCKS, out(&[40., 20.])),
            row("causal_prefix", Int(3), out(&[30., 30.])).from(CAUSAL, out(&[10., 20.])),
            row("causal_offset", At("offset"), out(&[30., 40.])).from(CAUSAL, out(&[10., 20.])),
            row("out", At("out2"), gives("out2", &[40., 10.])),
            row("out", Null, null("out", "xattn_tensor")),
            row("log_sum_exp", At("lse"), beside("lse", &[4000., -1000.])),
            row("row_visible", At("visible"), beside("visible", &[1., 1.])),
        ],
    }
}

/// The first segment.
fn first() -> Case {
    let null = |name: &str| says(format!("attention: first.{name}: expected a xattn_tensor, got null"));
    Case {
        of: "xattn_segment",
        size: size_of::<xattn_segment>(),
        record: "first",
        call: "attention",
        argument: "first",
        prefix: "first.",
        first_size: 56,
        devices: BOTH,
        world,
        run,
        base: out(&[40., 10.]),
        rows: vec![
            row("k", At("k2"), out(&[10., 40.])),
            row("k", Null, null("k")),
            row("v", At("v2"), out(&[80., 50.])),
            row("v", Null, null("v")),
            row("lengths", At("lengths"), out(&[20., 10.])),
            row("bits", At("bits"), out(&[30., 20.])),
            row("bits", At("bits"), says("attention: first.bits: expected null beside first.lengths, got a tensor"))
                .from(&[("lengths", At("lengths"))], out(&[20., 10.])),
            row("offsets", At("rows_1_to_3"), out(&[30., 20.])),
            row("slots", At("slot_1"), out(&[50., 80.])).from(ENTRIES, says(TWO_ENTRIES)),
        ],
    }
}

/// The second one.
fn second() -> Case {
    let null = |name: &str| says(format!("attention: second.{name}: expected a xattn_tensor, got null"));
    const ENTRIES: Sets = &[("k", At("more_entries")), ("v", At("more_values"))];
    Case {
        record: "second",
        argument: "second",
        prefix: "second.",
        world: |device| {
            let mut world = world(device);
            world.set("args", "second", At("second"));
            world
        },
        base: out(&[90., 80.]),
        rows: vec![
            row("k", At("more_k2"), out(&[80., 90.])),
            row("k", Null, null("k")),
            row("v", At("more_v2"), out(&[91., 81.])),
            row("v", Null, null("v")),
            row("lengths", At("length_1"), out(&[40., 80.])),
            row("bits", At("bit_2"), out(&[90., 10.])),
            row("bits", At("bit_2"), says("attention: second.bits: expected null beside second.lengths, got a tensor"))
                .from(&[("lengths", At("length_1"))], out(&[40., 80.])),
            row("offsets", At("rows_0_to_1"), out(&[40., 80.])),
            row("slots", At("slot_1"), out(&[92., 82.]))
                .from(ENTRIES, says("attention: second.k: expected 1 entries, one per problem, got f32[2, 2, 1, 1]")),
        ],
        ..first()
    }
}

#[test]
fn attention_fields() {
    attention().check();
}

#[test]
fn segment_fields() {
    first().check();
    second().check();
}
