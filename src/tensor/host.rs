//! Tensors in host memory, as files and other libraries hold them.

use std::borrow::Cow;
use std::fmt;

#[cfg(feature = "checkpoint")]
use super::merged::Merged;
use super::{checked_elements, room};
use crate::dtype::with_float;
#[cfg(feature = "checkpoint")]
use crate::regular::Range;
use crate::{DType, Element, Error, Float, Result};

/// A contiguous tensor for the host to read: in memory, borrowed or owned, or still in a
/// checkpoint's file. `Send + Sync`.
///
/// Each call that needs the elements of a tensor in a file reads them, and checks that the file is
/// the one that was opened: such calls fail with [`Error::File`] when it has changed. The elements
/// are not kept, so that packing a bridge holds one tensor at a time.
///
/// Tensors are equal when dtype, shape and bytes are; an unreadable one equals none.
#[derive(Clone)]
pub struct HostTensor<'a> {
    dtype: DType,
    shape: Vec<usize>,
    data: Data<'a>,
}

#[derive(Clone)]
enum Data<'a> {
    Memory(Cow<'a, [u8]>),
    #[cfg(feature = "checkpoint")]
    File(Range<'a>),
    #[cfg(feature = "checkpoint")]
    Merged(Box<Merged<'a>>),
}

impl<'a> HostTensor<'a> {
    /// Wraps little-endian bytes, which need no alignment.
    ///
    /// # Errors
    /// A byte count that differs from dtype x shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self> {
        let bytes = bytes.into();
        Self::expect_bytes(dtype, shape, bytes.len())?;
        Ok(HostTensor { dtype, shape: shape.to_vec(), data: Data::Memory(bytes) })
    }

    /// Refers to a part of a file, which is read when the elements are needed.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn in_file(dtype: DType, shape: &[usize], range: Range<'a>) -> Result<Self> {
        Self::expect_bytes(dtype, shape, range.len())?;
        Ok(HostTensor { dtype, shape: shape.to_vec(), data: Data::File(range) })
    }

    /// Refers to a part of a file to which an adapter adds, computed when the elements are needed.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn merged(dtype: DType, shape: &[usize], merged: Merged<'a>) -> Result<Self> {
        Self::expect_bytes(dtype, shape, merged.len())?;
        Ok(HostTensor { dtype, shape: shape.to_vec(), data: Data::Merged(Box::new(merged)) })
    }

    fn expect_bytes(dtype: DType, shape: &[usize], bytes: usize) -> Result<()> {
        let expected = checked_elements(shape).and_then(|n| n.checked_mul(dtype.size()));
        if expected == Some(bytes) {
            return Ok(());
        }
        Err(Error::argument("host tensor", "bytes", format!("{} bytes per element of {shape:?}", dtype.size()), bytes))
    }

    /// Copies a slice.
    ///
    /// # Errors
    /// A length that differs from the shape.
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize]) -> Result<HostTensor<'static>> {
        HostTensor::from_bytes(T::DTYPE, shape, copied(bytemuck::cast_slice(data))?)
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

    /// The elements as bytes, little-endian; borrowed if they are in memory.
    ///
    /// # Errors
    /// [`Error::File`] when the file of the tensor cannot be read or has changed since it was
    /// opened; [`Error::OutOfMemory`].
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        match &self.data {
            Data::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            #[cfg(feature = "checkpoint")]
            Data::File(range) => Ok(Cow::Owned(range.read()?)),
            #[cfg(feature = "checkpoint")]
            Data::Merged(merged) => Ok(Cow::Owned(merged.read()?)),
        }
    }

    /// The elements as `T`.
    ///
    /// # Errors
    /// Another dtype than `T`'s; as [`HostTensor::bytes`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype != T::DTYPE {
            return Err(Error::argument("host tensor", "dtype", T::DTYPE, self.dtype));
        }
        self.map(|x: T| x)
    }

    /// Maps every element, without an intermediate copy. The dtype is `T`'s.
    fn map<T: Element, U>(&self, f: impl Fn(T) -> U) -> Result<Vec<U>> {
        let bytes = self.bytes()?;
        let mut values = room("host", bytes.len() / size_of::<T>(), "the elements of a tensor")?;
        values.extend(bytes.chunks_exact(size_of::<T>()).map(|element| f(bytemuck::pod_read_unaligned(element))));
        Ok(values)
    }

    /// The elements in double precision, from any real type.
    ///
    /// # Errors
    /// An integer dtype; as [`HostTensor::bytes`].
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        with_float!(self.dtype, T => self.map(|x: T| x.to_f64()),
            else Err(Error::argument("host tensor", "dtype", "a real type", self.dtype)))
    }

    /// The elements in single precision, from any real type.
    ///
    /// # Errors
    /// An integer dtype; as [`HostTensor::bytes`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        with_float!(self.dtype, T => self.map(|x: T| x.to_f32()),
            else Err(Error::argument("host tensor", "dtype", "a real type", self.dtype)))
    }

    /// The same values in memory, rounded once to `dtype`; borrowed if nothing has to change.
    ///
    /// # Errors
    /// A conversion between reals and integers; as [`HostTensor::bytes`].
    pub fn to_dtype(&self, dtype: DType) -> Result<HostTensor<'_>> {
        if dtype == self.dtype {
            return Ok(HostTensor { dtype, shape: self.shape.clone(), data: Data::Memory(self.bytes()?) });
        }
        let mismatch = || Err(Error::argument("host tensor", "dtype", dtype, self.dtype));
        with_float!(self.dtype, From => with_float!(dtype, To => {
            HostTensor::from_slice(&self.map(|x: From| To::round_from(Float::to_f64(x)))?, &self.shape)
        }, else mismatch()), else mismatch())
    }

    /// The same elements in another shape of equal size.
    ///
    /// # Errors
    /// A different number of elements.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if checked_elements(shape) != Some(self.elements()) {
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

    /// Detaches the tensor from borrowed memory, or from its file.
    ///
    /// # Errors
    /// As [`HostTensor::bytes`].
    pub fn into_owned(self) -> Result<HostTensor<'static>> {
        let bytes = match self.data {
            Data::Memory(Cow::Owned(bytes)) => bytes,
            Data::Memory(Cow::Borrowed(bytes)) => copied(bytes)?,
            #[cfg(feature = "checkpoint")]
            Data::File(range) => range.read()?,
            #[cfg(feature = "checkpoint")]
            Data::Merged(merged) => merged.read()?,
        };
        Ok(HostTensor { dtype: self.dtype, shape: self.shape, data: Data::Memory(Cow::Owned(bytes)) })
    }

    /// The bytes of a tensor in memory.
    pub(crate) fn in_memory(&self) -> Result<&[u8]> {
        match &self.data {
            Data::Memory(bytes) => Ok(bytes),
            #[cfg(feature = "checkpoint")]
            Data::File(range) => Err(Error::argument("host tensor", "view", "a tensor in memory", range)),
            #[cfg(feature = "checkpoint")]
            Data::Merged(merged) => Err(Error::argument("host tensor", "view", "a tensor in memory", merged)),
        }
    }
}

fn copied(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut copy = room("host", bytes.len(), "a tensor")?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

impl fmt::Debug for HostTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTensor({}{:?}, ", self.dtype, self.shape)?;
        match &self.data {
            Data::Memory(bytes) => write!(f, "{} bytes in memory)", bytes.len()),
            #[cfg(feature = "checkpoint")]
            Data::File(range) => write!(f, "{range})"),
            #[cfg(feature = "checkpoint")]
            Data::Merged(merged) => write!(f, "{merged})"),
        }
    }
}

impl PartialEq for HostTensor<'_> {
    fn eq(&self, other: &Self) -> bool {
        let same = self.dtype == other.dtype && self.shape == other.shape;
        same && matches!((self.bytes(), other.bytes()), (Ok(a), Ok(b)) if a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshape_compares_numbers_that_cannot_wrap() {
        let four = HostTensor::from_slice(&[1.0f32; 4], &[4]).unwrap();
        let refused = |shape: &[usize]| four.clone().reshape(shape).unwrap_err().to_string();
        // (2^62 + 1) * 4 is 4, modulo 2^64.
        let wrapping = [(1 << 62) + 1, 4];
        assert_eq!(refused(&wrapping), "host tensor: shape: expected 4 elements, got [4611686018427387905, 4]");
        assert_eq!(refused(&[2, 3]), "host tensor: shape: expected 4 elements, got [2, 3]");
        assert_eq!(four.reshape(&[2, 2]).unwrap().shape(), [2, 2]);
        let none = HostTensor::from_slice::<f32>(&[], &[0]).unwrap();
        let error = none.clone().reshape(&[1 << 62, 4, 0]).unwrap_err().to_string();
        assert_eq!(error, "host tensor: shape: expected 0 elements, got [4611686018427387904, 4, 0]");
        assert_eq!(none.reshape(&[3, 0]).unwrap().elements(), 0);
    }

    #[test]
    fn doubles_beyond_a_tie_round_once() {
        // Past the midpoint of two neighbours, by less than an f32 resolves: by the low 32 bits.
        let values = [1.0 + 2f64.powi(-11) + 2f64.powi(-40), 1.0 + 2f64.powi(-8) + 2f64.powi(-22)];
        let doubles = HostTensor::from_slice(&values, &[2]).unwrap();
        let rounded = |dtype| doubles.to_dtype(dtype).unwrap().to_f64().unwrap();
        assert_eq!(rounded(DType::F16), [1.0 + 2f64.powi(-10), 1.0 + 2f64.powi(-8)]);
        assert_eq!(rounded(DType::BF16), [1.0, 1.0 + 2f64.powi(-7)]);
    }

    #[test]
    fn bytes_that_are_not_those_of_the_shape() {
        let refused = |shape: &[usize], bytes: usize| {
            HostTensor::from_bytes(DType::F32, shape, vec![0; bytes]).unwrap_err().to_string()
        };
        assert_eq!(refused(&[3], 8), "host tensor: bytes: expected 4 bytes per element of [3], got 8");
        let wrapping = [(1 << 62) + 1];
        assert_eq!(
            refused(&wrapping, 4),
            "host tensor: bytes: expected 4 bytes per element of [4611686018427387905], got 4"
        );
        let beside_nothing = [0, 1 << 62, 4];
        assert_eq!(
            refused(&beside_nothing, 0),
            "host tensor: bytes: expected 4 bytes per element of [0, 4611686018427387904, 4], got 0"
        );
    }

    #[test]
    fn conversions_round_once() {
        let wide = HostTensor::from_slice(&[1.0f64 + f64::EPSILON, -2.5, 65520.0], &[3]).unwrap();
        assert_eq!(wide.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap(), [1.0, -2.5, 65520.0]);
        assert_eq!(wide.to_dtype(DType::F16).unwrap().to_f64().unwrap(), [1.0, -2.5, f64::INFINITY]);
        let error = wide.to_dtype(DType::I32).unwrap_err().to_string();
        assert_eq!(error, "host tensor: dtype: expected i32, got f64");
        let integers = HostTensor::from_slice(&[7i32], &[1]).unwrap();
        assert_eq!(integers.to_dtype(DType::F32).unwrap_err().to_string(), "host tensor: dtype: expected f32, got i32");
        assert_eq!(integers.to_dtype(DType::I32).unwrap().to_vec::<i32>().unwrap(), [7]);
    }
}
