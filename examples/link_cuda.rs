//! An engine with a CUDA context, a stream and memory of its own: attention is enqueued between the
//! engine's own work.
//!
//! `cargo run --features cuda --example link_cuda`; without a GPU
//! `scripts/emulated-cuda cargo run --features cuda --example link_cuda`

use std::sync::Arc;

use xattn::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use xattn::ops::{Attention, AttentionArgs};
use xattn::{CudaMemory, CudaOptions, CudaRecorder, Workspace};
use xattn::{DType, Device, DeviceKind, Dispatch, Error, Memory, Prepared, Recorder, Result, Spec, View, ViewMut};

/// A layer of the engine, and what was planned for it.
struct Layer {
    attention: Prepared<Attention>,
    workspace: Workspace,
}

/// 6 rows of q, 8 rows of K and V beside each other, 6 rows of the result; 4 heads of 16, f32.
fn shapes() -> Result<AttentionArgs<Spec, Spec>> {
    let rows = Spec::contiguous(DType::F32, &[1, 6, 4, 16])?;
    let keys = Spec::strided(DType::F32, &[1, 8, 4, 16], &[8 * 128, 128, 16, 1])?;
    Ok(AttentionArgs::new(rows, keys, keys, rows))
}

/// The same at addresses of the engine's.
///
/// # Safety
/// The memory is of the device's context and holds initialised elements of these layouts; until the
/// stream has passed the op it lives, and nobody writes to `q` and `kv` or uses `out`.
unsafe fn operands(q: u64, kv: u64, out: u64) -> Result<AttentionArgs<View<'static>, ViewMut<'static>>> {
    let shapes = shapes()?;
    let (rows, keys) = (shapes.q, shapes.first.k);
    let at = |spec: Spec, address| Memory::Cuda(CudaMemory::new(address, spec.span_bytes() as u64));
    // SAFETY: the caller's promise.
    unsafe {
        let [q, k, v] = [(rows, q), (keys, kv), (keys, kv + 256)].map(|(s, a)| View::from_raw(s, at(s, a)));
        Ok(AttentionArgs::new(q, k, v, ViewMut::from_raw(rows, at(rows, out))))
    }
}

/// Once per layer and set of shapes: checks, compiles and plans.
fn layer(device: &Device) -> Result<Layer> {
    let attention = Attention::for_head_dim(16).prepare(device, shapes()?)?;
    let workspace = Workspace::new(device, attention.workspace_bytes())?;
    Ok(Layer { attention, workspace })
}

/// At every step: enqueued on the engine's stream. Nothing is allocated and nothing waits; a graph
/// may capture it.
///
/// # Safety
/// As [`operands`].
unsafe fn step(layer: &mut Layer, stream: &Arc<CudaStream>, q: u64, kv: u64, out: u64) -> Result<()> {
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(stream));
    // SAFETY: the caller's promise.
    let operands = unsafe { operands(q, kv, out) }?;
    layer.attention.enqueue(&mut recorder, operands, &mut layer.workspace)
}

fn main() -> Result<()> {
    // cudarc panics where there is no driver: this says what is missing instead.
    Device::open(DeviceKind::Cuda)?;
    let fault = |error: DriverError| Error::Unavailable { backend: "cuda", reason: error.to_string() };
    // The engine's own objects.
    let context = CudaContext::new(0).map_err(fault)?;
    let stream = context.new_stream().map_err(fault)?;
    // All keys alike, half of the values 1 and half 3: every result is 2.
    let kv: Vec<f32> =
        (0..8 * 128).map(|i| if i % 128 < 64 { 0.25 } else { 1.0 + 2.0 * ((i / 128) % 2) as f32 }).collect();
    let q: CudaSlice<f32> = stream.clone_htod(&[0.5f32; 6 * 64]).map_err(fault)?;
    let kv = stream.clone_htod(&kv).map_err(fault)?;
    let mut out = stream.alloc_zeros::<f32>(6 * 64).map_err(fault)?;

    let device = Device::from_cuda(context, &CudaOptions::from_env()?)?;
    let mut layer = layer(&device)?;
    {
        // The guards tell cudarc that the slices are in use on the stream.
        let ((q, _q), (kv, _kv)) = (CudaMemory::read(&q, &stream), CudaMemory::read(&kv, &stream));
        let (out, _out) = CudaMemory::write(&mut out, &stream);
        // SAFETY: slices of the engine's context, used on this stream alone, which is waited for
        // before they are dropped.
        unsafe { step(&mut layer, &stream, q.address(), kv.address(), out.address()) }?;
    }

    let result = stream.clone_dtoh(&out).map_err(fault)?;
    // Eight equal weights, each rounded once, times small integers, then one division: four
    // roundings.
    let worst = result.iter().map(|out| (out - 2.0).abs()).fold(0.0, f32::max);
    println!("{device:?}: {} results, largest error {worst:e}", result.len());
    if result.len() != 6 * 64 || worst > 4.0 * f32::EPSILON {
        return Err(Error::argument("link_cuda", "out", "2 everywhere", format!("{worst:e} beside it")));
    }
    Ok(())
}
