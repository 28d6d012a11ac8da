//! Strided operands of any dtype to and from dense vectors. Everything is read before anything is
//! written, so that an op may work in place.

use super::real::Real;
use crate::dtype::with_float;
use crate::size::Size;
use crate::tensor::room;
use crate::tensor::{Bound, HostMemory, Spec};
use crate::{DType, Element, Error, Float, Result};

pub(super) type Operand = Bound<HostMemory>;

pub(super) struct Dense<T> {
    shape: Vec<usize>,
    values: Vec<T>,
}

impl<T> Dense<T> {
    pub fn new(shape: &[usize], values: Vec<T>) -> Self {
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        Dense { shape: shape.to_vec(), values }
    }

    pub fn filled(shape: &[usize], value: T) -> Result<Self>
    where
        T: Copy,
    {
        let n = Size::<usize>::product(shape).or_out_of_memory(NAME, DENSE)?;
        Ok(Dense::new(shape, collect(std::iter::repeat_n(value, n))?))
    }

    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Result<Dense<U>> {
        Ok(Dense { values: collect(self.values.into_iter().map(f))?, shape: self.shape })
    }

    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    pub fn at(&self, index: &[usize]) -> &T {
        &self.values[self.offset(index)]
    }

    /// The last dimension at the leading indices.
    pub fn row(&self, leading: &[usize]) -> &[T] {
        let width = self.width();
        let start = self.offset(leading) * width;
        &self.values[start..start + width]
    }

    pub fn at_mut(&mut self, index: &[usize]) -> &mut T {
        let at = self.offset(index);
        &mut self.values[at]
    }

    pub fn row_mut(&mut self, leading: &[usize]) -> &mut [T] {
        let width = self.width();
        let start = self.offset(leading) * width;
        &mut self.values[start..start + width]
    }

    fn width(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Row-major position among the leading dimensions that `index` names.
    fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.shape).fold(0, |at, (&i, &n)| {
            debug_assert!(i < n);
            at * n + i
        })
    }
}

/// The promise of [`crate::backend::Implements::record`]: the operands' memory is alive, holds its
/// spec and is used by no one else.
pub(super) struct Promise(());

impl Promise {
    /// # Safety
    /// The caller of the running `record` keeps its contract, and only that call's operands are
    /// read and written with the result.
    pub unsafe fn of_enqueue() -> Self {
        Promise(())
    }

    pub fn read<T: Element>(&self, operand: &Operand) -> Result<Dense<T>> {
        self.read_as(operand, |x: T| x)
    }

    /// Reals of any dtype, widened (rounded from f64 to f32 arithmetic).
    pub fn reals<R: Real>(&self, operand: &Operand) -> Result<Dense<R>> {
        with_float!(operand.spec.dtype(), T => {
            self.read_as(operand, |x: T| R::round_from(x.to_f64()))
        }, else Err(not_real(operand.spec.dtype())))
    }

    /// Element by element: the gaps may be another operand, which may be written meanwhile.
    fn read_as<T: Element, U>(&self, operand: &Operand, f: impl Fn(T) -> U) -> Result<Dense<U>> {
        let memory = operand.pointer::<T>();
        // SAFETY: the promise; `at` lies within the operand's span.
        let values = collect(offsets(&operand.spec).map(|at| f(unsafe { memory.add(at).read() })))?;
        Ok(Dense::new(operand.spec.shape(), values))
    }

    /// Writes integers; elements without a value stay as they are.
    pub fn write<T: Element>(&self, operand: &Operand, values: Dense<Option<T>>) {
        self.write_as(operand, values, |x| x);
    }

    /// Writes reals, each rounded once to the operand's dtype; elements without a value stay.
    pub fn write_reals<R: Real>(&self, operand: &Operand, values: Dense<Option<R>>) -> Result<()> {
        with_float!(operand.spec.dtype(), T => {
            self.write_as(operand, values, |x| T::round_from(x.to_f64()));
            Ok(())
        }, else Err(not_real(operand.spec.dtype())))
    }

    fn write_as<T: Element, U>(&self, operand: &Operand, values: Dense<Option<U>>, f: impl Fn(U) -> T) {
        let memory = operand.pointer::<T>();
        for (at, value) in offsets(&operand.spec).zip(values.values) {
            if let Some(value) = value {
                // SAFETY: the promise; `at` lies within the operand's span.
                unsafe { memory.add(at).write(f(value)) };
            }
        }
    }
}

const NAME: &str = "reference";

const DENSE: &str = "a dense copy";

/// `check` has refused it; this does not rely on it.
fn not_real(dtype: DType) -> Error {
    Error::argument(NAME, "dtype", "a real dtype", dtype)
}

/// A vector of the iterator's items. Their number follows from shapes of operands, which may
/// repeat, and may exceed memory.
pub(super) fn collect<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let mut values = room(NAME, items.size_hint().1.unwrap_or(0), DENSE)?;
    values.extend(items);
    Ok(values)
}

/// Offset of every element, in row-major order.
fn offsets(spec: &Spec) -> impl Iterator<Item = usize> + '_ {
    (0..spec.elements()).map(|position| {
        let mut rest = position;
        (0..spec.rank()).rev().fold(0, |at, d| {
            let i = rest % spec.dim(d);
            rest /= spec.dim(d);
            at + i * spec.stride(d)
        })
    })
}
