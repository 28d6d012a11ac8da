//! Attention over media on a wgpu device: the fused kernel against scores, mask, softmax and
//! product as dispatches of their own, on the same buffers in the same session, alternating. Prints
//! medians, spreads and the ratio; `cargo bench --features wgpu --bench wgpu_unfused`.

use std::time::{Duration, Instant};

use xattn::bench::spread_media;
use xattn::ops::{Attention, AttentionArgs, Media, Visibility};
use xattn::{DType, Device, Dispatch, HostTensor, Shapes, Spec, Tensor, View, ViewMut, WgpuOptions, Workspace, wgpu};

const ROWS: usize = 512;
const HEADS: usize = 8;
const DIM: usize = 64;
const PER_MEDIUM: usize = 64;
const RUNS: usize = 11;

/// The four dispatches, with what they bind.
struct Unfused {
    group: wgpu::BindGroup,
    steps: Vec<(wgpu::ComputePipeline, [u32; 3])>,
    out: wgpu::Buffer,
}

impl Unfused {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue, operands: [&[u8]; 4], keys: usize) -> Self {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = |size: usize, usage| {
            let descriptor =
                wgpu::BufferDescriptor { label: None, size: size as u64, usage, mapped_at_creation: false };
            device.create_buffer(&descriptor)
        };
        let params = [ROWS, keys, HEADS, PER_MEDIUM].map(|n| n as u32);
        let uniform = buffer(16, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        queue.write_buffer(&uniform, 0, bytemuck::cast_slice(&params));
        let mut buffers = vec![uniform];
        for bytes in operands {
            buffers.push(buffer(bytes.len(), usage));
            queue.write_buffer(&buffers[buffers.len() - 1], 0, bytes);
        }
        buffers.push(buffer(4 * HEADS * ROWS * keys, usage));
        buffers.push(buffer(4 * ROWS * HEADS * DIM, usage));
        let module = device.create_shader_module(wgpu::include_wgsl!("wgpu_unfused.wgsl"));
        let entry = |n: usize| wgpu::BindGroupLayoutEntry {
            binding: n as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match n {
                    0 => wgpu::BufferBindingType::Uniform,
                    _ => wgpu::BufferBindingType::Storage { read_only: n < 5 },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = (0..buffers.len()).map(entry).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
        let layout = device.create_bind_group_layout(&descriptor);
        let bound: Vec<_> = buffers
            .iter()
            .enumerate()
            .map(|(n, b)| wgpu::BindGroupEntry { binding: n as u32, resource: b.as_entire_binding() })
            .collect();
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &bound };
        let group = device.create_bind_group(&descriptor);
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let (rows, heads) = (ROWS as u32, HEADS as u32);
        let grids = [
            ("scores", [rows.div_ceil(32), (keys as u32).div_ceil(32), heads]),
            ("mask", [rows, heads, 1]),
            ("softmax", [rows, heads, 1]),
            ("product", [rows.div_ceil(32), heads, 1]),
        ];
        let steps = grids.map(|(name, grid)| {
            let descriptor = wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(name),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            };
            (device.create_compute_pipeline(&descriptor), grid)
        });
        let out = buffers.pop().expect("the last one");
        Unfused { group, steps: steps.into(), out }
    }

    fn run(&self, device: &wgpu::Device, queue: &wgpu::Queue) {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_bind_group(0, &self.group, &[]);
            for (pipeline, [x, y, z]) in &self.steps {
                pass.set_pipeline(pipeline);
                pass.dispatch_workgroups(*x, *y, *z);
            }
        }
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).expect("a device that answers");
    }
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> (f64, f64, f64) {
    times.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    (ms(times[times.len() / 2]), ms(times[0]), ms(times[times.len() - 1]))
}

fn args<'a>([q, k, v, phi]: [&'a Tensor; 4], out: &'a mut Tensor) -> AttentionArgs<View<'a>, ViewMut<'a>> {
    let media = Media { media_index: phi.view(), keys_per_media: PER_MEDIUM as u32, plan: None };
    let args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    AttentionArgs { visibility: Visibility::SameMedia(media), ..args }
}

fn compare(device: &Device, media: usize) {
    let (gpu, queue, _) = device.as_wgpu().expect("a wgpu device");
    let keys = media * PER_MEDIUM;
    let values =
        |n: usize| -> Vec<f32> { (0..n * HEADS * DIM).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect() };
    let (q, kv) = (values(ROWS), values(keys));
    let phi = spread_media(1, ROWS, media);
    let bytes: [&[u8]; 4] =
        [bytemuck::cast_slice(&q), bytemuck::cast_slice(&kv), bytemuck::cast_slice(&kv), bytemuck::cast_slice(&phi)];
    let unfused = Unfused::new(gpu, queue, bytes, keys);

    let upload = |values: &[f32], n: usize| {
        let host = HostTensor::from_slice(values, &[1, n, HEADS, DIM]).expect("a shape");
        Tensor::upload(device, &host, DType::F32).expect("memory")
    };
    let (q, k, v) = (upload(&q, ROWS), upload(&kv, keys), upload(&kv, keys));
    let phi = HostTensor::from_slice(&phi, &[1, ROWS]).expect("a shape");
    let phi = Tensor::upload(device, &phi, DType::I32).expect("memory");
    let mut out = Tensor::zeros(device, DType::F32, &[1, ROWS, HEADS, DIM]).expect("memory");
    let shapes: AttentionArgs<Spec, Spec> = Attention::shapes(&args([&q, &k, &v, &phi], &mut out)).expect("shapes");
    let fused = Attention::for_head_dim(DIM).prepare(device, shapes).expect("a plan");
    let mut workspace = Workspace::new(device, fused.workspace_bytes()).expect("memory");
    let mut run = |out: &mut Tensor| {
        let mut recorder = device.recorder().expect("a recorder");
        fused.enqueue(&mut recorder, args([&q, &k, &v, &phi], out), &mut workspace).expect("a run");
        device.finish(recorder).expect("a run");
    };

    // The first runs compile.
    run(&mut out);
    unfused.run(gpu, queue);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(timed(|| run(&mut out)));
        theirs.push(timed(|| unfused.run(gpu, queue)));
    }
    let memory = xattn::Memory::Wgpu(xattn::WgpuMemory::new(&unfused.out, 0, unfused.out.size()));
    // SAFETY: the buffer is alive and holds the elements.
    let view = unsafe { View::from_raw(out.spec(), memory) };
    let read = |t: HostTensor<'_>| t.to_f32().expect("f32");
    let (a, b) = (read(out.download(device).expect("a copy")), read(device.download(&view).expect("a copy")));
    let error = a.iter().zip(&b).fold(0.0f32, |worst, (x, y)| worst.max((x - y).abs()));
    assert!(error < 1e-5, "results differ by {error:e}");
    let ((a, a0, a1), (b, b0, b1)) = (median(ours), median(theirs));
    println!("{media:5} | {a:8.2} ({a0:.2} to {a1:.2}) | {b:8.2} ({b0:.2} to {b1:.2}) | {:.2}", a / b);
}

fn main() {
    let device = match Device::open_wgpu(&WgpuOptions::default()) {
        Ok(device) => device,
        Err(error) => return println!("skipped: {error}"),
    };
    println!("{}: {ROWS} rows, {HEADS} heads x {DIM}, {PER_MEDIUM} keys per medium, f32", device.info().name);
    println!("media | fused, ms (spread)    | unfused, ms (spread)  | fused / unfused");
    for media in [1, 4, 8, 16, 32] {
        compare(&device, media);
    }
}
