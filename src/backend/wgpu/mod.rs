//! Any GPU through wgpu: hand-written WGSL (`shaders/`) and a thin runtime.
//!
//! * `adapter.rs` opens a device, or takes an engine's, and chooses the tier of kernels.
//! * `memory.rs`: regions of buffers. `recorder.rs`: where commands go.
//! * `shader_text.rs` concatenates the text of a shader, `../gpu/` declares its operands and
//!   uniform,
//!   `launch.rs` compiles it and records dispatches, `pipelines.rs` keeps it, `counts.rs` counts.
//! * One file per op.
//! * For benchmarks: `timestamps.rs` reads the device's clock, `roof.rs` measures its limits.
//!
//! # How to add an op
//!
//! 1. **Shader**: `shaders/<op>.wgsl` (a variant: `<op>_<variant>.wgsl`) with `struct Params`, one
//!    entry point named like the file, and no binding declarations. Its head comment states the
//!    computation, the division of work, workgroup memory, traffic, and what was tried.
//! 2. **Operands and parameters**: in `../gpu/<op>.rs`. `operands!` names the operands in the order
//!    of the bindings. `params!` lists what prepare knows (extents, strides, factors): the fields
//!    of the WGSL struct behind one `<operand>_offset: u32` per operand, absent ones included,
//!    which `Launch` fills in. In the shader the first element of operand `x` is
//!    `x_at(params.x_offset)`; strides are in elements.
//! 3. **ShaderText**: `ShaderText::new(op, entry, include_str!(…))`, `.constant(name, value)` for
//!    what the text specialises on, `.library(lib::…)` for helpers, then
//!    `.operands_of(names, list)` with a `Text` per operand. `Text::real(dtype)` gives the shader
//!    `name_at(i)` and `name_present`; a dtype of `None` means that the call lacks it, and costs no
//!    binding. `Text::write(dtype)` gives `name_at(i)`, `name_phase(i)` and
//!    `name_store(i, a, b, has_a, has_b)` for reals (16-bit ones are written word by word: see
//!    `lib/write_16.wgsl`), and the array `name` itself for integers. `Text::template` takes
//!    another template, for wide loads. `.workgroup_bytes(n)` if the shader has workgroup memory.
//! 4. **Prepare**: `Launch::new(backend, &source, &params, &spans, grid)`; `spans` has one entry
//!    per operand: `Word::operands(shapes).map(span).list()`. It compiles (once per text and
//!    device) and refuses what exceeds a limit. An op of one dispatch implements `OneLaunch`, and
//!    is done; one of several has several launches.
//! 5. **Record**, of several dispatches: `launch.record(self, recorder, &[…])` with one
//!    `Option<Operand>` per operand, from `Word::operands(args)`. Scratch in the workspace is an
//!    operand too: `Operand::region(workspace, 4).skip(elements)`.
//! 6. **Tests**: `instances` in the op's file lists its sources, which `tests.rs` validates with
//!    naga. Its dispatches and bytes go to `tests/wgpu/numbers.rs`. `scripts/web-test` picks cases
//!    of every op by itself.
//!
//! # What the runtime promises
//!
//! * `record` creates a bind group and a uniform buffer when it meets operands at new addresses,
//!   and keeps the last few: in steady state it creates nothing (`tests/wgpu/numbers.rs`). Neither
//!   is ever rewritten, so a recorded use that is not yet submitted cannot be disturbed.
//! * Operands may begin anywhere. They are bound at the aligned floor; the rest is the offset in
//!   `Params`.
//! * Operands are bound `read_write` even where they are only read, since the same buffer may come
//!   twice (an arena, a pool).
//! * 16-bit elements (f16, bf16) are two to a `u32` word in every tier and need no feature;
//!   arithmetic is in f32.

mod adapter;
mod attention;
mod counts;
mod gated_residual;
mod launch;
mod linear;
mod media_index;
mod memory;
mod norm;
mod pipelines;
mod recorder;
#[cfg(feature = "verify")]
pub(crate) mod roof;
mod shader_text;
#[cfg(test)]
mod tests;
#[cfg(feature = "verify")]
pub(crate) mod timestamps;
#[cfg(feature = "verify")]
mod trace;
mod weight;

use std::sync::{Arc, Mutex, PoisonError};

pub use adapter::{WgpuOptions, WgpuTier};
pub use attention::WgpuAttentionVariant;
pub use counts::WgpuCounts;
pub use memory::WgpuMemory;
pub use recorder::WgpuRecorder;

use super::Backend;
use crate::ops::WeightSource;
use crate::{DType, Error, Result};

const NAME: &str = "wgpu";

pub(crate) struct Wgpu {
    device: ::wgpu::Device,
    queue: ::wgpu::Queue,
    limits: ::wgpu::Limits,
    name: String,
    tier: WgpuTier,
    tier_reason: String,
    /// The device's serial number in this process, from 1.
    serial: u64,
    /// Bounds checks are compiled in.
    checked: bool,
    /// The kernel of `attention` that the caller named.
    attention: Option<WgpuAttentionVariant>,
    pipelines: Mutex<pipelines::Recent<launch::Pipeline>>,
    counters: counts::Counters,
    /// Counter of the key blocks that `attention` visits, where one was asked for.
    key_blocks: Option<WgpuMemory>,
    /// Why the device was lost. Known for devices of our own only.
    lost: Arc<Mutex<Option<String>>>,
    /// Records the bindings of dispatches for `verify`.
    #[cfg(feature = "verify")]
    trace: Option<trace::Trace>,
}

impl Wgpu {
    pub fn device(&self) -> &::wgpu::Device {
        &self.device
    }

    pub fn queue(&self) -> &::wgpu::Queue {
        &self.queue
    }

    pub fn tier(&self) -> WgpuTier {
        self.tier
    }

    /// Runs calls of wgpu that report errors out of band, and returns these errors. `memory` names
    /// an allocation among the calls.
    fn scoped<T>(
        &self,
        op: &'static str,
        memory: Option<(&'static str, usize)>,
        calls: impl FnOnce() -> T,
    ) -> Result<T> {
        self.expect_alive(op)?;
        let filters =
            [::wgpu::ErrorFilter::Internal, ::wgpu::ErrorFilter::OutOfMemory, ::wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let value = calls();
        let mut fault = None;
        for scope in scopes.into_iter().rev() {
            fault = pollster::block_on(scope.pop()).or(fault);
        }
        match fault {
            None => {
                self.expect_alive(op)?;
                Ok(value)
            }
            Some(::wgpu::Error::OutOfMemory { .. }) => {
                let (purpose, bytes) = memory.unwrap_or(("commands", 0));
                Err(Error::OutOfMemory { backend: NAME, purpose, bytes })
            }
            Some(error) => Err(Error::argument(op, NAME, "calls that wgpu accepts", error)),
        }
    }

    /// Refuses a lost device, and a child of `fork()`.
    fn expect_alive(&self, op: &'static str) -> Result<()> {
        crate::fork::refuse(NAME)?;
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(reason) => Err(self.lost(op, reason)),
        }
    }

    fn wait(&self, op: &'static str) -> Result<()> {
        let poll = || self.device.poll(::wgpu::PollType::wait_indefinitely());
        // wgpu panics where the driver reports a lost device.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)) {
            Ok(Ok(_)) => self.expect_alive(op),
            Ok(Err(error)) => Err(self.lost(op, error)),
            Err(_) => {
                self.expect_alive(op)?;
                Err(self.lost(op, "the driver reports an error while waiting"))
            }
        }
    }
}

impl Backend for Wgpu {
    const NAME: &'static str = NAME;
    type Memory = WgpuMemory;
    type Buffer = WgpuMemory;
    type Weight = weight::PreparedWeight;
    type Recorder<'r> = WgpuRecorder<'r>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn details(&self) -> String {
        let l = &self.limits;
        format!(
            "tier {} ({}), binding {} MiB, buffer {} MiB, workgroup memory {} KiB{}",
            self.tier,
            self.tier_reason,
            l.max_storage_buffer_binding_size >> 20,
            l.max_buffer_size >> 20,
            l.max_compute_workgroup_storage_size >> 10,
            if self.checked { "" } else { ", no index checks" },
        )
    }

    fn allocate(&self, bytes: usize, purpose: &'static str) -> Result<WgpuMemory> {
        self.allocate_region(bytes, purpose)
    }

    fn memory(buffer: &WgpuMemory) -> WgpuMemory {
        buffer.clone()
    }

    fn skip(memory: &WgpuMemory, bytes: usize) -> WgpuMemory {
        memory.skip(bytes)
    }

    fn address_bits(memory: &WgpuMemory) -> usize {
        memory.offset() as usize
    }

    fn region_bytes(memory: &WgpuMemory) -> u64 {
        memory.bytes()
    }

    fn write(&self, to: &WgpuMemory, bytes: &[u8]) -> Result<()> {
        self.write_region(to, bytes)
    }

    fn read(&self, from: &WgpuMemory, bytes: &mut [u8]) -> Result<()> {
        self.read_region(from, bytes)
    }

    fn owns(&self, memory: &WgpuMemory) -> bool {
        memory.owner == 0 || memory.owner == self.serial
    }

    fn is_with(a: &WgpuMemory, b: &WgpuMemory) -> bool {
        // wgpu compares the numbers of buffers, which two devices may share.
        let apart = a.owner != 0 && b.owner != 0 && a.owner != b.owner;
        !apart && a.buffer == b.buffer
    }

    fn accepts(&self, recorder: &WgpuRecorder<'_>) -> bool {
        recorder.owner() == 0 || recorder.owner() == self.serial
    }

    fn recorder(self: &Arc<Self>) -> Result<WgpuRecorder<'static>> {
        let descriptor = ::wgpu::CommandEncoderDescriptor { label: Some("xattn") };
        let encoder = self.scoped("recorder", None, || self.device.create_command_encoder(&descriptor))?;
        Ok(WgpuRecorder::own(encoder, self.serial))
    }

    fn finish(&self, recorder: WgpuRecorder<'static>) -> Result<()> {
        let Some(encoder) = recorder.into_own() else {
            return Err(Error::argument("finish", "recorder", "one of this device's own", "a caller's encoder"));
        };
        self.counters.submissions.add();
        self.scoped("finish", None, || self.queue.submit([encoder.finish()]))?;
        self.wait("finish")
    }

    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<weight::PreparedWeight> {
        weight::PreparedWeight::pack(self, source, dtype)
    }
}
