//! Strided operands of any dtype to and from dense vectors: everything is read before anything is written, so that an op may
//! work in place.

use super::real::Real;
use crate::dtype::with_float;
use crate::tensor::{Bound, HostMemory, Spec};
use crate::{Element, Float};

/// An operand of a host backend.
pub(super) type Operand = Bound<HostMemory>;

/// Row-major values with their shape.
pub(super) struct Dense<T> {
    shape: Vec<usize>,
    values: Vec<T>,
}

impl<T> Dense<T> {
    pub fn new(shape: &[usize], values: Vec<T>) -> Self {
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        Dense { shape: shape.to_vec(), values }
    }

    /// The same value everywhere.
    pub fn filled(shape: &[usize], value: T) -> Self
    where
        T: Clone,
    {
        Dense::new(shape, vec![value; shape.iter().product()])
    }

    /// Each value replaced by what the function makes of it.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Dense<U> {
        Dense { shape: self.shape, values: self.values.into_iter().map(f).collect() }
    }

    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    /// One element.
    pub fn at(&self, index: &[usize]) -> &T {
        &self.values[self.offset(index)]
    }

    /// The last dimension at the leading indices.
    pub fn row(&self, leading: &[usize]) -> &[T] {
        let width = self.width();
        let start = self.offset(leading) * width;
        &self.values[start..start + width]
    }

    /// As [`Dense::at`].
    pub fn at_mut(&mut self, index: &[usize]) -> &mut T {
        let at = self.offset(index);
        &mut self.values[at]
    }

    /// As [`Dense::row`].
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

/// What [`crate::backend::Implements::enqueue`] promises: the operands' memory is alive, holds its spec and is used by nobody else.
pub(super) struct Promise(());

impl Promise {
    /// # Safety
    /// The caller of the running `enqueue` keeps its contract, and only that call's operands are read and written with the result.
    pub unsafe fn of_enqueue() -> Self {
        Promise(())
    }

    /// Integers, as they are.
    pub fn read<T: Element>(&self, operand: &Operand) -> Dense<T> {
        // SAFETY: the promise; nothing is written while the slice lives.
        let memory = unsafe { operand.slice::<T>() };
        let values = offsets(&operand.spec).map(|at| memory[at]).collect();
        Dense::new(operand.spec.shape(), values)
    }

    /// Reals of any dtype, widened (rounded where an f64 operand meets f32 arithmetic). `check` has refused integers.
    pub fn reals<R: Real>(&self, operand: &Operand) -> Dense<R> {
        let spec = &operand.spec;
        let values = with_float!(spec.dtype(), T => {
            self.read::<T>(operand).values.into_iter().map(|x| R::from_f64(x.to_f64())).collect()
        }, else Vec::new());
        Dense::new(spec.shape(), values)
    }

    /// Writes integers.
    pub fn write<T: Element>(&self, operand: &Operand, values: Dense<Option<T>>) {
        let memory = operand.pointer::<T>();
        for (at, value) in offsets(&operand.spec).zip(values.values) {
            if let Some(value) = value {
                // SAFETY: the promise; `at` lies within the operand's span.
                unsafe { memory.add(at).write(value) };
            }
        }
    }

    /// Writes reals, each rounded once to the operand's dtype; elements without a value stay as they are.
    pub fn write_reals<R: Real>(&self, operand: &Operand, values: Dense<Option<R>>) {
        with_float!(operand.spec.dtype(), T => {
            let rounded = values.values.into_iter().map(|x| x.map(|x| T::from_f64(x.to_f64()))).collect();
            self.write::<T>(operand, Dense::new(&values.shape, rounded));
        }, else ());
    }
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
