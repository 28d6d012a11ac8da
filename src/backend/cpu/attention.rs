//! Placeholder until the real file is merged.

use super::Cpu;
use crate::Result;
use crate::backend::Implements;
use crate::ops::{Attention, Operands};
use crate::tensor::{Bound, HostMemory, Spec};

impl Implements<Attention> for Cpu {
    type Prepared = ();

    fn prepare(&self, _: &Attention, _: &<Attention as Operands>::Args<Spec, Spec>) -> Result<()> {
        todo!()
    }
    fn workspace_bytes(_: &()) -> usize {
        todo!()
    }
    unsafe fn enqueue(
        &self,
        _: &(),
        _: &mut (),
        _: &<Attention as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        _: &HostMemory,
    ) -> Result<()> {
        todo!()
    }
}
