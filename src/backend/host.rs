//! Memory of this process, shared by the backends that run on it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::tensor::HostMemory;
use crate::{Error, Result};

/// Buffers begin on a cache line, so that wide loads of rows never straddle two.
const ALIGNMENT: usize = 64;

/// An owned, aligned, zeroed allocation.
pub(crate) struct HostBuffer {
    address: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory like a `Vec<u8>`; views govern every access.
unsafe impl Send for HostBuffer {}
// SAFETY: as above.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    pub fn zeroed(backend: &'static str, bytes: usize, purpose: &'static str) -> Result<Self> {
        let failed = || Error::OutOfMemory { backend, purpose, bytes };
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT).map_err(|_| failed())?;
        // SAFETY: the layout has a nonzero size.
        let address = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        Ok(HostBuffer { address, layout })
    }

    pub fn memory(&self) -> HostMemory {
        HostMemory::new(self.address.as_ptr(), self.layout.size())
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.address.as_ptr(), self.layout) }
    }
}

pub(crate) fn write(to: &HostMemory, bytes: &[u8]) -> Result<()> {
    if bytes.len() > to.bytes() {
        return Err(Error::argument("upload", "bytes", format!("at most {}", to.bytes()), bytes.len()));
    }
    // SAFETY: the region is alive, large enough (checked) and owned by the tensor being filled.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.address(), bytes.len()) };
    Ok(())
}

pub(crate) fn read(from: &HostMemory, bytes: &mut [u8]) -> Result<()> {
    if bytes.len() > from.bytes() {
        return Err(Error::argument("download", "bytes", format!("at most {}", from.bytes()), bytes.len()));
    }
    // SAFETY: the region is alive, holds that many bytes (checked) and is borrowed by a view.
    unsafe { std::ptr::copy_nonoverlapping(from.address(), bytes.as_mut_ptr(), bytes.len()) };
    Ok(())
}

/// The members of `Backend` common to host backends.
macro_rules! host_backend {
    ($name:literal) => {
        const NAME: &'static str = $name;
        type Memory = $crate::tensor::HostMemory;
        type Buffer = $crate::backend::host::HostBuffer;
        type Recorder<'r> = ();

        fn allocate(&self, bytes: usize, purpose: &'static str) -> $crate::Result<Self::Buffer> {
            $crate::backend::host::HostBuffer::zeroed($name, bytes, purpose)
        }
        fn memory(buffer: &Self::Buffer) -> Self::Memory {
            buffer.memory()
        }
        fn skip(memory: &Self::Memory, bytes: usize) -> Self::Memory {
            memory.skip(bytes)
        }
        fn address_bits(memory: &Self::Memory) -> usize {
            memory.address() as usize
        }
        fn region_bytes(memory: &Self::Memory) -> u64 {
            memory.bytes() as u64
        }
        fn write(&self, to: &Self::Memory, bytes: &[u8]) -> $crate::Result<()> {
            $crate::backend::host::write(to, bytes)
        }
        fn read(&self, from: &Self::Memory, bytes: &mut [u8]) -> $crate::Result<()> {
            $crate::backend::host::read(from, bytes)
        }
        fn recorder(self: &std::sync::Arc<Self>) -> $crate::Result<()> {
            Ok(())
        }
        fn finish(&self, (): ()) -> $crate::Result<()> {
            Ok(())
        }
    };
}
pub(crate) use host_backend;
