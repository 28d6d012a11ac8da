//! An engine with a wgpu device, a buffer and an encoder of its own: attention is recorded between
//! the engine's own commands.
//!
//! `cargo run --features wgpu --example link_wgpu`

use xattn::ops::{Attention, AttentionArgs};
use xattn::{DType, Device, Dispatch, Error, Prepared, Recorder, Result, Shapes, Spec, View, ViewMut};
use xattn::{WgpuOptions, WgpuRecorder, Workspace, wgpu};

/// Where things lie in the engine's buffer, in bytes: 6 rows of q, 8 rows of K and V beside each
/// other, 6 rows of the result; f32.
const Q: u64 = 0;
const KV: u64 = Q + 6 * 64 * 4;
const OUT: u64 = KV + 8 * 128 * 4;
const END: u64 = OUT + 6 * 64 * 4;

/// A layer of the engine: a buffer of its own, and what was planned for it.
struct Layer {
    buffer: wgpu::Buffer,
    attention: Prepared<Attention>,
    workspace: Workspace,
}

/// Operands in the buffer: 4 heads of 16; K and V are the two halves of each row.
fn operands(buffer: &wgpu::Buffer) -> Result<AttentionArgs<View<'static>, ViewMut<'static>>> {
    let rows = Spec::contiguous(DType::F32, &[1, 6, 4, 16])?;
    let keys = Spec::strided(DType::F32, &[1, 8, 4, 16], &[8 * 128, 128, 16, 1])?;
    // SAFETY: the buffer belongs to the device that `layer` is given, and the engine orders its own
    // uses of it by the encoder.
    unsafe {
        let [q, k, v] = [(rows, Q), (keys, KV), (keys, KV + 256)].map(|(s, at)| View::from_raw_wgpu(s, buffer, at));
        Ok(AttentionArgs::new(q?, k?, v?, ViewMut::from_raw_wgpu(rows, buffer, OUT)?))
    }
}

/// Once per layer and set of shapes: checks, compiles and plans.
fn layer(device: &Device, buffer: wgpu::Buffer) -> Result<Layer> {
    let attention = Attention::for_head_dim(16).prepare(device, Attention::shapes(&operands(&buffer)?)?)?;
    let workspace = Workspace::new(device, attention.workspace_bytes())?;
    Ok(Layer { buffer, attention, workspace })
}

/// At every step: records into the engine's encoder, which the engine submits when it likes.
fn step(layer: &mut Layer, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let mut recorder = Recorder::Wgpu(WgpuRecorder::encoder(encoder));
    layer.attention.enqueue(&mut recorder, operands(&layer.buffer)?, &mut layer.workspace)
}

fn main() -> Result<()> {
    // The engine's own objects.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let unavailable = |reason: String| Error::Unavailable { backend: "wgpu", reason };
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
        .map_err(|error| unavailable(error.to_string()))?;
    let (gpu, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))
        .map_err(|error| unavailable(error.to_string()))?;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer =
        gpu.create_buffer(&wgpu::BufferDescriptor { label: None, size: END, usage, mapped_at_creation: false });

    // All keys alike, half of the values 1 and half 3: every result is 2.
    let values = (0..8 * 128).map(|i| if i % 128 < 64 { 0.25 } else { 1.0 + 2.0 * ((i / 128) % 2) as f32 });
    let kv: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    queue.write_buffer(&buffer, Q, &0.5f32.to_le_bytes().repeat(6 * 64));
    queue.write_buffer(&buffer, KV, &kv);

    let device = Device::from_wgpu(gpu.clone(), queue.clone(), &WgpuOptions::default())?;
    let mut layer = layer(&device, buffer)?;
    let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    step(&mut layer, &mut encoder)?;
    queue.submit([encoder.finish()]);

    let result = device.download(&operands(&layer.buffer)?.out.as_view())?.to_f32()?;
    // Eight equal weights, each rounded once, times small integers, then one division: four
    // roundings.
    let worst = result.iter().map(|out| (out - 2.0).abs()).fold(0.0, f32::max);
    println!("{device:?}: {} results, largest error {worst:e}", result.len());
    if result.len() != 6 * 64 || worst > 4.0 * f32::EPSILON {
        return Err(Error::argument("link_wgpu", "out", "2 everywhere", format!("{worst:e} beside it")));
    }
    Ok(())
}
