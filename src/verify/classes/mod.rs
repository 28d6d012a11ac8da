//! From a fixture's `source_class` to the bridge that computes the same.

use super::Fixture;
use crate::{DType, Device, HostTensor, Result};

/// Names that [`run`] knows.
pub const KNOWN: [&str; 0] = [];

/// Runs the bridge of a fixture's class. Activations have `dtype`; [`DType::F64`] on the reference.
///
/// Results carry the names of `outputs.*`; intermediate ones begin with `inter.`.
///
/// # Errors
/// A class that is not known, weights or inputs that do not form its bridge, or a device that refuses.
pub fn run(fixture: &Fixture, _device: &Device, _dtype: DType) -> Result<Vec<(String, HostTensor<'static>)>> {
    Err(fixture.fault(format!("unknown class {}; known: {}", fixture.source_class, KNOWN.join(", "))))
}
