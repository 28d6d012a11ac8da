//! The reference against hand-worked cases: every rule, policy, in-place form, hostile value,
//! message.

mod attention;
mod attention_checks;
mod gated_residual;
mod linear;
mod media_index;
mod norm;

use xattn::{DType, Device, Element, Spec, View, ViewMut};

/// The f64 reference.
fn reference() -> Device {
    Device::reference()
}

/// A gapless view.
fn view<'a, T: Element>(data: &'a [T], shape: &[usize]) -> View<'a> {
    View::new(data, shape).unwrap()
}

/// A gapless view for writing.
fn view_mut<'a, T: Element>(data: &'a mut [T], shape: &[usize]) -> ViewMut<'a> {
    ViewMut::new(data, shape).unwrap()
}

/// A gapless layout.
fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::contiguous(dtype, shape).unwrap()
}

/// Asserts that every number is within 1e-14 of what was computed by hand, relative to the larger
/// of it and 1; infinities and NaN must be the same.
#[track_caller]
fn assert_close(actual: &[f64], expected: &[f64]) {
    let same = |a: f64, e: f64| a == e || (a.is_nan() && e.is_nan()) || (a - e).abs() <= 1e-14 * e.abs().max(1.0);
    let all = actual.len() == expected.len() && actual.iter().zip(expected).all(|(&a, &e)| same(a, e));
    assert!(all, "got {actual:?}\nexpected {expected:?}");
}
