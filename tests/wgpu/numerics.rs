//! Rounding and functions of the shaders, against the host's; bits that must repeat.

use std::sync::Arc;

use xattn::ops::{
    Activation, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, RowReduce,
    Source,
};
use xattn::{DType, Device, Dispatch, Element, HostTensor, Tensor, Weight, WeightSource, WgpuOptions, WgpuTier};

use crate::support::{device, read, tensor};

/// x, rounded to `dtype` by the device: x + tanh(0) · 0.
fn rounded(device: &Device, x: &[f32], dtype: DType) -> HostTensor<'static> {
    let shape = [1, 1, x.len()];
    let from = tensor(device, x, &shape, DType::F32);
    let y = Tensor::zeros(device, DType::F32, &shape).unwrap();
    let gate = tensor(device, &[0.0], &[1], DType::F32);
    let mut out = Tensor::zeros(device, dtype, &shape).unwrap();
    let args = GatedResidualArgs {
        x: Source::From(from.view()),
        y: y.view(),
        gate: gate.view(),
        row_mask: None,
        out: out.view_mut(),
    };
    GatedResidual.run(device, args).unwrap();
    out.download(device).unwrap()
}

fn expect_bits<T: Element + PartialEq>(got: &HostTensor<'_>, x: &[f32], round: impl Fn(f32) -> T) {
    for (&x, got) in x.iter().zip(got.to_vec::<T>().unwrap()) {
        assert_eq!(got, round(x), "{x:e} {:08x}", x.to_bits());
    }
}

#[test]
fn every_16_bit_number_its_middles_and_their_neighbours_round_to_nearest_even() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let around = |x: f32| [x, f32::from_bits(x.to_bits() + 1), f32::from_bits(x.to_bits().wrapping_sub(1))];
    let mut values = Vec::new();
    for bits in 0..0x7c00u16 {
        let (a, b) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
        let middle = if b.is_finite() { (a + b) / 2.0 } else { 65520.0 };
        values.extend([a, -a].into_iter().chain(around(middle)));
    }
    values.retain(|x: &f32| x.is_normal() || *x == 0.0);
    let got = rounded(&device, &values, DType::F16);
    // x + 0 of the kernel loses the sign of zero: f16::from_f32 keeps it.
    expect_bits::<half::f16>(&got, &values, |x| half::f16::from_f32(x + 0.0));
    let mut values = Vec::new();
    for bits in (0x0080..0x7f80u16).step_by(3) {
        let a = f32::from_bits(u32::from(bits) << 16);
        values.extend([a, -a].into_iter().chain(around(f32::from_bits(u32::from(bits) << 16 | 0x8000))));
    }
    let got = rounded(&device, &values, DType::BF16);
    expect_bits::<half::bf16>(&got, &values, half::bf16::from_f32);
}

fn ulps(got: f32, truth: f64) -> f64 {
    let ulp = 2f64.powi((truth.abs().log2().floor() as i32).max(-126) - 23);
    (f64::from(got) - truth).abs() / ulp
}

/// Arguments of both signs from 2^-20 to `to`, densely.
fn sweep(to: f32) -> Vec<f32> {
    let (first, last) = (2f32.powi(-20).to_bits(), to.to_bits());
    (first..last).step_by(1009).flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)]).collect()
}

#[test]
fn tanh_within_its_bound() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let gates = sweep(30.0);
    let n = gates.len();
    let zero = Tensor::zeros(&device, DType::F32, &[1, 1, n]).unwrap();
    let one = tensor(&device, &vec![1.0; n], &[1, 1, n], DType::F32);
    let gate = tensor(&device, &gates, &[n], DType::F32);
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, n]).unwrap();
    let args = GatedResidualArgs {
        x: Source::From(zero.view()),
        y: one.view(),
        gate: gate.view(),
        row_mask: None,
        out: out.view_mut(),
    };
    GatedResidual.run(&device, args).unwrap();
    let errors = gates.iter().zip(read(&device, &out)).map(|(&x, y)| (ulps(y, f64::from(x).tanh()), x));
    let (worst, at) = errors.fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
    println!("tanh: {n} arguments, {worst:.3} ulp at {at}");
    assert!(worst <= 0.54, "{worst} ulp");
}

/// act(x) by a product with the matrix `[1]`.
fn activation(device: &Device, x: &[f32], activation: Activation) -> Vec<f32> {
    let n = x.len();
    let x = tensor(device, x, &[1, n, 1], DType::F32);
    let one = tensor(device, &[1.0], &[1, 1], DType::F32);
    let mut out = Tensor::zeros(device, DType::F32, &[1, n, 1]).unwrap();
    let op = Linear { activation, reduce: RowReduce::None };
    let weight = Matrix::View(one.view());
    op.run(device, LinearArgs::new(x.view(), weight, out.view_mut())).unwrap();
    read(device, &out)
}

#[test]
fn gelu_within_its_bound() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let x: Vec<f32> = sweep(20.0).into_iter().filter(|&x| x > -5.0).collect();
    let phi = |x: f64| 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
    let y = activation(&device, &x, Activation::Gelu);
    let errors = |negative: bool| {
        let some = x.iter().zip(&y).filter(|(x, _)| (**x < 0.0) == negative);
        some.map(|(&x, &y)| ulps(y, f64::from(x) * phi(f64::from(x)))).fold(0.0, f64::max)
    };
    let (positive, negative) = (errors(false), errors(true));
    println!("gelu: {positive:.2} ulp, {negative:.2} ulp below zero");
    // What the shader's comment says; 2.5 more where the adapter's division is that loose.
    assert!(positive <= 8.5 && negative <= 15.0, "{positive} {negative}");
    // The absolute error that `docs/numerics.md` allows.
    for (&x, &y) in x.iter().zip(&y) {
        let x = f64::from(x);
        assert!((f64::from(y) - x * phi(x)).abs() <= 7.0 * 2f64.powi(-24) * x.abs(), "{x}");
    }
}

/// A wide norm and its bits on a tier.
fn norm_bits(tier: WgpuTier) -> Option<Vec<u32>> {
    let mut options = WgpuOptions::default();
    options.tier = Some(tier);
    let device = match Device::open_wgpu(&options) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let values: Vec<f32> = (0..3 * 5000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
    let x = tensor(&device, &values, &[1, 3, 1, 5000], DType::F32);
    let op = Norm { kind: NormKind::Layer, eps: 1e-5 };
    let run = || {
        let mut out = Tensor::zeros(&device, DType::F32, &[1, 3, 1, 5000]).unwrap();
        op.run(&device, NormArgs::new(Source::From(x.view()), None, None, out.view_mut())).unwrap();
        read(&device, &out).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let first = run();
    for _ in 0..20 {
        assert!(run() == first, "the same op, other bits");
    }
    Some(first)
}

#[test]
fn the_same_op_gives_the_same_bits_on_every_tier_and_both_are_right() {
    if device(&WgpuOptions::default()).is_none() {
        return;
    }
    let (Some(a), Some(b)) = (norm_bits(WgpuTier::Baseline), norm_bits(WgpuTier::SubgroupsF16)) else { return };
    let worst = a.iter().zip(&b).map(|(&a, &b)| (f32::from_bits(a) - f32::from_bits(b)).abs()).fold(0.0, f32::max);
    // Results are below 2; the sums differ in order only.
    assert!(worst <= 4.0 * f32::EPSILON, "{worst}");
}

/// Sums of equal terms, where a single running f32 sum drifts: 16384 times 0.1 is off by 1.5e-4 of
/// its value then. Sums of at most `block` terms, added one after the other, are within (block +
/// number of blocks) · 2^-24 of it, whatever the terms.
#[test]
fn long_sums_are_made_in_blocks() {
    const K: usize = 16384;
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let w = vec![0.1f32; K];
    let truth = f64::from(0.1f32) * K as f64;
    let bound = |block: usize| (block + K / block) as f64 * 2f64.powi(-24) * truth;
    let running: f32 = w.iter().sum();
    assert!((f64::from(running) - truth).abs() > 2.0 * bound(1024), "a running sum would pass too: {running}");

    let view = tensor(&device, &w, &[1, K], DType::F32);
    let source = WeightSource::stacked(vec![HostTensor::from_slice(&w, &[1, K]).unwrap()]);
    let prepared = Weight::prepare(&device, &source, DType::F32).map(Arc::new).unwrap();
    // `linear` with 4 rows and 1 row to an invocation; `linear_few`, which makes 16 sums.
    let cases = [
        (64, Matrix::View(view.view()), 256),
        (2, Matrix::View(view.view()), 256),
        (64, Matrix::Prepared(prepared.clone()), 256),
        (2, Matrix::Prepared(prepared), K / 16),
    ];
    for (rows, matrix, block) in cases {
        let x = tensor(&device, &vec![1.0; rows * K], &[1, rows, K], DType::F32);
        let mut y = Tensor::zeros(&device, DType::F32, &[1, rows, 1]).unwrap();
        Linear::default().run(&device, LinearArgs::new(x.view(), matrix, y.view_mut())).unwrap();
        for got in read(&device, &y) {
            let error = (f64::from(got) - truth).abs();
            assert!(error <= bound(block), "{rows} rows, blocks of {block}: {got} is off by {error:e}");
        }
    }
}
