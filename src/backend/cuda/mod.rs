//! NVIDIA GPUs through CUDA: hand-written CUDA C++ (`kernels/`) and a thin runtime.
//!
//! * `probe.rs` asks whether there is a driver, `driver.rs` is every call of it, `device.rs` opens a device or takes an engine's context.
//!   `libraries.rs` finds the driver's library and the toolkit's.
//! * `memory.rs`: regions of device memory. `recorder.rs`: where commands go. `graph.rs`: commands captured.
//! * `tensor_map.rs`: matrices as the tensor copies of compute capability 9.0 see them.
//! * `source.rs` puts the text of a kernel together, `compiler.rs` compiles it with NVRTC, `image.rs` and `cache.rs` find it compiled,
//!   `prebuild.rs` compiles all of them ahead of time, `launch.rs` records one.
//! * One file per op.
//!
//! # How to add an op
//!
//! 1. **Kernel**: `kernels/<op>.cu` (a variant: `<op>_<variant>.cu`), one entry point: `KERNEL(WordParams, WordOperands) { … }`. Its head comment
//!    says what it computes, how work is divided, what it keeps in shared memory, what traffic it causes, and what was tried.
//! 2. **Params**: in `../gpu/<op>.rs`, shared with wgpu: the fields of `struct WordParams` in the same order. The `<operand>_offset` are 0 here.
//! 3. **Source**: `Source::new(op, entry, kernel!("<op>.cu"), &["x", …, "out"])`: the entry is the instance's name, the list the fields of
//!    `struct WordOperands`. `.constant(NAME, value)` for what the text specialises on, `.library(file)` for helpers, `.threads(n)`,
//!    `.min_blocks(n)`, `.shared_bytes(n)`.
//! 4. **Prepare**: `Launch::new(self, &source, &params, grid)` compiles and loads (once per text and device) and refuses what exceeds a limit.
//! 5. **Enqueue**: `launch.record(self, recorder, &[…])` with one `Operand` per operand: `Operand::of(&bound)`, `Operand::maybe(option)`,
//!    `Operand::absent()`, `Operand::region(&workspace, dtype, elements)`.
//! 6. **Tests**: `instances()` in the op's file lists every shipped instance; `instances` here joins them.
//!
//! # What the runtime promises
//!
//! * `record` makes one launch on the recorder's stream. It allocates, loads, creates and waits for nothing, and may be captured in a graph.
//! * The thread's current context is the same after every call as before.
//! * On an engine's context no stream is created; memory is allocated only where a tensor, a weight or a workspace is asked for.

mod attention;
mod cache;
mod compiler;
mod device;
mod driver;
mod gated_residual;
mod graph;
mod image;
mod launch;
mod libraries;
mod linear;
mod listing;
mod lt;
mod media_index;
mod memory;
mod norm;
mod prebuild;
mod probe;
mod recorder;
#[cfg(feature = "verify")]
pub(crate) mod roof;
mod sha256;
mod source;
mod tensor_map;
#[cfg(test)]
mod tests;
#[cfg(feature = "verify")]
pub(crate) mod timing;
mod weight;
#[cfg(feature = "verify")]
mod wrappers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use attention::CudaAttentionVariant;
pub use device::{CudaCache, CudaOptions};
pub use graph::CudaGraph;
pub use linear::CudaLinear;
pub use listing::CudaKernel;
pub use lt::CudaCublasLt;
pub use memory::CudaMemory;
pub use recorder::CudaRecorder;
#[cfg(feature = "verify")]
pub use wrappers::WrapperCheck;

use super::weight::WeightOn;
use super::{Backend, DeviceInfo, DeviceKind, Weight, WeightSource};
use crate::tensor::Memory;
use crate::{DType, Error, Result};

/// The backend's name in messages.
const NAME: &str = "cuda";

/// A CUDA context and the kernels loaded into it.
pub(crate) struct Cuda {
    // In the order in which they are dropped: what lives in the context goes first.
    /// By hash of the text.
    functions: Mutex<HashMap<sha256::Hash, Arc<image::Function>>>,
    library: lt::Library,
    stream: device::Stream,
    context: Arc<device::Context>,
    name: String,
    arch: device::Arch,
    limits: device::Limits,
    /// 1000 · major + 10 · minor.
    driver_version: i32,
    /// Which of our devices this is, counted from 1.
    serial: u64,
    /// Wait after each launch.
    synchronise: bool,
    /// Place a kernel while the one before still runs.
    dependent_launch: bool,
    /// The kernel of `attention` that the caller named.
    attention: Option<CudaAttentionVariant>,
    /// Who multiplies, and which of our kernels.
    cublaslt: CudaCublasLt,
    linear: CudaLinear,
    images: image::Images,
}

impl Cuda {
    /// Where our own work goes.
    fn stream(&self) -> driver::CUstream {
        self.stream.raw()
    }

    /// The kernel of a source: loaded, found compiled, or compiled.
    fn function(&self, source: &source::Source) -> Result<Arc<image::Function>> {
        // In a child of fork() somebody who is not there may hold the lock.
        crate::fork::refuse(NAME)?;
        let text = source.text();
        let hash = sha256::hash(text.as_bytes());
        let functions = || self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions().get(&hash) {
            return Ok(function.clone());
        }
        // Without the lock: others may look theirs up meanwhile.
        let loaded = Arc::new(self.images.load(self, source, &text, hash)?);
        Ok(functions().entry(hash).or_insert(loaded).clone())
    }

    /// What the debug switch asks for.
    fn after_launch(&self, op: &'static str, recorder: &CudaRecorder<'_>) -> Result<()> {
        if !self.synchronise {
            return Ok(());
        }
        // A captured launch runs later.
        if graph::is_capturing(recorder.stream()).map_err(|fault| self.fault(op, fault))? {
            return Ok(());
        }
        // SAFETY: the recorder keeps its stream alive, or the caller has promised that it lives.
        unsafe { driver::stream_wait(recorder.stream()) }.map_err(|fault| self.fault(op, fault))
    }
}

impl Backend for Cuda {
    type Memory = CudaMemory;
    type Buffer = memory::Allocation;
    type Weight = weight::PreparedWeight;
    type Recorder<'r> = CudaRecorder<'r>;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: DeviceKind::Cuda, name: self.name.clone(), details: self.details() }
    }

    fn allocate(&self, bytes: usize, purpose: &'static str) -> Result<memory::Allocation> {
        self.allocate_region(bytes, purpose)
    }

    fn memory(buffer: &memory::Allocation) -> CudaMemory {
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
        self.write_region(to, bytes)
    }

    fn read(&self, from: &CudaMemory, bytes: &mut [u8]) -> Result<()> {
        self.read_region(from, bytes)
    }

    fn owns(&self, memory: &CudaMemory) -> bool {
        memory.owner == 0 || memory.owner == self.serial
    }

    fn accepts(&self, recorder: &CudaRecorder<'_>) -> bool {
        recorder.is_of(self)
    }

    fn stream(recorder: &CudaRecorder<'_>) -> usize {
        recorder.identity()
    }

    fn recorder(self: &Arc<Self>) -> Result<CudaRecorder<'static>> {
        Ok(CudaRecorder::own(self.clone()))
    }

    fn finish(&self, recorder: CudaRecorder<'static>) -> Result<()> {
        if !recorder.is_own() {
            return Err(Error::argument("finish", "recorder", "one of this device's own", "a caller's stream"));
        }
        let _entered = self.enter("finish")?;
        // SAFETY: the stream is ours and lives as long as this device.
        unsafe { driver::stream_wait(recorder.stream()) }.map_err(|fault| self.fault("finish", fault))
    }

    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<weight::PreparedWeight> {
        weight::PreparedWeight::pack(self, source, dtype)
    }

    fn unwrap_memory(memory: &Memory) -> Option<&CudaMemory> {
        match memory {
            Memory::Cuda(m) => Some(m),
            _ => None,
        }
    }

    fn unwrap_weight(weight: &Weight) -> Option<&weight::PreparedWeight> {
        match &weight.on {
            WeightOn::Cuda(w) => Some(w),
            _ => None,
        }
    }
}

/// Every shipped instance of every op.
fn instances() -> Vec<source::Source> {
    let ops = [
        attention::instances as fn() -> Vec<source::Source>,
        gated_residual::instances,
        linear::instances,
        media_index::instances,
        norm::instances,
    ];
    ops.into_iter().flat_map(|instances| instances()).collect()
}
