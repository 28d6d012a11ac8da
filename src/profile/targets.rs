//! Times that are asked of cases on an NVIDIA H200, in bf16 and with a cold L2 cache: the goals,
//! and the least that a machine allows.

#[cfg(any(feature = "cuda", test))]
use super::steps::Step;
#[cfg(any(feature = "cuda", test))]
use crate::DType;

/// What a machine can do at most, in bytes and in operations per second.
#[cfg(any(feature = "cuda", test))]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    pub bytes_per_second: f64,
    pub flops: f64,
}

#[cfg(any(feature = "cuda", test))]
impl Rates {
    /// Of an H200: memory and products as others have measured them; f32 by its data sheet, without
    /// matrix units.
    pub fn h200(dtype: DType) -> Self {
        Rates { bytes_per_second: 4.3e12, flops: if dtype.size() == 2 { 790e12 } else { 67e12 } }
    }

    /// The least microseconds for steps that run one after the other, each operand of each step
    /// from memory once.
    pub fn floor_us(self, steps: &[Step]) -> f64 {
        let least = |step: &Step| {
            let cost = step.cost;
            (cost.bytes as f64 / self.bytes_per_second).max(cost.flops as f64 / self.flops)
        };
        steps.iter().map(|step| 1e6 * step.count as f64 * least(step)).sum()
    }
}

/// What is asked of a case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The case's name.
    pub case: &'static str,
    /// The goal, in microseconds.
    pub bar_us: f64,
    /// Bytes over 4.3 TB/s or operations over 790 TFLOP/s, whichever is longer: each operand once.
    pub floor_us: f64,
}

const TARGETS: [Target; 11] = [
    Target { case: "attention/openflamingo-resampler/b32", bar_us: 8.5, floor_us: 5.9 },
    Target { case: "attention/flamingo-resampler/b32-k2304", bar_us: 135.0, floor_us: 111.0 },
    Target { case: "attention/flamingo-resampler/b32-k2304-kv4", bar_us: 55.0, floor_us: 38.0 },
    Target { case: "attention/flamingo-resampler/b1-k2304", bar_us: 6.0, floor_us: 3.5 },
    Target { case: "attention/flamingo-9b/b8-l2048-n8", bar_us: 95.0, floor_us: 78.0 },
    Target { case: "attention/flamingo-9b/b8-l2048-n8-kv8", bar_us: 82.0, floor_us: 66.0 },
    Target { case: "attention/openflamingo/b8-l2048-n8", bar_us: 14.0, floor_us: 9.8 },
    Target { case: "attention/flamingo-9b/b8-l8192-n32", bar_us: 370.0, floor_us: 312.0 },
    Target { case: "attention/flamingo-9b-decode/b64-n1", bar_us: 21.0, floor_us: 16.0 },
    Target { case: "attention/blip2-cross/b32-k257", bar_us: 9.5, floor_us: 6.6 },
    Target { case: "linear/out-gated/16384x512-4096", bar_us: 105.0, floor_us: 87.0 },
];

/// What is asked of the case of this name, if anything is.
pub fn target(case: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.case == case)
}

#[cfg(test)]
mod tests {
    use super::{Rates, Step, TARGETS, target};
    use crate::ops::Cost;
    use crate::profile::cases;
    use crate::{DType, Device};

    #[test]
    fn targets_are_cases_and_floors_are_below_bars() {
        let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
        for target in TARGETS {
            assert!(names.contains(&target.case), "{}", target.case);
            assert!(target.floor_us < target.bar_us, "{}", target.case);
        }
        assert_eq!(target("attention/openflamingo/b8-l2048-n8").map(|t| t.bar_us), Some(14.0));
        assert_eq!(target("attention/openflamingo/l512-n1"), None);
    }

    /// The floors follow from the cases' own costs, to the two digits that they are given with.
    #[test]
    fn floors_are_those_of_the_costs() {
        for name in ["attention/blip2-cross/b32-k257", "attention/openflamingo/b8-l2048-n8"] {
            let case = cases().into_iter().find(|case| case.name == name).unwrap();
            let steps = case.build(&Device::cpu(), DType::BF16).unwrap().steps();
            let floor = Rates::h200(DType::BF16).floor_us(&steps);
            let given = target(name).unwrap().floor_us;
            assert!((floor / given - 1.0).abs() < 0.02, "{name}: {floor:.2} us from its cost, {given} us given");
        }
    }

    #[test]
    fn a_floor_is_the_sum_of_its_steps() {
        let step = |bytes, flops, count| Step {
            op: "op",
            label: "op".into(),
            cost: Cost { bytes, flops },
            product: None,
            count,
        };
        // 2 us of memory three times, then 5 us of operations.
        let steps = [step(8_600_000, 790_000_000, 3), step(4_300_000, 3_950_000_000, 1)];
        assert!((Rates::h200(DType::F16).floor_us(&steps) - 11.0).abs() < 1e-9);
        assert_eq!(Rates::h200(DType::F32).flops, 67e12);
    }
}
