//! From a score (q·k) to its logit, of which the softmax is taken: a soft cap or a bias is written
//! here, and nowhere else.

use super::super::simd::Vector;
use crate::ops::Attention;

/// What a logit depends on beside its score.
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
