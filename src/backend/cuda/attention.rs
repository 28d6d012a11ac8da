//! `attention`: not written yet.

use super::source::Source;
use super::{Cuda, CudaMemory, CudaRecorder, NAME};
use crate::backend::Implements;
use crate::ops::{Attention, Operands};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

/// A `attention`, planned.
pub(crate) struct Prepared {}

impl Implements<Attention> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, _: &Attention, _: &<Attention as Operands>::Args<Spec, Spec>) -> Result<Prepared> {
        Err(Error::Unsupported {
            op: Attention::NAME,
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
        _: &<Attention as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        _: &CudaMemory,
    ) -> Result<()> {
        Ok(())
    }
}

/// Every shipped instance.
pub(super) fn instances() -> Vec<Source> {
    Vec::new()
}
