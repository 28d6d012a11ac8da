//! Tensors that own memory on a device.

use super::kinds::Buffer;
use super::{Device, Memory, View, ViewMut};
use crate::Result;
use crate::tensor::{HostTensor, Spec};

/// A tensor that owns memory on a device. Zero when created.
///
/// `Send + Sync`: any number of threads may read it at once, in calls of their own.
pub struct Tensor {
    spec: Spec,
    buffer: Buffer,
}

impl Tensor {
    /// Allocates a contiguous tensor, filled with zeros.
    ///
    /// # Errors
    /// A shape that no view can have, or failed allocation.
    pub fn zeros(device: &Device, dtype: crate::DType, shape: &[usize]) -> Result<Self> {
        let spec = Spec::contiguous(dtype, shape)?;
        Ok(Tensor { spec, buffer: device.allocate(spec.span_bytes(), "a tensor")? })
    }

    /// Copies a host tensor to the device, rounding once to `dtype` if that differs.
    ///
    /// # Errors
    /// A conversion between reals and integers, or failed allocation.
    pub fn upload(device: &Device, host: &HostTensor<'_>, dtype: crate::DType) -> Result<Self> {
        let converted = host.to_dtype(dtype)?;
        let tensor = Tensor::zeros(device, dtype, converted.shape())?;
        device.write(&tensor.buffer.memory(), &converted.bytes()?)?;
        Ok(tensor)
    }

    #[cfg(feature = "verify")]
    pub(crate) fn fill(&mut self, device: &Device, byte: u8) -> Result<()> {
        let (bytes, memory) = (self.spec.span_bytes(), self.buffer.memory());
        let piece = vec![byte; bytes.min(16 << 20)];
        let starts = (0..bytes).step_by(piece.len().max(1));
        starts.into_iter().try_for_each(|at| device.write(&memory.skip(at), &piece[..piece.len().min(bytes - at)]))
    }

    /// Layout of the tensor.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    pub(crate) fn memory(&self) -> Memory {
        self.buffer.memory()
    }

    /// Borrows the whole tensor for reading.
    pub fn view(&self) -> View<'_> {
        // SAFETY: the buffer holds spec.span_bytes() and lives as long as the borrow.
        unsafe { View::from_raw(self.spec, self.buffer.memory()) }
    }

    /// Borrows the whole tensor for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        // SAFETY: as for `view`, and the borrow is exclusive.
        unsafe { ViewMut::from_raw(self.spec, self.buffer.memory()) }
    }

    /// Copies the tensor to host memory.
    ///
    /// # Errors
    /// A lost device.
    pub fn download(&self, device: &Device) -> Result<HostTensor<'static>> {
        device.download(&self.view())
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({})", self.spec)
    }
}
