//! A backend that this build does not contain: a type without values, so that its code vanishes.

use super::{Backend, Implements};
use crate::ops::{Op, WeightSource};
use crate::tensor::{Bound, Spec};
use crate::{DType, Result};

/// Uninhabited: no value of this type exists.
#[derive(Clone, Copy, Debug)]
pub enum Absent {}

impl Backend for Absent {
    const NAME: &'static str = "none";
    type Memory = Absent;
    type Buffer = Absent;
    type Weight = Absent;
    type Recorder<'r> = Absent;

    fn name(&self) -> String {
        match *self {}
    }
    fn details(&self) -> String {
        match *self {}
    }
    fn allocate(&self, _: usize, _: &'static str) -> Result<Absent> {
        match *self {}
    }
    fn memory(buffer: &Absent) -> Absent {
        *buffer
    }
    fn skip(memory: &Absent, _: usize) -> Absent {
        *memory
    }
    fn address_bits(memory: &Absent) -> usize {
        match *memory {}
    }
    fn region_bytes(memory: &Absent) -> u64 {
        match *memory {}
    }
    fn write(&self, _: &Absent, _: &[u8]) -> Result<()> {
        match *self {}
    }
    fn read(&self, _: &Absent, _: &mut [u8]) -> Result<()> {
        match *self {}
    }
    fn recorder(self: &std::sync::Arc<Self>) -> Result<Absent> {
        match **self {}
    }
    fn finish(&self, _: Absent) -> Result<()> {
        match *self {}
    }
    fn prepare_weight(&self, _: &WeightSource<'_>, _: DType) -> Result<Absent> {
        match *self {}
    }
}

impl<O: Op> Implements<O> for Absent {
    type Prepared = Absent;

    fn prepare(&self, _: &O, _: &O::Args<Spec, Spec>) -> Result<Absent> {
        match *self {}
    }
    fn workspace_bytes(prepared: &Absent) -> usize {
        match *prepared {}
    }
    #[allow(private_interfaces)]
    unsafe fn record(
        &self,
        _: &Absent,
        _: &mut Absent,
        _: &O::Args<Bound<Absent>, Bound<Absent>>,
        _: &Absent,
    ) -> Result<()> {
        match *self {}
    }
}
