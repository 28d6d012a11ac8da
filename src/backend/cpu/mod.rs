//! The machine's processor, in parallel: the default where there is no GPU.

mod attention;
mod gated_residual;
mod linear;
mod media_index;
mod norm;

use super::weight::WeightOn;
use super::{Backend, DeviceInfo, DeviceKind, Weight, WeightSource, host::host_backend};
use crate::{DType, Result};

/// The CPU backend.
pub(crate) struct Cpu {}

impl Cpu {
    pub fn new() -> Self {
        Cpu {}
    }
}

impl Backend for Cpu {
    type Weight = super::reference::PlainWeight;
    host_backend!("cpu");

    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: DeviceKind::Cpu, name: String::new(), details: String::new() }
    }

    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<Self::Weight> {
        super::Reference::truth().prepare_weight(source, dtype)
    }

    fn unwrap_weight(weight: &Weight) -> Option<&Self::Weight> {
        match &weight.on {
            WeightOn::Cpu(w) => Some(w),
            _ => None,
        }
    }
}
