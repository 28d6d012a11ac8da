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
//! * From the first element to the last, an operand spans fewer than 2^32 elements. An operand may begin anywhere that its dtype is aligned.

pub mod attention;
pub mod gated_residual;
pub mod linear;
pub mod media_index;
pub mod norm;

pub use attention::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
pub use gated_residual::{GatedResidual, GatedResidualArgs};
pub use linear::{Activation, Linear, LinearArgs, Matrix, RowReduce};
pub use media_index::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource};
pub use norm::{Norm, NormArgs, NormKind};

use crate::tensor::{Spec, View, ViewMut};
use crate::{DType, Error, Result};

/// What an op moves and computes, by the model: every operand's elements once, multiply and add as two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Cost {
    /// Bytes read and written.
    pub bytes: u64,
    /// Floating-point operations, an upper bound where values that live on the device decide (φ, lengths).
    pub flops: u64,
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

/// Maps a read operand; the first argument is the operand's name in messages.
pub type MapRead<'f, R, R2> = dyn FnMut(&'static str, R) -> Result<R2> + 'f;
/// Maps a written operand.
pub type MapWrite<'f, W, W2> = dyn FnMut(&'static str, W) -> Result<W2> + 'f;

/// The operands of an op or of a bridge call.
pub trait Operands: Sized + 'static {
    /// The word for messages; of an op also file stem, entry point and heading.
    const NAME: &'static str;

    /// Operands. `R` is a read operand, `W` a written one.
    type Args<R, W>;

    /// The same operands, each replaced by what the functions make of it.
    ///
    /// # Errors
    /// The first error of the functions.
    fn map<R, W, R2, W2>(
        args: Self::Args<R, W>,
        read: &mut MapRead<'_, R, R2>,
        write: &mut MapWrite<'_, W, W2>,
    ) -> Result<Self::Args<R2, W2>>;

    /// The same operands, borrowed.
    fn as_ref<R, W>(args: &Self::Args<R, W>) -> Self::Args<&R, &W>;

    /// Layouts of operands: what `prepare` asks for, from the views that `enqueue` will get.
    ///
    /// ```
    /// use xattn::ops::{GatedResidual, GatedResidualArgs, Operands, Source};
    /// use xattn::{Device, Dispatch, View, ViewMut, Workspace};
    ///
    /// let (y, gate, mut x) = ([1.0f32; 6], [0.0f32], [2.0f32; 6]);
    /// let shape = [1, 2, 3];
    /// let out = ViewMut::new(&mut x, &shape)?;
    /// let args = GatedResidualArgs::new(Source::InPlace, View::new(&y, &shape)?, View::new(&gate, &[1])?, out);
    /// let device = Device::cpu();
    /// let prepared = GatedResidual.prepare(&device, GatedResidual::shapes(&args)?)?;
    /// let mut workspace = Workspace::new(&device, prepared.workspace_bytes())?;
    /// let mut recorder = device.recorder()?;
    /// prepared.enqueue(&mut recorder, args, &mut workspace)?;
    /// device.finish(recorder)?;
    /// assert_eq!(x, [2.0; 6], "a gate of 0 is closed");
    /// # Ok::<(), xattn::Error>(())
    /// ```
    ///
    /// # Errors
    /// None of its own: those of [`Operands::map`], whose functions do not fail here.
    fn shapes(args: &Self::Args<View<'_>, ViewMut<'_>>) -> Result<Self::Args<Spec, Spec>> {
        Self::map(Self::as_ref(args), &mut |_, r: &View<'_>| Ok(r.spec()), &mut |_, w: &ViewMut<'_>| Ok(w.spec()))
    }
}

/// An op: parameters here, operands in [`Operands::Args`].
pub trait Op: Operands + Clone + Send + Sync + std::fmt::Debug {
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

    /// One operand's elements are addressed with 32 bits on devices.
    pub fn index_range(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        self.that(spec.span() <= u32::MAX as usize, argument, "at most 2^32 - 1 elements", spec)
    }

    /// An output: no element twice.
    pub fn written(&self, argument: &'static str, spec: &Spec) -> Result<()> {
        self.that(spec.is_injective(), argument, "strides under which no element is written twice", spec)
    }
}

/// Bytes of the elements that an operand names (repeated ones once).
pub(crate) fn operand_bytes(spec: &Spec) -> u64 {
    let distinct: u64 =
        spec.shape().iter().zip(spec.strides()).map(|(&n, &s)| if s == 0 && n > 0 { 1 } else { n as u64 }).product();
    distinct * spec.dtype().size() as u64
}

/// Bytes of all operands of a call.
pub(crate) fn all_bytes<O: Operands>(shapes: &O::Args<Spec, Spec>) -> u64 {
    let total = std::cell::Cell::new(0u64);
    let _ = O::map::<_, _, (), ()>(
        O::as_ref(shapes),
        &mut |_, r: &Spec| {
            total.set(total.get() + operand_bytes(r));
            Ok(())
        },
        &mut |_, w: &Spec| {
            total.set(total.get() + operand_bytes(w));
            Ok(())
        },
    );
    total.get()
}
