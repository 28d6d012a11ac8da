//! The arithmetic of the loops, and the order of their sums.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::rc::Rc;

use super::dense::collect;
use crate::{Error, Float, Result};

/// f64 for the truth, f32 for the yardstick.
pub(super) trait Real:
    Float
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;

    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    /// The larger number; the other one if one is NaN.
    fn max(self, other: Self) -> Self;
    fn is_nan(self) -> bool;

    fn from_usize(n: usize) -> Self {
        Self::round_from(n as f64)
    }
}

macro_rules! reals {
    ($($type:ident, $erf:path);*) => { $(impl Real for $type {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const NEG_INFINITY: Self = $type::NEG_INFINITY;

        fn exp(self) -> Self {
            self.exp()
        }
        fn ln(self) -> Self {
            self.ln()
        }
        fn sqrt(self) -> Self {
            self.sqrt()
        }
        fn tanh(self) -> Self {
            self.tanh()
        }
        fn erf(self) -> Self {
            $erf(self)
        }
        fn max(self, other: Self) -> Self {
            self.max(other)
        }
        fn is_nan(self) -> bool {
            self.is_nan()
        }
    })* };
}
reals!(f64, libm::erf; f32, libm::erff);

/// The order of every reduction: index order (seed 0), or a permutation drawn from the seed.
pub(super) struct Order {
    seed: u64,
    drawn: RefCell<HashMap<usize, Rc<Vec<usize>>>>,
    /// Why a permutation could not be drawn. Sums then keep index order: loops need no check.
    failed: Cell<Option<Error>>,
}

impl Order {
    pub fn new(seed: u64) -> Self {
        Order { seed, drawn: RefCell::new(HashMap::new()), failed: Cell::new(None) }
    }

    /// Whether all sums had their order. Must be checked before results are used.
    pub fn expect_drawn(&self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The sum of `term(0) .. term(n - 1)`, accumulated one by one.
    pub fn sum<R: Real>(&self, n: usize, term: impl Fn(usize) -> R) -> R {
        if self.seed != 0 {
            match self.permutation(n) {
                Ok(order) => return order.iter().fold(R::ZERO, |sum, &i| sum + term(i)),
                Err(error) => self.failed.set(Some(error)),
            }
        }
        (0..n).fold(R::ZERO, |sum, i| sum + term(i))
    }

    pub fn mean<R: Real>(&self, n: usize, term: impl Fn(usize) -> R) -> R {
        self.sum(n, term) / R::from_usize(n)
    }

    pub fn dot<R: Real>(&self, a: &[R], b: &[R]) -> R {
        self.sum(a.len(), |i| a[i] * b[i])
    }

    /// Fisher-Yates with splitmix64: seed and length determine the permutation.
    fn permutation(&self, n: usize) -> Result<Rc<Vec<usize>>> {
        if let Some(order) = self.drawn.borrow().get(&n) {
            return Ok(order.clone());
        }
        let mut state = self.seed ^ (n as u64).rotate_left(32);
        let mut order = collect(0..n)?;
        for i in (1..n).rev() {
            order.swap(i, (splitmix64(&mut state) % (i as u64 + 1)) as usize);
        }
        let order = Rc::new(order);
        self.drawn.borrow_mut().insert(n, order.clone());
        Ok(order)
    }
}

/// Errors of ±2⁻²⁴ relative, one unit roundoff of f32, with signs by seed and rounded number.
#[derive(Clone, Copy)]
pub(super) struct Rounding {
    pub seed: u64,
}

impl Rounding {
    /// The mean with the roundings of f32: one of each sum of two terms or more, and two of the
    /// quotient (a device may multiply by a rounded reciprocal), which is exact for powers of two.
    pub fn mean<R: Real>(self, x: &[R]) -> R {
        let mut terms = x.iter().copied();
        let first = terms.next().unwrap_or(R::ZERO);
        let mean = terms.fold(first, |sum, term| self.round(sum + term)) / R::from_usize(x.len());
        if x.len().is_power_of_two() { mean } else { self.round(self.round(mean)) }
    }

    fn round<R: Real>(self, exact: R) -> R {
        let sign = if splitmix64(&mut (self.seed ^ exact.to_f64().to_bits())) & 1 == 0 { 1.0 } else { -1.0 };
        exact * R::round_from(1.0 + sign * 2f64.powi(-24))
    }
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_matches_its_published_sequence() {
        // The first outputs for state 1234567, as listed with the generator's public definition.
        let mut state = 1234567;
        assert_eq!(splitmix64(&mut state), 6457827717110365317);
        assert_eq!(splitmix64(&mut state), 3203168211198807973);
    }

    #[test]
    fn orders_are_permutations_and_differ_by_seed() {
        let (one, two) = (Order::new(1), Order::new(2));
        for n in [0, 1, 2, 7, 100] {
            let mut sorted = one.permutation(n).unwrap().to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
        let of_100 = |order: &Order| order.permutation(100).unwrap();
        assert_ne!(of_100(&one), of_100(&two));
        assert_eq!(of_100(&one), of_100(&Order::new(1)));
    }

    #[test]
    fn a_permutation_beyond_memory_is_an_error() {
        let n = isize::MAX as usize / size_of::<usize>();
        let order = Order::new(1);
        let message = order.permutation(n).unwrap_err().to_string();
        assert_eq!(message, format!("reference: out of memory: {} bytes for a dense copy", n * size_of::<usize>()));
        order.expect_drawn().unwrap();
        order.failed.set(Some(Error::argument("a", "b", "c", "d")));
        assert!(order.expect_drawn().is_err());
    }

    #[test]
    fn f32_sums_round_at_every_step_in_the_order_drawn() {
        // 2^24 absorbs every 1 added after it. Behind at least two of them the sum is 2^24 + 4, by
        // ties to even.
        let terms = [16777216.0f32, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(Order::new(0).sum(5, |i| terms[i]), 16777216.0);
        for seed in 1..20 {
            let order = Order::new(seed);
            let ones_before = order.permutation(5).unwrap().iter().position(|&i| i == 0).unwrap();
            let expected = if ones_before < 2 { 16777216.0 } else { 16777220.0 };
            assert_eq!(order.sum(5, |i| terms[i]), expected, "seed {seed}, {ones_before} before");
        }
        assert!((1..20).any(|seed| Order::new(seed).sum(5, |i| terms[i]) == 16777220.0));
        assert_eq!(Order::new(3).sum(5, |i| f64::from(terms[i])), 16777220.0);
    }

    /// By hand, for two terms: u·|a + b| / 2. For three or four: all sums but the first term, and
    /// the quotient twice unless it is by 4.
    #[test]
    fn means_are_rounded_where_f32_rounds_them() {
        let seeds = 4096;
        // In units roundoff, for x = 1, 2, 3, … (sums 3, 6, 10).
        for (terms, expected) in
            [(1, 0.0), (2, 1.5), (3, (1.0f64 + 4.0 + 4.0 + 4.0).sqrt()), (4, (145f64 / 16.0).sqrt())]
        {
            let x: Vec<f64> = (1..=terms).map(f64::from).collect();
            let exact = x.iter().sum::<f64>() / x.len() as f64;
            let errors: Vec<f64> =
                (0..seeds).map(|seed| (Rounding { seed }.mean(&x) - exact) * 2f64.powi(24)).collect();
            let rms = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
            assert!((rms - expected).abs() <= 0.05 * expected, "{terms} terms: {rms} units, expected {expected}");
            let bias = errors.iter().sum::<f64>() / errors.len() as f64;
            assert!(bias.abs() <= 0.1 * expected, "{terms} terms: {bias} units on average");
            assert_eq!(Rounding { seed: 3 }.mean(&x).to_bits(), Rounding { seed: 3 }.mean(&x).to_bits());
        }
    }

    #[test]
    fn erf_agrees_with_tables() {
        // Abramowitz and Stegun 7.1, and erf(1), erf(2) to 16 digits.
        let table: [(f64, f64); 5] =
            [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.0, 0.9953222650189527), (6.0, 1.0)];
        for (x, y) in table {
            assert!((Real::erf(x) - y).abs() < 1e-15, "erf({x})");
            assert!((Real::erf(-x) + y).abs() < 1e-15, "erf(-{x})");
            assert!((f64::from(Real::erf(x as f32)) - y).abs() < 1e-7, "erff({x})");
        }
    }
}
