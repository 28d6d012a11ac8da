//! How results of `attention` are judged: the derivation is in `docs/numerics.md`.

use super::attention::{AttentionCase, Extra, Values};
use super::bounds::{FUNCTION, gamma, rounded};
use super::call::Call;
use super::{CaseOp, Judgement, is_small};
use crate::ops::Attention;
use crate::{DType, Device, HostTensor, Result};

/// Outputs of a truth run, by name.
struct Truth(Vec<(&'static str, HostTensor<'static>)>);

impl Truth {
    fn of(call: &Call<Attention>) -> Result<Self> {
        Ok(Truth(call.execute(&Device::reference(), true, Ok)?.outputs))
    }

    fn values(&self, name: &str) -> Result<Vec<f64>> {
        self.0.iter().find(|(n, _)| *n == name).map_or_else(|| Ok(Vec::new()), |(_, t)| t.to_f64())
    }
}

/// One judgement per output, in their order.
pub(super) fn bounds(
    case: &AttentionCase,
    call: &Call<Attention>,
    truth: &[(&'static str, HostTensor<'static>)],
) -> Result<Vec<Judgement>> {
    let small = truth.iter().any(|(_, t)| t.dtype().is_float() && is_small(t));
    let derived = if small || case.values == Values::Exact { Some(Derived::new(case, call)?) } else { None };
    let judge = |(name, output): &(&'static str, HostTensor<'static>)| -> Result<Judgement> {
        let Some(derived) = &derived else {
            return Ok(if output.dtype().is_float() { Judgement::Statistic } else { Judgement::Exact });
        };
        let exact = case.values == Values::Exact;
        Ok(match *name {
            "out" if exact || is_small(output) => Judgement::Bound(derived.out(case, &output.to_f64()?)),
            "log_sum_exp" if is_small(output) => Judgement::Bound(derived.log_sum_exp(&output.to_f64()?)),
            "out" | "log_sum_exp" => Judgement::Statistic,
            _ => Judgement::Exact,
        })
    };
    truth.iter().map(judge).collect()
}

/// The terms of the bounds, per row and head; `magnitude` per output.
struct Derived {
    /// The largest number of keys in a sum.
    keys: usize,
    /// Bound of the scores' magnitude: log-sum-exp of Σ|q||k|, at least its maximum.
    scores: Vec<f64>,
    /// Log-sum-exp of the case itself.
    log_sum_exp: Vec<f64>,
    /// Σ p |v|.
    magnitude: Vec<f64>,
    head_dim: usize,
}

impl Derived {
    fn new(case: &AttentionCase, call: &Call<Attention>) -> Result<Self> {
        let wide = AttentionCase { extra: Extra::Both, ..case.clone() };
        // A score that is not finite does not contribute to a finite result.
        let magnitude = |x: f64| if x.is_finite() { x.abs() } else { 0.0 };
        let run = |names: &[&str]| -> Result<Truth> {
            let mut call = wide.call()?;
            call.operands.map_reads(names, magnitude)?;
            Truth::of(&call)
        };
        let magnitudes = run(&["first.v", "second.v"])?;
        let spec = call.operands.read_spec(call.args.q)?;
        Ok(Derived {
            keys: case.k + case.k2.0.unwrap_or(0),
            scores: run(&["q", "first.k", "second.k"])?.values("log_sum_exp")?,
            log_sum_exp: magnitudes.values("log_sum_exp")?,
            magnitude: magnitudes.values("out")?,
            head_dim: spec.dim(3),
        })
    }

    /// Absolute error of an exponent s − m: sums, scaling, difference, change of base.
    fn exponent(&self, row: usize) -> f64 {
        let largest = self.scores[row].max(0.0);
        if largest.is_finite() { gamma(self.head_dim + 8) * largest } else { 0.0 }
    }

    fn out(&self, case: &AttentionCase, truth: &[f64]) -> Vec<f64> {
        let dtype = case.out.dtype(case.dtype);
        // Weights may be rounded to the dtype of V for a matrix unit.
        let weights = case.dtype.dtype().epsilon() / 2.0;
        let bound = |(i, &t): (usize, &f64)| {
            let row = i / self.head_dim;
            let keys = self.log_sum_exp[row].exp();
            let counted = keys.round();
            let power = (keys - counted).abs() < 1e-6 * keys && (counted as u64).is_power_of_two();
            if case.values == Values::Exact && (power || self.log_sum_exp[row] == f64::NEG_INFINITY) {
                return super::bounds::rounding_of(t, dtype);
            }
            // Numerator and denominator each carry the exponents' error, exp's own and the sums'.
            let relative = 2.0 * (self.exponent(row).exp_m1() + FUNCTION + gamma(self.keys + 1)) + weights + FUNCTION;
            rounded(relative * self.magnitude[i], t, dtype)
        };
        truth.iter().enumerate().map(bound).collect()
    }

    fn log_sum_exp(&self, truth: &[f64]) -> Vec<f64> {
        let bound = |(row, &t): (usize, &f64)| {
            let sum = self.exponent(row).exp_m1() + FUNCTION + gamma(self.keys + 1);
            // The logarithm, and its sum with the maximum: scores and ln(keys) bound both.
            let magnitude = self.scores[row].max(0.0) + (self.keys.max(2) as f64).ln();
            let magnitude = if magnitude.is_finite() { magnitude } else { 0.0 };
            rounded(self.exponent(row) + sum + FUNCTION * magnitude, t, DType::F32)
        };
        truth.iter().enumerate().map(bound).collect()
    }
}
