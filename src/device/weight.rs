//! Weights for a device.

use super::Device;
use super::kinds::on_device;
use crate::backend::Backend;
use crate::ops::{Weight, WeightSource};
use crate::{DType, Error, Result};

impl Weight {
    /// Packs constant matrices for `device`, rounded once to `dtype`.
    ///
    /// # Errors
    /// Parts that do not fit together, an integer dtype, or failed allocation.
    pub fn prepare(device: &Device, source: &WeightSource<'_>, dtype: DType) -> Result<Self> {
        let dims = source.dims()?;
        if !dtype.is_float() {
            return Err(Error::argument("linear", "weight", "a real dtype", dtype));
        }
        on_device!(device, b => Ok(Weight::new(b.prepare_weight(source, dtype)?, dims, dtype)))
    }
}
