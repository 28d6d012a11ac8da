use std::sync::Arc;

use xattn::ops::{Activation, Linear, LinearArgs, Matrix, Op, RowReduce, Source};
use xattn::{DType, Device, Dispatch, HostTensor, Weight, WeightSource, Workspace};

use crate::{assert_close, reference, spec, view, view_mut};

const PLAIN: Linear = Linear { activation: Activation::None, reduce: RowReduce::None };
const TANH_HALF: f64 = 0.46211715726000976;

fn with(activation: Activation) -> Linear {
    Linear { activation, ..PLAIN }
}

/// `activation(x)` through a product with [1].
fn activated(activation: Activation, x: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    let shape = [1, x.len(), 1];
    let args = LinearArgs::new(view(x, &shape), Matrix::View(view(&[1.0], &[1, 1])), view_mut(&mut out, &shape));
    with(activation).run(&reference(), args).unwrap();
    out
}

#[test]
fn product_with_bias() {
    let mut out = [0.0; 6];
    let args = LinearArgs {
        bias: Some(view(&[100.0, 200.0, 300.0], &[3])),
        ..LinearArgs::new(
            view(&[1.0, 2.0, 3.0, 4.0], &[2, 1, 2]),
            Matrix::View(view(&[1.0, 0.0, 0.0, 1.0, 1.0, 10.0], &[3, 2])),
            view_mut(&mut out, &[2, 1, 3]),
        )
    };
    PLAIN.run(&reference(), args).unwrap();
    assert_close(&out, &[101.0, 202.0, 321.0, 103.0, 204.0, 343.0]);
}

#[test]
fn activations() {
    let x = [-1.0, 0.0, 2.0, f64::NAN];
    // x Φ(x) with Φ(1) = 0.8413447460685429 and Φ(2) = 0.9772498680518208.
    let nan = f64::NAN;
    assert_close(&activated(Activation::Gelu, &x), &[-0.15865525393145707, 0.0, 1.9544997361036416, nan]);
    assert_close(&activated(Activation::Relu, &x), &[0.0, 0.0, 2.0, nan]);
    assert_close(&activated(Activation::SquaredRelu, &x), &[0.0, 0.0, 4.0, nan]);
    assert_close(&activated(Activation::None, &x), &x);
}

#[test]
fn swiglu_of_views_and_of_a_prepared_pair() {
    // gate = [2, 0], up = [3, 5]; silu(2) = 2 / (1 + e⁻²) = 1.7615941559557649.
    let (gate, up, x) = ([1.0, 1.0, 0.0, 0.0], [1.0, 2.0, 3.0, 2.0], [1.0, 1.0]);
    let matrices = |data: &[f64]| HostTensor::from_slice(data, &[2, 2]).unwrap();
    let source = WeightSource::glu(matrices(&gate), matrices(&up));
    let prepared = Weight::prepare(&reference(), &source, DType::F64).unwrap();
    for weight in [Matrix::Pair(view(&gate, &[2, 2]), view(&up, &[2, 2])), Matrix::Prepared(Arc::new(prepared))] {
        let mut out = [-1.0; 2];
        let args = LinearArgs::new(view(&x, &[1, 1, 2]), weight, view_mut(&mut out, &[1, 1, 2]));
        with(Activation::SwiGlu).run(&reference(), args).unwrap();
        assert_close(&out, &[3.0 * 1.7615941559557649, 0.0]);
    }
}

#[test]
fn prepared_weights_are_stacked_and_rounded_once() {
    // 257 lies between the bf16 numbers 256 and 258; the tie goes to 256.
    let part = |data: &[f64]| HostTensor::from_slice(data, &[1, 1]).unwrap();
    let source = WeightSource::stacked(vec![part(&[257.0]), part(&[3.0])]);
    let weight = Arc::new(Weight::prepare(&reference(), &source, DType::BF16).unwrap());
    let mut out = [0.0; 2];
    let args = LinearArgs::new(view(&[2.0], &[1, 1, 1]), Matrix::Prepared(weight), view_mut(&mut out, &[1, 1, 2]));
    PLAIN.run(&reference(), args).unwrap();
    assert_close(&out, &[512.0, 6.0]);
}

#[test]
fn gated_residual_in_place_with_masked_rows() {
    // relu(x + bias) = [3, 0], NaN in the row that is masked.
    let mut stream = [10.0, 20.0, 30.0, 40.0];
    let args = LinearArgs {
        bias: Some(view(&[1.0, -5.0], &[2])),
        residual: Some(Source::InPlace),
        gate: Some(view(&[0.5, 1.0], &[2])),
        row_mask: Some(view(&[1u32, 0], &[1, 2])),
        ..LinearArgs::new(
            view(&[2.0, 2.0, f64::NAN, f64::NAN], &[1, 2, 2]),
            Matrix::View(view(&[1.0, 0.0, 0.0, 1.0], &[2, 2])),
            view_mut(&mut stream, &[1, 2, 2]),
        )
    };
    with(Activation::Relu).run(&reference(), args).unwrap();
    assert_close(&stream, &[10.0 + 3.0 * TANH_HALF, 20.0, 30.0, 40.0]);
}

#[test]
fn gate_and_mask_without_residual_start_at_zero() {
    let mut out = [-1.0; 2];
    let args = LinearArgs {
        gate: Some(view(&[0.5f32], &[1])),
        row_mask: Some(view(&[0u32, 2], &[1, 2])),
        ..LinearArgs::new(
            view(&[4.0, 4.0], &[1, 2, 1]),
            Matrix::View(view(&[1.0], &[1, 1])),
            view_mut(&mut out, &[1, 2, 1]),
        )
    };
    PLAIN.run(&reference(), args).unwrap();
    assert_close(&out, &[0.0, 4.0 * TANH_HALF]);
}

#[test]
fn reductions_over_rows() {
    let x = [1.0, -5.0, 4.0, -7.0, 1.0, -6.0, f64::NAN, 1.0, 2.0, 3.0, 0.0, 5.0];
    let run = |reduce| {
        let mut out = [0.0; 4];
        let args = LinearArgs::new(
            view(&x, &[2, 3, 2]),
            Matrix::View(view(&[1.0, 0.0, 0.0, 1.0], &[2, 2])),
            view_mut(&mut out, &[2, 1, 2]),
        );
        Linear { reduce, ..PLAIN }.run(&reference(), args).unwrap();
        out
    };
    // NaN · 0 is NaN: both columns of the second batch entry hold one.
    assert_close(&run(RowReduce::Max), &[4.0, -5.0, f64::NAN, f64::NAN]);
    assert_close(&run(RowReduce::Mean), &[2.0, -6.0, f64::NAN, f64::NAN]);
}

#[test]
fn empty_sums_and_empty_shapes() {
    let mut out = [-1.0; 2];
    let args = LinearArgs {
        bias: Some(view(&[3.0], &[1])),
        ..LinearArgs::new(
            view::<f64>(&[], &[1, 2, 0]),
            Matrix::View(view::<f64>(&[], &[1, 0])),
            view_mut(&mut out, &[1, 2, 1]),
        )
    };
    PLAIN.run(&reference(), args).unwrap();
    assert_eq!(out, [3.0, 3.0]);
    for (x, w, out) in [([0, 2, 1], [1, 1], [0, 2, 1]), ([2, 0, 1], [1, 1], [2, 0, 1]), ([1, 1, 1], [0, 1], [1, 1, 0])]
    {
        let one = [1.0];
        let args = LinearArgs::new(view(&one, &x), Matrix::View(view(&one, &w)), view_mut::<f64>(&mut [], &out));
        PLAIN.run(&reference(), args).unwrap();
    }
}

#[test]
fn prepared_weights_that_do_not_fit() {
    let matrix =
        |n: usize, k: usize| WeightSource::stacked(vec![HostTensor::from_slice(&vec![1.0; n * k], &[n, k]).unwrap()]);
    let weight = |n, k| Arc::new(Weight::prepare(&reference(), &matrix(n, k), DType::F32).unwrap());
    let shapes =
        |w, n| LinearArgs::new(spec(DType::F64, &[1, 1, 2]), Matrix::Prepared(w), spec(DType::F64, &[1, 1, n]));
    let device = reference();
    let prepared = PLAIN.prepare(&device, shapes(weight(3, 2), 3)).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut enqueue = |w| {
        let mut out = [0.0; 3];
        let args = LinearArgs::new(view(&[1.0, 1.0], &[1, 1, 2]), Matrix::Prepared(w), view_mut(&mut out, &[1, 1, 3]));
        prepared.enqueue(&mut device.recorder().unwrap(), args, &mut workspace).map(|()| out)
    };
    assert_eq!(enqueue(weight(3, 2)).unwrap(), [2.0; 3]);
    assert_eq!(
        enqueue(weight(2, 2)).unwrap_err().to_string(),
        "linear: weight: expected Weight(f32[3, 2]) as prepared, got Weight(f32[2, 2])"
    );
    assert_eq!(
        enqueue(weight(3, 4)).unwrap_err().to_string(),
        "linear: weight: expected Weight(f32[3, 2]) as prepared, got Weight(f32[3, 4])"
    );
    assert_eq!(
        PLAIN.prepare(&device, shapes(weight(3, 4), 3)).err().unwrap().to_string(),
        "linear: weight: expected 2 columns as x, got Weight(f32[3, 4])"
    );
}

#[test]
fn prepared_weights_of_another_device() {
    let source = WeightSource::stacked(vec![HostTensor::from_slice(&[1.0f32, 2.0], &[1, 2]).unwrap()]);
    let weight = Arc::new(Weight::prepare(&Device::cpu(), &source, DType::F32).unwrap());
    let shapes = LinearArgs::new(spec(DType::F32, &[1, 1, 2]), Matrix::Prepared(weight), spec(DType::F32, &[1, 1, 1]));
    assert_eq!(
        PLAIN.prepare(&reference(), shapes).err().unwrap().to_string(),
        "linear: weight: expected a weight prepared for reference, got Weight(f32[1, 2])"
    );
}

#[test]
fn messages() {
    let f32s = |shape: &[usize]| spec(DType::F32, shape);
    let good = LinearArgs::new(f32s(&[1, 2, 4]), Matrix::View(f32s(&[3, 4])), f32s(&[1, 2, 3]));
    let message = |op: Linear, args| op.check(&args).unwrap_err().to_string();
    PLAIN.check(&good).unwrap();
    assert_eq!(
        message(with(Activation::SwiGlu), good.clone()),
        "linear: weight: expected a pair of matrices for a gated activation, got one matrix"
    );
    assert_eq!(
        message(PLAIN, LinearArgs { weight: Matrix::View(f32s(&[3, 5])), ..good.clone() }),
        "linear: weight: expected shape [N, K] = [3, 4], got f32[3, 5]"
    );
    assert_eq!(
        message(PLAIN, LinearArgs { gate: Some(f32s(&[2])), ..good.clone() }),
        "linear: gate: expected shape [1] or [3], got f32[2]"
    );
    let beside = [
        LinearArgs { residual: Some(Source::From(f32s(&[1, 2, 3]))), ..good.clone() },
        LinearArgs { gate: Some(f32s(&[1])), ..good.clone() },
        LinearArgs { row_mask: Some(spec(DType::U32, &[1, 2])), ..good.clone() },
    ];
    for args in beside {
        assert_eq!(
            message(Linear { reduce: RowReduce::Max, ..PLAIN }, args),
            "linear: reduce: expected None beside a residual, gate or row mask, got Max"
        );
    }
    assert_eq!(
        message(Linear { reduce: RowReduce::Mean, ..PLAIN }, LinearArgs { x: f32s(&[1, 0, 4]), ..good.clone() }),
        "linear: x: expected at least one row to reduce, got f32[1, 0, 4]"
    );
    assert_eq!(
        message(PLAIN, LinearArgs { x: spec(DType::I32, &[1, 2, 4]), ..good }),
        "linear: x: expected a real dtype, got i32"
    );
}
