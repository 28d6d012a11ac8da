//! Sizes of memory in checked arithmetic, for every computation of extents and bytes.
//!
//! A [`Size`] is a number of elements or bytes, or "does not fit". Sums and products that overflow
//! the word become the latter and stay so: a formula needs one check at the end, none after each
//! step. It is generic over the word, so that the formulas are tested as on a 32-bit machine, where
//! plausible shapes overflow.

use std::fmt::Display;
use std::iter::{Product, Sum};
use std::ops::{Add, Mul};

use crate::{Error, Result};

/// The word of a size: `usize`, `u32` (as on a 32-bit machine) or `u64`.
pub(crate) trait Word: Copy + Ord + TryFrom<usize> {
    /// Most bytes of one allocation or operand: the reach of a signed offset.
    const MOST: Self;
    fn checked_add(self, other: Self) -> Option<Self>;
    fn checked_mul(self, other: Self) -> Option<Self>;
    fn checked_next_multiple_of(self, other: Self) -> Option<Self>;
}

macro_rules! words {
    ($($word:ident),*) => { $(impl Word for $word {
        const MOST: Self = $word::MAX / 2;
        fn checked_add(self, other: Self) -> Option<Self> {
            self.checked_add(other)
        }
        fn checked_mul(self, other: Self) -> Option<Self> {
            self.checked_mul(other)
        }
        fn checked_next_multiple_of(self, other: Self) -> Option<Self> {
            self.checked_next_multiple_of(other)
        }
    })* };
}
words!(usize, u32, u64);

/// A number of elements or bytes, or none if it does not fit the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size<W = usize>(Option<W>);

impl<W: Word> Size<W> {
    pub fn of(n: usize) -> Self {
        Size(W::try_from(n).ok())
    }

    pub fn product(extents: &[usize]) -> Self {
        extents.iter().map(|&n| Size::of(n)).product()
    }

    /// Rounds up to a multiple of `n`, which is not 0.
    pub fn next_multiple_of(self, n: usize) -> Self {
        self.with(Size::of(n), W::checked_next_multiple_of)
    }

    /// The number, if an allocation can have it.
    pub fn get(self) -> Option<W> {
        self.0.filter(|&n| n <= W::MOST)
    }

    /// The number, or an error that the argument of `op` is too large.
    pub fn or_refuse(self, op: &'static str, argument: &'static str, actual: impl Display) -> Result<W> {
        self.get().ok_or_else(|| refused(op, argument, actual))
    }

    /// The number, or an error that there is no such memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for `usize::MAX` bytes.
    pub fn or_out_of_memory(self, backend: &'static str, purpose: &'static str) -> Result<W> {
        self.get().ok_or(Error::OutOfMemory { backend, purpose, bytes: usize::MAX })
    }

    fn with(self, other: Self, f: impl FnOnce(W, W) -> Option<W>) -> Self {
        Size(self.0.zip(other.0).and_then(|(a, b)| f(a, b)))
    }
}

impl<W: Word> Add for Size<W> {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, W::checked_add)
    }
}

impl<W: Word> Mul for Size<W> {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        self.with(other, W::checked_mul)
    }
}

impl<W: Word> Add<usize> for Size<W> {
    type Output = Self;

    fn add(self, other: usize) -> Self {
        self + Size::of(other)
    }
}

impl<W: Word> Mul<usize> for Size<W> {
    type Output = Self;

    fn mul(self, other: usize) -> Self {
        self * Size::of(other)
    }
}

impl<W: Word> Sum for Size<W> {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Size::of(0), Add::add)
    }
}

impl<W: Word> Product for Size<W> {
    fn product<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Size::of(1), Mul::mul)
    }
}

/// The error for an argument of `op` whose sizes do not fit.
pub(crate) fn refused(op: &'static str, argument: &'static str, actual: impl Display) -> Error {
    Error::argument(op, argument, "sizes that fit the address space", actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_word_stays_outside() {
        let large = Size::<u32>::of(1 << 20);
        assert_eq!((large * 2047).get(), Some(2047 << 20));
        assert_eq!((large * 2048).get(), None, "more than a signed offset reaches");
        let outside = large * 4096;
        for size in [outside, outside + 1, outside * Size::of(0), outside.next_multiple_of(16)] {
            assert_eq!(size.get(), None);
        }
        assert_eq!((Size::<u32>::of(u32::MAX as usize - 3).next_multiple_of(16)).get(), None);
        assert_eq!((Size::<u32>::of(u32::MAX as usize) + 1).get(), None);
        assert_eq!(Size::<u32>::of(17).next_multiple_of(16).get(), Some(32));
        assert_eq!([2, 3].map(Size::<usize>::of).into_iter().sum::<Size>().get(), Some(5));
        assert_eq!(Size::<usize>::product(&[2, 3, 4]).get(), Some(24));
        assert_eq!(Size::<usize>::product(&[1 << 32, 1 << 31]).get(), None);
    }

    /// Numbers beyond 32 bits do not fit a 32-bit word, rather than being truncated.
    #[test]
    fn numbers_beyond_the_word_do_not_fit() {
        let beyond = u64::from(u32::MAX) + 1;
        if let Ok(beyond) = usize::try_from(beyond) {
            assert_eq!(Size::<u32>::of(beyond).get(), None);
            assert_eq!(Size::<u64>::of(beyond).get(), Some(beyond as u64));
        }
    }

    #[test]
    fn errors_name_what_was_too_large() {
        let too_large = Size::<usize>::of(usize::MAX) * 2;
        let message = too_large.or_refuse("linear", "x", "f32[3]").unwrap_err().to_string();
        assert_eq!(message, "linear: x: expected sizes that fit the address space, got f32[3]");
        let message = too_large.or_out_of_memory("cpu", "a workspace").unwrap_err().to_string();
        assert_eq!(message, format!("cpu: out of memory: {} bytes for a workspace", usize::MAX));
        assert_eq!(Size::<usize>::of(7).or_refuse("linear", "x", "f32[3]").unwrap(), 7);
        assert_eq!(Size::<usize>::of(7).or_out_of_memory("cpu", "a workspace").unwrap(), 7);
    }
}
