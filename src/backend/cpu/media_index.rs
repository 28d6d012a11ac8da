//! Placeholder until the real file is merged.

use super::Cpu;
use crate::Result;
use crate::backend::Implements;
use crate::ops::{MediaIndex, Operands};
use crate::tensor::{Bound, HostMemory, Spec};

impl Implements<MediaIndex> for Cpu {
    type Prepared = ();

    fn prepare(&self, _: &MediaIndex, _: &<MediaIndex as Operands>::Args<Spec, Spec>) -> Result<()> {
        todo!()
    }
    fn workspace_bytes(_: &()) -> usize {
        todo!()
    }
    unsafe fn enqueue(
        &self,
        _: &(),
        _: &mut (),
        _: &<MediaIndex as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        _: &HostMemory,
    ) -> Result<()> {
        todo!()
    }
}
