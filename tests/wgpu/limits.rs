//! Limits that the test forces: matrices are split, what cannot be split is refused.

use std::sync::Arc;

use xattn::ops::{
    Activation, Attention, AttentionArgs, Linear, LinearArgs, Matrix, MediaIndex, MediaIndexArgs, MediaSource, Norm,
    NormArgs, NormKind, Segment, Source,
};
use xattn::wgpu::Limits;
use xattn::{
    DType, Device, Dispatch, HostTensor, Recorder, Spec, Tensor, Weight, WeightSource, WgpuOptions, Workspace,
};

use crate::support::{device, integers, product, read, tensor};

fn limited(change: impl FnOnce(&mut Limits)) -> Option<Device> {
    let mut limits = Limits::default();
    change(&mut limits);
    let mut options = WgpuOptions::default();
    options.limits = Some(limits);
    device(&options)
}

/// Result and dispatches of a product whose matrix is `[n, k]`.
fn run(device: &Device, prepared: bool, rows: usize, n: usize, k: usize) -> (Vec<f32>, u32) {
    let (x, w) = (integers(rows * k, 1), integers(n * k, 2));
    let x = tensor(device, &x, &[1, rows, k], DType::F32);
    let host = HostTensor::from_slice(&w, &[n, k]).unwrap();
    let raw = tensor(device, &w, &[n, k], DType::F32);
    let mut out = Tensor::zeros(device, DType::F32, &[1, rows, n]).unwrap();
    let weight = Arc::new(Weight::prepare(device, &WeightSource::stacked(vec![host]), DType::F32).unwrap());
    let (shapes_weight, weight) = match prepared {
        true => (Matrix::Prepared(weight.clone()), Matrix::Prepared(weight)),
        false => (Matrix::View(raw.spec()), Matrix::View(raw.view())),
    };
    let shapes = LinearArgs::new(x.spec(), shapes_weight, out.spec());
    let op = Linear::default().prepare(device, shapes).unwrap();
    let mut workspace = Workspace::new(device, op.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    op.enqueue(&mut recorder, LinearArgs::new(x.view(), weight, out.view_mut()), &mut workspace).unwrap();
    let Recorder::Wgpu(inner) = &recorder else { unreachable!() };
    let dispatches = inner.dispatches();
    device.finish(recorder).unwrap();
    (read(device, &out), dispatches)
}

#[test]
fn matrices_beyond_the_binding_limit_are_split() {
    let (rows, n, k) = (7, 300, 40);
    let (x, w) = (integers(rows * k, 1), integers(n * k, 2));
    let expected = product(&x, &w, rows, n, k);
    let Some(whole) = limited(|_| ()) else { return };
    // 300 rows of 160 bytes. Prepared: 5 blocks of 64 rows, 3 tiles each, 12288 bytes a block; a
    // binding holds one, or two. As it lies: 64 rows are 10240 bytes, and 256 bytes go to the
    // alignment.
    for (limit, prepared, dispatches) in
        [(12288, true, 5), (30000, true, 3), (12288, false, 5), (30000, false, 3), (65536, false, 1)]
    {
        let Some(device) = limited(|l| l.max_storage_buffer_binding_size = limit) else { return };
        assert_eq!(run(&device, prepared, rows, n, k), (expected.clone(), dispatches), "{limit} {prepared}");
    }
    assert_eq!(run(&whole, true, rows, n, k), (expected.clone(), 1));
    assert_eq!(run(&whole, false, rows, n, k), (expected, 1));
}

/// Both matrices of a pair go on where the part before ended.
#[test]
fn pairs_beyond_the_binding_limit_are_split_alike() {
    let (rows, n, k) = (7, 300, 40);
    let run = |device: &Device| {
        let x = tensor(device, &integers(rows * k, 1), &[1, rows, k], DType::F32);
        let [gate, up] = [2, 6].map(|salt| tensor(device, &integers(n * k, salt), &[n, k], DType::F32));
        let mut out = Tensor::zeros(device, DType::F32, &[1, rows, n]).unwrap();
        let args = LinearArgs::new(x.view(), Matrix::Pair(gate.view(), up.view()), out.view_mut());
        Linear { activation: Activation::SwiGlu, ..Linear::default() }.run(device, args).unwrap();
        read(device, &out)
    };
    let Some(whole) = limited(|_| ()) else { return };
    let expected = run(&whole);
    assert!(expected.iter().any(|&y| y != 0.0));
    for limit in [12288, 30000] {
        let Some(device) = limited(|l| l.max_storage_buffer_binding_size = limit) else { return };
        assert_eq!(run(&device), expected, "{limit}");
    }
}

#[test]
fn what_cannot_be_split_is_refused_by_name() {
    let Some(device) = limited(|l| l.max_storage_buffer_binding_size = 4096) else { return };
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5 };
    let spec = Spec::contiguous(DType::F32, &[1, 4, 1, 300]).unwrap();
    let error = norm.prepare(&device, NormArgs::new(Source::From(spec), None, None, spec)).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "norm: x of 4800 bytes is not supported by wgpu; available: at most 3840 bytes (max_storage_buffer_binding_size 4096)"
    );
    let host = HostTensor::from_slice(&[0.0f32; 128], &[1, 128]).unwrap();
    let error = Weight::prepare(&device, &WeightSource::stacked(vec![host]), DType::F32).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "linear: weight with 128 columns of f32 is not supported by wgpu; available: 64 rows of at most 4096 bytes"
    );
}

#[test]
fn workgroup_memory_is_checked_since_wgpu_does_not() {
    let Some(device) = limited(|l| l.max_compute_workgroup_storage_size = 8192) else { return };
    let x = Spec::contiguous(DType::F32, &[1, 4, 8]).unwrap();
    let w = Spec::contiguous(DType::F32, &[8, 8]).unwrap();
    let error = Linear::default().prepare(&device, LinearArgs::new(x, Matrix::View(w), x)).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "linear: tier: expected at most 8192 bytes of workgroup memory, got 8720");
}

#[test]
fn workgroup_memory_of_every_op_that_has_some() {
    let Some(device) = limited(|l| l.max_compute_workgroup_storage_size = 4096) else { return };
    let refused = |op: &str, bytes: u32, error: Option<xattn::Error>| {
        let expected = format!("{op}: tier: expected at most 4096 bytes of workgroup memory, got {bytes}");
        assert_eq!(error.unwrap().to_string(), expected);
    };
    let x = Spec::contiguous(DType::F32, &[1, 4, 1, 8]).unwrap();
    refused("attention", 15936, Attention::for_head_dim(8).prepare(&device, AttentionArgs::new(x, x, x, x)).err());
    let phi = Spec::contiguous(DType::I32, &[1, 4]).unwrap();
    let source = MediaSource::Tokens { ids: phi, token: 1 };
    let args =
        MediaIndexArgs { source, carry_in: None, carry_out: None, media_count: None, media_index: phi, plan: None };
    refused("media_index", 5120, MediaIndex::default().prepare(&device, args).err());
}

#[test]
fn buffers_of_a_stage() {
    let Some(device) = limited(|l| l.max_storage_buffers_per_shader_stage = 4) else { return };
    let x = Spec::contiguous(DType::F32, &[1, 4, 1, 8]).unwrap();
    let mut args = AttentionArgs::new(x, x, x, x);
    assert!(Attention::for_head_dim(8).prepare(&device, args.clone()).is_ok());
    args.second = Some(Segment::new(x, x));
    let error = Attention::for_head_dim(8).prepare(&device, args).err().unwrap();
    assert_eq!(error.to_string(), "attention: operands: expected at most 4 storage buffers, got 6");
}

/// wgpu checks this one, when the pipeline is made.
#[test]
fn invocations_of_a_workgroup() {
    let Some(device) = limited(|l| l.max_compute_invocations_per_workgroup = 32) else { return };
    let x = Spec::contiguous(DType::F32, &[1, 4, 1, 8]).unwrap();
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5 };
    let error = norm.prepare(&device, NormArgs::new(Source::From(x), None, None, x)).err().unwrap().to_string();
    assert!(error.starts_with("norm: wgpu: expected calls that wgpu accepts, got ") && error.contains("32"), "{error}");
    // The device goes on.
    let x = tensor(&device, &[1.0, 2.0], &[2], DType::F32);
    assert_eq!(read(&device, &x), [1.0, 2.0]);
}
