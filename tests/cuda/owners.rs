//! What belongs to which context, and how long code lives. `tests/soundness/cuda.rs` says the same
//! of devices of our own, in safe code.

use xattn::bench::RandomWeights;
use xattn::bridge::{PerceiverResampler, Precision, ResamplerArgs, ResamplerConfig};
use xattn::cudarc::driver::{CudaContext, sys};
use xattn::ops::{GatedResidual, GatedResidualArgs, Keys, Source};
use xattn::{
    CudaMemory, CudaOptions, CudaRecorder, DType, Device, Dispatch, Memory, Prepared, Recorder, View, ViewMut,
    Workspace,
};

use crate::support::{child, device, emulated, integers, is_child, said, spec, tensor};

/// `out = out + y` of eight elements: the gate is so large that its tanh is 1.
fn sum(device: &Device) -> Prepared<GatedResidual> {
    let (row, gate) = (spec(DType::F32, &[1, 1, 8]), spec(DType::F32, &[1]));
    GatedResidual.prepare(device, GatedResidualArgs::new(Source::InPlace, row, gate, row)).unwrap()
}

#[test]
fn a_stream_of_another_context_is_refused() {
    let Some(own) = device() else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let mut other = std::ptr::null_mut();
    // SAFETY: an engine's call, with a device that exists. The new context is taken away from this
    // thread again.
    unsafe {
        assert_eq!(sys::cuCtxCreate_v4(&mut other, std::ptr::null_mut(), 0, 0), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxPopCurrent_v2(std::ptr::null_mut()), sys::CUresult::CUDA_SUCCESS);
    }
    let options = CudaOptions::from_env().unwrap();
    // SAFETY: the context outlives the device.
    let foreign = unsafe { Device::from_raw_cuda(other, &options) }.unwrap();
    for (device, taken) in [(&own, true), (&foreign, false)] {
        let prepared = sum(device);
        let gate = tensor(device, &[99.0], &[1], DType::F32);
        let y = tensor(device, &integers(8, 1), &[1, 1, 8], DType::F32);
        let mut out = tensor(device, &integers(8, 2), &[1, 1, 8], DType::F32);
        let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
        let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&stream));
        let args = GatedResidualArgs::new(Source::InPlace, y.view(), gate.view(), out.view_mut());
        let enqueued = prepared.enqueue(&mut recorder, args, &mut workspace).map_err(|error| error.to_string());
        // SAFETY: nothing is captured.
        let captured = unsafe { device.capture(&mut recorder, |_| Ok(())) }.err().map(|error| error.to_string());
        stream.synchronize().unwrap();
        if taken {
            assert_eq!((enqueued, captured), (Ok(()), None));
            continue;
        }
        let words = "gated_residual: recorder: expected one of this device, got one of another cuda device or context";
        assert_eq!(enqueued, Err(words.into()));
        let words = "graph: recorder: expected one of this device, got one of another cuda device or context";
        assert_eq!(captured.as_deref(), Some(words));
        assert_eq!(out.download(device).unwrap().to_f32().unwrap(), integers(8, 2), "nothing ran");
    }
    drop(foreign);
    // SAFETY: made above, and used by nothing.
    unsafe { sys::cuCtxDestroy_v2(other) };
}

/// Work of two streams may run at once, and both would write to it.
#[test]
fn a_workspace_stays_on_its_stream_until_it_is_released() {
    let Some(device) = device() else { return };
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let prepared = sum(&device);
    let gate = tensor(&device, &[99.0], &[1], DType::F32);
    let y = tensor(&device, &integers(8, 1), &[1, 1, 8], DType::F32);
    let mut out = tensor(&device, &integers(8, 2), &[1, 1, 8], DType::F32);
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut enqueue = |recorder: &mut Recorder<'_>, workspace: &mut Workspace| {
        let args = GatedResidualArgs::new(Source::InPlace, y.view(), gate.view(), out.view_mut());
        prepared.enqueue(recorder, args, workspace).map_err(|error| error.to_string())
    };
    let mut own = device.recorder().unwrap();
    enqueue(&mut own, &mut workspace).unwrap();
    enqueue(&mut own, &mut workspace).unwrap();
    let mut engines = Recorder::Cuda(CudaRecorder::from_stream(&stream));
    let words = "gated_residual: workspace: expected the stream that it was used on before, or `Workspace::release`, \
                 got another stream";
    assert_eq!(enqueue(&mut engines, &mut workspace), Err(words.into()));
    // All recorders of the device's own are one stream.
    enqueue(&mut device.recorder().unwrap(), &mut workspace).unwrap();
    device.finish(own).unwrap();
    // SAFETY: what was enqueued with it has run.
    unsafe { workspace.release() };
    enqueue(&mut engines, &mut workspace).unwrap();
    stream.synchronize().unwrap();
    let sum: Vec<f32> = integers(8, 2).iter().zip(integers(8, 1)).map(|(x, y)| x + 4.0 * y).collect();
    assert_eq!(out.download(&device).unwrap().to_f32().unwrap(), sum);
}

/// The same of a bridge, whose steps share it.
#[test]
fn a_bridges_workspace_stays_on_its_stream() {
    let Some(device) = device() else { return };
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let mut config = ResamplerConfig::new(16, 3, 2, 8);
    (config.layers, config.ffn_hidden) = (1, 16);
    let weights = RandomWeights::new(3).resampler(&config).unwrap();
    let resampler = PerceiverResampler::new(&device, &config, &weights, Precision::uniform(DType::F32)).unwrap();
    let features = tensor(&device, &integers(5 * 16, 1), &[1, 1, 5, 16], DType::F32);
    let mut out = tensor(&device, &integers(3 * 16, 2), &[1, 1, 3, 16], DType::F32);
    let shapes = ResamplerArgs { features: features.spec(), keys: Keys::All, offsets: None, out: out.spec() };
    let prepared = resampler.prepare(1, shapes).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut enqueue = |recorder: &mut Recorder<'_>, workspace: &mut Workspace| {
        let args = ResamplerArgs { features: features.view(), keys: Keys::All, offsets: None, out: out.view_mut() };
        prepared.enqueue(recorder, args, workspace).map_err(|error| error.to_string())
    };
    let mut own = device.recorder().unwrap();
    enqueue(&mut own, &mut workspace).unwrap();
    let mut engines = Recorder::Cuda(CudaRecorder::from_stream(&stream));
    let words = "perceiver_resampler: workspace: expected the stream that it was used on before, or `Workspace::release`, \
                 got another stream";
    assert_eq!(enqueue(&mut engines, &mut workspace), Err(words.into()));
    device.finish(own).unwrap();
    // SAFETY: what was enqueued with it has run.
    unsafe { workspace.release() };
    enqueue(&mut engines, &mut workspace).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_graph_is_launched_on_its_own_device_only() {
    let (Some(a), Some(b)) = (device(), device()) else { return };
    let mut recorder = a.recorder().unwrap();
    // SAFETY: nothing is captured.
    let mut graph = unsafe { a.capture(&mut recorder, |_| Ok(())) }.unwrap();
    drop(a);
    graph.launch(&mut recorder).unwrap();
    let said = graph.launch(&mut b.recorder().unwrap()).unwrap_err().to_string();
    assert_eq!(said, "graph: recorder: expected one of this device, got one of another cuda device or context");
}

/// Unloading a module need not wait for its kernels: the emulated driver makes it a fault.
#[test]
fn kernels_keep_their_code_until_they_have_run() {
    if !emulated() {
        eprintln!("skipped: only the emulated driver says when code goes too early");
        return;
    }
    said(child("owners::everything_is_dropped_at_once", &[]).output().unwrap());
}

#[test]
#[ignore = "a process of its own"]
fn everything_is_dropped_at_once() {
    if !is_child() {
        return;
    }
    let _driver = device().unwrap();
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let row = spec(DType::F32, &[1, 1, 8]);
    let y = stream.clone_htod(&integers(8, 1)).unwrap();
    let gate = stream.clone_htod(&[99.0f32]).unwrap();
    let mut out = stream.clone_htod(&integers(8, 2)).unwrap();
    for turn in 1..=20 {
        let device = Device::from_cuda(context.clone(), &CudaOptions::from_env().unwrap()).unwrap();
        let prepared = sum(&device);
        assert_eq!(prepared.workspace_bytes(), 0);
        // Memory of ours would be waited for when it goes.
        // SAFETY: nothing of it is used.
        let mut workspace = unsafe { Workspace::from_raw(Memory::Cuda(CudaMemory::new(0, 0)), 0) }.unwrap();
        {
            let ((y, _y), (gate, _gate)) = (CudaMemory::read(&y, &stream), CudaMemory::read(&gate, &stream));
            let (out, _out) = CudaMemory::write(&mut out, &stream);
            // SAFETY: the engine's slices live to the end of this test, and its stream orders what
            // uses them.
            let args = unsafe {
                GatedResidualArgs::new(
                    Source::InPlace,
                    View::from_raw(row, Memory::Cuda(y)),
                    View::from_raw(spec(DType::F32, &[1]), Memory::Cuda(gate)),
                    ViewMut::from_raw(row, Memory::Cuda(out)),
                )
            };
            let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&stream));
            prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
        }
        drop((prepared, workspace, device));
        let expected: Vec<f32> = integers(8, 1).iter().zip(integers(8, 2)).map(|(y, x)| x + turn as f32 * y).collect();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), expected, "turn {turn}");
    }
}
