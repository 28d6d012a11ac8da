//! From a score (q·k) to the logit that the softmax takes. A soft cap or a bias belongs only here.

use super::super::simd::Vector;
use crate::ops::Attention;

/// The parameters of a logit.
#[derive(Clone, Copy)]
pub(super) struct Logit {
    scale: f32,
}

impl Logit {
    pub(super) fn new(op: &Attention) -> Self {
        Logit { scale: op.scale }
    }

    /// # Safety
    /// V's features are there.
    #[inline(always)]
    pub(super) unsafe fn of<V: Vector>(self, score: V) -> V {
        // SAFETY: the caller's.
        unsafe { score.mul(V::splat(self.scale)) }
    }
}
