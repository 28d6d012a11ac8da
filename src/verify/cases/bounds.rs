//! Building blocks of the componentwise bounds that `docs/numerics.md` derives.

use crate::DType;
use crate::verify::compare::{half_ulp, round_to};

/// Unit roundoff of f32, in which every backend accumulates.
pub const U: f64 = 5.960_464_477_539_063e-8;
/// Relative error of one exp, ln, erf, tanh, division or square root: two f32 ulps.
pub const FUNCTION: f64 = 4.0 * U;
/// Largest slope of GELU (at √2) and of SiLU (near 2.4).
pub const ACTIVATION_SLOPE: f64 = 1.13;

/// Higham's γ: the relative error of n roundings, in any order of summation.
pub fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// Adds the result's own rounding: `error` so far, `value` exact. Results below the normal f32
/// range may be flushed to 0; a value that is not finite has no error.
pub fn rounded(error: f64, value: f64, dtype: DType) -> f64 {
    if !value.is_finite() {
        return 0.0;
    }
    error + half_ulp(value.abs() + error, dtype) + f64::from(f32::MIN_POSITIVE)
}

/// A bound that only the rounded truth (or its equal on the other side of a tie) meets.
pub fn rounding_of(value: f64, dtype: DType) -> f64 {
    (round_to(value, dtype) - value).abs()
}
