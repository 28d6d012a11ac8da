//! Named benchmark cases with published shapes, each checked before it is timed: what `xattn bench`
//! and `cargo bench` run.
//!
//! A case's name is `op/system-part/shape`. Every case runs twice at full size, the first time over
//! NaN: every number is written, finite, and has the same bits again. Ops are compared with the
//! reference on all rows, or on rows spread over a large case; bridges at the same structure with
//! reduced widths and lengths. Both under the accuracy rule of [`crate::verify`]. [`Check`]
//! says how much was compared.
//!
//! A [`Session`] times cases one after the other, by the device's own [`Clock`] where it has one,
//! beside what the device can do at most ([`Roof`]), and keeps a [`Report`].

/// A JSON object of the fields of these names.
macro_rules! fields {
    ($of:expr; $($name:ident),* $(,)?) => {
        serde_json::json!({ $((stringify!($name)): $of.$name),* })
    };
}

mod about;
mod bridges;
mod call;
mod cases;
mod check;
mod clock;
mod ffn;
mod goals;
mod ops;
mod prefill;
mod report;
mod roof;
mod row;
mod sample;
mod session;
mod steps;
pub(crate) mod visited;
pub mod weights;

pub use crate::verify::generate::spread_media;
pub use about::{About, Adapter};
pub use call::Runnable;
pub use cases::cases;
pub use check::Check;
pub use clock::{Clock, ClockKind, GraphTiming, Timing, Work, clock};
pub use goals::{Goal, goal};
pub use report::{Outcome, Report};
pub use roof::{Limit, Roof};
pub use row::Row;
pub use session::Session;
pub use steps::Step;
pub use visited::{Blocks, Visited, visited};
pub use weights::RandomWeights;

use serde_json::{Value, json};

use crate::bridge::Precision;
use crate::{DType, Device, HostTensor, Result, verify};
use bridges::BridgeCase;
use ffn::{Ffn, FfnCase};
use ops::{BuiltOp, op_case};

/// A named case.
#[derive(Debug, Clone)]
pub struct Case {
    /// `op/system-part/shape`; stable, so that numbers of different days can be compared.
    pub name: &'static str,
    /// Rows of the table of published shapes (spec section 12) that it stands for; empty where no
    /// row corresponds.
    pub rows: &'static [u8],
    /// Too long for a default run on two cores.
    pub full_only: bool,
    shape: Shape,
}

#[derive(Debug, Clone)]
enum Shape {
    Op(verify::cases::Case),
    Ffn(FfnCase),
    Bridge(BridgeCase),
}

enum Built {
    Op(Box<dyn BuiltOp>),
    Ffn(Box<Ffn>),
    Bridge(BridgeCase, Box<dyn Runnable>),
}

/// A case with its weights and operands on a device.
pub struct BuiltCase {
    device: Device,
    dtype: DType,
    built: Built,
}

impl Case {
    /// Puts random weights and inputs on a device.
    ///
    /// # Errors
    /// A device that does not support the case, or memory that cannot be had.
    pub fn build(&self, device: &Device, dtype: DType) -> Result<BuiltCase> {
        let built = match &self.shape {
            Shape::Op(case) => Built::Op(op_case(case).build(device, dtype)?),
            Shape::Ffn(case) => Built::Ffn(Box::new(case.build(device, dtype)?)),
            Shape::Bridge(case) => Built::Bridge(case.clone(), case.build(device, dtype, Precision::uniform(dtype))?),
        };
        Ok(BuiltCase { device: device.clone(), dtype, built })
    }

    /// What is known of the case without a device: `shape`, all sizes that its operands follow
    /// from; `verify`, the reproduction string of a single op's case, in f32; `floor_us` and
    /// `bar_us`, the least time and the goal on an NVIDIA H200 in bf16 with a cold L2 cache, null
    /// where nothing is asked of it.
    pub fn json(&self) -> Value {
        let shape = match &self.shape {
            Shape::Op(case) => op_case(case).sizes(),
            Shape::Ffn(case) => fields!(case; rows, width, hidden),
            Shape::Bridge(case) => case.json(),
        };
        let (asked, visited) = (goal(self.name), self.visited());
        let verify = if let Shape::Op(case) = &self.shape { Some(case.to_string()) } else { None };
        json!({
            "case": self.name, "full": self.full_only, "published": self.rows, "shape": shape, "verify": verify,
            "floor_us": asked.map(|goal| goal.floor_us), "bar_us": asked.map(|goal| goal.goal_us),
            "key_blocks_visited": visited.map(|v| v.visited), "key_blocks": visited.map(|v| v.total),
        })
    }

    /// Key blocks that the attention of the case visits (one head), where it has one attention that
    /// dominates.
    pub fn visited(&self) -> Option<Visited> {
        match &self.shape {
            Shape::Op(case) => op_case(case).visited(),
            Shape::Ffn(_) => None,
            Shape::Bridge(case) => case.visited(),
        }
    }
}

impl BuiltCase {
    /// What is timed.
    pub fn runnable(&mut self) -> &mut dyn Runnable {
        match &mut self.built {
            Built::Op(call) => call.runnable(),
            Built::Ffn(call) => call.as_mut(),
            Built::Bridge(_, call) => call.as_mut(),
        }
    }

    /// The ops of one call, equal ones counted where the first of them stands.
    pub fn steps(&mut self) -> Vec<Step> {
        steps::counted(self.runnable().steps())
    }

    /// Runs the case and judges it.
    ///
    /// # Errors
    /// A device fault.
    pub fn check(&mut self) -> Result<Check> {
        match check::run_twice(self.runnable())? {
            Ok(outputs) => self.judge(&outputs),
            Err(failure) => Ok(Check { failures: vec![failure], ..Check::default() }),
        }
    }

    /// Judges outputs by the reference.
    fn judge(&self, outputs: &[HostTensor<'static>]) -> Result<Check> {
        let shape = outputs[0].shape();
        let two = || shape[..2].iter().product();
        let (rows, (checked_rows, outcomes)) = match &self.built {
            Built::Op(call) => (two(), call.check(outputs)?),
            Built::Ffn(call) => (two(), call.check(outputs)?),
            Built::Bridge(case, _) => {
                (shape[..shape.len() - 1].iter().product(), (0, case.check(&self.device, self.dtype)?))
            }
        };
        Ok(Check {
            rows,
            checked_rows,
            values: outputs.iter().map(HostTensor::elements).sum(),
            checked_values: if checked_rows > 0 { outcomes.iter().map(|o| o.elements).sum() } else { 0 },
            failures: outcomes.into_iter().filter_map(|o| o.failure).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One wrong number in the first row that is compared, or in the last one, fails the check.
    #[test]
    fn a_wrong_number_of_a_sample_is_seen() {
        for name in [
            "attention/openflamingo/b8-l512-n8",
            "linear/out-gated/512x512-2048",
            "norm/rms/512x4096",
            "gated_residual/2048x4096",
            "media_index/l2048-n32/b8",
        ] {
            let case = cases().into_iter().find(|case| case.name == name).unwrap();
            let mut built = case.build(&Device::cpu(), DType::BF16).unwrap();
            built.runnable().run().unwrap();
            let outputs = built.runnable().outputs().unwrap();
            assert_eq!(built.judge(&outputs).unwrap().failures, Vec::<String>::new(), "{name}");
            let (dtype, shape) = (outputs[0].dtype(), outputs[0].shape());
            for at in [1, outputs[0].bytes().unwrap().len() - 1] {
                let mut bytes = outputs[0].bytes().unwrap().to_vec();
                // A bit of the exponent, or of an integer's high byte.
                bytes[at] ^= 0x40;
                let mut wrong = outputs.clone();
                wrong[0] = HostTensor::from_bytes(dtype, shape, bytes).unwrap();
                assert_eq!(built.judge(&wrong).unwrap().failures.len(), 1, "{name}: byte {at}");
            }
        }
    }
}
