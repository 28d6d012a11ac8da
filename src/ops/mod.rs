//! The contract of each op: equation, source, shapes, checks, cost. No backend code.
//!
//! An op is a small struct of parameters. Its operands are an `Args<R, W>` struct, whose type
//! parameters are layouts (`Spec`) when preparing, views when running, and registers when a bridge
//! is being built.
//!
//! # Making the structs
//!
//! Begin with `new` (`default` for parameters), then set fields, or end a literal with
//! `..NormArgs::new(x, weight, bias, out)`. Code in this form still compiles when a later version
//! adds an optional operand. Enums may get variants: match them with a `_` arm.
//!
//! # Strides
//!
//! * They count elements, not bytes, and none is negative. Every operand has its own.
//! * Rows of reals (the last dimension of q, k, v, x, weights, out) are contiguous. The other
//!   dimensions, and those of integers unless an operand's documentation says otherwise, may have
//!   any stride: K and V as two halves of one GEMM's result, one head of many, rows with padding.
//! * Stride 0 repeats an element that is read. No two elements that are written may be the same.
//! * Dimensions have the order of the documentation, whatever the order in memory: a cache `[batch,
//! heads, keys, head_dim]` is `View::new(data, &[batch, heads, keys, head_dim])?.transpose(1, 2)?`
//!   for `attention`.
//! * A written operand shares no element with another operand of the call, unless the op says so
//!   ([`Source::InPlace`], `carry_out` of `media_index`). Operands that interleave without a shared
//!   byte are allowed where strides are equal: `out` as the fourth block of columns of a packed
//!   `q |
//! k | v | out`, K and V as halves of a row. The call is refused where the strides do not show
//!   this.
//! * From its first element to its last, an operand spans fewer than 2^32 elements. It may begin at
//!   any address that its dtype is aligned to.

pub mod attention;
pub mod gated_residual;
pub mod linear;
pub mod media_index;
pub mod norm;
mod operands;
pub(crate) mod weight;

pub use attention::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
pub use gated_residual::{GatedResidual, GatedResidualArgs};
pub use linear::{Activation, Linear, LinearArgs, Matrix, RowReduce};
pub use media_index::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource};
pub use norm::{Norm, NormArgs, NormKind};
pub(crate) use operands::{Each, list, sealed};
pub use operands::{Operands, Parameters, Visit, visit};
pub(crate) use weight::{Weight, WeightSource};

use crate::tensor::Spec;
use crate::{DType, Error, Result};

/// The list of ops: the word, the struct, and the cases of `verify`. `for_each_op!(these)` expands
/// to `these! { attention Attention AttentionCase, … }`.
macro_rules! for_each_op {
    ($these:ident) => {
        $these! {
            attention Attention AttentionCase,
            media_index MediaIndex MediaIndexCase,
            norm Norm NormCase,
            linear Linear LinearCase,
            gated_residual GatedResidual GatedResidualCase,
        }
    };
}
pub(crate) use for_each_op;

/// Traffic and work of an op: every operand's elements once, a multiply-add as two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Cost {
    /// Bytes read and written.
    pub bytes: u64,
    /// Floating-point operations. An upper bound where values on the device decide (φ, lengths).
    pub flops: u64,
}

impl Cost {
    pub(crate) fn plus(self, other: Cost) -> Cost {
        Cost { bytes: self.bytes.saturating_add(other.bytes), flops: self.flops.saturating_add(other.flops) }
    }
}

/// The GEMM that an op amounts to but for what it fuses: `rows` x `k` by `k` x `n`, `batch` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GemmShape {
    /// Products, each with matrices of its own.
    pub batch: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result; for a gated activation those of both halves.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
}

/// An operand that the op may write in place: read from elsewhere, or already in `out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<R> {
    /// Read from this operand.
    From(R),
    /// Read from `out` before it is overwritten.
    InPlace,
}

impl<R> Source<R> {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Source::From(_) => "an operand",
            Source::InPlace => "in place",
        }
    }

    /// The operand, unless in place.
    pub(crate) fn operand(&self) -> Option<&R> {
        match self {
            Source::From(r) => Some(r),
            Source::InPlace => None,
        }
    }

    pub(crate) fn try_map<R2>(self, f: impl FnOnce(R) -> Result<R2>) -> Result<Source<R2>> {
        Ok(match self {
            Source::From(r) => Source::From(f(r)?),
            Source::InPlace => Source::InPlace,
        })
    }

    pub(crate) fn as_ref(&self) -> Source<&R> {
        match self {
            Source::From(r) => Source::From(r),
            Source::InPlace => Source::InPlace,
        }
    }
}

/// An op: parameters here, operands in [`Operands::Args`]. Implemented only in this crate.
pub trait Op: Operands + Clone + PartialEq + Send + Sync + std::fmt::Debug {
    /// Checks everything that is known without a device: dtypes, shapes, strides, sizes.
    ///
    /// # Errors
    /// [`Error::Argument`] with the op, the operand, what was expected and what came.
    fn check(&self, shapes: &Self::Args<Spec, Spec>) -> Result<()>;

    /// Bytes and operations of a call with these shapes.
    fn cost(&self, shapes: &Self::Args<Spec, Spec>) -> Cost;

    /// The GEMM that a call with these shapes amounts to, if any, as a library is asked for it.
    fn gemm(&self, _shapes: &Self::Args<Spec, Spec>) -> Option<GemmShape> {
        None
    }
}

pub(crate) struct Checker {
    pub op: &'static str,
}

impl Checker {
    pub fn refuse<T>(&self, argument: &'static str, expected: impl ToString, actual: impl ToString) -> Result<T> {
        Err(Error::argument(self.op, argument, expected, actual))
    }

    pub fn that(
        &self,
        holds: bool,
        argument: &'static str,
        expected: impl ToString,
        actual: impl ToString,
    ) -> Result<()> {
        if holds { Ok(()) } else { self.refuse(argument, expected, actual) }
    }

    pub fn rank(&self, argument: &'static str, spec: &Spec, shape: &str, rank: usize) -> Result<()> {
        self.that(spec.rank() == rank, argument, format!("shape {shape}"), spec)
    }

    pub fn shape(&self, argument: &'static str, spec: &Spec, names: &str, shape: &[usize]) -> Result<()> {
        self.that(spec.shape() == shape, argument, format!("shape {names} = {shape:?}"), spec)
    }

    pub fn real(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        self.that(spec.dtype().is_float(), argument, "a real dtype", spec.dtype())
    }

    pub fn dtype(&self, argument: &'static str, spec: &Spec, dtype: DType) -> Result<()> {
        self.that(spec.dtype() == dtype, argument, dtype, spec.dtype())
    }

    /// Rows of reals: last dimension contiguous, offsets within 32 bits.
    pub fn rows(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        self.real(argument, spec)?;
        self.that(spec.last_contiguous(), argument, "a contiguous last dimension", spec)?;
        self.index_range(argument, spec)
    }

    /// Devices address an operand's elements with 32 bits. The extents of an operand without
    /// elements are bounded alike, so that no loop over them is longer.
    pub fn index_range(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        let bounded = match spec.span() {
            0 => spec.shape().iter().try_fold(1u32, |n, &d| n.checked_mul(u32::try_from(d.max(1)).ok()?)).is_some(),
            span => span <= u32::MAX as usize,
        };
        self.that(bounded, argument, "at most 2^32 - 1 elements", spec)
    }

    /// Integers of this shape: dtype, extents, offsets within 32 bits.
    pub fn integers(
        &self,
        argument: &'static str,
        spec: &Spec,
        dtype: DType,
        names: &str,
        shape: &[usize],
    ) -> Result<()> {
        self.shape(argument, spec, names, shape)?;
        self.dtype(argument, spec, dtype)?;
        self.index_range(argument, spec)
    }

    /// A written operand: no element twice.
    pub fn written(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        self.that(spec.is_injective(), argument, "strides under which no element is written twice", spec)
    }
}

/// A saturating product.
pub(crate) fn amount(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1, |n, factor| n.saturating_mul(factor as u64))
}

/// Bytes of an operand's elements, repeated ones once.
pub(crate) fn operand_bytes(spec: &Spec) -> u64 {
    let distinct = spec.shape().iter().zip(spec.strides()).map(|(&n, &s)| if s == 0 && n > 0 { 1 } else { n });
    amount(distinct.chain([spec.dtype().size()]))
}

pub(crate) fn all_bytes<O: Operands>(shapes: &O::Args<Spec, Spec>) -> u64 {
    list::<O>(shapes).iter().fold(0, |sum, (_, spec)| sum.saturating_add(operand_bytes(spec)))
}
