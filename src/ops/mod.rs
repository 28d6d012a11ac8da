//! The contract of each op: equation, source, shapes, checks, cost. No backend code.
//!
//! An op is a small struct of parameters; its operands travel in an `Args<R, W>` struct whose type parameters say what an operand is:
//! a layout (`Spec`) when preparing, a view when running, a slot when a bridge is being built.
//!
//! # Making the structs
//!
//! Begin with `new` (`default` for parameters), then set fields, or end a literal with `..NormArgs::new(x, weight, bias, out)`. A later
//! version may add an optional operand; what is written so keeps compiling. Enums may get variants: match them with a `_` arm.
//!
//! # Strides
//!
//! * They count elements, not bytes, and none is negative. Every operand has its own.
//! * Rows of reals (the last dimension of q, k, v, x, weights, out) are contiguous. The other dimensions, and those of integers where an
//!   operand's documentation says nothing else, may have any stride: K and V as two halves of one product, one head of many, rows with padding.
//! * Stride 0 repeats what is read. In what is written, no two elements may be the same one.
//! * The order of dimensions is that of the documentation, whatever the order in memory: a cache that lies `[batch, heads, keys, head_dim]` is
//!   `View::new(data, &[batch, heads, keys, head_dim])?.transpose(1, 2)?` for `attention`.
//! * A written operand shares no element with another operand of the call, unless the op says so ([`Source::InPlace`], `carry_out` of
//!   `media_index`). What interleaves without a shared byte is fine where strides are equal: `out` as the fourth block of columns of a packed
//!   `q | k | v | out`, K and V as halves of a row. Where that cannot be told from the strides, the call is refused.
//! * From the first element to the last, an operand spans fewer than 2^32 elements. An operand may begin anywhere that its dtype is aligned.

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

/// The list of ops: the word, the struct, and the cases of `verify`. `for_each_op!(these)` is `these! { attention Attention AttentionCase, … }`,
/// for what is done with each of them.
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

/// What an op moves and computes, by the model: every operand's elements once, multiply and add as two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Cost {
    /// Bytes read and written.
    pub bytes: u64,
    /// Floating-point operations, an upper bound where values that live on the device decide (φ, lengths).
    pub flops: u64,
}

impl Cost {
    /// Both together.
    pub(crate) fn plus(self, other: Cost) -> Cost {
        Cost { bytes: self.bytes.saturating_add(other.bytes), flops: self.flops.saturating_add(other.flops) }
    }
}

/// The product of matrices that an op is but for what it fuses: `rows` by `k` times `k` by `n`, `batch` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Product {
    /// Products with matrices of their own.
    pub batch: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result; of a gated activation those of both halves.
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
    /// For messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Source::From(_) => "an operand",
            Source::InPlace => "in place",
        }
    }

    /// The operand, if it is one of its own.
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
    /// Everything that can be known without a device: dtypes, shapes, strides, sizes.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the op, the operand, what was expected and what came.
    fn check(&self, shapes: &Self::Args<Spec, Spec>) -> Result<()>;

    /// Bytes and operations of a call with these shapes.
    fn cost(&self, shapes: &Self::Args<Spec, Spec>) -> Cost;

    /// The product that a call with these shapes is, if it is one: what a library of products would be asked for.
    fn product(&self, _shapes: &Self::Args<Spec, Spec>) -> Option<Product> {
        None
    }
}

/// Checks shared by the ops.
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

    /// One operand's elements are addressed with 32 bits on devices. Of an operand without elements the other extents are bounded alike, so that
    /// no loop over them is longer.
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

    /// An output: no element twice.
    pub fn written(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        self.that(spec.is_injective(), argument, "strides under which no element is written twice", spec)
    }
}

/// A product for accounts; beyond u64 the largest number.
pub(crate) fn amount(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1, |n, factor| n.saturating_mul(factor as u64))
}

/// Bytes of the elements that an operand names (repeated ones once).
pub(crate) fn operand_bytes(spec: &Spec) -> u64 {
    let distinct = spec.shape().iter().zip(spec.strides()).map(|(&n, &s)| if s == 0 && n > 0 { 1 } else { n });
    amount(distinct.chain([spec.dtype().size()]))
}

/// Bytes of all operands of a call.
pub(crate) fn all_bytes<O: Operands>(shapes: &O::Args<Spec, Spec>) -> u64 {
    list::<O>(shapes).iter().fold(0, |sum, (_, spec)| sum.saturating_add(operand_bytes(spec)))
}
