//! Shape, strides and dtype of an operand, without its memory.

use std::fmt;

use crate::{DType, Error, Result};

/// The largest number of dimensions an operand has.
pub const MAX_RANK: usize = 4;

/// Dtype, shape and strides (in elements) of an operand. The last dimension is contiguous wherever an op reads it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spec {
    dtype: DType,
    rank: u8,
    shape: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
}

impl Spec {
    /// A row-major tensor without gaps.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or a size in bytes beyond `isize::MAX`.
    pub fn contiguous(dtype: DType, shape: &[usize]) -> Result<Self> {
        let mut strides = [0; MAX_RANK];
        let mut step = 1usize;
        for (i, &n) in shape.iter().enumerate().rev() {
            if i < MAX_RANK {
                strides[i] = step;
            }
            step = step.checked_mul(n.max(1)).ok_or_else(|| too_large(shape))?;
        }
        Spec::strided(dtype, shape, &strides[..shape.len().min(MAX_RANK)])
    }

    /// A tensor with explicit strides in elements; stride 0 repeats.
    ///
    /// # Errors
    /// Ranks that differ or exceed [`MAX_RANK`], or an extent in bytes beyond `isize::MAX`.
    pub fn strided(dtype: DType, shape: &[usize], strides: &[usize]) -> Result<Self> {
        if shape.len() > MAX_RANK {
            return Err(Error::argument(
                "view",
                "shape",
                format!("at most {MAX_RANK} dimensions"),
                format!("{shape:?}"),
            ));
        }
        if strides.len() != shape.len() {
            return Err(Error::argument(
                "view",
                "strides",
                format!("one per dimension of {shape:?}"),
                format!("{strides:?}"),
            ));
        }
        let mut spec = Spec { dtype, rank: shape.len() as u8, shape: [1; MAX_RANK], strides: [0; MAX_RANK] };
        spec.shape[..shape.len()].copy_from_slice(shape);
        spec.strides[..shape.len()].copy_from_slice(strides);
        let mut last = 0usize;
        let mut count = 1usize;
        for (&n, &s) in shape.iter().zip(strides) {
            count = count.checked_mul(n).ok_or_else(|| too_large(shape))?;
            let reach = n.saturating_sub(1).checked_mul(s).ok_or_else(|| too_large(shape))?;
            last = last.checked_add(reach).ok_or_else(|| too_large(shape))?;
        }
        let bytes = last.checked_add(1).and_then(|n| n.checked_mul(dtype.size()));
        match bytes {
            Some(bytes) if bytes <= isize::MAX as usize && count <= isize::MAX as usize => Ok(spec),
            _ => Err(too_large(shape)),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank()]
    }

    /// Distances between neighbours along each dimension, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank()]
    }

    /// Extent of dimension `i`; 1 beyond the rank.
    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    /// Stride of dimension `i` in elements; 0 beyond the rank.
    pub fn stride(&self, i: usize) -> usize {
        self.strides[i]
    }

    /// Number of elements named by the shape.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Elements from the first to the last one named, inclusive: what the memory must hold.
    pub fn span(&self) -> usize {
        if self.elements() == 0 {
            return 0;
        }
        self.shape().iter().zip(self.strides()).map(|(n, s)| (n - 1) * s).sum::<usize>() + 1
    }

    /// [`Spec::span`] in bytes.
    pub fn span_bytes(&self) -> usize {
        self.span() * self.dtype.size()
    }

    /// Whether the elements lie without gaps in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for (&n, &s) in self.shape().iter().zip(self.strides()).rev() {
            if n != 1 && s != step {
                return false;
            }
            step *= n.max(1);
        }
        true
    }

    /// Whether the last dimension is contiguous (or has at most one element).
    pub fn last_contiguous(&self) -> bool {
        self.rank == 0 || self.dim(self.rank() - 1) <= 1 || self.stride(self.rank() - 1) == 1
    }

    /// Whether no two index tuples name the same element: required of everything an op writes.
    pub fn is_injective(&self) -> bool {
        let mut dims: [(usize, usize); MAX_RANK] = std::array::from_fn(|i| (self.strides[i], self.shape[i]));
        dims.sort_unstable();
        let mut reach = 0;
        dims.iter().filter(|&&(_, n)| n > 1).all(|&(s, n)| {
            let fits = s > reach;
            reach += s * (n - 1);
            fits
        })
    }

    /// Element offset of an index tuple.
    pub fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(self.strides()).map(|(i, s)| i * s).sum()
    }

    /// The same layout with another dtype.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Elements `start..start + len` of dimension `dim`, and the element offset where they begin.
    ///
    /// # Errors
    /// A dimension or range that does not exist.
    pub fn narrow(mut self, dim: usize, start: usize, len: usize) -> Result<(Self, usize)> {
        self.expect_dim(dim)?;
        if start.checked_add(len).is_none_or(|end| end > self.shape[dim]) {
            return Err(Error::argument(
                "view",
                "narrow",
                format!("a range within 0..{} of dimension {dim}", self.shape[dim]),
                format!("{start}..{start}+{len}"),
            ));
        }
        self.shape[dim] = len;
        Ok((self, start * self.strides[dim]))
    }

    /// Splits dimension `dim` into `outer` x `inner`, as a head split does.
    ///
    /// # Errors
    /// Extents whose product differs from the dimension, or too many dimensions.
    pub fn split(self, dim: usize, outer: usize, inner: usize) -> Result<Self> {
        self.expect_dim(dim)?;
        if outer.checked_mul(inner) != Some(self.shape[dim]) || self.rank() == MAX_RANK {
            return Err(Error::argument(
                "view",
                "split",
                format!("factors of {} and room for a dimension", self.shape[dim]),
                format!("{outer} x {inner} in {self}"),
            ));
        }
        let stride = self.strides[dim].checked_mul(inner).ok_or_else(|| too_large(&[outer, inner]))?;
        let mut split = self.inserted(dim + 1, inner, self.strides[dim]);
        (split.shape[dim], split.strides[dim]) = (outer, stride);
        Spec::strided(self.dtype, split.shape(), split.strides())
    }

    /// Joins dimensions `dim` and `dim + 1`, where the outer one steps over exactly the inner one.
    ///
    /// # Errors
    /// Dimensions that do not exist or cannot be one.
    pub fn merge(self, dim: usize) -> Result<Self> {
        self.expect_dim(dim + 1)?;
        let (outer, inner) = (self.shape[dim], self.shape[dim + 1]);
        let joinable = outer <= 1 || inner == 0 || self.strides[dim] == inner * self.strides[dim + 1];
        if !joinable {
            return Err(Error::argument("view", "merge", format!("dimensions {dim} and {} adjacent", dim + 1), self));
        }
        let mut merged = self;
        merged.shape[dim] = outer.checked_mul(inner).ok_or_else(|| too_large(self.shape()))?;
        merged.strides[dim] = self.strides[dim + 1];
        merged.shape[dim + 1..].rotate_left(1);
        merged.strides[dim + 1..].rotate_left(1);
        merged.rank -= 1;
        Spec::strided(self.dtype, merged.shape(), merged.strides())
    }

    /// Exchanges two dimensions; no element moves.
    ///
    /// # Errors
    /// A dimension that does not exist.
    pub fn transpose(mut self, a: usize, b: usize) -> Result<Self> {
        self.expect_dim(a)?;
        self.expect_dim(b)?;
        self.shape.swap(a, b);
        self.strides.swap(a, b);
        Ok(self)
    }

    /// Inserts a dimension of extent `n` and stride 0: the operand repeats along it.
    ///
    /// # Errors
    /// Too many dimensions.
    pub fn repeat(self, dim: usize, n: usize) -> Result<Self> {
        if dim > self.rank() || self.rank() == MAX_RANK {
            return Err(Error::argument("view", "repeat", "room for a dimension", format!("{dim} in {self}")));
        }
        let repeated = self.inserted(dim, n, 0);
        Spec::strided(self.dtype, repeated.shape(), repeated.strides())
    }

    /// Makes a dimension of extent 1 repeat `n` times (stride 0).
    ///
    /// # Errors
    /// A dimension of another extent.
    pub fn expand(mut self, dim: usize, n: usize) -> Result<Self> {
        self.expect_dim(dim)?;
        if self.shape[dim] != 1 {
            return Err(Error::argument("view", "expand", format!("extent 1 in dimension {dim}"), self));
        }
        self.shape[dim] = n;
        self.strides[dim] = 0;
        Ok(self)
    }

    /// With one dimension more in front of dimension `dim`, for which there is room.
    fn inserted(mut self, dim: usize, n: usize, stride: usize) -> Self {
        self.shape[dim..].rotate_right(1);
        self.strides[dim..].rotate_right(1);
        (self.shape[dim], self.strides[dim]) = (n, stride);
        self.rank += 1;
        self
    }

    fn expect_dim(&self, dim: usize) -> Result<()> {
        if dim < self.rank() {
            return Ok(());
        }
        Err(Error::argument("view", "dimension", format!("one of {}", self.rank()), dim))
    }
}

fn too_large(shape: &[usize]) -> Error {
    Error::argument("view", "shape", "an extent that fits the address space", format!("{shape:?}"))
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape())?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_strides_and_span() {
        let spec = Spec::contiguous(DType::F32, &[2, 3, 4]).unwrap();
        assert_eq!(spec.strides(), [12, 4, 1]);
        assert_eq!((spec.elements(), spec.span(), spec.span_bytes()), (24, 24, 96));
        assert!(spec.is_contiguous() && spec.is_injective());
        assert_eq!(Spec::contiguous(DType::F32, &[2, 0, 4]).unwrap().span(), 0);
    }

    #[test]
    fn transpose_exchanges_extents_and_strides() {
        // [heads, keys, head_dim] in memory, read as [keys, heads, head_dim].
        let spec = Spec::contiguous(DType::F32, &[2, 5, 4]).unwrap().transpose(0, 1).unwrap();
        assert_eq!((spec.shape(), spec.strides(), spec.span()), (&[5, 2, 4][..], &[4, 20, 1][..], 40));
        assert!(spec.is_injective() && spec.last_contiguous() && !spec.is_contiguous());
        assert_eq!(spec.transpose(1, 1).unwrap(), spec);
        assert_eq!(spec.transpose(0, 3).unwrap_err().to_string(), "view: dimension: expected one of 3, got 3");
    }

    #[test]
    fn absurd_shapes_are_errors_not_overflows() {
        let message = Spec::contiguous(DType::F32, &[usize::MAX, 2]).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("view: shape: expected an extent that fits the address space, got [{}, 2]", usize::MAX)
        );
        assert!(Spec::strided(DType::F16, &[3, 3], &[usize::MAX / 2, 1]).is_err());
        assert!(Spec::contiguous(DType::F32, &[1; 5]).is_err());
    }

    #[test]
    fn views_of_views() {
        let spec = Spec::contiguous(DType::F32, &[2, 5, 12]).unwrap();
        let (half, offset) = spec.narrow(2, 6, 6).unwrap();
        assert_eq!(offset, 6);
        let heads = half.split(2, 3, 2).unwrap();
        assert_eq!((heads.shape(), heads.strides()), (&[2, 5, 3, 2][..], &[60, 12, 2, 1][..]));
        assert_eq!(heads.merge(2).unwrap(), half);
        assert!(half.merge(1).is_err());
        assert!(spec.narrow(1, 4, 2).is_err());
        let all = Spec::contiguous(DType::F32, &[4, 6]).unwrap().repeat(0, 3).unwrap();
        assert_eq!((all.shape(), all.strides(), all.span()), (&[3, 4, 6][..], &[0, 6, 1][..], 24));
        assert!(!all.is_injective());
    }

    #[test]
    fn overlapping_strides_are_not_injective() {
        assert!(!Spec::strided(DType::F32, &[4, 8], &[4, 1]).unwrap().is_injective());
        assert!(Spec::strided(DType::F32, &[4, 8], &[8, 1]).unwrap().is_injective());
        assert!(Spec::strided(DType::F32, &[1, 8], &[0, 1]).unwrap().is_injective());
    }
}
