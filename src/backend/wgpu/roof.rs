//! What a device can do at most, as dispatches to be timed: multiply-adds
//! (`shaders/roof_multiply_add.wgsl`) and a copy (`shaders/roof_copy.wgsl`). `bench::Roof` holds
//! the rates.

use super::launch::{Launch, Operand, linear_grid};
use super::shader_text::{Binding, ShaderText, Text, lib};
use super::{NAME, Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::gpu::{operands, params};
use crate::{DType, Error, Result};

const OP: &str = "roof";

operands! {
    /// See `shaders/roof_multiply_add.wgsl`.
    SumOperands { out }
}

params! {
    /// See `shaders/roof_multiply_add.wgsl`.
    MultiplyAddParams of SumOperands {
        invocations: u32,
        steps: u32,
        factor: f32,
        term: f32,
    }
}

operands! {
    /// See `shaders/roof_copy.wgsl`.
    CopyOperands { x, out }
}

params! {
    /// See `shaders/roof_copy.wgsl`.
    CopyParams of CopyOperands {
        quads: u32,
    }
}

/// A template that no op uses.
const QUADS: &str = include_str!("../../../shaders/lib/quads_f32.wgsl");

pub(super) fn multiply_add_source() -> Result<ShaderText> {
    let text = include_str!("../../../shaders/roof_multiply_add.wgsl");
    ShaderText::new(OP, "roof_multiply_add", text)
        .library(lib::GRID)
        .operands_of(&SumOperands::NAMES, SumOperands { out: Text::write(DType::F32) })
}

pub(super) fn copy_source() -> Result<ShaderText> {
    let operands =
        CopyOperands { x: Text::template(QUADS, Binding::Constant), out: Text::template(QUADS, Binding::Shared) };
    ShaderText::new(OP, "roof_copy", include_str!("../../../shaders/roof_copy.wgsl"))
        .library(lib::GRID)
        .operands_of(&CopyOperands::NAMES, operands)
}

const LANES: usize = 256;

/// Steps of the loop, each of 4 multiply-adds of 32 numbers. Each number goes through 128
/// multiply-adds, which halve its distance to 1 until nothing is left.
const STEPS: usize = 32;
const PER_STEP: usize = 4 * 32;

/// The result of every invocation.
const SUM: f32 = 32.0;

pub(crate) struct MultiplyAdd {
    launch: Launch,
    out: WgpuMemory,
    invocations: usize,
}

impl MultiplyAdd {
    pub fn new(backend: &Wgpu, workgroups: usize) -> Result<Self> {
        let invocations = workgroups * LANES;
        let bytes = invocations * size_of::<f32>();
        let params = MultiplyAddParams {
            invocations: invocations as u32,
            steps: STEPS as u32,
            factor: 0.5,
            term: 0.5,
            ..Default::default()
        };
        let grid = linear_grid(backend, OP, workgroups as u64)?;
        let launch = Launch::new(backend, &multiply_add_source()?, &params, &[Some(bytes as u64)], grid)?;
        Ok(MultiplyAdd { launch, out: backend.allocate_region(bytes, "sums of the roof")?, invocations })
    }

    /// Operations of one dispatch, two per multiply-add.
    pub fn flops(&self) -> u64 {
        (self.invocations * STEPS * PER_STEP * 2) as u64
    }

    pub fn record(&self, backend: &Wgpu, recorder: &mut WgpuRecorder<'_>) -> Result<()> {
        self.launch.record(backend, recorder, &[Some(Operand::region(&self.out, size_of::<f32>()))])
    }

    /// Checks that every invocation of the last dispatch did all of its work.
    pub fn check(&self, backend: &Wgpu) -> Result<()> {
        let mut sums = vec![0f32; self.invocations];
        backend.read_region(&self.out, bytemuck::cast_slice_mut(&mut sums))?;
        match sums.iter().find(|&&sum| sum != SUM) {
            None => Ok(()),
            Some(other) => Err(Error::argument(OP, "sums of multiply-adds", SUM, other)),
        }
    }
}

/// Bytes per workgroup.
const BLOCK: usize = 16 << 10;

/// Bytes of noise per upload.
const NOISE: usize = 4 << 20;

pub(crate) struct Copy {
    launch: Launch,
    x: WgpuMemory,
    out: WgpuMemory,
    bytes: usize,
}

impl Copy {
    /// A copy of `bytes` bytes. It has fewer where a binding cannot hold them or memory is short:
    /// whole blocks, at least `least` bytes.
    pub fn new(backend: &Wgpu, bytes: usize, least: usize) -> Result<Self> {
        let room = backend.binding_limit().min(backend.limits.max_buffer_size) as usize;
        let mut bytes = bytes.min(room);
        loop {
            match Copy::of(backend, bytes / BLOCK * BLOCK) {
                Err(Error::OutOfMemory { .. }) if bytes / 2 >= least => bytes /= 2,
                result => return result,
            }
        }
    }

    fn of(backend: &Wgpu, bytes: usize) -> Result<Self> {
        if bytes == 0 {
            return Err(Error::Unsupported {
                op: OP,
                what: format!("a copy of {BLOCK} bytes"),
                backend: NAME,
                available: format!("at most {} bytes", backend.binding_limit()),
            });
        }
        let params = CopyParams { quads: (bytes / 16) as u32, ..Default::default() };
        let grid = linear_grid(backend, OP, (bytes / BLOCK) as u64)?;
        let span = Some(bytes as u64);
        let launch = Launch::new(backend, &copy_source()?, &params, &[span, span], grid)?;
        let allocate = || backend.allocate_region(bytes, "a copy for the roof");
        let copy = Copy { launch, x: allocate()?, out: allocate()?, bytes };
        let mut state = 1u32;
        let words: Vec<u32> = (0..NOISE.min(bytes) / 4)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state
            })
            .collect();
        let noise: &[u8] = bytemuck::cast_slice(&words);
        for at in (0..bytes).step_by(NOISE) {
            backend.write_region(&copy.x.skip(at), &noise[..noise.len().min(bytes - at)])?;
        }
        Ok(copy)
    }

    /// Bytes that one dispatch moves: read once and written once.
    pub fn bytes(&self) -> u64 {
        2 * self.bytes as u64
    }

    pub fn record(&self, backend: &Wgpu, recorder: &mut WgpuRecorder<'_>) -> Result<()> {
        let operand = |memory| Some(Operand::region(memory, size_of::<f32>()));
        self.launch.record(backend, recorder, &[operand(&self.x), operand(&self.out)])
    }

    /// Checks that the last block was copied.
    pub fn check(&self, backend: &Wgpu) -> Result<()> {
        let last = |memory: &WgpuMemory| {
            let mut words = vec![0u32; BLOCK / 4];
            backend.read_region(&memory.skip(self.bytes - BLOCK), bytemuck::cast_slice_mut(&mut words))?;
            Ok(words)
        };
        if last(&self.x)? == last(&self.out)? {
            return Ok(());
        }
        Err(Error::argument(OP, "copied bytes", "those of the source", "others"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::WgpuOptions;
    use crate::backend::Backend;

    /// Without an adapter the test is reported as skipped; `tests/wgpu` fails then in CI.
    fn backend() -> Option<Arc<Wgpu>> {
        let opened = Wgpu::open(&WgpuOptions::default()).map_err(|error| eprintln!("skipped: {error}"));
        opened.ok().map(Arc::new)
    }

    fn run(backend: &Arc<Wgpu>, record: impl FnOnce(&mut WgpuRecorder<'_>) -> Result<()>) {
        let mut recorder = backend.recorder().unwrap();
        record(&mut recorder).unwrap();
        backend.finish(recorder).unwrap();
    }

    #[test]
    fn every_multiply_add_is_done_and_counted() {
        let Some(backend) = backend() else { return };
        let kernel = MultiplyAdd::new(&backend, 3).unwrap();
        assert_eq!(kernel.flops(), 3 * 256 * 128 * 32 * 2);
        assert_eq!(kernel.check(&backend).unwrap_err().to_string(), "roof: sums of multiply-adds: expected 32, got 0");
        run(&backend, |r| kernel.record(&backend, r));
        kernel.check(&backend).unwrap();
    }

    #[test]
    fn every_byte_is_copied_and_counted_twice() {
        let Some(backend) = backend() else { return };
        // Two pieces of noise, the second one shorter.
        let size = NOISE + 3 * BLOCK;
        let copy = Copy::new(&backend, size + BLOCK / 2, size).unwrap();
        assert_eq!(copy.bytes(), 2 * size as u64);
        assert_eq!(
            copy.check(&backend).unwrap_err().to_string(),
            "roof: copied bytes: expected those of the source, got others"
        );
        run(&backend, |r| copy.record(&backend, r));
        copy.check(&backend).unwrap();
        let read = |memory| {
            let mut bytes = vec![0u8; size];
            backend.read_region(memory, &mut bytes).unwrap();
            bytes
        };
        assert!(read(&copy.x) == read(&copy.out));
    }

    #[test]
    fn a_copy_keeps_to_the_limits() {
        let limits = ::wgpu::Limits { max_storage_buffer_binding_size: 40_000, ..::wgpu::Limits::default() };
        let options = WgpuOptions { limits: Some(limits), ..WgpuOptions::default() };
        let Ok(backend) = Wgpu::open(&options) else { return eprintln!("skipped: no adapter") };
        assert_eq!(Copy::new(&backend, 1 << 20, 1 << 20).unwrap().bytes(), 2 * 2 * BLOCK as u64);
    }
}
