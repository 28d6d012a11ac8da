//! `norm`, and through it `xattn_tensor`; `linear`, `gated_residual`, `media_index`. All numbers
//! are exact.

use std::ffi::CStr;
use std::mem::{offset_of, size_of};
use std::ptr;

use xattn_c::device::*;
use xattn_c::ops::gated_residual::*;
use xattn_c::ops::linear::*;
use xattn_c::ops::media_index::*;
use xattn_c::ops::norm::*;
use xattn_c::tensor::*;
use xattn_c::xattn_status::{self, *};

use super::table::{Case, Seen, gives, out, row, says};
use super::world::Value::{At, Data, Handle, Int, Null, Real};
use super::world::{BF16, F16, F32, F64, I32, U32, World};

pub const BOTH: &[&CStr] = &[c"cpu", c"reference"];

pub fn cases() -> Vec<Case> {
    vec![norm(), tensor(), linear(), gated_residual(), media_index()]
}

fn norm_world(device: &CStr) -> World {
    let rows: &[u64] = &[1, 2, 1, 4];
    World::new(device)
        .tensor("x", F32, rows, &[4., 0., 0., 0., 0., -4., 0., 0.])
        .tensor("other", F32, rows, &[0., 0., 4., 0., -4., 0., 0., 0.])
        // As f32, the second half of each is a number of its own, and the first one zeros.
        .tensor("doubles", F64, rows, &[0., 0., 0., -8., 0., 0., 4., 0.])
        // As f16: 4, 0, 0, 0, 0, 2.25, 0, 0. As bf16: 512, 0, 0, 0, 0, 4, 0, 0.
        .tensor("halves", U32, &[4], &[17408., 0., 1_082_130_432., 0.])
        .tensor("add", F32, rows, &[-4., 0., 0., -4., 0., 2., 0., 0.])
        .tensor("rows", I32, &[1, 2], &[1., 0.])
        .tensor("weight", F32, &[4], &[2., 3., 4., 5.])
        .tensor("bias", F32, &[4], &[1., 2., 3., 4.])
        .tensor("out", F32, rows, &[0., 0., 4., 0., 0., 0., 0., 8.])
        .tensor("out2", F32, rows, &[9.; 8])
        .strides("again", &[8, 0, 4, 1])
        .strides("far", &[16, 8, 4, 1])
        .record("args", "xattn_norm_args", &[("kind", Int(2)), ("eps", Real(1.)), ("x", At("x")), ("out", At("out"))])
}

unsafe fn run_norm(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_norm(world.handle("device"), world.at("args")) }
}

const UNIT: [f64; 8] = [1., 0., 0., 0., 0., -1., 0., 0.];
const CENTRED: [f64; 8] = [1.5, -0.5, -0.5, -0.5, 0.5, -1.5, 0.5, 0.5];

pub fn norm() -> Case {
    const LAYER: (&str, super::world::Value) = ("kind", Int(0));
    Case {
        of: "xattn_norm_args",
        size: size_of::<xattn_norm_args>(),
        record: "args",
        call: "norm",
        argument: "args",
        prefix: "",
        first_size: 72,
        devices: BOTH,
        world: norm_world,
        run: run_norm,
        base: out(&UNIT),
        rows: vec![
            row("kind", Int(0), out(&CENTRED)),
            row("kind", Int(1), out(&[2., 0., 0., 0., 0., -2., 0., 0.])).beside(&[("eps", Real(0.))]),
            row("eps", Real(8.), out(&[0.5, 0., 0., 0., 0., -0.5, 0., 0.])),
            row("x", At("other"), out(&[0., 0., 1., 0., -1., 0., 0., 0.])),
            row("x", Null, says("norm: x: expected a tensor, or x_in_place, got neither")),
            row("x_in_place", Int(1), out(&[0., 0., 1., 0., 0., 0., 0., 1.]))
                .from(&[("x", Null)], says("norm: x: expected a tensor, or x_in_place, got neither")),
            row("x_in_place", Int(1), says("norm: x: expected null beside the flag for in place, got a tensor")),
            row("rows", At("rows"), out(&[0., -1., 0., 0., 1., 0., 0., 0.])),
            row("add", At("add"), out(&[0., 0., 0., -1., 0., -1., 0., 0.])),
            row("weight", At("weight"), out(&[2., 0., 0., 0., 0., -3., 0., 0.])),
            row("bias", At("bias"), out(&[2.5, 1.5, 2.5, 3.5, 1.5, 0.5, 3.5, 4.5])).from(&[LAYER], out(&CENTRED)),
            row("out", At("out2"), gives("out2", &UNIT)),
            row("out", Null, says("norm: out: expected a xattn_tensor, got null")),
        ],
    }
}

/// The input of [`norm`].
fn tensor() -> Case {
    const WIDE: super::world::Sets = &[("data", Data("doubles")), ("bytes", Int(64))];
    const HALF: super::world::Sets = &[("data", Data("halves")), ("args.eps", Real(1024.)), ("dtype", Int(BF16))];
    Case {
        of: "xattn_tensor",
        size: size_of::<xattn_tensor>(),
        record: "x",
        call: "norm",
        argument: "x",
        prefix: "x: ",
        first_size: 104,
        devices: &[c"reference"],
        world: norm_world,
        run: run_norm,
        base: out(&UNIT),
        rows: vec![
            row("data", Data("other"), out(&[0., 0., 1., 0., -1., 0., 0., 0.])),
            row("data", Null, says("norm: x: expected an address for f32[1, 2, 1, 4], got null")),
            row("bytes", Int(31), says("norm: x: expected at least 32 bytes for f32[1, 2, 1, 4], got 31")),
            row("dtype", Int(F64), out(&[0., 0., 0., -1., 0., 0., 1., 0.]))
                .from(WIDE, out(&[0., 0., 0., 0., 0., 0., 0., -1.])),
            row("dtype", Int(F16), out(&[0.00390625, 0., 0., 0., 0., 0.002197265625, 0., 0.]))
                .from(HALF, out(&[0.5, 0., 0., 0., 0., 0.00390625, 0., 0.])),
            row("dtype", Int(I32), says("norm: x: expected a real dtype, got i32")),
            row("dtype", Int(U32), says("norm: x: expected a real dtype, got u32")),
            row("rank", Int(3), says("norm: x: expected shape that of out = [1, 2, 1, 4], got f32[1, 2, 1]")),
            row("shape", Int(2), says("norm: x: expected shape that of out = [1, 2, 1, 4], got f32[2, 2, 1, 4]"))
                .element("shape[0]")
                .beside(&[("bytes", Int(64))]),
            row("shape", Int(1), says("norm: x: expected shape that of out = [1, 2, 1, 4], got f32[1, 1, 1, 4]"))
                .element("shape[1]"),
            row("shape", Int(0), says("norm: x: expected shape that of out = [1, 2, 1, 4], got f32[1, 2, 0, 4]"))
                .element("shape[2]"),
            row("shape", Int(3), says("norm: x: expected shape that of out = [1, 2, 1, 4], got f32[1, 2, 1, 3]"))
                .element("shape[3]"),
            row("strides", Data("again"), out(&[1., 0., 0., 0., 1., 0., 0., 0.])),
            row(
                "strides",
                Data("far"),
                says("norm: x: expected at least 48 bytes for f32[1, 2, 1, 4] strides [16, 8, 4, 1], got 32"),
            ),
        ],
    }
}

fn linear_world(device: &CStr) -> World {
    let square: &[u64] = &[2, 2];
    let rows: &[u64] = &[1, 2, 2];
    let mut world = World::new(device)
        .tensor("x", F32, rows, &[1., 2., 3., -4.])
        .tensor("other", F32, rows, &[0., 1., 1., 0.])
        .tensor("big", F32, rows, &[64., 0., 64., 0.])
        .tensor("weight", F32, square, &[1., 1., 1., -1.])
        .tensor("weight2", F32, square, &[2., 0., 0., 3.])
        .tensor("up", F32, square, &[1., 2., 3., 4.])
        .tensor("packing", F32, square, &[0., 1., 1., 0.])
        .tensor("bias", F32, &[2], &[10., 20.])
        .tensor("residual", F32, rows, &[100., 200., 300., 400.])
        .tensor("gate", F32, &[2], &[0., 64.])
        .tensor("mask", U32, &[1, 2], &[0., 1.])
        .tensor("out", F32, rows, &[7., 6., 5., 4.])
        .tensor("out2", F32, rows, &[9.; 4])
        .tensor("reduced", F32, &[1, 1, 2], &[9.; 2])
        .tensor("half", BF16, rows, &[9.; 4])
        .record("args", "xattn_linear_args", &[("x", At("x")), ("weight", At("weight")), ("out", At("out"))]);
    let (mut packed, parts) = (ptr::null_mut(), [world.at("packing")]);
    // SAFETY: one tensor, and a place for the handle.
    let status = unsafe {
        xattn_weight_prepare(world.handle("device"), parts.as_ptr(), 1, ptr::null(), 0, F32 as i32, &mut packed)
    };
    assert_eq!(status, XATTN_STATUS_OK);
    world.handles.insert("packed", packed.cast());
    world.ends.push(Box::new(move || _ = xattn_weight_free(packed)));
    world
}

unsafe fn run_linear(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_linear(world.handle("device"), world.at("args")) }
}

pub fn linear() -> Case {
    const OTHERS: &str =
        "linear: weight: expected one of: weight; weight and weight_up; prepared, got another combination";
    const PAIR: &str = "linear: weight: expected a pair of matrices for a gated activation, got one matrix";
    const HALF: super::world::Sets = &[("out", At("half"))];
    const REDUCED: super::world::Sets = &[("out", At("reduced"))];
    const GATED: super::world::Sets = &[("activation", Int(4)), ("x", At("big"))];
    let unreduced = "linear: out: expected shape [batch, rows, N] = [1, 2, 2], got f32[1, 1, 2]";
    Case {
        of: "xattn_linear_args",
        size: size_of::<xattn_linear_args>(),
        record: "args",
        call: "linear",
        argument: "args",
        prefix: "",
        first_size: 96,
        devices: BOTH,
        world: linear_world,
        run: run_linear,
        base: out(&[3., -1., -1., 7.]),
        rows: vec![
            // GELU rounded to bf16: of -1 -0.15866, which the tanh form makes -0.15881, the next
            // number of bf16.
            row("activation", Int(1), gives("half", &[3., -0.158203125, -0.158203125, 7.]))
                .from(HALF, gives("half", &[3., -1., -1., 7.])),
            row("activation", Int(2), out(&[3., 0., 0., 7.])),
            row("activation", Int(3), out(&[9., 0., 0., 49.])),
            row("activation", Int(4), out(&[4096., 12288., 4096., 12288.])).from(
                &[("x", At("big")), ("weight_up", At("up"))],
                says("linear: weight: expected one matrix without a gated activation, got a pair"),
            ),
            row("reduce", Int(1), gives("reduced", &[3., 7.])).from(REDUCED, says(unreduced)),
            row("reduce", Int(2), gives("reduced", &[1., 3.])).from(REDUCED, says(unreduced)),
            row("x", At("other"), out(&[1., -1., 1., 1.])),
            row("x", Null, says("linear: x: expected a xattn_tensor, got null")),
            row("weight", At("weight2"), out(&[2., 6., 6., -12.])),
            row("weight", Null, says(OTHERS)),
            row("weight_up", At("up"), out(&[4096., 12288., 4096., 12288.])).from(GATED, says(PAIR)),
            row("prepared", Handle("packed"), out(&[2., 1., -4., 3.])).from(&[("weight", Null)], says(OTHERS)),
            row("prepared", Handle("packed"), says(OTHERS)),
            row("bias", At("bias"), out(&[13., 19., 9., 27.])),
            row("residual", At("residual"), out(&[103., 199., 299., 407.])),
            row("residual_in_place", Int(1), out(&[10., 5., 4., 11.])),
            row("gate", At("gate"), out(&[0., -1., 0., 7.])),
            row("row_mask", At("mask"), out(&[0., 0., -1., 7.])),
            row("out", At("out2"), gives("out2", &[3., -1., -1., 7.])),
            row("out", Null, says("linear: out: expected a xattn_tensor, got null")),
        ],
    }
}

fn residual_world(device: &CStr) -> World {
    let rows: &[u64] = &[1, 2, 2];
    World::new(device)
        .tensor("x", F32, rows, &[1., 2., 3., 4.])
        .tensor("x2", F32, rows, &[5., 6., 7., 8.])
        .tensor("y", F32, rows, &[10., 20., 30., 40.])
        .tensor("y2", F32, rows, &[50., 60., 70., 80.])
        .tensor("gate", F32, &[1], &[64.])
        .tensor("gates", F32, &[2], &[0., -64.])
        .tensor("mask", U32, &[1, 2], &[0., 1.])
        .tensor("out", F32, rows, &[100., 200., 300., 400.])
        .tensor("out2", F32, rows, &[9.; 4])
        .record(
            "args",
            "xattn_gated_residual_args",
            &[("x", At("x")), ("y", At("y")), ("gate", At("gate")), ("out", At("out"))],
        )
}

unsafe fn run_residual(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_gated_residual(world.handle("device"), world.at("args")) }
}

pub fn gated_residual() -> Case {
    const NEITHER: &str = "gated_residual: x: expected a tensor, or x_in_place, got neither";
    let null = |name: &str| says(format!("gated_residual: {name}: expected a xattn_tensor, got null"));
    Case {
        of: "xattn_gated_residual_args",
        size: size_of::<xattn_gated_residual_args>(),
        record: "args",
        call: "gated_residual",
        argument: "args",
        prefix: "",
        first_size: 56,
        devices: BOTH,
        world: residual_world,
        run: run_residual,
        base: out(&[11., 22., 33., 44.]),
        rows: vec![
            row("x", At("x2"), out(&[15., 26., 37., 48.])),
            row("x", Null, says(NEITHER)),
            row("x_in_place", Int(1), out(&[110., 220., 330., 440.])).from(&[("x", Null)], says(NEITHER)),
            row("y", At("y2"), out(&[51., 62., 73., 84.])),
            row("y", Null, null("y")),
            row("gate", At("gates"), out(&[1., -18., 3., -36.])),
            row("gate", Null, null("gate")),
            row("row_mask", At("mask"), out(&[1., 2., 33., 44.])),
            row("out", At("out2"), gives("out2", &[11., 22., 33., 44.])),
            row("out", Null, null("out")),
        ],
    }
}

fn index_world(device: &CStr) -> World {
    let row: &[u64] = &[1, 6];
    World::new(device)
        .tensor("tokens", I32, row, &[7., 9., 1., 7., 2., 9.])
        .tensor("tokens2", I32, row, &[1., 7., 7., 9., 7., 1.])
        .tensor("locations", U32, row, &[0., 1., 0., 0., 5., 0.])
        .tensor("carry_in", I32, &[1], &[5.])
        .tensor("count", I32, &[1], &[3.])
        .tensor("carry_out", I32, &[1], &[-9.])
        .tensor("out", I32, row, &[-9.; 6])
        .tensor("out2", I32, row, &[-9.; 6])
        .tensor("plan", U32, &[1, 7, 2], &[99.; 14])
        .record(
            "args",
            "xattn_media_index_args",
            &[
                ("tokens", At("tokens")),
                ("media_token", Int(7)),
                ("document_end_token", Int(9)),
                ("media_index", At("out")),
            ],
        )
}

unsafe fn run_index(world: &World) -> xattn_status {
    // SAFETY: the caller's promise.
    unsafe { xattn_media_index(world.handle("device"), world.at("args")) }
}

pub fn media_index() -> Case {
    const NEXT: super::world::Sets = &[("next", Int(1))];
    const HIDE: super::world::Sets = &[("document_end", Int(1))];
    const BASE: [f64; 6] = [1., 1., 1., 2., 2., 2.];
    let planned = vec![("out", BASE.to_vec()), ("plan", [&[2., 0., 0., 1., 3., 2.][..], &[0.; 8]].concat())];
    Case {
        of: "xattn_media_index_args",
        size: size_of::<xattn_media_index_args>(),
        record: "args",
        call: "media_index",
        argument: "args",
        prefix: "",
        first_size: 88,
        devices: BOTH,
        world: index_world,
        run: run_index,
        base: out(&BASE),
        rows: vec![
            row("tokens", At("tokens2"), out(&[0., 1., 2., 2., 3., 3.])),
            row("tokens", Null, says("media_index: tokens: expected tokens or locations, got neither")),
            row("media_token", Int(2), out(&[0., 0., 0., 0., 1., 1.])),
            row("locations", At("locations"), out(&[0., 1., 1., 1., 2., 2.]))
                .from(&[("tokens", Null)], says("media_index: tokens: expected tokens or locations, got neither")),
            row(
                "locations",
                At("locations"),
                says("media_index: locations: expected null beside tokens, got a tensor"),
            ),
            row("next", Int(1), out(&[1., 2., 2., 2., 0., 0.])),
            row("document_end", Int(1), out(&[1., 1., 0., 2., 2., 2.])),
            row("document_end", Int(2), out(&[1., 1., 0., 1., 1., 1.])),
            row("document_end_token", Int(2), out(&[1., 1., 1., 2., 2., 0.]))
                .from(HIDE, out(&[1., 1., 0., 2., 2., 2.])),
            row("carry_in", At("carry_in"), out(&[6., 6., 6., 7., 7., 7.])),
            row("media_count", At("count"), out(&[1., 2., 2., 2., 3., 3.])).from(NEXT, out(&[1., 2., 2., 2., 0., 0.])),
            row("carry_out", At("carry_out"), Seen::Gives(vec![("out", BASE.to_vec()), ("carry_out", vec![2.])])),
            row("media_index", At("out2"), gives("out2", &BASE)),
            row("media_index", Null, says("media_index: media_index: expected a xattn_tensor, got null")),
            row("plan", At("plan"), Seen::Gives(planned)),
        ],
    }
}

#[test]
fn norm_fields() {
    norm().check();
}

#[test]
fn tensor_fields() {
    tensor().check();
    // Where the array lies, so that each of its elements can be moved.
    assert_eq!(offset_of!(xattn_tensor, shape), super::header::committed().of("xattn_tensor").field("shape").offset);
}

#[test]
fn linear_fields() {
    linear().check();
}

#[test]
fn gated_residual_fields() {
    gated_residual().check();
}

#[test]
fn media_index_fields() {
    media_index().check();
}
