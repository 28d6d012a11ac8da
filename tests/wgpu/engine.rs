//! The test plays an engine: instance, device, queue, odd offsets in a pooled buffer, encoder,
//! pass.

use std::sync::Arc;

use xattn::bench::RandomWeights;
use xattn::bridge::{GatedBlock, GatedBlockArgs, GatedBlockConfig, Precision};
use xattn::ops::{
    Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Keys, Linear, LinearArgs, Matrix, Media, Segment,
    Source, Visibility,
};
use xattn::wgpu;
use xattn::{
    DType, Device, Dispatch, HostTensor, Memory, Recorder, Shapes, Spec, Tensor, View, ViewMut, WgpuMemory,
    WgpuOptions, WgpuRecorder, Workspace,
};

use crate::support::{device, integers, product};

const POOL: u64 = 1 << 16;

struct Engine {
    instance: wgpu::Instance,
    device: wgpu::Device,
    queue: wgpu::Queue,
    pool: wgpu::Buffer,
    xattn: Device,
}

impl Engine {
    /// With WebGPU's default limits and no features, whatever the adapter has.
    fn new() -> Option<Self> {
        // Says aloud if there is no adapter.
        device(&WgpuOptions::default())?;
        Some(Self::on(wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())))
    }

    fn on(instance: wgpu::Instance) -> Self {
        let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let pool = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("pool"),
            size: POOL,
            usage,
            mapped_at_creation: false,
        });
        // Every byte that no operand covers must keep this.
        queue.write_buffer(&pool, 0, &[0xA5; POOL as usize]);
        let xattn = Device::from_wgpu(device.clone(), queue.clone(), &WgpuOptions::default()).unwrap();
        Engine { instance, device, queue, pool, xattn }
    }

    fn memory(&self, offset: u64, bytes: usize) -> Memory {
        Memory::Wgpu(WgpuMemory::new(&self.pool, offset, bytes as u64))
    }

    fn spec(dtype: DType, shape: &[usize]) -> Spec {
        Spec::contiguous(dtype, shape).unwrap()
    }

    fn view(&self, spec: Spec, offset: u64) -> View<'_> {
        // SAFETY: the pool outlives the view, and the test's regions do not overlap.
        unsafe { View::from_raw(spec, self.memory(offset, spec.span_bytes())) }
    }

    fn view_mut(&self, spec: Spec, offset: u64) -> ViewMut<'_> {
        // SAFETY: as above.
        unsafe { ViewMut::from_raw(spec, self.memory(offset, spec.span_bytes())) }
    }

    /// Fills a region through a tensor: queue writes cannot have the engine's 2-byte offsets.
    fn put(&self, image: &mut [u8], offset: u64, values: &[f32], dtype: DType) {
        let bytes: Vec<u8> = match dtype {
            DType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
        };
        image[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }

    fn image(&self) -> Vec<u8> {
        let spec = Self::spec(DType::U32, &[POOL as usize / 4]);
        self.xattn.download(&self.view(spec, 0)).unwrap().bytes().unwrap().to_vec()
    }
}

#[test]
fn pooled_buffer_odd_offsets_and_the_engines_encoder() {
    let Some(engine) = Engine::new() else { return };
    assert_eq!(engine.xattn.as_wgpu().unwrap().2, xattn::WgpuTier::Baseline, "no features were asked for");
    let (rows, n, k) = (5, 33, 19);
    // bf16 at an odd element, f32 at a multiple of 4 that is none of 256; all in one buffer.
    let (x_at, w_at, bias_at, residual_at, out_at, y_at) = (258, 1026, 4100, 5002, 6006, 9004);
    let (x, w) = (integers(rows * k, 1), integers(n * k, 2));
    let (bias, residual) = (integers(n, 3), integers(rows * n, 4));
    let mut image = vec![0xA5; POOL as usize];
    engine.put(&mut image, x_at, &x, DType::BF16);
    engine.put(&mut image, w_at, &w, DType::BF16);
    engine.put(&mut image, bias_at, &bias, DType::F32);
    engine.put(&mut image, residual_at, &residual, DType::BF16);
    engine.queue.write_buffer(&engine.pool, 0, &image);

    let [x_spec, w_spec, out_spec] =
        [[1, rows, k], [1, n, k], [1, rows, n]].map(|shape| Engine::spec(DType::BF16, &shape));
    let w_spec = Spec::contiguous(DType::BF16, &w_spec.shape()[1..]).unwrap();
    let args = |out_at| LinearArgs {
        bias: Some(engine.view(Engine::spec(DType::F32, &[n]), bias_at)),
        residual: Some(Source::From(engine.view(out_spec, residual_at))),
        ..LinearArgs::new(
            engine.view(x_spec, x_at),
            Matrix::View(engine.view(w_spec, w_at)),
            engine.view_mut(out_spec, out_at),
        )
    };
    let shapes = LinearArgs {
        bias: Some(Engine::spec(DType::F32, &[n])),
        residual: Some(Source::From(out_spec)),
        ..LinearArgs::new(x_spec, Matrix::View(w_spec), out_spec)
    };
    let prepared = Linear::default().prepare(&engine.xattn, shapes).unwrap();
    let mut workspace = Workspace::new(&engine.xattn, prepared.workspace_bytes()).unwrap();

    // Twice in one encoder: the second one into another place, in a pass of the engine's own.
    let mut encoder = engine.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut recorder = Recorder::Wgpu(WgpuRecorder::encoder(&mut encoder));
    prepared.enqueue(&mut recorder, args(out_at), &mut workspace).unwrap();
    let Recorder::Wgpu(inner) = &recorder else { unreachable!() };
    assert_eq!(inner.dispatches(), 1);
    drop(recorder);
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
        let mut recorder = Recorder::Wgpu(WgpuRecorder::pass(&mut pass));
        prepared.enqueue(&mut recorder, args(y_at), &mut workspace).unwrap();
    }
    engine.queue.submit([encoder.finish()]);

    let mut y = product(&x, &w, rows, n, k);
    for (i, y) in y.iter_mut().enumerate() {
        *y += bias[i % n] + residual[i];
    }
    engine.put(&mut image, out_at, &y, DType::BF16);
    engine.put(&mut image, y_at, &y, DType::BF16);
    let after = engine.image();
    let wrong = image.iter().zip(&after).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first byte that differs from the engine's idea of its pool");
}

#[test]
fn scratch_memory_in_the_engines_pool() {
    let Some(engine) = Engine::new() else { return };
    // More operands than WebGPU's eight storage buffers: small ones are copied to scratch.
    let (q_at, kv_at, ones_at, out_at) = (0, 4096, 8192, 12288);
    let mut image = vec![0xA5; POOL as usize];
    engine.put(&mut image, q_at, &integers(2 * 3 * 8, 1), DType::F32);
    engine.put(&mut image, kv_at, &integers(2 * 5 * 8, 2), DType::F32);
    image[ones_at as usize..][..8].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
    engine.queue.write_buffer(&engine.pool, 0, &image);
    let [q, kv] = [[2, 3, 1, 8], [2, 5, 1, 8]].map(|shape| Engine::spec(DType::F32, &shape));
    let ones = Engine::spec(DType::U32, &[2]);
    let args = || {
        let ones = || engine.view(ones, ones_at);
        let segment = || {
            Segment::new(engine.view(kv, kv_at), engine.view(kv, kv_at))
                .with_keys(Keys::Lengths(ones()))
                .with_slots(ones())
        };
        let (first, second) = (segment(), Some(segment()));
        let unused = || engine.view(kv, kv_at);
        let out = engine.view_mut(q, out_at);
        AttentionArgs { first, second, ..AttentionArgs::new(engine.view(q, q_at), unused(), unused(), out) }
    };
    let prepared = Attention::for_head_dim(8).prepare(&engine.xattn, Attention::shapes(&args()).unwrap()).unwrap();
    let bytes = prepared.workspace_bytes();
    assert!(bytes > 0, "nothing to test without scratch memory");
    let workspace = |offset| {
        // SAFETY: no operand lies there, and one call at a time uses it.
        unsafe { Workspace::from_raw(engine.memory(offset, bytes), bytes) }
    };
    let mut encoder = engine.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut recorder = Recorder::Wgpu(WgpuRecorder::encoder(&mut encoder));
    // A multiple of 64 that none of 256 is.
    prepared.enqueue(&mut recorder, args(), &mut workspace(16384 + 64).unwrap()).unwrap();
    drop(recorder);
    engine.queue.submit([encoder.finish()]);

    // Both segments show the first key of entry 1 alone: its value is every row's result.
    let value = &integers(2 * 5 * 8, 2)[5 * 8..6 * 8];
    let out: Vec<f32> = engine.xattn.download(&engine.view(q, out_at)).unwrap().to_f32().unwrap();
    assert!(out.chunks(8).all(|row| row == value), "{out:?} instead of {value:?}");
    let after = engine.image();
    let outside =
        |i: usize| !(out_at as usize..out_at as usize + 192).contains(&i) && !(16448..16448 + bytes).contains(&i);
    assert_eq!((0..image.len()).find(|&i| outside(i) && image[i] != after[i]), None, "a byte that nobody named");

    let error = workspace(16384 + 4).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "workspace: memory: expected an address that is a multiple of 64, got 0x4004");
}

#[test]
fn recorded_work_keeps_its_parameters_until_it_is_submitted() {
    let Some(engine) = Engine::new() else { return };
    // More sets of operands than are kept: later recordings must not disturb earlier ones.
    let spec = Engine::spec(DType::F32, &[1, 1, 3]);
    let gate_spec = Engine::spec(DType::F32, &[1]);
    let shapes = GatedResidualArgs { x: Source::From(spec), y: spec, gate: gate_spec, row_mask: None, out: spec };
    let prepared = GatedResidual.prepare(&engine.xattn, shapes).unwrap();
    let mut workspace = Workspace::new(&engine.xattn, 0).unwrap();
    let mut image = vec![0xA5; POOL as usize];
    for i in 0..30u64 {
        engine.put(&mut image, 4 + 100 * i, &[i as f32, 1.0, 2.0], DType::F32);
        engine.put(&mut image, 16 + 100 * i, &[9.0, 9.0, 9.0, 0.0], DType::F32);
    }
    engine.queue.write_buffer(&engine.pool, 0, &image);
    let mut encoders = Vec::new();
    for i in 0..30u64 {
        let mut encoder = engine.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut recorder = Recorder::Wgpu(WgpuRecorder::encoder(&mut encoder));
        let args = GatedResidualArgs {
            x: Source::From(engine.view(spec, 4 + 100 * i)),
            y: engine.view(spec, 16 + 100 * i),
            gate: engine.view(gate_spec, 28 + 100 * i),
            row_mask: None,
            out: engine.view_mut(spec, 40 + 100 * i),
        };
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
        drop(recorder);
        encoders.push(encoder.finish());
        engine.put(&mut image, 40 + 100 * i, &[i as f32, 1.0, 2.0], DType::F32);
    }
    engine.queue.submit(encoders);
    assert!(engine.image() == image);
}

#[test]
fn no_handler_is_installed_on_the_engines_device() {
    let Some(engine) = Engine::new() else { return };
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = seen.clone();
    engine.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| told.lock().unwrap().push(error.to_string())));
    // An error of ours is a value, and no uncaptured one.
    let spec = Engine::spec(DType::F32, &[1, 1, 3]);
    let error = engine.xattn.download(&engine.view(spec, POOL)).unwrap_err().to_string();
    assert_eq!(error, "download: bytes: expected at most 0, got 12");
    assert!(xattn::Tensor::zeros(&engine.xattn, DType::F32, &[1 << 40]).is_err());
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new());
    // One of the engine's own still reaches its handler.
    let size = engine.device.limits().max_buffer_size + 4;
    let usage = wgpu::BufferUsages::STORAGE;
    let _ =
        engine.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    assert_eq!(seen.lock().unwrap().len(), 1);
}

/// wgpu's own count of objects that live on all devices of the engine: buffers, bind groups, shader
/// modules, pipelines, and their layouts.
fn objects(engine: &Engine) -> [usize; 6] {
    let report = engine.instance.generate_report().unwrap();
    let hub = report.hub_report();
    let kinds = [
        &hub.buffers,
        &hub.bind_groups,
        &hub.shader_modules,
        &hub.compute_pipelines,
        &hub.bind_group_layouts,
        &hub.pipeline_layouts,
    ];
    kinds.map(|kind| kind.num_allocated)
}

fn block_args<R, W>(x: R, kv: R, media_index: R, out: W) -> GatedBlockArgs<R, W> {
    let visibility = Visibility::SameMedia(Media { media_index, keys_per_media: 8, plan: None });
    let x = Source::From(x);
    GatedBlockArgs { x, x_offsets: None, kv, keys: Keys::All, slots: None, kv_offsets: None, visibility, out }
}

/// A whole bridge over views of the pool gives the bits that it gives over tensors of its own,
/// recorded by the engine or submitted by us; and from the second time on, wgpu itself counts no
/// new object.
#[test]
fn a_bridge_over_the_pool_recorded_or_submitted() {
    let Some(engine) = Engine::new() else { return };
    let mut config = GatedBlockConfig::new(24, 16, 2, 16);
    config.empty_rows = GatedBlockConfig::open_flamingo_3b().empty_rows;
    config.ffn_hidden = 40;
    let mut random = RandomWeights::new(9);
    let precision = Precision { activations: DType::F32, weights: DType::F32 };
    let weights = random.gated_block(&config).unwrap();
    let block = GatedBlock::new(&engine.xattn, &config, &weights, precision).unwrap();
    let x = random.tensor(0.0, 1.0, &[1, 10, 24]).unwrap();
    let kv = random.tensor(0.0, 1.0, &[1, 16, 64]).unwrap();
    let phi = HostTensor::from_slice(&[0i32, 1, 1, 1, 2, 2, 2, 2, 3, -5], &[1, 10]).unwrap();
    let [x_spec, kv_spec] = [&x, &kv].map(|t| Engine::spec(DType::F32, t.shape()));
    let phi_spec = Engine::spec(DType::I32, &[1, 10]);
    let prepared = block.prepare(block_args(x_spec, kv_spec, phi_spec, x_spec)).unwrap();

    // Over tensors of our own.
    let up = |t: &HostTensor<'_>| Tensor::upload(&engine.xattn, t, t.dtype()).unwrap();
    let (own_x, own_kv, own_phi) = (up(&x), up(&kv), up(&phi));
    let mut own_out = Tensor::zeros(&engine.xattn, DType::F32, &[1, 10, 24]).unwrap();
    prepared.run(block_args(own_x.view(), own_kv.view(), own_phi.view(), own_out.view_mut())).unwrap();
    let expected = own_out.download(&engine.xattn).unwrap();
    assert!(expected.to_f32().unwrap().iter().all(|x| x.is_finite()));

    // Over the pool, each operand off every alignment but its own.
    let (x_at, kv_at, phi_at, recorded_at, submitted_at) = (4, 2052, 8004, 10_012, 20_020);
    let mut image = vec![0xA5; POOL as usize];
    for (at, t) in [(x_at, &x), (kv_at, &kv), (phi_at, &phi)] {
        let bytes = t.bytes().unwrap();
        image[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    engine.queue.write_buffer(&engine.pool, 0, &image);
    let args = |out| {
        let (x, kv, phi) = (engine.view(x_spec, x_at), engine.view(kv_spec, kv_at), engine.view(phi_spec, phi_at));
        block_args(x, kv, phi, engine.view_mut(x_spec, out))
    };
    let mut workspace = Workspace::new(&engine.xattn, prepared.workspace_bytes()).unwrap();
    let mut record = || {
        let mut encoder = engine.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut recorder = Recorder::Wgpu(WgpuRecorder::encoder(&mut encoder));
        prepared.enqueue(&mut recorder, args(recorded_at), &mut workspace).unwrap();
        drop(recorder);
        engine.queue.submit([encoder.finish()]);
        engine.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    };
    let cold = objects(&engine);
    record();
    let warm = objects(&engine);
    // Seven dispatches, one bind group each, with a uniform that we no longer hold.
    assert_eq!(warm, [cold[0], cold[1] + 7, cold[2], cold[3], cold[4], cold[5]]);
    record();
    record();
    assert_eq!(objects(&engine), warm);
    // Submitted by us, in place of the engine.
    let mut recorder = engine.xattn.recorder().unwrap();
    prepared.enqueue(&mut recorder, args(submitted_at), &mut workspace).unwrap();
    engine.xattn.finish(recorder).unwrap();

    for at in [recorded_at, submitted_at] {
        let expected = expected.bytes().unwrap();
        image[at as usize..][..expected.len()].copy_from_slice(&expected);
    }
    let wrong = image.iter().zip(engine.image()).position(|(a, b)| *a != b);
    assert_eq!(wrong, None, "first byte that differs from the engine's idea of its pool");
}

/// What dropped ops compiled goes, but for the last few; what is prepared again is found.
#[test]
fn pipelines_of_dropped_ops_are_released() {
    let Some(engine) = Engine::new() else { return };
    let reals = [DType::F32, DType::F16, DType::BF16];
    let pipelines = || objects(&engine)[3];
    let prepare = |i: usize| {
        let of = |n: usize| Engine::spec(reals[i / n % 3], &[1, 2, 8]);
        let gate = Engine::spec(reals[i / 27 % 3], &[1]);
        let args = GatedResidualArgs { x: Source::From(of(1)), y: of(3), gate, row_mask: None, out: of(9) };
        GatedResidual.prepare(&engine.xattn, args).unwrap()
    };
    let compiled = || engine.xattn.wgpu_counts().unwrap().pipelines;
    let none = pipelines();
    // 80 of 81 texts, all held, and then none.
    let held: Vec<_> = (0..80).map(prepare).collect();
    assert_eq!((pipelines() - none, compiled()), (80, 80));
    drop(held);
    assert_eq!(pipelines() - none, 64);
    // The last one is still there; the first one has to be compiled again.
    prepare(79);
    assert_eq!(compiled(), 80);
    prepare(0);
    assert_eq!((pipelines() - none, compiled()), (64, 81));
}

#[test]
fn a_tier_that_the_engines_device_lacks() {
    let Some(engine) = Engine::new() else { return };
    let mut options = WgpuOptions::default();
    options.tier = Some(xattn::WgpuTier::SubgroupsF16);
    let error = Device::from_wgpu(engine.device.clone(), engine.queue.clone(), &options).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "device: tier subgroups-f16 (no subgroups, no f16) is not supported by wgpu; available: baseline"
    );
}
