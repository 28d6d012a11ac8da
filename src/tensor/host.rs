//! Tensors in host memory, as files and other libraries hold them.

use std::borrow::Cow;

use super::{Spec, View};
use crate::dtype::with_float;
use crate::{DType, Element, Error, Float, Result};

/// A gapless tensor in host memory: borrowed from a file mapping or owned. `Send + Sync`.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> HostTensor<'a> {
    /// Wraps little-endian bytes, which need no alignment.
    ///
    /// # Errors
    /// A byte count that differs from dtype x shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self> {
        let bytes = bytes.into();
        let expected =
            shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize);
        if expected != Some(bytes.len()) {
            return Err(Error::argument(
                "host tensor",
                "bytes",
                format!("{} bytes per element of {shape:?}", dtype.size()),
                bytes.len(),
            ));
        }
        Ok(HostTensor { dtype, shape: shape.to_vec(), bytes })
    }

    /// Copies a slice.
    ///
    /// # Errors
    /// A length that differs from the shape.
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize]) -> Result<HostTensor<'static>> {
        HostTensor::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(data).to_vec())
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements as `T`.
    ///
    /// # Errors
    /// Another dtype than `T`'s.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype != T::DTYPE {
            return Err(Error::argument("host tensor", "dtype", T::DTYPE, self.dtype));
        }
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.bytes))
    }

    /// The elements as double precision, whatever real type they have.
    ///
    /// # Errors
    /// An integer dtype.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        with_float!(self.dtype, T => Ok(self.to_vec::<T>()?.into_iter().map(Float::to_f64).collect()),
            else Err(Error::argument("host tensor", "dtype", "a real type", self.dtype)))
    }

    /// The elements as single precision, whatever real type they have.
    ///
    /// # Errors
    /// An integer dtype.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        with_float!(self.dtype, T => Ok(self.to_vec::<T>()?.into_iter().map(Float::to_f32).collect()),
            else Err(Error::argument("host tensor", "dtype", "a real type", self.dtype)))
    }

    /// The same values, rounded once to `dtype`; borrowed when nothing changes.
    ///
    /// # Errors
    /// A conversion between reals and integers.
    pub fn to_dtype(&self, dtype: DType) -> Result<HostTensor<'_>> {
        if dtype == self.dtype {
            return Ok(HostTensor { dtype, shape: self.shape.clone(), bytes: Cow::Borrowed(&self.bytes) });
        }
        let mismatch = || Error::argument("host tensor", "dtype", dtype, self.dtype);
        let values = self.to_f64().map_err(|_| mismatch())?;
        with_float!(dtype, T => {
            let rounded: Vec<T> = values.into_iter().map(T::from_f64).collect();
            HostTensor::from_slice(&rounded, &self.shape)
        }, else Err(mismatch()))
    }

    /// The same elements in another shape of equal size.
    ///
    /// # Errors
    /// A different number of elements.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.elements() {
            return Err(Error::argument(
                "host tensor",
                "shape",
                format!("{} elements", self.elements()),
                format!("{shape:?}"),
            ));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// Detaches the tensor from what it borrows.
    pub fn into_owned(self) -> HostTensor<'static> {
        HostTensor { dtype: self.dtype, shape: self.shape, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// A view for the host backends.
    ///
    /// # Errors
    /// More dimensions than a view has, or bytes that are not aligned to the element (file mappings: see [`HostTensor::to_vec`]).
    pub fn view(&self) -> Result<View<'_>> {
        let spec = Spec::contiguous(self.dtype, &self.shape)?;
        // SAFETY: the bytes are borrowed for the view's lifetime and only read; length and alignment are checked.
        unsafe { View::from_raw_host(spec, self.bytes.as_ptr().cast_mut(), self.bytes.len()) }
    }
}
