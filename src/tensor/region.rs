//! Memory of this process, and a layout over memory of any kind.

use super::Spec;
use crate::{Element, Error, Result};

/// An address range of this process.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: an address and a length; every use of the memory behind it is governed by the view that
// carries it.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Names `bytes` bytes at `address`.
    pub fn new(address: *mut u8, bytes: usize) -> Self {
        HostMemory { address, bytes }
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn skip(&self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        HostMemory { address: self.address.wrapping_add(bytes), bytes: self.bytes - bytes }
    }
}

/// A layout and the memory it describes: what backends receive. The holder guarantees lifetime and
/// exclusivity.
#[derive(Clone, Debug)]
pub(crate) struct Bound<M> {
    pub spec: Spec,
    pub memory: M,
}

impl Bound<HostMemory> {
    pub(crate) fn pointer<T: Element>(&self) -> *mut T {
        debug_assert_eq!(T::DTYPE, self.spec.dtype());
        self.memory.address().cast()
    }
}

/// An empty vector with room for `n` values, where `n` comes from an argument.
pub(crate) fn room<T>(backend: &'static str, n: usize, purpose: &'static str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(n) {
        Ok(()) => Ok(values),
        Err(_) => Err(Error::OutOfMemory { backend, purpose, bytes: n.saturating_mul(size_of::<T>()) }),
    }
}
