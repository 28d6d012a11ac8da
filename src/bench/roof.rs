//! What a device can do at most, measured: both sides of a roofline. A device's clock changes from
//! one second to the next, so measure beside what is to be judged.

#[cfg(feature = "cuda")]
use serde_json::{Value, json};

use super::steps::Step;
use crate::DType;
use crate::ops::Cost;

/// A limit of a device, or why there is no number of it.
pub type Limit = std::result::Result<f64, String>;

/// The limits of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Roof {
    /// Bytes per second from memory; on a GPU from and to memory.
    pub bytes_per_s: Limit,
    /// Floating-point operations per second in f32, two per multiply-add, without matrix units.
    pub flops_per_s: Limit,
    /// Operations per second of a GEMM in a 16-bit type, with matrix units.
    pub gemm_flops_per_s: Limit,
}

impl Roof {
    /// Limits of a device whose matrix units are not measured.
    pub(crate) fn measured(bytes_per_s: f64, flops_per_s: f64) -> Self {
        let gemm_flops_per_s = Err("products are measured on CUDA devices only".into());
        Roof { bytes_per_s: Ok(bytes_per_s), flops_per_s: Ok(flops_per_s), gemm_flops_per_s }
    }

    /// Of an NVIDIA H200: memory and GEMMs as others have measured them; f32 by its data sheet.
    pub fn h200() -> Self {
        Roof { bytes_per_s: Ok(4.3e12), flops_per_s: Ok(67e12), gemm_flops_per_s: Ok(790e12) }
    }

    /// The least seconds that bytes and operations of `dtype` can take. None where one of the
    /// limits is not known.
    pub fn seconds(&self, cost: Cost, dtype: DType) -> Option<f64> {
        let flops = if dtype.size() == 2 { &self.gemm_flops_per_s } else { &self.flops_per_s };
        let (bytes_per_s, flops_per_s) = (self.bytes_per_s.as_ref().ok()?, flops.as_ref().ok()?);
        Some((cost.bytes as f64 / bytes_per_s).max(cost.flops as f64 / flops_per_s))
    }

    /// The least microseconds for steps that run one after the other, each operand of each step
    /// from memory once.
    pub fn floor_us(&self, steps: &[Step], dtype: DType) -> Option<f64> {
        steps.iter().map(|step| Some(1e6 * step.count as f64 * self.seconds(step.cost, dtype)?)).sum()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn json(&self) -> Value {
        let number = |limit: &Limit| limit.as_ref().ok().copied();
        let reason = |limit: &Limit| limit.as_ref().err().cloned();
        json!({
            "copy_bytes_per_second": number(&self.bytes_per_s), "copy_reason": reason(&self.bytes_per_s),
            "fp32_flops": number(&self.flops_per_s), "fp32_reason": reason(&self.flops_per_s),
            "product_flops": number(&self.gemm_flops_per_s), "product_reason": reason(&self.gemm_flops_per_s),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_side_bounds() {
        let roof = Roof::measured(1e8, 1e9);
        let seconds = |bytes, flops| roof.seconds(Cost { bytes, flops }, DType::F32);
        assert_eq!((seconds(100_000_000, 0), seconds(1, 4_000_000_000)), (Some(1.0), Some(4.0)));
        assert_eq!(roof.seconds(Cost::default(), DType::BF16), None);
    }

    #[test]
    fn a_floor_is_the_sum_of_its_steps() {
        let step =
            |bytes, flops, count| Step { op: "op", label: "op".into(), cost: Cost { bytes, flops }, gemm: None, count };
        // 2 us of memory three times, then 5 us of operations.
        let steps = [step(8_600_000, 790_000_000, 3), step(4_300_000, 3_950_000_000, 1)];
        assert!((Roof::h200().floor_us(&steps, DType::F16).unwrap() - 11.0).abs() < 1e-9);
        // In f32 the operations bound: 790 MFLOP at 67 TFLOP/s three times, then 3.95 GFLOP.
        let floor = Roof::h200().floor_us(&steps, DType::F32).unwrap();
        assert!((floor - (3.0 * 790.0 + 3950.0) / 67.0).abs() < 1e-9, "{floor}");
    }
}
