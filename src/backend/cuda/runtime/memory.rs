//! Regions of device memory, and copies between them and the host.

use std::sync::Arc;

use ::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::context::{Context, Stream};
use super::{NAME, driver};
use crate::{Error, Result};

/// A range of addresses of a CUDA device: what a [`crate::View`] of this backend stands on.
///
/// It owns nothing, and naming memory is no access. Whoever makes a view of it
/// ([`View::from_raw`](crate::View::from_raw)) or a workspace
/// ([`Workspace::from_raw`](crate::Workspace::from_raw)) promises, until the stream has passed the
/// work that uses it:
///
/// * device: the memory is of the context of the device that uses it, at an address of the GPU.
///   What another device of xattn's allocated is refused; of other memory an address does not tell.
/// * size and lifetime: all of its bytes exist, and nobody frees them.
/// * contents: elements that are read hold a value of their type; any bits are one. What ops write
///   needs no value before.
/// * conflict: nobody else writes what is read, or reads or writes what is written. Gaps between
///   the elements of a strided view are neither read nor written: others may use them meanwhile.
///
/// An address that is no multiple of the element's size is refused. Kernels read and write 16 bytes
/// at a time where address and strides allow it.
#[derive(Clone, Copy, Debug)]
pub struct CudaMemory {
    pub(in crate::backend::cuda) address: u64,
    pub(in crate::backend::cuda) bytes: u64,
    /// Which of our devices allocated it, from 1; 0 for the caller's memory, whose caller answers.
    pub(in crate::backend::cuda) owner: u64,
}

impl CudaMemory {
    /// Names `bytes` bytes at a device address, an engine's `CUdeviceptr`.
    pub fn new(address: u64, bytes: u64) -> Self {
        CudaMemory { address, bytes, owner: 0 }
    }

    /// Names the memory of cudarc's slice or view, to be read on `stream`. Drop the guard once the
    /// ops are enqueued: it tells the slice's own stream.
    pub fn read<'a, T>(slice: &'a impl DevicePtr<T>, stream: &'a CudaStream) -> (Self, SyncOnDrop<'a>) {
        let (address, guard) = slice.device_ptr(stream);
        (CudaMemory::new(address, slice.num_bytes() as u64), guard)
    }

    /// Names the memory of cudarc's slice or view, to be written on `stream`. Guard as for `read`.
    pub fn write<'a, T>(slice: &'a mut impl DevicePtrMut<T>, stream: &'a CudaStream) -> (Self, SyncOnDrop<'a>) {
        let bytes = slice.num_bytes() as u64;
        let (address, guard) = slice.device_ptr_mut(stream);
        (CudaMemory::new(address, bytes), guard)
    }

    /// The address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size of the range.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(in crate::backend::cuda) fn skip(&self, bytes: usize) -> Self {
        let bytes = (bytes as u64).min(self.bytes);
        CudaMemory { address: self.address.wrapping_add(bytes), bytes: self.bytes - bytes, owner: self.owner }
    }
}

/// Memory that we allocated.
pub(crate) struct Allocation {
    memory: CudaMemory,
    context: Arc<Context>,
}

impl Allocation {
    pub(in crate::backend::cuda) fn memory(&self) -> CudaMemory {
        self.memory
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: allocated by `Stream::allocate` in this context; the views of it are gone, and
        // the driver waits for what runs. A driver that refuses has lost device and memory.
        let _ = unsafe { driver::free(self.memory.address) };
    }
}

impl Stream {
    /// Memory filled with zeros, a multiple of 16 bytes, at least 16.
    pub fn allocate(&self, bytes: usize, purpose: &'static str) -> Result<Allocation> {
        let size = bytes.max(1).checked_next_multiple_of(16).unwrap_or(usize::MAX);
        let _entered = self.context().enter_for("allocate")?;
        // SAFETY: the context is current.
        let address = unsafe { driver::allocate(size) }.map_err(|fault| {
            match fault.is(&[driver::CUresult::CUDA_ERROR_OUT_OF_MEMORY]) {
                true => Error::OutOfMemory { backend: NAME, purpose, bytes },
                false => fault.during("allocate"),
            }
        })?;
        let memory = CudaMemory { address, bytes: size as u64, owner: self.context().serial() };
        let allocation = Allocation { memory, context: self.context().clone() };
        // SAFETY: fresh memory of this size; the stream is ours.
        unsafe { driver::fill(address, 0, size, self.raw()).and_then(|()| driver::stream_wait(self.raw())) }
            .map_err(|fault| fault.during("allocate"))?;
        Ok(allocation)
    }

    /// Copies to a region and waits.
    pub fn write(&self, to: &CudaMemory, bytes: &[u8]) -> Result<()> {
        self.context().expect_own("upload", "view", to)?;
        if bytes.len() as u64 > to.bytes {
            return Err(Error::argument("upload", "bytes", format!("at most {}", to.bytes), bytes.len()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let _entered = self.context().enter_for("upload")?;
        let (from, stream) = (bytes.as_ptr().cast(), self.raw());
        // SAFETY: the region holds these bytes, and the host's stay until the stream has passed.
        unsafe { driver::upload(to.address, from, bytes.len(), stream).and_then(|()| driver::stream_wait(stream)) }
            .map_err(|fault| fault.during("upload"))
    }

    /// Copies from a region and waits.
    pub fn read(&self, from: &CudaMemory, bytes: &mut [u8]) -> Result<()> {
        self.context().expect_own("download", "view", from)?;
        if bytes.len() as u64 > from.bytes {
            return Err(Error::argument("download", "bytes", format!("at most {}", from.bytes), bytes.len()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let _entered = self.context().enter_for("download")?;
        let (to, stream) = (bytes.as_mut_ptr().cast(), self.raw());
        // SAFETY: the region holds these bytes, and the host's stay until the stream has passed.
        unsafe { driver::download(to, from.address, bytes.len(), stream).and_then(|()| driver::stream_wait(stream)) }
            .map_err(|fault| fault.during("download"))
    }
}

impl Context {
    /// Whether the memory is this device's, as far as is known; the caller answers for its own.
    pub fn owns(&self, memory: &CudaMemory) -> bool {
        memory.owner == 0 || memory.owner == self.serial()
    }

    /// Refuses what another of our devices allocated: its addresses mean something else here.
    pub fn expect_own(&self, op: &'static str, argument: &'static str, memory: &CudaMemory) -> Result<()> {
        if self.owns(memory) {
            return Ok(());
        }
        Err(Error::argument(op, argument, "memory of this device", "memory of another cuda device"))
    }
}
