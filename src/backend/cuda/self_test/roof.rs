//! What a device can do at most, as work to be timed: multiply-adds
//! (`kernels/roof_multiply_add.cu`), a copy (`kernels/roof_copy.cu`), a product by cuBLASLt. No op;
//! `bench::Roof` holds the rates.

use std::sync::Arc;

use super::timing::{on_cuda, on_stream};
use crate::backend::Backend;
use crate::backend::cuda::compile::{KernelText, kernel};
use crate::backend::cuda::cublaslt::{ALIGNMENT, Addresses, Gate, Gemm, Plan, Rows};
use crate::backend::cuda::launch::{Launch, Operand};
use crate::backend::cuda::runtime::memory::Allocation;
use crate::backend::cuda::{Cuda, NAME};
use crate::backend::gpu::params;
use crate::device::{Device, Recorder};
use crate::verify::compare::half_ulp;
use crate::{DType, Error, HostTensor, Result};

const OP: &str = "roof";

params! {
    /// See `kernels/roof_multiply_add.cu`.
    RoofMultiplyAddParams { steps: u32, factor: f32, term: f32 }
}

params! {
    /// See `kernels/roof_copy.cu`.
    RoofCopyParams { unused: u32 }
}

/// Threads of a block of either kernel.
const THREADS: usize = 256;
/// Numbers per thread, and loop steps of 4 multiply-adds of each. 128 multiply-adds of a number in
/// all: halving the distance to 1 so often leaves nothing of it.
const CHAINS: usize = 32;
const STEPS: usize = 32;
/// Bytes that a block copies.
const BLOCK: usize = 64 * THREADS;

/// Work whose time is a limit of the device.
pub(crate) trait Roof {
    /// Operations, or bytes read and written, of one run.
    fn amount(&self) -> f64;
    fn record(&self, recorder: &mut Recorder<'_>) -> Result<()>;
    /// Whether the last run did all of its work.
    fn check(&self) -> Result<()>;
}

fn words(backend: &Cuda, from: &Allocation, skip: usize, count: usize) -> Result<Vec<u32>> {
    let mut bytes = vec![0u8; 4 * count];
    backend.read(&from.memory().skip(4 * skip), &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

pub(crate) struct MultiplyAdd {
    backend: Arc<Cuda>,
    launch: Launch,
    out: Allocation,
    threads: usize,
}

impl MultiplyAdd {
    /// A launch of so many blocks per SM.
    pub fn new(device: &Device, per_multiprocessor: usize) -> Result<Self> {
        let backend = on_cuda(device)?.clone();
        let blocks = per_multiprocessor * backend.limits.multiprocessors as usize;
        let source = KernelText::new(OP, "roof_multiply_add", kernel!("roof_multiply_add.cu"), &["out"])
            .constant("CHAINS", CHAINS)
            .threads(THREADS as u32);
        let params = RoofMultiplyAddParams { steps: STEPS as u32, factor: 0.5, term: 0.5 };
        let launch = Launch::new(&backend, &source, &params, [blocks as u32, 1, 1])?;
        let threads = blocks * THREADS;
        let out = backend.allocate(4 * threads, "sums of the roof")?;
        Ok(MultiplyAdd { backend, launch, out, threads })
    }
}

impl Roof for MultiplyAdd {
    fn amount(&self) -> f64 {
        (self.threads * CHAINS * STEPS * 4 * 2) as f64
    }

    fn record(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let out = Operand::region(&self.out.memory(), DType::F32, self.threads);
        // SAFETY: each thread writes one number, and there is room for all; the region lives as
        // long as this.
        unsafe { self.launch.record(&self.backend, on_stream(recorder)?, &[Some(out)]) }
    }

    fn check(&self) -> Result<()> {
        let sums = words(&self.backend, &self.out, 0, self.threads)?;
        match sums.into_iter().map(f32::from_bits).find(|&sum| sum != CHAINS as f32) {
            None => Ok(()),
            Some(other) => Err(Error::argument(OP, "sums of multiply-adds", CHAINS, other)),
        }
    }
}

pub(crate) struct Copy {
    backend: Arc<Cuda>,
    launch: Launch,
    x: Allocation,
    out: Allocation,
    bytes: usize,
}

impl Copy {
    /// A copy of so many bytes of noise, rounded up to whole blocks.
    pub fn new(device: &Device, bytes: usize, noise: &HostTensor<'_>) -> Result<Self> {
        let backend = on_cuda(device)?.clone();
        let bytes = bytes.max(1).next_multiple_of(BLOCK);
        let source = KernelText::new(OP, "roof_copy", kernel!("roof_copy.cu"), &["x", "out"]).threads(THREADS as u32);
        let launch = Launch::new(&backend, &source, &RoofCopyParams::default(), [(bytes / BLOCK) as u32, 1, 1])?;
        let (x, out) = (backend.allocate(bytes, "a copy")?, backend.allocate(bytes, "a copy")?);
        let noise = noise.bytes()?;
        for at in (0..bytes).step_by(noise.len().max(1)) {
            backend.write(&x.memory().skip(at), &noise[..noise.len().min(bytes - at)])?;
        }
        Ok(Copy { backend, launch, x, out, bytes })
    }
}

impl Roof for Copy {
    fn amount(&self) -> f64 {
        2.0 * self.bytes as f64
    }

    fn record(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let operands =
            [&self.x, &self.out].map(|region| Some(Operand::region(&region.memory(), DType::U32, self.bytes / 4)));
        // SAFETY: each block copies its part of both regions, which hold all of them and live as
        // long as this.
        unsafe { self.launch.record(&self.backend, on_stream(recorder)?, &operands) }
    }

    fn check(&self) -> Result<()> {
        let last = |region| words(&self.backend, region, (self.bytes - BLOCK) / 4, BLOCK / 4);
        if last(&self.x)? == last(&self.out)? {
            return Ok(());
        }
        Err(Error::argument(OP, "copied bytes", "those of the source", "others"))
    }
}

/// A square matrix product (GEMM) by cuBLASLt.
pub(crate) struct LibraryGemm {
    backend: Arc<Cuda>,
    plan: Arc<Plan>,
    size: usize,
    dtype: DType,
    operands: [HostTensor<'static>; 2],
    /// x, the matrix, y, scratch memory.
    regions: [Allocation; 4],
}

impl LibraryGemm {
    /// x times the transposed matrix, both `[size, size]` and of a 16-bit type, or why cuBLASLt
    /// does not compute it.
    pub fn new(device: &Device, operands: [HostTensor<'static>; 2]) -> Result<Self> {
        let backend = on_cuda(device)?.clone();
        let (dtype, size) = (operands[0].dtype(), operands[0].shape()[0]);
        let rows = Rows { stride: size, batch_stride: 0 };
        let product = Gemm {
            operands: dtype,
            result: dtype,
            batch: 1,
            rows: size,
            n: size,
            k: size,
            matrix_stride: size,
            x: rows,
            residual: None,
            out: rows,
            gate: Gate::None,
            bias: false,
        };
        let plan = backend.library.plan(&product).ok_or_else(|| Error::Unsupported {
            op: OP,
            what: format!("a product of {size} rows in {dtype} by cuBLASLt"),
            backend: NAME,
            available: backend.library.missing().unwrap_or_else(|| "no algorithm for it".into()),
        })?;
        let bytes = size * size * dtype.size();
        let regions = [bytes, bytes, bytes, plan.workspace_bytes().max(ALIGNMENT)];
        let [x, matrix, y, scratch] = regions.map(|bytes| backend.allocate(bytes, "a product"));
        let regions = [x?, matrix?, y?, scratch?];
        for (region, host) in regions.iter().zip(&operands) {
            backend.write(&region.memory(), &host.bytes()?)?;
        }
        Ok(LibraryGemm { backend, plan, size, dtype, operands, regions })
    }
}

impl Roof for LibraryGemm {
    fn amount(&self) -> f64 {
        2.0 * (self.size as f64).powi(3)
    }

    fn record(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        let [x, matrix, out, workspace] = [0, 1, 2, 3].map(|i| self.regions[i].memory().address());
        let at = Addresses { matrix, x, residual: out, out, bias: 0, factors: 0, workspace };
        let stream = on_stream(recorder)?.stream();
        let _entered = self.backend.context.enter_for(OP)?;
        // SAFETY: the context is current and the stream is its own; the regions hold what the
        // product says and live as long as this.
        unsafe { self.plan.record(&self.backend.library, stream, &at) }
            .map_err(|said| Error::argument(OP, "cublaslt", "a GEMM that cuBLASLt runs", said))
    }

    /// The corners of y, and numbers between them, to the error of f32 sums and one rounding.
    fn check(&self) -> Result<()> {
        let (n, size) = (self.size, self.dtype.size());
        let number = |bytes: &[u8]| HostTensor::from_bytes(self.dtype, &[bytes.len() / size], bytes)?.to_f64();
        let row = |of: usize, i: usize| number(&self.operands[of].bytes()?[i * n * size..(i + 1) * n * size]);
        for (i, j) in [(0, 0), (0, n - 1), (n - 1, 0), (n - 1, n - 1), (n / 2, n / 3), (n / 5, n / 7)] {
            let mut bytes = vec![0u8; size];
            self.backend.read(&self.regions[2].memory().skip((i * n + j) * size), &mut bytes)?;
            let (x, w, actual) = (row(0, i)?, row(1, j)?, number(&bytes)?[0]);
            let terms = || x.iter().zip(&w).map(|(x, w)| x * w);
            let (sum, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let error = n as f64 * f64::from(f32::EPSILON) * magnitude;
            let bound = error + half_ulp(sum.abs() + error, self.dtype);
            let off = (actual - sum).abs();
            if off.is_nan() || off > bound {
                let expected = format!("{sum} within {bound} at [{i}, {j}]");
                return Err(Error::argument(OP, "cublaslt", expected, actual));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::RandomWeights;

    /// Without a device the test is reported as skipped; `scripts/cuda-test` has an emulated one.
    fn device() -> Option<Device> {
        Device::open(crate::DeviceKind::Cuda).map_err(|error| eprintln!("skipped: {error}")).ok()
    }

    fn run(device: &Device, roof: &impl Roof) {
        let mut recorder = device.recorder().unwrap();
        roof.record(&mut recorder).unwrap();
        device.finish(recorder).unwrap();
    }

    #[test]
    fn every_multiply_add_is_done_and_counted() {
        let Some(device) = device() else { return };
        let roof = MultiplyAdd::new(&device, 1).unwrap();
        let threads =
            256.0 * f64::from(crate::backend::cuda::self_test::timing::facts(&device).unwrap().multiprocessors);
        assert_eq!(roof.amount(), threads * 128.0 * 32.0 * 2.0);
        assert_eq!(roof.check().unwrap_err().to_string(), "roof: sums of multiply-adds: expected 32, got 0");
        run(&device, &roof);
        roof.check().unwrap();
    }

    #[test]
    fn every_byte_is_copied_and_counted_twice() {
        let Some(device) = device() else { return };
        // Two pieces of noise, the second one shorter; a last block that is not whole.
        let noise = RandomWeights::new(1).tensor(0.0, 1.0, &[BLOCK / 4 + 100]).unwrap();
        let roof = Copy::new(&device, 2 * BLOCK - 7, &noise).unwrap();
        assert_eq!(roof.amount(), 4.0 * BLOCK as f64);
        let error = roof.check().unwrap_err().to_string();
        assert_eq!(error, "roof: copied bytes: expected those of the source, got others");
        run(&device, &roof);
        roof.check().unwrap();
        let all = |region| words(&roof.backend, region, 0, 2 * BLOCK / 4).unwrap();
        assert!(all(&roof.x) == all(&roof.out));
    }

    #[test]
    fn the_product_is_that_of_its_operands() {
        let Some(device) = device() else { return };
        for dtype in [DType::BF16, DType::F16] {
            let mut random = RandomWeights::new(2).with_matrices(dtype);
            let x = random.rounded(0.0, 1.0, &[64, 64], dtype).unwrap();
            let operands = [x, random.matrix(64, 64).unwrap()];
            let roof = match LibraryGemm::new(&device, operands) {
                Ok(roof) => roof,
                Err(error @ Error::Unsupported { .. }) => return eprintln!("skipped: {error}"),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(roof.amount(), 2.0 * 64.0 * 64.0 * 64.0);
            let error = roof.check().unwrap_err().to_string();
            assert!(error.starts_with("roof: cublaslt: expected ") && error.ends_with(" at [0, 0], got 0"), "{error}");
            run(&device, &roof);
            roof.check().unwrap();
        }
    }
}
