//! The test plays an engine: context, streams, pooled memory at odd offsets, raw pointers.

use std::sync::Arc;

use xattn::cudarc::driver::sys::CUcontext;
use xattn::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};
use xattn::ops::{GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, Source};
use xattn::{
    CudaMemory, CudaOptions, CudaRecorder, DType, Device, Dispatch, Error, Memory, Prepared, Recorder, Spec, View,
    ViewMut, Workspace,
};

use crate::support::{device, integers, own_calls, spec};

const POOL: usize = 1 << 16;

struct Engine {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    pool: CudaSlice<u8>,
    /// Where the pool begins. Asking cudarc makes its context current.
    base: u64,
    xattn: Device,
}

impl Engine {
    fn new() -> Option<Self> {
        // Says aloud if there is no device.
        device()?;
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        // Every byte that no operand covers must keep this.
        let pool = stream.clone_htod(&[0xA5u8; POOL]).unwrap();
        let xattn = Device::from_cuda(context.clone(), &CudaOptions::from_env().unwrap()).unwrap();
        let base = pool.device_ptr(&stream).0;
        Some(Engine { context, stream, pool, base, xattn })
    }

    fn memory(&self, offset: usize, bytes: usize) -> Memory {
        Memory::Cuda(CudaMemory::new(self.base + offset as u64, bytes as u64))
    }

    fn view(&self, spec: Spec, offset: usize) -> View<'_> {
        // SAFETY: the pool outlives the view, and the test's regions do not overlap.
        unsafe { View::from_raw(spec, self.memory(offset, spec.span_bytes())) }
    }

    fn view_mut(&self, spec: Spec, offset: usize) -> ViewMut<'_> {
        // SAFETY: as above.
        unsafe { ViewMut::from_raw(spec, self.memory(offset, spec.span_bytes())) }
    }

    fn upload(&mut self, image: &[u8]) {
        self.stream.memcpy_htod(image, &mut self.pool).unwrap();
    }

    fn image(&self) -> Vec<u8> {
        self.stream.clone_dtoh(&self.pool).unwrap()
    }
}

/// Writes values of a dtype into the engine's idea of its pool.
fn put(image: &mut [u8], offset: usize, values: &[f32], dtype: DType) {
    let bytes: Vec<u8> = match dtype {
        DType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    };
    image[offset..][..bytes.len()].copy_from_slice(&bytes);
}

fn expect_image(engine: &Engine, image: &[u8]) {
    let after = engine.image();
    let wrong = image.iter().zip(&after).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first byte that differs from the engine's idea of its pool");
}

#[test]
fn pooled_memory_odd_offsets_and_the_engines_stream() {
    let Some(mut engine) = Engine::new() else { return };
    let (rows, n, k) = (5, 33, 19);
    // bf16 at an odd element, f32 at 4 but not 16 bytes; strides beyond the row length.
    let (x_at, w_at, bias_at, residual_at, out_at, y_at) = (258, 1026, 4100, 5002, 6006, 9004);
    let x_spec = Spec::strided(DType::BF16, &[1, rows, k], &[rows * 23, 23, 1]).unwrap();
    let (w_spec, bias_spec, out_spec) =
        (spec(DType::BF16, &[n, k]), spec(DType::F32, &[n]), spec(DType::BF16, &[1, rows, n]));
    let (x, w) = (integers(rows * k, 1), integers(n * k, 2));
    let (bias, residual) = (integers(n, 3), integers(rows * n, 4));
    let mut image = vec![0xA5; POOL];
    for (r, row) in x.chunks(k).enumerate() {
        put(&mut image, x_at + 2 * 23 * r, row, DType::BF16);
    }
    put(&mut image, w_at, &w, DType::BF16);
    put(&mut image, bias_at, &bias, DType::F32);
    put(&mut image, residual_at, &residual, DType::BF16);
    engine.upload(&image);

    let args = |out_at| LinearArgs {
        bias: Some(engine.view(bias_spec, bias_at)),
        residual: Some(Source::From(engine.view(out_spec, residual_at))),
        ..LinearArgs::new(
            engine.view(x_spec, x_at),
            Matrix::View(engine.view(w_spec, w_at)),
            engine.view_mut(out_spec, out_at),
        )
    };
    let shapes = LinearArgs {
        bias: Some(bias_spec),
        residual: Some(Source::From(out_spec)),
        ..LinearArgs::new(x_spec, Matrix::View(w_spec), out_spec)
    };
    let prepared = Linear::default().prepare(&engine.xattn, shapes).unwrap();
    let mut workspace = Workspace::new(&engine.xattn, prepared.workspace_bytes()).unwrap();

    // On the engine's stream, then by its handle into another place, without waiting.
    let waited = own_calls("cuStreamSynchronize");
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&engine.stream));
    prepared.enqueue(&mut recorder, args(out_at), &mut workspace).unwrap();
    let Recorder::Cuda(inner) = &recorder else { unreachable!() };
    assert!(inner.launches() > 0);
    // SAFETY: the stream lives to the end of the test, and belongs to the context.
    let mut recorder = Recorder::Cuda(unsafe { CudaRecorder::from_raw_stream(engine.stream.cu_stream()) });
    prepared.enqueue(&mut recorder, args(y_at), &mut workspace).unwrap();
    assert_eq!(own_calls("cuStreamSynchronize"), waited, "enqueueing waits for nothing");

    let dot = |r: usize, c: usize| (0..k).map(|i| x[r * k + i] * w[c * k + i]).sum::<f32>();
    let y: Vec<f32> = (0..rows * n).map(|i| dot(i / n, i % n) + bias[i % n] + residual[i]).collect();
    put(&mut image, out_at, &y, DType::BF16);
    put(&mut image, y_at, &y, DType::BF16);
    expect_image(&engine, &image);
}

/// `out = x + y` of three elements: the gate is so large that its tanh is 1.
fn residual(device: &Device) -> (Prepared<GatedResidual>, Spec, Spec) {
    let (row, gate) = (spec(DType::F32, &[1, 1, 3]), spec(DType::F32, &[1]));
    let shapes = GatedResidualArgs { x: Source::From(row), y: row, gate, row_mask: None, out: row };
    (GatedResidual.prepare(device, shapes).unwrap(), row, gate)
}

#[test]
fn many_calls_are_pending_at_once_and_each_keeps_its_operands() {
    let Some(mut engine) = Engine::new() else { return };
    let (prepared, row, gate) = residual(&engine.xattn);
    let mut image = vec![0xA5; POOL];
    for i in 0..30 {
        put(&mut image, 4 + 100 * i, &[i as f32, 1.0, 2.0], DType::F32);
        put(&mut image, 16 + 100 * i, &[9.0, 8.0, 7.0, 99.0], DType::F32);
    }
    engine.upload(&image);
    let mut workspace = Workspace::new(&engine.xattn, 0).unwrap();
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&engine.stream));
    for i in 0..30 {
        let args = GatedResidualArgs {
            x: Source::From(engine.view(row, 4 + 100 * i)),
            y: engine.view(row, 16 + 100 * i),
            gate: engine.view(gate, 28 + 100 * i),
            row_mask: None,
            out: engine.view_mut(row, 40 + 100 * i),
        };
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
        put(&mut image, 40 + 100 * i, &[i as f32 + 9.0, 9.0, 9.0], DType::F32);
    }
    let Recorder::Cuda(inner) = &recorder else { unreachable!() };
    assert_eq!(inner.launches(), 30);
    expect_image(&engine, &image);
}

#[test]
fn threads_share_a_prepared_op_each_on_its_own_stream() {
    let Some(mut engine) = Engine::new() else { return };
    let (prepared, row, gate) = residual(&engine.xattn);
    let mut image = vec![0xA5; POOL];
    for i in 0..4 {
        put(&mut image, 4096 * i, &[i as f32, 1.0, 2.0, 0.0], DType::F32);
        put(&mut image, 4096 * i + 16, &[1.0, 1.0, 1.0, 99.0], DType::F32);
        put(&mut image, 4096 * i + 32, &[i as f32 + 20.0, 21.0, 22.0], DType::F32);
    }
    let before: Vec<u8> = image
        .chunks(4096)
        .enumerate()
        .flat_map(|(i, chunk)| {
            let mut chunk = chunk.to_vec();
            if i < 4 {
                put(&mut chunk, 32, &[i as f32, 1.0, 2.0], DType::F32);
            }
            chunk
        })
        .collect();
    engine.upload(&before);
    engine.stream.synchronize().unwrap();
    let streams: Vec<_> = (0..4).map(|_| engine.context.new_stream().unwrap()).collect();
    std::thread::scope(|scope| {
        for (i, stream) in streams.iter().enumerate() {
            let (engine, prepared) = (&engine, &prepared);
            scope.spawn(move || {
                // This thread has no current context, and must have none afterwards.
                assert!(current().is_null());
                let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(stream));
                let mut workspace = Workspace::new(&engine.xattn, 0).unwrap();
                for _ in 0..20 {
                    let args = GatedResidualArgs {
                        x: Source::InPlace,
                        y: engine.view(row, 4096 * i + 16),
                        gate: engine.view(gate, 4096 * i + 28),
                        row_mask: None,
                        out: engine.view_mut(row, 4096 * i + 32),
                    };
                    // In place is another instance of these shapes: prepared in another thread.
                    let shapes = GatedResidualArgs { x: Source::InPlace, y: row, gate, row_mask: None, out: row };
                    GatedResidual
                        .prepare(&engine.xattn, shapes)
                        .unwrap()
                        .enqueue(&mut recorder, args, &mut workspace)
                        .unwrap();
                }
                assert_eq!(prepared.workspace_bytes(), 0);
                assert!(current().is_null());
            });
        }
    });
    for stream in &streams {
        stream.synchronize().unwrap();
    }
    expect_image(&engine, &image);
}

fn current() -> CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes a handle.
    assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut context) }, sys::CUresult::CUDA_SUCCESS);
    context
}

#[test]
fn the_engines_current_context_is_restored() {
    let Some(engine) = Engine::new() else { return };
    let ours = engine.xattn.as_cuda().unwrap();
    assert_eq!(ours, engine.context.cu_ctx());
    let mut other = std::ptr::null_mut();
    // SAFETY: an engine's call, with a device that exists. The new context is current on this
    // thread.
    assert_eq!(unsafe { sys::cuCtxCreate_v4(&mut other, std::ptr::null_mut(), 0, 0) }, sys::CUresult::CUDA_SUCCESS);
    assert_eq!(current(), other);

    let (prepared, row, gate) = residual(&engine.xattn);
    assert_eq!(current(), other, "after prepare");
    let mut workspace = Workspace::new(&engine.xattn, 64).unwrap();
    assert_eq!(current(), other, "after allocating");
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&engine.stream));
    let args = GatedResidualArgs {
        x: Source::From(engine.view(row, 0)),
        y: engine.view(row, 16),
        gate: engine.view(gate, 32),
        row_mask: None,
        out: engine.view_mut(row, 48),
    };
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    assert_eq!(current(), other, "after enqueueing");
    // SAFETY: the stream is the engine's, and lives.
    let callers = Recorder::Cuda(unsafe { CudaRecorder::from_raw_stream(engine.stream.cu_stream()) });
    let refused = engine.xattn.finish(callers).unwrap_err().to_string();
    assert_eq!(refused, "finish: recorder: expected one of this device's own, got a caller's stream");
    drop(workspace);
    assert_eq!(current(), other, "after freeing");
    // SAFETY: made above, and used by nothing.
    unsafe { sys::cuCtxDestroy_v2(other) };
}

#[test]
fn a_context_by_its_handle() {
    let Some(engine) = Engine::new() else { return };
    let options = CudaOptions::from_env().unwrap();
    // SAFETY: the engine's context outlives the device.
    let device = unsafe { Device::from_raw_cuda(engine.context.cu_ctx(), &options) }.unwrap();
    assert_eq!(device.info().name, engine.xattn.info().name);
    let (prepared, ..) = residual(&device);
    assert_eq!(prepared.workspace_bytes(), 0);
    // SAFETY: refused before it is used.
    let refused = unsafe { Device::from_raw_cuda(std::ptr::null_mut(), &options) }.unwrap_err();
    assert_eq!(refused.to_string(), "device: context: expected a CUDA context, got null");
}

#[test]
fn cudarcs_slices_are_operands() {
    let Some(engine) = Engine::new() else { return };
    let stream = &engine.stream;
    let (x, mut out) = (stream.clone_htod(&[3.0f32, 4.0]).unwrap(), stream.clone_htod(&[0.0f32; 2]).unwrap());
    let row = spec(DType::F32, &[1, 1, 1, 2]);
    let norm = Norm { kind: NormKind::L2, eps: 1e-12 };
    let prepared = norm.prepare(&engine.xattn, NormArgs::new(Source::From(row), None, None, row)).unwrap();
    let mut workspace = Workspace::new(&engine.xattn, prepared.workspace_bytes()).unwrap();
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(stream));
    {
        let (x, _x) = CudaMemory::read(&x, stream);
        let (out, _out) = CudaMemory::write(&mut out, stream);
        assert_eq!((x.bytes(), out.bytes()), (8, 8));
        // SAFETY: the slices outlive the work, and their guards the enqueueing.
        let args = unsafe {
            NormArgs::new(
                Source::From(View::from_raw(row, Memory::Cuda(x))),
                None,
                None,
                ViewMut::from_raw(row, Memory::Cuda(out)),
            )
        };
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    }
    let got = stream.clone_dtoh(&out).unwrap();
    assert!((got[0] - 0.6).abs() < 1e-6 && (got[1] - 0.8).abs() < 1e-6, "{got:?}");
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let Some(engine) = Engine::new() else { return };
    let (prepared, row, gate) = residual(&engine.xattn);
    let mut workspace = Workspace::new(&engine.xattn, 0).unwrap();
    let mut recorder = Recorder::Cuda(CudaRecorder::from_stream(&engine.stream));
    let mut refused = |y: Memory| {
        let args = GatedResidualArgs {
            x: Source::From(engine.view(row, 0)),
            // SAFETY: refused before it is used.
            y: unsafe { View::from_raw(row, y) },
            gate: engine.view(gate, 32),
            row_mask: None,
            out: engine.view_mut(row, 48),
        };
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap_err()
    };
    assert_eq!(
        refused(engine.memory(16, 11)).to_string(),
        "gated_residual: y: expected memory of at least 12 bytes, got 11"
    );
    let crooked = refused(engine.memory(18, 12)).to_string();
    assert!(crooked.starts_with("gated_residual: y: expected an address that is a multiple of 4, got 0x"), "{crooked}");
    let host = [0f32; 3];
    let address = host.as_ptr().cast_mut().cast();
    assert_eq!(
        refused(Memory::Host(xattn::HostMemory::new(address, 12))).to_string(),
        "gated_residual: y: expected memory of cuda, got host"
    );
    let Recorder::Cuda(inner) = &recorder else { unreachable!() };
    assert_eq!(inner.launches(), 0, "nothing is enqueued");
    let args = GatedResidualArgs {
        x: Source::From(engine.view(row, 0)),
        y: engine.view(row, 16),
        gate: engine.view(gate, 32),
        row_mask: None,
        out: engine.view_mut(row, 48),
    };
    let error = prepared.enqueue(&mut Recorder::Host, args, &mut workspace).unwrap_err();
    assert_eq!(error.to_string(), "gated_residual: recorder: expected one of cuda, got host");
    assert!(matches!(error, Error::Argument { .. }));
}
