//! Faults are values, and the next call on a healthy device works.

use std::sync::Arc;

use xattn::bench::RandomWeights;
use xattn::bridge::{GatedBlock, GatedBlockConfig, MediaCache, Precision};
use xattn::ops::{Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Source};
use xattn::{
    DType, Device, DeviceKind, Dispatch, Error, HostTensor, Recorder, Spec, Tensor, View, ViewMut, Weight,
    WeightSource, WgpuOptions, Workspace,
};

use crate::support::{device, read, tensor};

const NORM: Norm = Norm { kind: NormKind::L2, eps: 1e-12 };

fn works(device: &Device) {
    let x = tensor(device, &[3.0, 4.0], &[1, 1, 1, 2], DType::F32);
    let mut out = Tensor::zeros(device, DType::F32, &[1, 1, 1, 2]).unwrap();
    NORM.run(device, NormArgs::new(Source::From(x.view()), None, None, out.view_mut())).unwrap();
    let y = read(device, &out);
    assert!((y[0] - 0.6).abs() < 1e-6 && (y[1] - 0.8).abs() < 1e-6, "{y:?}");
}

#[test]
fn an_adapter_that_is_not_there() {
    if device(&WgpuOptions::default()).is_none() {
        return;
    }
    let mut options = WgpuOptions::default();
    options.adapter = Some("no such adapter".into());
    let error = Device::open_wgpu(&options).map(|_| ()).unwrap_err();
    let Error::Unavailable { backend: "wgpu", reason } = &error else { panic!("{error}") };
    assert!(reason.starts_with("no adapter named \"no such adapter\" among "), "{reason}");
}

#[test]
fn limits_beyond_the_adapters() {
    let mut options = WgpuOptions::default();
    if device(&options).is_none() {
        return;
    }
    options.limits = Some(xattn::wgpu::Limits { max_compute_invocations_per_workgroup: 1 << 30, ..Default::default() });
    let error = Device::open_wgpu(&options).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("max_compute_invocations_per_workgroup"), "{error}");
}

#[test]
fn doubles_and_the_memory_of_others_are_refused_by_name() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let spec = Spec::contiguous(DType::F64, &[1, 1, 1, 2]).unwrap();
    let error = NORM.prepare(&device, NormArgs::new(Source::From(spec), None, None, spec)).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "norm: x of f64 is not supported by wgpu; available: f32, f16, bf16");

    let (x, mut out) = ([3.0f32, 4.0], [0.0f32; 2]);
    let args = NormArgs::new(
        Source::From(View::new(&x, &[1, 1, 1, 2]).unwrap()),
        None,
        None,
        ViewMut::new(&mut out, &[1, 1, 1, 2]).unwrap(),
    );
    let error = NORM.run(&device, args).unwrap_err();
    assert_eq!(error.to_string(), "norm: x: expected memory of wgpu, got host");
    works(&device);
}

#[test]
fn memory_that_cannot_be_had() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let most = device.as_wgpu().unwrap().0.limits().max_buffer_size;
    let error = Tensor::zeros(&device, DType::F32, &[most as usize / 4 + 1]).map(|_| ()).unwrap_err();
    let expected =
        format!("allocate: a tensor: expected at most {most} bytes (max_buffer_size), got {}", most / 4 * 4 + 4);
    assert_eq!(error.to_string(), expected);
    works(&device);
}

#[test]
fn a_region_that_is_too_small_for_its_view() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, 1, 8]).unwrap();
    let x = Tensor::zeros(&device, DType::F32, &[1, 1, 1, 8]).unwrap();
    let spec = x.spec();
    let xattn::Memory::Wgpu(memory) = memory_of(&device, &x) else { unreachable!() };
    let short = xattn::WgpuMemory::new(memory.buffer(), 4, 100);
    // SAFETY: a lie, which the backend must notice; nothing runs.
    let view = unsafe { View::from_raw(spec, xattn::Memory::Wgpu(short)) };
    let error = NORM.run(&device, NormArgs::new(Source::From(view), None, None, out.view_mut())).unwrap_err();
    assert_eq!(error.to_string(), "norm: x: expected memory of at least 32 bytes, got 28");
    works(&device);
}

/// An engine's buffer of 32 bytes, as memory.
fn memory_of(device: &Device, like: &Tensor) -> xattn::Memory {
    use xattn::wgpu::{BufferDescriptor, BufferUsages};
    let (own, _, _) = device.as_wgpu().unwrap();
    let size = like.spec().span_bytes() as u64;
    let descriptor = BufferDescriptor { label: None, size, usage: BufferUsages::STORAGE, mapped_at_creation: false };
    xattn::Memory::Wgpu(xattn::WgpuMemory::new(&own.create_buffer(&descriptor), 0, size))
}

#[test]
fn a_view_that_does_not_fit_an_engines_buffer() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (gpu, _, _) = device.as_wgpu().unwrap();
    let buffer = |size, usage| {
        gpu.create_buffer(&xattn::wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let storage = xattn::wgpu::BufferUsages::STORAGE;
    let spec = Spec::strided(DType::F32, &[2, 3], &[5, 1]).unwrap();
    let message = |size, usage, offset| {
        // SAFETY: nothing runs with the view.
        unsafe { View::from_raw_wgpu(spec, &buffer(size, usage), offset) }.map(|_| ()).unwrap_err().to_string()
    };
    let short = "view: buffer: expected at least 32 bytes for f32[2, 3] strides [5, 1] from 8 on, got 36 bytes";
    assert_eq!(message(36, storage, 8), short);
    assert_eq!(message(40, storage, 2), "view: offset: expected a multiple of 4, got 2");
    assert_eq!(message(42, storage, 8), "view: buffer: expected a size that is a multiple of 4, got 42");
    let usage = message(40, xattn::wgpu::BufferUsages::COPY_DST, 8);
    assert!(usage.starts_with("view: buffer: expected the usage STORAGE, got "), "{usage}");
    let far = message(40, storage, u64::MAX - 3);
    assert!(far.starts_with("view: buffer: expected at least 32 bytes"), "{far}");
    // SAFETY: as above.
    assert!(unsafe { ViewMut::from_raw_wgpu(spec, &buffer(40, storage), 8) }.is_ok());
}

#[test]
fn a_buffer_of_another_device_is_an_error_value() {
    let (Some(one), Some(two)) = (device(&WgpuOptions::default()), device(&WgpuOptions::default())) else { return };
    let x = Tensor::zeros(&one, DType::F32, &[1, 1, 1, 8]).unwrap();
    let mut out = Tensor::zeros(&two, DType::F32, &[1, 1, 1, 8]).unwrap();
    let error = NORM.run(&two, NormArgs::new(Source::From(x.view()), None, None, out.view_mut())).unwrap_err();
    assert_eq!(error.to_string(), "norm: x: expected memory of this device, got memory of another wgpu device");
    let error = x.download(&two).unwrap_err();
    assert_eq!(error.to_string(), "download: view: expected memory of this device, got memory of another wgpu device");
    works(&one);
    works(&two);
}

#[test]
fn a_lost_device_says_so_and_others_go_on() {
    let (Some(one), Some(two)) = (device(&WgpuOptions::default()), device(&WgpuOptions::default())) else { return };
    let x = tensor(&one, &[3.0, 4.0], &[1, 1, 1, 2], DType::F32);
    let mut out = Tensor::zeros(&one, DType::F32, &[1, 1, 1, 2]).unwrap();
    let prepared = NORM.prepare(&one, NormArgs::new(Source::From(x.spec()), None, None, out.spec())).unwrap();
    let mut workspace = xattn::Workspace::new(&one, 0).unwrap();
    let mut recorder = one.recorder().unwrap();
    one.as_wgpu().unwrap().0.destroy();
    let _ = one.as_wgpu().unwrap().0.poll(xattn::wgpu::PollType::Poll);
    let args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
    let lost = |error: Error, op: &str| match &error {
        Error::DeviceLost { backend: "wgpu", op: in_op, .. } => assert_eq!(*in_op, op, "{error}"),
        _ => panic!("{error}"),
    };
    lost(prepared.enqueue(&mut recorder, args, &mut workspace).unwrap_err(), "norm");
    lost(one.finish(recorder).unwrap_err(), "finish");
    lost(x.download(&one).unwrap_err(), "download");
    lost(Tensor::zeros(&one, DType::F32, &[1]).map(|_| ()).unwrap_err(), "allocate");
    works(&two);
}

#[test]
fn a_recorder_over_a_callers_encoder_cannot_be_finished() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let error = device.finish(xattn::Recorder::Host).unwrap_err();
    assert_eq!(error.to_string(), "finish: recorder: expected wgpu, got host");
    assert_eq!(device.kind(), DeviceKind::Wgpu);
    works(&device);
}

/// Memory of software adapters is the process's own: where that is limited, a tensor too many is an
/// error, and what is small goes on working.
#[cfg(target_os = "linux")]
#[test]
fn a_machine_whose_memory_is_full() {
    const CHILD: &str = "XATTN_TEST_MEMORY_IS_LIMITED";
    const NAME: &str = "errors::a_machine_whose_memory_is_full";
    let Some(device) = device(&WgpuOptions::default()) else { return };
    if device.as_wgpu().unwrap().0.adapter_info().device_type != xattn::wgpu::DeviceType::Cpu {
        eprintln!("skipped: the adapter has memory of its own");
        return;
    }
    if std::env::var_os(CHILD).is_none() {
        drop(device);
        let limited = "ulimit -v 8000000 && exec \"$0\" \"$@\"";
        let this = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", limited]).arg(this).args(["--exact", NAME, "--nocapture"]).env(CHILD, "1");
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("refused after"), "{said}");
        return;
    }
    // 256 MiB each, which nobody touches: 8 GB of addresses, no memory.
    let elements = 1 << 26;
    let mut tensors = Vec::new();
    let error = loop {
        assert!(tensors.len() < 40, "no limit");
        match Tensor::zeros(&device, DType::F32, &[elements]) {
            Ok(tensor) => tensors.push(tensor),
            Err(error) => break error,
        }
    };
    eprintln!("refused after {} tensors: {error}", tensors.len());
    let Error::OutOfMemory { backend: "wgpu", purpose: "a tensor", bytes } = error else { panic!("{error}") };
    assert_eq!(bytes, 4 * elements);
    works(&device);
    drop(tensors);
    works(&device);
}

/// wgpu would take a foreign object for whatever of its own has the same number.
#[test]
fn recorders_workspaces_weights_and_blocks_of_another_device_are_refused() {
    let options = WgpuOptions::default();
    let (Some(device), Some(other)) = (device(&options), device(&options)) else { return };
    let x = tensor(&device, &[3.0, 4.0], &[1, 1, 1, 2], DType::F32);
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, 1, 2]).unwrap();
    let shapes = NormArgs::new(Source::From(x.spec()), None, None, out.spec());
    let prepared = NORM.prepare(&device, shapes).unwrap();
    let mut own = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut foreign = Workspace::new(&other, prepared.workspace_bytes()).unwrap();
    let mut recorder = other.recorder().unwrap();
    let mut enqueue = |recorder: &mut Recorder<'static>, workspace: &mut Workspace| {
        let args = NormArgs::new(Source::From(x.view()), None, None, out.view_mut());
        prepared.enqueue(recorder, args, workspace).unwrap_err().to_string()
    };
    let refusal = "norm: recorder: expected one of this device, got one of another wgpu device or context";
    assert_eq!(enqueue(&mut recorder, &mut own), refusal);
    let refusal = "norm: workspace: expected memory of this device, got memory of another wgpu device";
    assert_eq!(enqueue(&mut device.recorder().unwrap(), &mut foreign), refusal);
    let said = device.finish(recorder).unwrap_err().to_string();
    assert_eq!(said, "finish: recorder: expected one of this device, got one of another wgpu device");

    let weight = |device: &Device| {
        let part = HostTensor::from_slice(&[1f32; 64], &[8, 8]).unwrap();
        Arc::new(Weight::prepare(device, &WeightSource::stacked(vec![part]), DType::F32).unwrap())
    };
    let x = tensor(&device, &[1.0; 8], &[1, 1, 8], DType::F32);
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 1, 8]).unwrap();
    let args = LinearArgs::new(x.view(), Matrix::Prepared(weight(&other)), out.view_mut());
    let said = Linear::default().run(&device, args).unwrap_err().to_string();
    assert_eq!(said, "linear: weight: expected memory of this device, got memory of another wgpu device");

    let config = GatedBlockConfig::new(32, 16, 1, 64);
    let weights = RandomWeights::new(1).gated_block(&config).unwrap();
    let block = |device: &Device| GatedBlock::new(device, &config, &weights, Precision::uniform(DType::F32)).unwrap();
    let [a, b] = [&device, &other].map(block);
    let said = MediaCache::new(&[&a, &b], 1, 1, 4).map(|_| ()).unwrap_err().to_string();
    assert_eq!(said, "media_cache: blocks: expected all on one device of wgpu, got another device of wgpu");
    let cache = MediaCache::new(&[&a], 1, 1, 4).unwrap();
    let said = cache.prepare_fill(&[&b], 1).map(|_| ()).unwrap_err().to_string();
    assert_eq!(said, "media_cache: blocks: expected all on one device of wgpu, got another device of wgpu");
    works(&device);
    works(&other);
}
