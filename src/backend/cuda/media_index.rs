//! `media_index`: not written yet.

use super::source::Source;
use super::{Cuda, CudaMemory, CudaRecorder, NAME};
use crate::backend::Implements;
use crate::ops::{MediaIndex, Operands};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

/// A `media_index`, planned.
pub(crate) struct Prepared {}

impl Implements<MediaIndex> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, _: &MediaIndex, _: &<MediaIndex as Operands>::Args<Spec, Spec>) -> Result<Prepared> {
        Err(Error::Unsupported {
            op: MediaIndex::NAME,
            what: "the op".into(),
            backend: NAME,
            available: "other ops".into(),
        })
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        _: &Prepared,
        _: &mut CudaRecorder<'_>,
        _: &<MediaIndex as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        _: &CudaMemory,
    ) -> Result<()> {
        Ok(())
    }
}

/// Every shipped instance.
pub(super) fn instances() -> Vec<Source> {
    Vec::new()
}
