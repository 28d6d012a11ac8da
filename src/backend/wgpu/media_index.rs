//! `media_index`: not written yet.

use super::{NAME, Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::ops::{MediaIndex, MediaIndexArgs, Operands};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

/// Nothing can be prepared.
pub(crate) enum Prepared {}

impl Implements<MediaIndex> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, _: &MediaIndex, _: &MediaIndexArgs<Spec, Spec>) -> Result<Prepared> {
        Err(Error::Unsupported {
            op: MediaIndex::NAME,
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
        _: &<MediaIndex as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        match *prepared {}
    }
}
