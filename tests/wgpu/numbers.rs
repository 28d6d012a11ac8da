//! What a call costs, as numbers: dispatches that the recorder counted, bytes that the model says.

use xattn::ops::{GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Source};
use xattn::{DType, Device, Dispatch, Recorder, Tensor, View, ViewMut, WgpuOptions, Workspace};

use crate::support::device;

/// Dispatches and model bytes of one call.
fn numbers<O: Dispatch>(device: &Device, op: &O, args: O::Args<View<'_>, ViewMut<'_>>) -> (u32, u64) {
    let shapes = O::map(O::as_ref(&args), &mut |_, r: &View<'_>| Ok(r.spec()), &mut |_, w: &ViewMut<'_>| Ok(w.spec()));
    let prepared = op.prepare(device, shapes.unwrap()).unwrap();
    let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    let Recorder::Wgpu(inner) = &recorder else { unreachable!() };
    let dispatches = inner.dispatches();
    device.finish(recorder).unwrap();
    (dispatches, prepared.cost().bytes)
}

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

#[test]
fn one_dispatch_per_op_and_the_bytes_of_the_model() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (rows, k, n) = (100, 48, 33);

    let (x, gate) = (zeros(&device, DType::BF16, &[1, rows, n]), zeros(&device, DType::F32, &[1]));
    let mut out = zeros(&device, DType::F32, &[1, rows, n]);
    let args =
        GatedResidualArgs { x: Source::InPlace, y: x.view(), gate: gate.view(), row_mask: None, out: out.view_mut() };
    // y, the gate, out read and written.
    assert_eq!(numbers(&device, &GatedResidual, args), (1, (2 * 3300 + 4 + 2 * 4 * 3300) as u64));

    let (x, weight) = (zeros(&device, DType::F16, &[1, rows, 1, k]), zeros(&device, DType::F32, &[k]));
    let mut out = zeros(&device, DType::F16, &[1, rows, 1, k]);
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5 };
    let args = NormArgs::new(Source::From(x.view()), Some(weight.view()), None, out.view_mut());
    assert_eq!(numbers(&device, &norm, args), (1, (2 * 2 * 4800 + 4 * 48) as u64));

    // Bias, gate, residual in place: all in the product's epilogue.
    let (x, w) = (zeros(&device, DType::F32, &[1, rows, k]), zeros(&device, DType::F32, &[n, k]));
    let bias = zeros(&device, DType::F32, &[n]);
    let mut out = zeros(&device, DType::F32, &[1, rows, n]);
    let args = LinearArgs {
        bias: Some(bias.view()),
        gate: Some(gate.view()),
        residual: Some(Source::InPlace),
        ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
    };
    let bytes = 4 * (rows * k + n * k + n + 1 + 2 * rows * n);
    assert_eq!(numbers(&device, &Linear::default(), args), (1, bytes as u64));
}
