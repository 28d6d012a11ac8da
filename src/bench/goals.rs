//! Times that are asked of cases on an NVIDIA H200, in bf16 and with a cold L2 cache: the goals,
//! and the least that a machine allows.

/// What is asked of a case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// The case's name.
    pub case: &'static str,
    /// The goal, in microseconds.
    pub goal_us: f64,
    /// Bytes over 4.3 TB/s or operations over 790 TFLOP/s, whichever is longer: each operand once.
    pub floor_us: f64,
}

const GOALS: [Goal; 11] = [
    Goal { case: "attention/openflamingo-resampler/b32", goal_us: 8.5, floor_us: 5.9 },
    Goal { case: "attention/flamingo-resampler/b32-k2304", goal_us: 135.0, floor_us: 111.0 },
    Goal { case: "attention/flamingo-resampler/b32-k2304-kv4", goal_us: 55.0, floor_us: 38.0 },
    Goal { case: "attention/flamingo-resampler/b1-k2304", goal_us: 6.0, floor_us: 3.5 },
    Goal { case: "attention/flamingo-9b/b8-l2048-n8", goal_us: 95.0, floor_us: 78.0 },
    Goal { case: "attention/flamingo-9b/b8-l2048-n8-kv8", goal_us: 82.0, floor_us: 66.0 },
    Goal { case: "attention/openflamingo/b8-l2048-n8", goal_us: 14.0, floor_us: 9.8 },
    Goal { case: "attention/flamingo-9b/b8-l8192-n32", goal_us: 370.0, floor_us: 312.0 },
    Goal { case: "attention/flamingo-9b-decode/b64-n1", goal_us: 21.0, floor_us: 16.0 },
    Goal { case: "attention/blip2-cross/b32-k257", goal_us: 9.5, floor_us: 6.6 },
    Goal { case: "linear/out-gated/16384x512-4096", goal_us: 105.0, floor_us: 87.0 },
];

/// What is asked of the case of this name, if anything is.
pub fn goal(case: &str) -> Option<Goal> {
    GOALS.into_iter().find(|goal| goal.case == case)
}

#[cfg(test)]
mod tests {
    use super::{GOALS, goal};
    use crate::bench::{Roof, cases};
    use crate::{DType, Device};

    #[test]
    fn goals_are_of_cases_and_above_floors() {
        let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
        for goal in GOALS {
            assert!(names.contains(&goal.case), "{}", goal.case);
            assert!(goal.floor_us < goal.goal_us, "{}", goal.case);
        }
        assert_eq!(goal("attention/openflamingo/b8-l2048-n8").map(|goal| goal.goal_us), Some(14.0));
        assert_eq!(goal("attention/openflamingo/l512-n1"), None);
    }

    /// The floors follow from the cases' own costs, to the two digits that they are given with.
    #[test]
    fn floors_are_those_of_the_costs() {
        for name in ["attention/blip2-cross/b32-k257", "attention/openflamingo/b8-l2048-n8"] {
            let case = cases().into_iter().find(|case| case.name == name).unwrap();
            let steps = case.build(&Device::cpu(), DType::BF16).unwrap().steps();
            let floor = Roof::h200().floor_us(&steps, DType::BF16).unwrap();
            let given = goal(name).unwrap().floor_us;
            assert!((floor / given - 1.0).abs() < 0.02, "{name}: {floor:.2} us from its cost, {given} us given");
        }
    }
}
