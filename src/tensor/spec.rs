//! Shape, strides and dtype of an operand, without its memory.

use std::fmt;

use crate::{DType, Error, Result};

/// The largest number of dimensions an operand has.
pub const MAX_RANK: usize = 4;

/// Dtype, shape and strides (in elements) of an operand. The last dimension is contiguous wherever
/// an op reads it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spec {
    dtype: DType,
    rank: u8,
    shape: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
}

impl Spec {
    /// A row-major, contiguous tensor.
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
    /// Ranks that differ or exceed [`MAX_RANK`], a span in bytes beyond `isize::MAX`, or extents
    /// (without those of 0) whose product is beyond it: so that the product of any of them, in any
    /// order, can be computed.
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
        checked_elements(shape).ok_or_else(|| too_large(shape))?;
        let mut last = 0usize;
        for (&n, &s) in shape.iter().zip(strides) {
            let reach = n.saturating_sub(1).checked_mul(s).ok_or_else(|| too_large(shape))?;
            last = last.checked_add(reach).ok_or_else(|| too_large(shape))?;
        }
        let bytes = last.checked_add(1).and_then(|n| n.checked_mul(dtype.size()));
        match bytes {
            Some(bytes) if bytes <= isize::MAX as usize => Ok(spec),
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
        self.shape.get(i).copied().unwrap_or(1)
    }

    /// Stride of dimension `i` in elements; 0 beyond the rank.
    pub fn stride(&self, i: usize) -> usize {
        self.strides.get(i).copied().unwrap_or(0)
    }

    /// Number of elements named by the shape.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Elements from the first to the last one named, inclusive: the memory must hold them.
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

    /// Whether no two index tuples name the same element: required of every written operand.
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

    /// Element offset of an index tuple within the shape.
    pub fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(self.strides()).map(|(i, s)| i * s).sum()
    }

    /// The same layout with another dtype.
    ///
    /// # Errors
    /// A span in bytes beyond `isize::MAX`.
    pub fn with_dtype(self, dtype: DType) -> Result<Self> {
        Spec::strided(dtype, self.shape(), self.strides())
    }

    /// Elements `start..start + len` of dimension `dim`, and the element offset where they begin (0
    /// where `len` is 0).
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
        // Without elements there is no offset: the end of a dimension may lie beyond every address.
        Ok((self, if len == 0 { 0 } else { start * self.strides[dim] }))
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
        let mut this = self.inserted(dim + 1, inner, self.strides[dim]);
        this.shape[dim] = outer;
        this.strides[dim] = self.strides[dim].checked_mul(inner).ok_or_else(|| too_large(this.shape()))?;
        this.checked()
    }

    /// Joins dimensions `dim` and `dim + 1`, where the outer one steps over exactly the inner one
    /// or one of them has a single element.
    ///
    /// # Errors
    /// Dimensions that do not exist or cannot be one.
    pub fn merge(self, dim: usize) -> Result<Self> {
        self.expect_dim(dim.saturating_add(1))?;
        let (outer, inner) = (self.shape[dim], self.shape[dim + 1]);
        let joinable = outer <= 1 || inner <= 1 || self.strides[dim] == inner * self.strides[dim + 1];
        if !joinable {
            return Err(Error::argument("view", "merge", format!("dimensions {dim} and {} adjacent", dim + 1), self));
        }
        let mut this = self;
        this.shape[dim] = outer.checked_mul(inner).ok_or_else(|| too_large(&[outer, inner]))?;
        // Between two extents of 1, the inner step is that of a contiguous tensor.
        this.strides[dim] = if inner == 1 && outer > 1 { self.strides[dim] } else { self.strides[dim + 1] };
        this.shape[dim + 1..].rotate_left(1);
        this.strides[dim + 1..].rotate_left(1);
        this.rank -= 1;
        // Beyond the rank, extents are 1.
        (this.shape[MAX_RANK - 1], this.strides[MAX_RANK - 1]) = (1, 0);
        this.checked()
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
        self.inserted(dim, n, 0).checked()
    }

    /// Makes a dimension of extent 1 repeat `n` times (stride 0).
    ///
    /// # Errors
    /// A dimension of another extent, or a size beyond `isize::MAX`.
    pub fn expand(mut self, dim: usize, n: usize) -> Result<Self> {
        self.expect_dim(dim)?;
        if self.shape[dim] != 1 {
            return Err(Error::argument("view", "expand", format!("extent 1 in dimension {dim}"), self));
        }
        self.shape[dim] = n;
        self.strides[dim] = 0;
        self.checked()
    }

    /// Inserts a dimension at `dim`; there is room for it.
    fn inserted(mut self, dim: usize, extent: usize, stride: usize) -> Self {
        self.shape[dim..].rotate_right(1);
        self.strides[dim..].rotate_right(1);
        (self.shape[dim], self.strides[dim]) = (extent, stride);
        self.rank += 1;
        self
    }

    fn checked(self) -> Result<Self> {
        Spec::strided(self.dtype, self.shape(), self.strides())
    }

    fn expect_dim(&self, dim: usize) -> Result<()> {
        if dim < self.rank() {
            return Ok(());
        }
        Err(Error::argument("view", "dimension", format!("one of {}", self.rank()), dim))
    }
}

/// Number of elements of a shape, if the product of its extents fits `isize` in any order: extents
/// of 0 do not lift the limit.
pub(crate) fn checked_elements(shape: &[usize]) -> Option<usize> {
    let bound = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)))?;
    let elements = if shape.contains(&0) { 0 } else { bound };
    (bound <= isize::MAX as usize).then_some(elements)
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
    fn what_changes_a_layout_keeps_its_size_addressable() {
        const HUGE: usize = 1 << 40;
        let refused = |result: Result<Spec>, found: &str| {
            let expected = format!("view: shape: expected an extent that fits the address space, got {found}");
            assert_eq!(result.unwrap_err().to_string(), expected);
        };
        let one = Spec::contiguous(DType::F32, &[1, HUGE]).unwrap();
        refused(one.expand(0, HUGE), "[1099511627776, 1099511627776]");
        assert_eq!(one.expand(0, 0).unwrap().span(), 0);
        // 2^60 numbers of 4 bytes can be addressed, of 8 bytes not.
        let most = Spec::contiguous(DType::F32, &[1 << 60]).unwrap();
        refused(most.with_dtype(DType::F64), "[1152921504606846976]");
        assert_eq!(most.with_dtype(DType::F16).unwrap(), Spec::contiguous(DType::F16, &[1 << 60]).unwrap());
        // An extent of 0 lifts no limit, at any position.
        for shape in [[0, HUGE, HUGE], [HUGE, 0, HUGE], [HUGE, HUGE, 0]] {
            refused(Spec::strided(DType::F32, &shape, &[0, 0, 1]), &format!("{shape:?}"));
        }
        let empty = Spec::contiguous(DType::F32, &[0, HUGE, 1 << 20]).unwrap();
        assert_eq!(empty.transpose(0, 2).unwrap().elements(), 0);
        // First where the stride would wrap, then where it would not.
        refused(empty.split(0, 0, HUGE), "[0, 1099511627776, 1099511627776, 1048576]");
        let repeated = Spec::strided(DType::F32, &[0, HUGE], &[0, 0]).unwrap();
        refused(repeated.split(0, 0, HUGE), "[0, 1099511627776, 1099511627776]");
        // Behind the last index there is no element, and no address.
        let far = Spec::strided(DType::F32, &[1], &[usize::MAX]).unwrap();
        assert_eq!(far.narrow(0, 1, 0).unwrap().1, 0);
    }

    #[test]
    fn dimensions_that_are_not_there() {
        let spec = Spec::contiguous(DType::F32, &[2, 3]).unwrap();
        assert_eq!([spec.dim(1), spec.dim(2), spec.dim(4), spec.dim(usize::MAX)], [3, 1, 1, 1]);
        assert_eq!([spec.stride(0), spec.stride(3), spec.stride(4), spec.stride(usize::MAX)], [3, 0, 0, 0]);
        let refused = |result: Result<Spec>, dim: usize| {
            let expected = format!("view: dimension: expected one of 2, got {dim}");
            assert_eq!(result.unwrap_err().to_string(), expected);
        };
        refused(spec.merge(1), 2);
        refused(spec.merge(usize::MAX), usize::MAX);
        refused(spec.expand(4, 2), 4);
        refused(spec.split(2, 1, 1), 2);
        refused(spec.narrow(2, 0, 0).map(|(spec, _)| spec), 2);
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
        // One of each of two rows: the steps between them stay.
        let (one, _) = Spec::contiguous(DType::F32, &[2, 4, 5]).unwrap().narrow(1, 1, 1).unwrap();
        let merged = one.merge(0).unwrap();
        assert_eq!((merged.shape(), merged.strides()), (&[2, 5][..], &[20, 1][..]));
        // One of one: as if contiguous.
        let (single, _) = one.narrow(0, 1, 1).unwrap();
        assert_eq!(single.merge(0).unwrap(), Spec::contiguous(DType::F32, &[1, 5]).unwrap());
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
