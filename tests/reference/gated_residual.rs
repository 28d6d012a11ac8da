use xattn::ops::{GatedResidual, GatedResidualArgs, Op, Source};
use xattn::{DType, Device, Dispatch, Element, ViewMut};

use crate::{assert_close, reference, spec, view, view_mut};

/// tanh(0.5), to 17 digits.
const TANH_HALF: f64 = 0.46211715726000976;

#[test]
fn adds_the_gated_branch() {
    let (x, y, mut out) = ([1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 2.0, 10.0], [0.0; 4]);
    let args = GatedResidualArgs {
        x: Source::From(view(&x, &[1, 2, 2])),
        y: view(&y, &[1, 2, 2]),
        gate: view(&[0.5], &[1]),
        row_mask: None,
        out: view_mut(&mut out, &[1, 2, 2]),
    };
    GatedResidual.run(&reference(), args).unwrap();
    assert_close(&out, &[1.0 + TANH_HALF, 2.0 - TANH_HALF, 3.0 + 2.0 * TANH_HALF, 4.0 + 10.0 * TANH_HALF]);
}

#[test]
fn in_place_per_channel_and_masked_rows_hide_nan() {
    let mut x = [1.0, 2.0, 3.0, 4.0];
    let args = GatedResidualArgs {
        x: Source::InPlace,
        y: view(&[1.0, 1.0, f64::NAN, f64::INFINITY], &[1, 2, 2]),
        gate: view(&[0.0, 0.5], &[2]),
        row_mask: Some(view(&[7u32, 0], &[1, 2])),
        out: view_mut(&mut x, &[1, 2, 2]),
    };
    GatedResidual.run(&reference(), args).unwrap();
    assert_close(&x, &[1.0, 2.0 + TANH_HALF, 3.0, 4.0]);
}

#[test]
fn rounds_once_and_leaves_gaps() {
    // bf16 has 8 bits: 256 + tanh(20) = 257 is a tie of 256 and 258 and goes to 256.
    let bf16 = |x: f32| half::bf16::from_f32(x);
    let (gate, mut out) = ([half::f16::from_f32(20.0)], [bf16(-1.0); 4]);
    let args = GatedResidualArgs {
        x: Source::From(view(&[256.0f32, 3.0], &[1, 2, 1])),
        y: view(&[1.0f64, 1.0], &[1, 2, 1]),
        gate: view(&gate, &[1]),
        row_mask: None,
        out: ViewMut::strided(&mut out, &[1, 2, 1], &[0, 2, 1]).unwrap(),
    };
    GatedResidual.run(&Device::yardstick(3), args).unwrap();
    assert_eq!(out, [256.0, -1.0, 4.0, -1.0].map(bf16));
}

/// Results in double precision beyond the middle of two neighbours by less than an f32 tells, and
/// by what lies in the low 32 bits.
#[test]
fn double_precision_is_rounded_once() {
    fn run<T: Element + Default>(x: f64) -> T {
        let (x, y, gate, mut out) = ([x], [0.0f64], [1.0f64], [T::default()]);
        let args = GatedResidualArgs {
            x: Source::From(view(&x, &[1, 1, 1])),
            y: view(&y, &[1, 1, 1]),
            gate: view(&gate, &[1]),
            row_mask: None,
            out: view_mut(&mut out, &[1, 1, 1]),
        };
        GatedResidual.run(&reference(), args).unwrap();
        out[0]
    }
    assert_eq!(run::<half::f16>(1.0 + 2f64.powi(-11) + 2f64.powi(-40)).to_f64(), 1.0 + 2f64.powi(-10));
    assert_eq!(run::<half::bf16>(1.0 + 2f64.powi(-8) + 2f64.powi(-22)).to_f64(), 1.0 + 2f64.powi(-7));
}

#[test]
fn nothing_to_do() {
    for shape in [[0, 2, 3], [2, 0, 3], [2, 2, 0]] {
        let args = GatedResidualArgs {
            x: Source::InPlace,
            y: view::<f64>(&[], &shape),
            gate: view(&[1.0], &[1]),
            row_mask: None,
            out: view_mut::<f64>(&mut [], &shape),
        };
        GatedResidual.run(&reference(), args).unwrap();
    }
}

#[test]
fn messages() {
    let f32s = |shape: &[usize]| spec(DType::F32, shape);
    let good = GatedResidualArgs {
        x: Source::InPlace,
        y: f32s(&[1, 2, 4]),
        gate: f32s(&[4]),
        row_mask: None,
        out: f32s(&[1, 2, 4]),
    };
    let message = |args| GatedResidual.check(&args).unwrap_err().to_string();
    GatedResidual.check(&good).unwrap();
    assert_eq!(
        message(GatedResidualArgs { gate: f32s(&[3]), ..good.clone() }),
        "gated_residual: gate: expected shape [1] or [4], got f32[3]"
    );
    assert_eq!(
        message(GatedResidualArgs { y: f32s(&[1, 2, 5]), ..good.clone() }),
        "gated_residual: y: expected shape that of out = [1, 2, 4], got f32[1, 2, 5]"
    );
    assert_eq!(
        message(GatedResidualArgs { row_mask: Some(f32s(&[1, 2])), ..good }),
        "gated_residual: row_mask: expected u32, got f32"
    );
}
