//! `linear`: not written yet.

use super::{NAME, Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::ops::{Linear, LinearArgs, Operands};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

/// Nothing can be prepared.
pub(crate) enum Prepared {}

impl Implements<Linear> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, _: &Linear, _: &LinearArgs<Spec, Spec>) -> Result<Prepared> {
        Err(Error::Unsupported {
            op: Linear::NAME,
            what: "the op".into(),
            backend: NAME,
            available: "gated_residual, norm".into(),
        })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        match *prepared {}
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        _: &mut WgpuRecorder<'_>,
        _: &<Linear as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        match *prepared {}
    }
}

/// Nothing can be prepared.
pub(crate) enum PreparedWeight {}

impl PreparedWeight {
    pub(super) fn pack(_: &Wgpu, _: &crate::WeightSource<'_>, _: crate::DType) -> Result<Self> {
        Err(Error::Unsupported {
            op: Linear::NAME,
            what: "the op".into(),
            backend: NAME,
            available: "gated_residual, norm".into(),
        })
    }
}
