//! NVIDIA GPUs through CUDA: hand-written CUDA C++ (`kernels/`) and a thin runtime.
//!
//! * `runtime/`: the driver's calls (`driver.rs`; `libraries.rs` finds them, `probe.rs` asks
//!   whether there is a device), a context and our stream on it, device memory, recorders, graphs,
//!   tensor maps. Names no op.
//! * `compile/`: the text of a kernel (`kernel_text.rs`), compiled by NVRTC (`nvrtc.rs`) or found
//!   compiled (`image.rs`, `cache.rs`); the list of all kernels, and compiling them ahead of time.
//! * `cublaslt/`: matrix products (GEMMs) by NVIDIA's library.
//! * `options.rs` and `device.rs` open a device or take an engine's context, `launch.rs` records a
//!   kernel, `weight.rs` prepares matrices.
//! * One file per op; a folder of that name beside it where the op has more than one kernel.
//! * `self_test/`: limits and clock of a device, and tests of each instruction that kernels use.
//!   Not part of the runtime.
//!
//! # How to add an op
//!
//! 1. **Kernel**: `kernels/<op>.cu` (a variant: `<op>_<variant>.cu`), one entry point:
//!    `KERNEL(WordParams, WordOperands) { … }`. Its head comment says what it computes, how work is
//!    divided, what is in shared memory, what traffic it causes, and what was tried.
//! 2. **Operands and parameters**: in `../gpu/<op>.rs`, shared with wgpu: the fields of
//!    `struct WordOperands` and of `struct WordParams` in the same order. The `<operand>_offset`
//!    are 0 here.
//! 3. **KernelText**: `KernelText::new(op, entry, kernel!("<op>.cu"), &WordOperands::NAMES)`: the
//!    entry is the instance's name. `.constant(NAME, value)` for what the text specialises on,
//!    `.library(file)` for helpers, `.threads(n)`, `.min_blocks(n)`, `.shared_bytes(n)`.
//! 4. **Prepare**: `Launch::new(self, &source, &params, grid)` compiles and loads (once per text
//!    and device) and refuses what exceeds a limit. An op of one launch implements `OneLaunch`, and
//!    is done.
//! 5. **Record**, of several launches: `launch.record(self, recorder, &[…])` with one
//!    `Option<Operand>` per operand, from `Word::operands(args)`. Scratch in the workspace is an
//!    operand too: `Operand::region(&workspace, dtype, elements)`.
//! 6. **Tests**: `instances()` in the op's file lists every shipped instance.
//!
//! # What the runtime promises
//!
//! * `record` makes one launch on the recorder's stream. It allocates, loads, creates and waits for
//!   nothing, and may be captured in a graph.
//! * The thread's current context is the same after every call as before.
//! * On an engine's context no stream is created; memory is allocated only where a tensor, a weight
//!   or a workspace is asked for.

mod attention;
mod compile;
mod cublaslt;
mod device;
mod gated_residual;
mod launch;
mod linear;
mod media_index;
mod norm;
mod options;
mod runtime;
#[cfg(feature = "verify")]
pub(crate) mod self_test;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::Arc;

pub use attention::CudaAttentionVariant;
pub use compile::{CudaCache, CudaKernel};
pub use cublaslt::CudaCublasLt;
pub(crate) use device::Cuda;
pub use linear::CudaLinear;
pub use options::CudaOptions;
pub use runtime::graph::CudaGraph;
pub use runtime::memory::CudaMemory;
pub use runtime::recorder::CudaRecorder;
#[cfg(feature = "verify")]
pub use self_test::wrappers::WrapperCheck;

use compile::KernelText;
use runtime::memory::Allocation;
use runtime::{NAME, driver};
use weight::PreparedWeight;

use super::Backend;
use crate::ops::{WeightSource, for_each_op};
use crate::{DType, Error, Result};

impl Backend for Cuda {
    const NAME: &'static str = NAME;
    type Memory = CudaMemory;
    type Buffer = Allocation;
    type Weight = PreparedWeight;
    type Recorder<'r> = CudaRecorder<'r>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn details(&self) -> String {
        self.describe()
    }

    fn allocate(&self, bytes: usize, purpose: &'static str) -> Result<Allocation> {
        self.stream.allocate(bytes, purpose)
    }

    fn memory(buffer: &Allocation) -> CudaMemory {
        buffer.memory()
    }

    fn skip(memory: &CudaMemory, bytes: usize) -> CudaMemory {
        memory.skip(bytes)
    }

    fn address_bits(memory: &CudaMemory) -> usize {
        memory.address() as usize
    }

    fn region_bytes(memory: &CudaMemory) -> u64 {
        memory.bytes()
    }

    fn write(&self, to: &CudaMemory, bytes: &[u8]) -> Result<()> {
        self.stream.write(to, bytes)
    }

    fn read(&self, from: &CudaMemory, bytes: &mut [u8]) -> Result<()> {
        self.stream.read(from, bytes)
    }

    fn owns(&self, memory: &CudaMemory) -> bool {
        self.context.owns(memory)
    }

    fn accepts(&self, recorder: &CudaRecorder<'_>) -> bool {
        recorder.is_of(&self.context)
    }

    fn stream(recorder: &CudaRecorder<'_>) -> usize {
        recorder.identity()
    }

    fn recorder(self: &Arc<Self>) -> Result<CudaRecorder<'static>> {
        Ok(CudaRecorder::own(self.stream.clone()))
    }

    fn finish(&self, recorder: CudaRecorder<'static>) -> Result<()> {
        if !recorder.is_own() {
            return Err(Error::argument("finish", "recorder", "one of this device's own", "a caller's stream"));
        }
        let _entered = self.context.enter_for("finish")?;
        // SAFETY: the stream is ours and lives as long as this device.
        unsafe { driver::stream_wait(recorder.stream()) }.map_err(|fault| fault.during("finish"))
    }

    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<PreparedWeight> {
        PreparedWeight::pack(&self.stream, source, dtype)
    }
}

fn instances() -> Vec<KernelText> {
    macro_rules! instances_of {
        ($($word:ident $op:ident $case:ident),* $(,)?) => { [$($word::instances()),*] };
    }
    for_each_op!(instances_of).into_iter().flatten().collect()
}
