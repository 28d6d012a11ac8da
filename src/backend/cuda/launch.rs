//! One launch with everything it needs but the addresses.

use std::ffi::c_void;
use std::sync::Arc;

use super::Cuda;
use super::compile::KernelText;
use super::compile::image::Function;
use super::runtime::memory::CudaMemory;
use super::runtime::recorder::CudaRecorder;
use super::runtime::tensor_map::TensorMap;
use super::runtime::{NAME, driver};
use crate::backend::gpu::{Launches, MOST_OPERANDS, Params};
use crate::tensor::Bound;
use crate::{DType, Error, Result};

/// An operand as kernels see it: `struct Operand` of `kernels/lib/port.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Raw {
    at: u64,
    dtype: u32,
    /// Bit 0: base and strides are multiples of 16 bytes.
    reserved: u32,
}

const ABSENT: Raw = Raw { at: 0, dtype: 0, reserved: 0 };

/// An operand as [`Launch::record`] takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    memory: CudaMemory,
    dtype: DType,
    /// Bytes that the kernel may touch.
    span: u64,
    /// Every stride is a multiple of 16 bytes.
    wide: bool,
}

impl Operand {
    pub fn of(bound: &Bound<CudaMemory>) -> Self {
        let (spec, size) = (&bound.spec, bound.spec.dtype().size());
        // The last dimension is walked element by element, or in wide steps from its start.
        let rows = spec.rank().saturating_sub(1);
        let wide = (0..rows).all(|d| spec.dim(d) <= 1 || (spec.stride(d) * size).is_multiple_of(16));
        Operand { memory: bound.memory, dtype: spec.dtype(), span: spec.span_bytes() as u64, wide }
    }

    /// The first elements of a region, gapless: scratch memory, a prepared weight.
    pub fn region(memory: &CudaMemory, dtype: DType, elements: usize) -> Self {
        let span = (elements as u64).saturating_mul(dtype.size() as u64);
        Operand { memory: *memory, dtype, span, wide: true }
    }

    pub fn skip(self, elements: usize) -> Self {
        let bytes = elements * self.dtype.size();
        Operand { memory: self.memory.skip(bytes), span: self.span.saturating_sub(bytes as u64), ..self }
    }

    pub fn address(&self) -> u64 {
        self.memory.address
    }

    fn raw(&self) -> Raw {
        let dtype = match self.dtype {
            DType::F32 => 1,
            DType::F16 => 2,
            DType::BF16 => 3,
            DType::I32 | DType::U32 => 4,
            // No kernel reads it: `check` refuses it.
            DType::F64 => return ABSENT,
        };
        let wide = self.wide && self.memory.address.is_multiple_of(16);
        Raw { at: self.memory.address, dtype, reserved: u32::from(wide) }
    }
}

/// One launch, planned: kernel, parameters, grid.
pub(crate) struct Launch {
    op: &'static str,
    function: Arc<Function>,
    operands: &'static [&'static str],
    /// The parameter struct as words.
    params: Box<[u32]>,
    size: driver::Size,
}

impl Launch {
    /// Compiles and loads the kernel (once per text and device) for a launch of `grid` blocks.
    /// Refuses what exceeds the device's limits.
    pub(super) fn new<P: Params>(backend: &Cuda, source: &KernelText, params: &P, grid: [u32; 3]) -> Result<Self> {
        let limits = &backend.limits;
        let refuse = |argument: &'static str, expected: String, actual: String| {
            Err(Error::argument(source.op(), argument, expected, actual))
        };
        if source.block() == 0 || source.block() > limits.threads {
            return refuse("threads", format!("1 to {}", limits.threads), source.block().to_string());
        }
        if !source.serves(backend.arch) {
            return Err(Error::Unsupported {
                op: source.op(),
                what: format!("{} on {}", source.entry(), backend.arch),
                backend: NAME,
                available: source.only().map_or(String::new(), |only| format!("only {only} has its instructions")),
            });
        }
        if source.shared() > limits.shared_bytes {
            return Err(Error::Unsupported {
                op: source.op(),
                what: format!("{} with {} bytes of shared memory", source.entry(), source.shared()),
                backend: NAME,
                available: format!("at most {} bytes in a block", limits.shared_bytes),
            });
        }
        for (axis, (n, most)) in grid.into_iter().zip(limits.grid).enumerate() {
            if n == 0 || n > most {
                return refuse("shape", format!("1 to {most} blocks in dimension {axis}"), n.to_string());
            }
        }
        if source.operand_names().len() > MOST_OPERANDS {
            return refuse("operands", format!("at most {MOST_OPERANDS}"), source.operand_names().len().to_string());
        }
        Ok(Launch {
            op: source.op(),
            function: backend.function(source)?,
            operands: source.operand_names(),
            params: bytemuck::cast_slice(bytemuck::bytes_of(params)).into(),
            size: driver::Size { grid, threads: source.block(), shared_bytes: source.shared() },
        })
    }

    /// Enqueues the launch, or on an error nothing. Allocates, compiles and waits for nothing.
    ///
    /// # Safety
    /// As [`crate::backend::Implements::record`], for these operands.
    pub(super) unsafe fn record(
        &self,
        backend: &Cuda,
        recorder: &mut CudaRecorder<'_>,
        operands: &[Option<Operand>],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.record_with_maps(backend, recorder, operands, &mut []) }
    }

    /// The same for a kernel with a struct of tensor maps.
    ///
    /// # Safety
    /// As [`Self::record`]; the maps are all that the kernel has, and see memory of the operands.
    pub(super) unsafe fn record_with_maps(
        &self,
        backend: &Cuda,
        recorder: &mut CudaRecorder<'_>,
        operands: &[Option<Operand>],
        maps: &mut [TensorMap],
    ) -> Result<()> {
        self.check(backend, operands)?;
        let mut raw = [ABSENT; MOST_OPERANDS];
        for (operand, raw) in operands.iter().zip(&mut raw) {
            *raw = operand.map_or(ABSENT, |operand| operand.raw());
        }
        // A kernel without maps takes the first two.
        let arguments = [
            self.params.as_ptr().cast_mut().cast::<c_void>(),
            raw.as_mut_ptr().cast::<c_void>(),
            maps.as_mut_ptr().cast::<c_void>(),
        ];
        let _entered = backend.context.enter_for(self.op)?;
        let (function, stream) = (self.function.handle(), recorder.stream());
        // SAFETY: the function is loaded in this context, of which the stream is one (whoever
        // enqueues has asked `Cuda::accepts`), and takes exactly these structs, which the driver
        // copies before it returns; every kernel begins with the wait that a dependent one needs
        // (`KERNEL` in `kernels/lib/port.cuh`); the addresses hold what the operands' layouts say
        // (checked above as far as their sizes are known, the rest is the caller's promise).
        unsafe { driver::launch(function, self.size, stream, backend.dependent_launch, arguments) }
            .map_err(|fault| fault.during(self.op))?;
        recorder.count();
        backend.after_launch(self.op, recorder)
    }

    /// Whether these operands may be recorded.
    pub(super) fn check(&self, backend: &Cuda, operands: &[Option<Operand>]) -> Result<()> {
        if operands.len() != self.operands.len() {
            return Err(Error::argument(self.op, "operands", self.operands.len(), operands.len()));
        }
        let present = self.operands.iter().zip(operands).filter_map(|(name, operand)| Some((name, operand.as_ref()?)));
        present.into_iter().try_for_each(|(name, operand)| self.check_operand(backend, name, operand))
    }

    fn check_operand(&self, backend: &Cuda, name: &'static str, operand: &Operand) -> Result<()> {
        let memory = &operand.memory;
        backend.context.expect_own(self.op, name, memory)?;
        if memory.bytes < operand.span {
            let room = format!("memory of at least {} bytes", operand.span);
            return Err(Error::argument(self.op, name, room, memory.bytes));
        }
        let size = operand.dtype.size() as u64;
        if !memory.address.is_multiple_of(size) {
            let aligned = format!("an address that is a multiple of {size}");
            return Err(Error::argument(self.op, name, aligned, format!("{:#x}", memory.address)));
        }
        Ok(())
    }
}

impl Launches for Cuda {
    type Launch = Launch;
    type Operand<'a> = Operand;

    fn operand(bound: &Bound<CudaMemory>) -> Operand {
        Operand::of(bound)
    }

    unsafe fn launch(
        &self,
        launch: &Launch,
        recorder: &mut CudaRecorder<'_>,
        operands: &[Option<Operand>],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { launch.record(self, recorder, operands) }
    }
}

impl Cuda {
    /// With `CudaOptions::synchronise`: waits, so that a fault names its op.
    pub(super) fn after_launch(&self, op: &'static str, recorder: &CudaRecorder<'_>) -> Result<()> {
        if !self.synchronise {
            return Ok(());
        }
        // A captured launch runs later.
        if driver::is_capturing(recorder.stream()).map_err(|fault| fault.during(op))? {
            return Ok(());
        }
        // SAFETY: the recorder keeps its stream alive, or the caller has promised that it lives.
        unsafe { driver::stream_wait(recorder.stream()) }.map_err(|fault| fault.during(op))
    }
}
