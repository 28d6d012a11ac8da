//! What a CUDA device can do at most, measured in the same way as cases are: in captured graphs.

use serde_json::{Value, json};

use super::RandomWeights;
use super::graph::Replay;
use crate::backend::cuda::self_test::roof::{Copy, LibraryProduct, MultiplyAdd, Roof};
use crate::backend::cuda::self_test::timing::facts;
use crate::{DType, Device, Error, Result};

/// Rows and columns of the product.
const PRODUCT: usize = 8192;
/// Bytes of noise that are repeated in what is copied, and the least that is copied.
const NOISE: usize = 16 << 20;
const COPIED: usize = 256 << 20;
/// Blocks of multiply-adds for each multiprocessor: sixteen times what it holds at once.
const BLOCKS: usize = 128;

/// Runs in a graph: a millisecond of the shortest.
const CALLS: usize = 10;

/// A limit of a device, or why there is no number of it.
type Limit = std::result::Result<f64, String>;

/// The limits of a CUDA device.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GraphRoofs {
    /// Bytes per second, read and written ones, of a copy of at least four L2 caches.
    pub copy_bytes_per_second: Limit,
    /// Operations per second of multiply-adds in f32, without matrix units.
    pub fp32_flops: Limit,
    /// Operations per second of cuBLASLt's product of 8192 rows, columns and terms in a 16-bit
    /// type, on random operands.
    pub product_flops: Limit,
}

impl GraphRoofs {
    /// Measures a device. `dtype` is that of the product; for f32, which has none, bf16 is.
    ///
    /// # Errors
    /// Another backend, a device that was lost. Whatever else fails is a reason.
    pub fn measure(device: &Device, dtype: DType) -> Result<Self> {
        let dtype = if dtype.size() == 2 { dtype } else { DType::BF16 };
        let l2_bytes = facts(device)?.l2_bytes as usize;
        let mut replay = Replay::new(device)?;
        // Without times, an emulator's, the work is done once and small.
        let [copied, blocks, size] = match replay.tells() {
            true => [COPIED.max(4 * l2_bytes), BLOCKS, PRODUCT],
            false => [1 << 20, 1, 64],
        };
        let mut random = RandomWeights::new(6).with_matrices(dtype);
        let noise = random.tensor(0.0, 1.0, &[NOISE.min(copied) / 4])?;
        let copy_bytes_per_second = limit(&mut replay, || Copy::new(device, copied, &noise))?;
        let fp32_flops = limit(&mut replay, || MultiplyAdd::new(device, blocks))?;
        let operands = [random.rounded(0.0, 1.0, &[size, size], dtype)?, random.matrix(size, size)?];
        let product_flops = limit(&mut replay, || LibraryProduct::new(device, operands))?;
        Ok(GraphRoofs { copy_bytes_per_second, fp32_flops, product_flops })
    }

    pub(super) fn json(&self) -> Value {
        let number = |limit: &Limit| limit.as_ref().ok().copied();
        let reason = |limit: &Limit| limit.as_ref().err().cloned();
        json!({
            "copy_bytes_per_second": number(&self.copy_bytes_per_second), "copy_reason": reason(&self.copy_bytes_per_second),
            "fp32_flops": number(&self.fp32_flops), "fp32_reason": reason(&self.fp32_flops),
            "product_flops": number(&self.product_flops), "product_reason": reason(&self.product_flops),
        })
    }
}

/// The work's amount per second in the median replay. It is checked once it has run.
fn limit<R: Roof>(replay: &mut Replay, new: impl FnOnce() -> Result<R>) -> Result<Limit> {
    let calls = if replay.tells() { CALLS } else { 1 };
    let measured = new().and_then(|roof| {
        let times = replay.time(calls, |recorder, _| roof.record(recorder))?;
        roof.check()?;
        Ok(times.map(|[median, ..]| roof.amount() * calls as f64 / (median * 1e-6)))
    });
    match measured {
        Ok(Some(rate)) => Ok(Ok(rate)),
        Ok(None) => Ok(Err("the device tells no time".into())),
        Err(error @ Error::DeviceLost { .. }) => Err(error),
        Err(error) => Ok(Err(error.to_string())),
    }
}
