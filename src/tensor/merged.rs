//! A weight to which a LoRA adapter adds: W + s·B·A, computed when it is read.
//!
//! As in peft's `merge_and_unload`: products, their sum, the factor and the sum with W in f32, and
//! one rounding to the type of W.

use std::fmt;

use super::{HostTensor, room};
use crate::dtype::with_float;
use crate::regular::Range;
use crate::{DType, Error, Float, Result};

/// A tensor and its adapter, both still in files.
#[derive(Clone)]
pub(crate) struct Merged<'a> {
    pub base: Range<'a>,
    pub dtype: DType,
    /// Columns of W.
    pub columns: usize,
    pub a: HostTensor<'a>,
    pub b: HostTensor<'a>,
    pub scale: f32,
    pub transposed: bool,
}

impl Merged<'_> {
    pub fn len(&self) -> usize {
        self.base.len()
    }

    /// The sum.
    ///
    /// # Errors
    /// As [`HostTensor::bytes`].
    pub fn read(&self) -> Result<Vec<u8>> {
        let rank = self.a.shape()[0];
        // Left [rows of W, rank], right [rank, columns].
        let (left, right) = if self.transposed {
            (turned(&self.a.to_f32()?, rank)?, turned(&self.b.to_f32()?, self.columns)?)
        } else {
            (self.b.to_f32()?, self.a.to_f32()?)
        };
        let mut bytes = self.base.read()?;
        let mut sums = room("host", self.columns, "a row of a merged weight")?;
        sums.resize(self.columns, 0.0f32);
        let row_bytes = self.columns * self.dtype.size();
        if row_bytes == 0 || rank == 0 {
            return Ok(bytes);
        }
        with_float!(self.dtype, T => {
            for (row, factors) in bytes.chunks_exact_mut(row_bytes).zip(left.chunks_exact(rank)) {
                sums.fill(0.0);
                for (factor, direction) in factors.iter().zip(right.chunks_exact(self.columns)) {
                    for (sum, x) in sums.iter_mut().zip(direction) {
                        *sum += factor * x;
                    }
                }
                for (element, sum) in row.chunks_exact_mut(size_of::<T>()).zip(&sums) {
                    let w: T = bytemuck::pod_read_unaligned(element);
                    element.copy_from_slice(bytemuck::bytes_of(&added(w, sum * self.scale)));
                }
            }
        }, else return Err(Error::argument("adapter", "dtype", "a real type", self.dtype)));
        Ok(bytes)
    }
}

/// W plus the adapter's term, rounded once. A weight in f64 keeps its precision.
fn added<T: Float>(w: T, more: f32) -> T {
    if T::DTYPE == DType::F64 { T::round_from(w.to_f64() + f64::from(more)) } else { T::from_f32(w.to_f32() + more) }
}

fn turned(matrix: &[f32], rows: usize) -> Result<Vec<f32>> {
    let columns = matrix.len() / rows.max(1);
    let mut turned = room("host", matrix.len(), "a matrix of an adapter")?;
    for column in 0..columns {
        turned.extend((0..rows).map(|row| matrix[row * columns + column]));
    }
    Ok(turned)
}

impl fmt::Display for Merged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and an adapter's {:?} and {:?}", self.base, self.a, self.b)
    }
}
