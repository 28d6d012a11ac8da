//! The accuracy rule (`docs/numerics.md`): the error against the f64 reference is judged by what a
//! naive computation loses on the same inputs.

use super::sampled::{Factors, Sampled};
use crate::dtype::with_float;
use crate::{DType, Error, Float, HostTensor, Result};

/// The least number of elements for a statistic; below it, a derived bound is used.
pub const STATISTICAL: usize = 256;
/// Reduction orders that the yardstick tries; its error is the largest of theirs.
pub const PERMUTATIONS: u64 = 8;
/// Allowed maximum error, in maximum errors of the yardstick.
pub const MAX_FACTOR: f64 = 2.0;
/// Added to that: ulps of the largest output.
pub const MAX_ULPS: f64 = 2.0;
/// Allowed RMS error, in RMS errors of the yardstick.
pub const RMS_FACTOR: f64 = 1.5;
/// Allowed error of the reference against a fixture, relative to the largest output.
pub const FIXTURE_TOLERANCE: f64 = 1e-6;

/// The rule for one output.
#[derive(Debug)]
pub enum Judge<'a> {
    /// Every element equals the truth, rounded once to the output's dtype.
    Exact,
    /// Maximum error over largest expected element at most [`FIXTURE_TOLERANCE`].
    Fixture,
    /// The error of naive computations of the same output.
    Yardstick(&'a [HostTensor<'static>]),
    /// The errors of naive computations of nearly the same inputs.
    Sampled(&'a Sampled),
    /// A bound for every element.
    Componentwise(&'a [f64]),
}

/// One element of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct Worst {
    /// Where it is.
    pub index: Vec<usize>,
    /// What it should be.
    pub expected: f64,
    /// What the device computed.
    pub actual: f64,
}

/// The comparison of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The output's name.
    pub output: String,
    /// Number of elements.
    pub elements: usize,
    /// Largest error (componentwise rule: at the element nearest its bound).
    pub max_error: f64,
    /// What it may be.
    pub max_bound: f64,
    /// Root of the mean square error.
    pub rms_error: f64,
    /// What it may be; infinite if only the maximum is judged.
    pub rms_bound: f64,
    /// The element nearest to its bound, or farthest beyond.
    pub worst: Option<Worst>,
    /// Why it failed.
    pub failure: Option<String>,
}

impl Outcome {
    /// Share of the bound that the error takes: above 1 is a failure.
    pub fn share(&self) -> f64 {
        let share = |error: f64, bound: f64| if error == 0.0 { 0.0 } else { error / bound };
        if self.failure.is_some() && !(self.max_error > self.max_bound || self.rms_error > self.rms_bound) {
            return f64::INFINITY;
        }
        share(self.max_error, self.max_bound).max(share(self.rms_error, self.rms_bound))
    }
}

/// Half the distance between neighbours of `x` in `dtype`: one correct rounding. Integers: 0.
pub fn half_ulp(x: f64, dtype: DType) -> f64 {
    ulp(x, dtype) / 2.0
}

/// The distance from |x| to the next number of `dtype`; its smallest number if |x| is subnormal.
pub fn ulp(x: f64, dtype: DType) -> f64 {
    let smallest_normal = match dtype {
        DType::F64 => f64::MIN_POSITIVE,
        DType::F32 => f64::from(f32::MIN_POSITIVE),
        DType::F16 => half::f16::MIN_POSITIVE.to_f64(),
        DType::BF16 => half::bf16::MIN_POSITIVE.to_f64(),
        DType::I32 | DType::U32 => return 0.0,
    };
    let magnitude = if x.is_finite() { x.abs().max(smallest_normal) } else { smallest_normal };
    // The power of two at or below the magnitude: its bits without the fraction.
    f64::from_bits(magnitude.to_bits() & 0x7FF0_0000_0000_0000) * dtype.epsilon()
}

/// Compares `actual` with `truth` of the same shape: reals with f64, integers with integers.
///
/// # Errors
/// Tensors of different shape or kind.
pub fn compare(output: &str, actual: &HostTensor<'_>, truth: &HostTensor<'_>, judge: &Judge<'_>) -> Result<Outcome> {
    let describe = |t: &HostTensor<'_>| format!("{}{:?}", t.dtype(), t.shape());
    if actual.shape() != truth.shape() || actual.dtype().is_float() != truth.dtype().is_float() {
        return Err(Error::argument("verify", output.to_string(), describe(truth), describe(actual)));
    }
    let a = if actual.dtype().is_float() { actual.to_f64()? } else { integers(actual)? };
    let (t, bounds) = expectation(output, truth, actual.dtype(), judge)?;
    Ok(judge_values(output, actual.shape(), &a, &t, &bounds))
}

/// The values and tolerances of an output of `dtype`, for judges elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Allowed {
    /// The value of each element.
    pub expected: Vec<f64>,
    /// The largest error of each element.
    pub bounds: Vec<f64>,
    /// The largest root of the mean square error; infinite if only elements are judged.
    pub rms: f64,
}

/// What [`compare`] compares with.
///
/// # Errors
/// Yardsticks of another shape.
pub fn allowed(output: &str, truth: &HostTensor<'_>, dtype: DType, judge: &Judge<'_>) -> Result<Allowed> {
    let (expected, bounds) = expectation(output, truth, dtype, judge)?;
    let each = bounds.each.map_or_else(|| vec![bounds.max; expected.len()], <[f64]>::to_vec);
    Ok(Allowed { expected, bounds: each, rms: bounds.rms })
}

fn expectation<'a>(
    output: &str,
    truth: &HostTensor<'_>,
    dtype: DType,
    judge: &Judge<'a>,
) -> Result<(Vec<f64>, Bounds<'a>)> {
    if !dtype.is_float() {
        return Ok((integers(truth)?, Bounds::EXACT));
    }
    let t = truth.to_f64()?;
    let (t, bounds) = match judge {
        Judge::Exact => (truth.to_dtype(dtype)?.to_f64()?, Bounds::EXACT),
        Judge::Fixture => {
            let bound = FIXTURE_TOLERANCE * largest(&t);
            (t.clone(), Bounds { each: None, max: bound, rms: f64::INFINITY })
        }
        Judge::Componentwise(each) => (t.clone(), Bounds { each: Some(each), max: 0.0, rms: f64::INFINITY }),
        Judge::Yardstick(runs) => {
            let mut errors = Sampled::default();
            runs.iter().try_for_each(|run| errors.add(output, run, truth))?;
            (t.clone(), statistical_bounds(&errors, Factors::PLAIN, &t, dtype))
        }
        Judge::Sampled(errors) => (t.clone(), statistical_bounds(errors, errors.factors(), &t, dtype)),
    };
    Ok((settle_overflow(t, dtype, judge), bounds))
}

/// A truth beyond the dtype's range rounds to infinity, which the device must return.
fn settle_overflow(mut truth: Vec<f64>, dtype: DType, judge: &Judge<'_>) -> Vec<f64> {
    if !matches!(judge, Judge::Fixture) {
        for t in &mut truth {
            let rounded = round_to(*t, dtype);
            if rounded.is_infinite() {
                *t = rounded;
            }
        }
    }
    truth
}

/// The number of `dtype` nearest to `x`.
pub fn round_to(x: f64, dtype: DType) -> f64 {
    with_float!(dtype, T => Float::to_f64(T::round_from(x)), else x)
}

struct Bounds<'a> {
    /// A bound for every element; without it, `max` holds for all.
    each: Option<&'a [f64]>,
    max: f64,
    rms: f64,
}

impl Bounds<'_> {
    const EXACT: Bounds<'static> = Bounds { each: None, max: 0.0, rms: 0.0 };
}

fn statistical_bounds(errors: &Sampled, factors: Factors, truth: &[f64], dtype: DType) -> Bounds<'static> {
    let rounding: f64 = truth.iter().filter(|t| t.is_finite()).map(|&t| half_ulp(t, dtype).powi(2)).sum();
    let floor = (rounding / truth.len().max(1) as f64).sqrt();
    Bounds {
        each: None,
        max: factors.max * errors.max() + MAX_ULPS * ulp(largest(truth), dtype),
        rms: (factors.rms * errors.rms()).max(floor),
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|x| x.is_finite()).fold(0.0, |m, x| m.max(x.abs()))
}

fn integers(tensor: &HostTensor<'_>) -> Result<Vec<f64>> {
    if tensor.dtype() == DType::I32 {
        return Ok(tensor.to_vec::<i32>()?.into_iter().map(f64::from).collect());
    }
    Ok(tensor.to_vec::<u32>()?.into_iter().map(f64::from).collect())
}

fn judge_values(output: &str, shape: &[usize], actual: &[f64], truth: &[f64], bounds: &Bounds<'_>) -> Outcome {
    let mut squares = 0.0;
    // The element that takes most of its bound, and the first non-finite mismatch.
    let mut nearest: Option<(usize, f64, f64, f64)> = None;
    let mut mismatch = None;
    for (i, (&a, &t)) in actual.iter().zip(truth).enumerate() {
        if (a.is_nan() && t.is_nan()) || a == t {
            continue;
        }
        if !a.is_finite() || !t.is_finite() {
            mismatch = mismatch.or(Some(i));
            continue;
        }
        let error = (a - t).abs();
        squares += error * error;
        let bound = bounds.each.map_or(bounds.max, |each| each[i]);
        let share = error / bound;
        if nearest.is_none_or(|(_, _, _, most)| share > most || share.is_nan()) {
            nearest = Some((i, error, bound, share));
        }
    }
    let rms_error = (squares / truth.len().max(1) as f64).sqrt();
    let all = bounds.each.map_or(bounds.max, |each| each.iter().copied().fold(0.0, f64::max));
    let (max_error, max_bound) = nearest.map_or((0.0, all), |(_, error, bound, _)| (error, bound));
    let at = mismatch.or(nearest.map(|n| n.0));
    let worst = at.map(|i| Worst { index: unravel(i, shape), expected: truth[i], actual: actual[i] });
    let mut outcome = Outcome {
        output: output.to_string(),
        elements: truth.len(),
        max_error,
        max_bound,
        rms_error,
        rms_bound: bounds.rms,
        worst,
        failure: None,
    };
    outcome.failure = if mismatch.is_some() {
        Some("NaN or infinity on one side only".into())
    } else if max_error > max_bound || max_bound.is_nan() {
        Some(format!("maximum error {max_error:.3e} exceeds {max_bound:.3e}"))
    } else if rms_error > bounds.rms || bounds.rms.is_nan() {
        Some(format!("RMS error {rms_error:.3e} exceeds {:.3e}", bounds.rms))
    } else {
        None
    };
    outcome
}

/// Index tuple of a flat index.
fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &n) in index.iter_mut().zip(shape).rev() {
        *i = flat % n.max(1);
        flat /= n.max(1);
    }
    index
}
