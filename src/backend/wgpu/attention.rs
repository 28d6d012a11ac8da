//! `attention`: not written yet.

use super::{NAME, Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::ops::{Attention, AttentionArgs, Operands};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

/// Nothing can be prepared.
pub(crate) enum Prepared {}

impl Implements<Attention> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, _: &Attention, _: &AttentionArgs<Spec, Spec>) -> Result<Prepared> {
        Err(Error::Unsupported {
            op: Attention::NAME,
            what: "the op".into(),
            backend: NAME,
            available: "gated_residual, norm, linear".into(),
        })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        match *prepared {}
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        _: &mut WgpuRecorder<'_>,
        _: &<Attention as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        match *prepared {}
    }
}
