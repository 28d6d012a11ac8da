//! Backends: one folder each, one file per op in it, the same file name in each.
//!
//! A backend implements [`Backend`] (memory, weights, recording) and [`Implements`] for every op,
//! and does not depend on any other backend. The list of backends and
//! [`Dispatch`](crate::Dispatch), whose blanket implementation makes a missing op a compile error,
//! are in `device/` above. Code that tests a device or measures its limits (`self_test/` of CUDA,
//! `roof.rs`) runs through a [`Device`](crate::Device), as callers do.

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
mod absent;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
pub(crate) mod host;
mod reals;
pub(crate) mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::fmt;
use std::sync::Arc;

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
pub(crate) use absent::Absent;
pub(crate) use cpu::Cpu;
pub use cpu::{CpuOptions, InstructionSet};
pub(crate) use reals::{expect_real, expect_reals};
pub(crate) use reference::Reference;

use crate::ops::{Op, WeightSource};
use crate::tensor::{Bound, Spec};
use crate::{DType, Result};

/// A backend without its ops. Implemented only in this crate.
pub trait Backend: Sized + Send + Sync + 'static {
    /// A region of this backend's memory.
    type Memory: Clone + Send + Sync + fmt::Debug;
    /// Memory that this backend owns.
    type Buffer: Send + Sync;
    /// A matrix prepared for `linear`.
    type Weight: Send + Sync + 'static;
    /// Where commands go: a stream, an encoder, or at once.
    type Recorder<'r>;

    /// The backend's name in messages.
    const NAME: &'static str;

    /// The device's name.
    fn name(&self) -> String;
    /// For a person who chooses a device: threads, instruction sets, limits.
    fn details(&self) -> String;
    /// Memory filled with zeros.
    fn allocate(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer>;
    /// The whole buffer.
    fn memory(buffer: &Self::Buffer) -> Self::Memory;
    /// The part of a region that begins `bytes` further on.
    fn skip(memory: &Self::Memory, bytes: usize) -> Self::Memory;
    /// Where the region begins: an address, or an offset in a buffer that is itself aligned.
    fn address_bits(memory: &Self::Memory) -> usize;
    /// Bytes of the region.
    fn region_bytes(memory: &Self::Memory) -> u64;
    /// Copies from the host and waits.
    fn write(&self, to: &Self::Memory, bytes: &[u8]) -> Result<()>;
    /// Copies to the host and waits.
    fn read(&self, from: &Self::Memory, bytes: &mut [u8]) -> Result<()>;
    /// A recorder of our own.
    fn recorder(self: &Arc<Self>) -> Result<Self::Recorder<'static>>;
    /// Whether equal positions of two regions are the same memory: always for addresses; for
    /// buffers with an offset only within one buffer.
    fn is_with(_: &Self::Memory, _: &Self::Memory) -> bool {
        true
    }
    /// Whether the region is of this device. The caller answers for memory of its own.
    fn owns(&self, _: &Self::Memory) -> bool {
        true
    }
    /// Whether the recorder's commands run on this device.
    fn accepts(&self, _: &Self::Recorder<'_>) -> bool {
        true
    }
    /// The stream of the recorder's commands, where commands of two streams may run at once; 0
    /// where all of them run in order.
    fn stream(_: &Self::Recorder<'_>) -> usize {
        0
    }
    /// Submits a recorder of our own, and waits.
    fn finish(&self, recorder: Self::Recorder<'static>) -> Result<()>;
    /// Packs constant matrices for `linear`, stored as `dtype`.
    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<Self::Weight>;
}

/// An op on a backend.
pub trait Implements<O: Op>: Backend {
    /// The chosen variant, compiled, with its grid and parameters.
    type Prepared: Send + Sync;

    /// Chooses the variant and compiles it. `op.check` has passed.
    fn prepare(&self, op: &O, shapes: &O::Args<Spec, Spec>) -> Result<Self::Prepared>;

    /// Scratch memory that `record` needs.
    fn workspace_bytes(prepared: &Self::Prepared) -> usize;

    /// Records the op. Neither allocates, compiles nor synchronises.
    ///
    /// # Safety
    /// `args` has the whole description that `prepare` was given: the same operands, with the same
    /// specs, and the same parameters among them (visibility rule, `prefix`, `keys_per_media`,
    /// `keys_per_block`, media token, in place or not). Only addresses, the values behind them, and
    /// the prepared weight among its like may differ. Every operand's memory is of this device,
    /// holds its spec, stays alive until the recorder's commands have run and is not accessed in
    /// conflict. Written operands share no element with others except as `Operands::IN_PLACE` and
    /// `Source::InPlace` say. `workspace` holds `workspace_bytes` bytes of this device, aligned to
    /// 64, perhaps not initialised, used by nothing else until then. The recorder is one that
    /// `accepts` took.
    #[allow(private_interfaces)]
    unsafe fn record(
        &self,
        prepared: &Self::Prepared,
        recorder: &mut Self::Recorder<'_>,
        args: &O::Args<Bound<Self::Memory>, Bound<Self::Memory>>,
        workspace: &Self::Memory,
    ) -> Result<()>;
}
