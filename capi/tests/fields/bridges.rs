//! Calls of bridges, on the reference: what a field does is compared with a call that says the same
//! in other words.

use std::ffi::{CStr, CString};
use std::mem::size_of;
use std::ptr::{null, null_mut};

use xattn_c::bridge::*;
use xattn_c::xattn_status::{self, *};

use super::files::{self, BLOCK, Folder, Tensors, below, values};
use super::table::{Case, Seen, gives, last, row, same, says};
use super::world::Value::{At, Data, Handle, Int, Null};
use super::world::{F32, I32, Sets, U32, World};

pub const REFERENCE: &[&CStr] = &[c"reference"];

pub fn cases() -> Vec<Case> {
    vec![project_media(), gated_block(), resampler(), qformer(), head()]
}

/// Opens what these files hold.
pub fn open(folder: &Folder) -> *mut xattn_checkpoint {
    let (mut checkpoint, path) = (null_mut(), CString::new(folder.path()).unwrap());
    // SAFETY: a C string, no options, and a place for the handle.
    let status = unsafe { xattn_checkpoint_open(path.as_ptr(), null(), &mut checkpoint) };
    assert_eq!(status, XATTN_STATUS_OK, "{}", last());
    checkpoint
}

/// Loads a bridge, whose handle gets this name.
fn load<P>(
    world: &mut World,
    name: &'static str,
    (tensors, config): (&Tensors, &str),
    load: impl FnOnce(*const xattn_checkpoint, &World, *mut *mut P) -> xattn_status,
    free: extern "C" fn(*mut P) -> xattn_status,
) where
    P: 'static,
{
    let folder = Folder::new(tensors, config);
    let (checkpoint, mut bridge) = (open(&folder), null_mut());
    assert_eq!(load(checkpoint, world, &mut bridge), XATTN_STATUS_OK, "{}", last());
    assert_eq!(xattn_checkpoint_free(checkpoint), XATTN_STATUS_OK);
    world.handles.insert(name, bridge.cast());
    world.ends.push(Box::new(move || _ = free(bridge)));
}

/// x Wᵀ + bias, of rows.
fn product(x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    let columns = w.len() / bias.len();
    let of_row = |x: &[f64]| -> Vec<f64> {
        let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        w.chunks(columns).zip(bias).map(|(w, b)| dot(w) + b).collect()
    };
    x.chunks(columns).flat_map(of_row).collect()
}

const TEXT: &[u64] = &[2, 3, 8];
const KV: &[u64] = &[2, 4, 32];

fn block_world(device: &CStr) -> World {
    let (x, kv) = (values("x", 48), values("kv", 256));
    let turned = [&kv[128..], &kv[..128]].concat();
    let mut world = World::new(device)
        .tensor("x", F32, TEXT, &x)
        .tensor("x2", F32, TEXT, &values("x2", 48))
        .tensor("out", F32, TEXT, &[9.; 48])
        .tensor("out2", F32, TEXT, &[9.; 48])
        .tensor("x_and_out", F32, TEXT, &x)
        .tensor("kv", F32, KV, &kv)
        .tensor("turned", F32, KV, &turned)
        .tensor("lengths", U32, &[2], &[2., 3.])
        .tensor("two", U32, &[2], &[2., 2.])
        .tensor("one", U32, &[2], &[1., 1.])
        .tensor("bits", U32, &[2, 1], &[3., 7.])
        .tensor("last_two", U32, &[2, 1], &[12., 12.])
        .tensor("slots", U32, &[2], &[1., 0.])
        .tensor("text_offsets", U32, &[3], &[0., 3., 6.])
        .tensor("kv_offsets", U32, &[3], &[0., 4., 8.])
        .tensor("first_medium", I32, &[2, 3], &[1.; 6])
        .tensor("second_medium", I32, &[2, 3], &[2.; 6])
        .tensor("short_plan", U32, &[2, 3, 2], &[0.; 12])
        .tensor("causal", U32, &[2, 3, 1], &[1., 3., 7., 1., 3., 7.])
        .tensor("causal_from_1", U32, &[2, 3, 1], &[3., 7., 15., 3., 7., 15.])
        .tensor("causal_prefix_2", U32, &[2, 3, 1], &[3., 3., 7., 3., 3., 7.])
        .tensor("offset_1", U32, &[2], &[1., 1.])
        .tensor("media", F32, &[2, 4, 8], &values("media", 64))
        .tensor("media2", F32, &[2, 4, 8], &values("media2", 64))
        .tensor("kv_out", F32, KV, &[9.; 256])
        .tensor("kv_out2", F32, KV, &[9.; 256])
        .record("args", "xattn_gated_block_args", &[("x", At("x")), ("kv", At("kv")), ("out", At("out"))])
        .record("media_args", "xattn_project_media_args", &[("media", At("media")), ("kv", At("kv_out"))]);
    load(
        &mut world,
        "bridge",
        (&below(BLOCK, files::block(8, 8, 16)), ""),
        // SAFETY: handles, and a place for another.
        |checkpoint, world, out| unsafe {
            xattn_gated_block_load(checkpoint, world.handle("device"), 0, F32 as i32, out)
        },
        xattn_gated_block_free,
    );
    world
}

unsafe fn run_block(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_gated_block_run(world.handle("bridge"), world.at("args")) }
}

unsafe fn run_media(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_project_media_run(world.handle("bridge"), world.at("media_args")) }
}

pub fn project_media() -> Case {
    let weight = values(&format!("{BLOCK}attn.to_kv.weight"), 256);
    let of = |media: &str| product(&values(media, 64), &weight, &[0.; 32]);
    let null = |name: &str| says(format!("gated_block.project_media: {name}: expected a xattn_tensor, got null"));
    Case {
        of: "xattn_project_media_args",
        size: size_of::<xattn_project_media_args>(),
        record: "media_args",
        call: "gated_block.project_media",
        argument: "args",
        prefix: "",
        first_size: 24,
        devices: REFERENCE,
        world: block_world,
        run: run_media,
        base: gives("kv_out", &of("media")),
        rows: vec![
            row("media", At("media2"), gives("kv_out", &of("media2"))),
            row("media", Null, null("media")),
            row("kv", At("kv_out2"), gives("kv_out2", &of("media"))),
            row("kv", Null, null("kv")),
        ],
    }
}

pub fn gated_block() -> Case {
    const NEITHER: &str = "gated_block: x: expected a tensor, or x_in_place, got neither";
    const BOTH_KEYS: &str = "gated_block: bits: expected null beside lengths, got a tensor";
    const IN_PLACE: Sets = &[("x", Null), ("out", At("x_and_out"))];
    const RAGGED_TEXT: Sets =
        &[("x.shape[0]", Int(1)), ("x.shape[1]", Int(6)), ("out.shape[0]", Int(1)), ("out.shape[1]", Int(6))];
    const RAGGED_MEDIA: Sets = &[("kv.shape[0]", Int(1)), ("kv.shape[1]", Int(8))];
    const FIRST: Sets = &[("visibility", Int(1)), ("media_index", At("first_medium")), ("keys_per_media", Int(2))];
    const SECOND: Sets = &[("visibility", Int(1)), ("media_index", At("second_medium")), ("keys_per_media", Int(2))];
    const SECOND_UNUSED: Sets = &[("media_index", At("second_medium")), ("keys_per_media", Int(2))];
    const CAUSAL: Sets = &[("visibility", Int(3))];
    const ROW_BITS: Sets = &[("visibility", Int(4)), ("media_bits", At("causal")), ("keys_per_media", Int(1))];
    const ROW_BITS_UNUSED: Sets = &[("media_bits", At("causal")), ("keys_per_media", Int(1))];
    const NO_BITS: Sets = &[("visibility", Int(4)), ("keys_per_media", Int(1))];
    const FROM_1: Sets = &[("visibility", Int(4)), ("media_bits", At("causal_from_1")), ("keys_per_media", Int(1))];
    const PREFIX_2: Sets = &[("visibility", Int(4)), ("media_bits", At("causal_prefix_2")), ("keys_per_media", Int(1))];
    const TWO: Sets = &[("lengths", At("two"))];
    const LAST_TWO: Sets = &[("bits", At("last_two"))];
    let null = |name: &str| says(format!("gated_block: {name}: expected a xattn_tensor, got null"));
    let elsewhere = |here| Seen::Same { sets: &[], there: "out", here, first: None };
    Case {
        of: "xattn_gated_block_args",
        size: size_of::<xattn_gated_block_args>(),
        record: "args",
        call: "gated_block",
        argument: "args",
        prefix: "",
        first_size: 128,
        devices: REFERENCE,
        world: block_world,
        run: run_block,
        base: Seen::Something,
        rows: vec![
            row("x", At("x2"), same(&[("x.data", Data("x2"))])),
            row("x", Null, says(NEITHER)),
            row("x_in_place", Int(1), elsewhere("x_and_out")).from(IN_PLACE, says(NEITHER)),
            row("x_offsets", At("text_offsets"), same(&[])).from(RAGGED_TEXT, says("attention: first.k: expected 1 entries, one per problem, got f32[2, 4, 8, 2] strides [128, 32, 2, 1]")),
            row("kv", At("turned"), same(&[("slots", At("slots"))])),
            row("kv", Null, null("kv")),
            row("lengths", At("lengths"), same(&[("bits", At("bits"))])),
            row("bits", At("bits"), same(&[("lengths", At("lengths"))])),
            row("bits", At("bits"), says(BOTH_KEYS)).from(&[("lengths", At("lengths"))], Seen::Something),
            row("slots", At("slots"), same(&[("kv.data", Data("turned"))])),
            row("kv_offsets", At("kv_offsets"), same(&[])).from(RAGGED_MEDIA, says("attention: first.k: expected 2 entries, one per problem, got f32[1, 8, 8, 2] strides [256, 32, 2, 1]")),
            row("visibility", Int(1), same(LAST_TWO)).beside(SECOND_UNUSED),
            row("visibility", Int(2), same(&[])).from(SECOND, same(LAST_TWO)),
            row("visibility", Int(3), same(ROW_BITS)),
            row("visibility", Int(4), same(CAUSAL)).from(ROW_BITS_UNUSED, same(&[])),
            row("media_index", At("second_medium"), same(LAST_TWO)).from(FIRST, same(TWO)),
            row("plan", At("short_plan"), says("attention: plan: expected shape [batch, 1 + rows, 2] = [2, 4, 2], got u32[2, 3, 2]")).from(FIRST, same(TWO)),
            row("media_bits", At("causal"), same(CAUSAL)).from(NO_BITS, null("media_bits")),
            row("keys_per_media", Int(1), same(&[("lengths", At("one"))])).from(FIRST, same(TWO)),
            row("causal_prefix", Int(2), same(PREFIX_2)).from(CAUSAL, same(ROW_BITS)),
            row("causal_offset", At("offset_1"), same(FROM_1)).from(CAUSAL, same(ROW_BITS)),
            row("out", At("out2"), elsewhere("out2")),
            row("out", Null, null("out")),
        ],
    }
}

fn resampler_world(device: &CStr) -> World {
    let features = values("features", 32);
    let frames = values("perceiver.frame_embs", 16);
    // Token 2 and 3, as if the embedding of frame 0 were that of frame 1.
    let shift = |(i, x): (usize, &f64)| if i < 16 { *x } else { x + frames[8 + i % 8] - frames[i % 8] };
    let shifted: Vec<f64> = features.iter().enumerate().map(shift).collect();
    let mut world = World::new(device)
        .tensor("features", F32, &[1, 1, 4, 8], &features)
        .tensor("features2", F32, &[1, 1, 4, 8], &values("features2", 32))
        .tensor("shifted", F32, &[1, 1, 4, 8], &shifted)
        .tensor("lengths", U32, &[1], &[2.])
        .tensor("bits", U32, &[1, 1], &[3.])
        .tensor("halves", U32, &[3], &[0., 2., 4.])
        .tensor("out", F32, &[1, 1, 2, 8], &[9.; 16])
        .tensor("out2", F32, &[1, 1, 2, 8], &[9.; 16])
        .tensor("pair", F32, &[2, 1, 2, 8], &[9.; 32])
        .tensor("pair_of_one", F32, &[1, 2, 2, 8], &[9.; 32])
        .record(
            "args",
            "xattn_resampler_args",
            &[("frames", Int(1)), ("features", At("features")), ("out", At("out"))],
        );
    for (name, frames) in [("with_frames", 2), ("plain", 0)] {
        load(
            &mut world,
            name,
            (&below("perceiver.", files::resampler(2, frames)), ""),
            // SAFETY: handles, and a place for another.
            |checkpoint, world, out| unsafe {
                xattn_resampler_load(checkpoint, world.handle("device"), F32 as i32, out)
            },
            xattn_resampler_free,
        );
    }
    world.inputs.insert("#bridge", Handle("with_frames"));
    world
}

unsafe fn run_resampler(world: &World) -> xattn_status {
    let Handle(bridge) = world.inputs["#bridge"] else { panic!("no handle") };
    // SAFETY: the caller's promise.
    unsafe { xattn_resampler_run(world.handle(bridge), world.at("args")) }
}

pub fn resampler() -> Case {
    const TWO_FRAMES: Sets = &[("frames", Int(2))];
    const SHORT: Sets = &[("features.shape[2]", Int(2))];
    const PAIR: Sets = &[("#bridge", Handle("plain")), ("out", At("pair"))];
    // The same as two media.
    const TWO_MEDIA: Sets = &[
        ("#bridge", Handle("plain")),
        ("features.shape[1]", Int(2)),
        ("features.shape[2]", Int(2)),
        ("out", At("pair_of_one")),
    ];
    let null = |name: &str| says(format!("perceiver_resampler: {name}: expected a xattn_tensor, got null"));
    Case {
        of: "xattn_resampler_args",
        size: size_of::<xattn_resampler_args>(),
        record: "args",
        call: "perceiver_resampler",
        argument: "args",
        prefix: "",
        first_size: 56,
        devices: REFERENCE,
        world: resampler_world,
        run: run_resampler,
        base: Seen::Something,
        rows: vec![
            row("frames", Int(2), same(&[("features.data", Data("shifted"))])),
            row("frames", Int(0), same(&[])).from(TWO_FRAMES, Seen::Something),
            row(
                "frames",
                Int(3),
                says("perceiver_resampler: frames: expected a divisor of the 4 tokens of a medium, got 3"),
            ),
            row(
                "frames",
                Int(-1),
                says(format!(
                    "perceiver_resampler: frames: expected a divisor of the 4 tokens of a medium, got {}",
                    u64::MAX
                )),
            ),
            row("features", At("features2"), same(&[("features.data", Data("features2"))])),
            row("features", Null, null("features")),
            row("lengths", At("lengths"), same(SHORT)),
            row("bits", At("bits"), same(SHORT)),
            row("bits", At("bits"), says("perceiver_resampler: bits: expected null beside lengths, got a tensor"))
                .from(&[("lengths", At("lengths"))], same(SHORT)),
            row(
                "offsets",
                At("halves"),
                says("perceiver_resampler: offsets: expected none with frame or media embeddings, got some"),
            )
            .from(
                &[("out", At("pair"))],
                says("perceiver_resampler: out: expected shape [1, 1, 2, 8], got f32[2, 1, 2, 8]"),
            ),
            row(
                "offsets",
                At("halves"),
                Seen::Same { sets: TWO_MEDIA, there: "pair_of_one", here: "pair", first: None },
            )
            .from(PAIR, says("perceiver_resampler: out: expected shape [1, 1, 2, 8], got f32[2, 1, 2, 8]")),
            row("out", At("out2"), Seen::Same { sets: &[], there: "out", here: "out2", first: None }),
            row("out", Null, null("out")),
        ],
    }
}

fn qformer_world(device: &CStr) -> World {
    let mut world = World::new(device)
        .tensor("features", F32, &[1, 3, 12], &values("features", 36))
        .tensor("features2", F32, &[1, 3, 12], &values("features2", 36))
        .tensor("feature_lengths", U32, &[1], &[2.])
        .tensor("feature_bits", U32, &[1, 1], &[3.])
        .tensor("text", I32, &[1, 2], &[4., 7.])
        .tensor("text2", I32, &[1, 2], &[1., 8.])
        .tensor("text_lengths", U32, &[1], &[1.])
        .tensor("text_bits", U32, &[1, 1], &[1.])
        .tensor("out", F32, &[1, 6, 16], &[9.; 96])
        .tensor("out2", F32, &[1, 6, 16], &[9.; 96])
        .tensor("rows", F32, &[1, 4, 16], &values("rows", 64))
        .tensor("rows2", F32, &[1, 4, 16], &values("rows2", 64))
        .tensor("words", F32, &[1, 4, 24], &[9.; 96])
        .tensor("words2", F32, &[1, 4, 24], &[9.; 96])
        .record(
            "args",
            "xattn_qformer_args",
            &[("features", At("features")), ("text", At("text")), ("hidden", At("out"))],
        )
        .record("head_args", "xattn_qformer_head_args", &[("hidden", At("rows")), ("out", At("words"))]);
    load(
        &mut world,
        "bridge",
        (&files::blip2(4, 16, 12, 24), &files::blip2_config(4, 16, 12)),
        // SAFETY: handles, and a place for another.
        |checkpoint, world, out| unsafe { xattn_qformer_load(checkpoint, world.handle("device"), F32 as i32, out) },
        xattn_qformer_free,
    );
    world
}

unsafe fn run_qformer(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_qformer_run(world.handle("bridge"), world.at("args")) }
}

unsafe fn run_head(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_qformer_head_run(world.handle("bridge"), world.at("head_args")) }
}

pub fn qformer() -> Case {
    // The first so many rows of the result: the four queries, and one of text.
    let first = |sets, rows: usize| Seen::Same { sets, there: "out", here: "out", first: Some(16 * rows) };
    const NO_TEXT: Sets = &[("text", Null), ("out.shape[1]", Int(4))];
    const ONE_WORD: Sets = &[("text.shape[1]", Int(1)), ("out.shape[1]", Int(5))];
    const TWO_FEATURES: Sets = &[("features.shape[1]", Int(2))];
    Case {
        of: "xattn_qformer_args",
        size: size_of::<xattn_qformer_args>(),
        record: "args",
        call: "qformer",
        argument: "args",
        prefix: "",
        first_size: 72,
        devices: REFERENCE,
        world: qformer_world,
        run: run_qformer,
        base: Seen::Something,
        rows: vec![
            // Queries do not see the text, and the second word does not change the first.
            row("objective", Int(1), first(NO_TEXT, 4)),
            row("features", At("features2"), same(&[("features.data", Data("features2"))])),
            row("features", Null, says("qformer: features: expected image features for the queries, got none")),
            row("feature_lengths", At("feature_lengths"), same(TWO_FEATURES)),
            row("feature_bits", At("feature_bits"), same(TWO_FEATURES)),
            row(
                "feature_bits",
                At("feature_bits"),
                says("qformer: feature_bits: expected null beside feature_lengths, got a tensor"),
            )
            .from(&[("feature_lengths", At("feature_lengths"))], same(TWO_FEATURES)),
            row("text", At("text2"), same(&[("text.data", Data("text2"))])),
            row("text", Null, says("qformer: hidden: expected 0 or 4 rows, got f32[1, 6, 16]")),
            row("text_lengths", At("text_lengths"), first(ONE_WORD, 5)),
            row("text_bits", At("text_bits"), first(ONE_WORD, 5)),
            row(
                "text_bits",
                At("text_bits"),
                says("qformer: text_bits: expected null beside text_lengths, got a tensor"),
            )
            .from(&[("text_lengths", At("text_lengths"))], first(ONE_WORD, 5)),
            row("hidden", At("out2"), Seen::Same { sets: &[], there: "out", here: "out2", first: None }),
            row("hidden", Null, says("qformer: hidden: expected a xattn_tensor, got null")),
        ],
    }
}

pub fn head() -> Case {
    let (weight, bias) = (values("language_projection.weight", 384), values("language_projection.bias", 24));
    let of = |rows: &str| product(&values(rows, 64), &weight, &bias);
    let null = |name: &str| says(format!("qformer_head: {name}: expected a xattn_tensor, got null"));
    Case {
        of: "xattn_qformer_head_args",
        size: size_of::<xattn_qformer_head_args>(),
        record: "head_args",
        call: "qformer_head",
        argument: "args",
        prefix: "",
        first_size: 24,
        devices: REFERENCE,
        world: qformer_world,
        run: run_head,
        base: gives("words", &of("rows")),
        rows: vec![
            row("hidden", At("rows2"), gives("words", &of("rows2"))),
            row("hidden", Null, null("hidden")),
            row("out", At("words2"), gives("words2", &of("rows"))),
            row("out", Null, null("out")),
        ],
    }
}

#[test]
fn project_media_fields() {
    project_media().check();
}

#[test]
fn gated_block_fields() {
    gated_block().check();
}

#[test]
fn resampler_fields() {
    resampler().check();
}

#[test]
fn qformer_fields() {
    qformer().check();
}

#[test]
fn qformer_head_fields() {
    head().check();
}
