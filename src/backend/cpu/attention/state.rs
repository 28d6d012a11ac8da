//! The online softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
//!
//! The state of a row is the largest logit so far (`row_max`) and the sum of weights e^(logit -
//! row_max) (`row_sum`), beside the sums of weighted values. There is no split-K, so no two states
//! are merged: chunks update the state one after the other.

use super::super::simd::{Kernel, Vector, math};

/// The states of `LANES` rows.
#[derive(Clone, Copy)]
struct State<V> {
    row_max: V,
    row_sum: V,
}

// SAFETY of every block below: V's features are there, as the caller promises.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]
impl<V: Vector> State<V> {
    /// No key yet.
    #[inline(always)]
    unsafe fn start() -> Self {
        unsafe { State { row_max: V::splat(f32::NEG_INFINITY), row_sum: V::splat(0.0) } }
    }

    /// Subtracted from logits. −∞ − −∞ would be NaN; any finite number gives −∞ its weight 0.
    #[inline(always)]
    unsafe fn shift(row_max: V) -> V {
        unsafe { row_max.select_less(V::splat(f32::MIN), V::splat(0.0), row_max) }
    }

    /// A weight; P itself where `shift` is log-sum-exp.
    #[inline(always)]
    unsafe fn weight(logit: V, shift: V) -> V {
        unsafe { math::exp_nonpositive(logit.sub(shift)) }
    }

    /// The factor by which sums shrink when the maximum becomes that of `shift`.
    #[inline(always)]
    unsafe fn rescale(self, shift: V) -> V {
        unsafe { Self::weight(self.row_max, shift) }
    }

    /// The state after a chunk whose weights have the sum `added`.
    #[inline(always)]
    unsafe fn update(self, row_max: V, decay: V, added: V) -> Self {
        unsafe { State { row_max, row_sum: self.row_sum.mul_add(decay, added) } }
    }
}

/// Divides a row's weighted values (`d`, rounded up to whole registers) by the sum of their
/// weights. Returns its log-sum-exp.
///
/// # Safety
/// V's features are there, and so are the values.
#[inline(always)]
pub(super) unsafe fn finish<V: Vector>(values: *mut f32, d: usize, row_max: f32, row_sum: f32) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let divisor = V::splat(row_sum);
        for at in (0..d).step_by(V::LANES) {
            V::load(values.add(at)).div(divisor).store(values.add(at));
        }
    }
    row_max + row_sum.ln()
}

/// One chunk's softmax: turns logits into weights in place, and updates each row's state.
///
/// `logits` holds keys x stride. Masked ones are −∞ and become 0, whatever else the row holds. A
/// row of only −∞ keeps its state. `decay` receives the factor by which earlier sums shrink.
///
/// Contract: the other arrays hold `stride` f32 each, a multiple of `LANES`.
pub(super) struct Softmax {
    pub logits: *mut f32,
    pub stride: usize,
    pub keys: usize,
    /// Whether this is the first chunk: nothing is read from the other arrays then.
    pub first: bool,
    pub row_max: *mut f32,
    pub row_sum: *mut f32,
    pub decay: *mut f32,
}

impl Kernel for Softmax {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Softmax { logits, stride, keys, first, .. } = self;
        for m in (0..stride).step_by(V::LANES) {
            // SAFETY: as the caller promises.
            unsafe {
                let column = logits.add(m);
                let before = match first {
                    true => State::start(),
                    false => State { row_max: V::load(self.row_max.add(m)), row_sum: V::load(self.row_sum.add(m)) },
                };
                let mut row_max = before.row_max;
                for key in 0..keys {
                    row_max = row_max.max(V::load(column.add(key * stride)));
                }
                let shift = State::shift(row_max);
                let decay = before.rescale(shift);
                let mut sum = V::splat(0.0);
                for key in 0..keys {
                    let at = column.add(key * stride);
                    let weight = State::weight(V::load(at), shift);
                    weight.store(at);
                    sum = sum.add(weight);
                }
                let state = before.update(row_max, decay, sum);
                state.row_sum.store(self.row_sum.add(m));
                decay.store(self.decay.add(m));
                state.row_max.store(self.row_max.add(m));
            }
        }
    }
}
