//! Named benchmark cases with published shapes, each checked before it is timed: what `xattn bench` and `cargo bench` run.
//!
//! A case's name is `op/system-part/shape`. Ops are checked at full size on samples that the reference recomputes; bridges at the same
//! structure with reduced widths and lengths, and at full size for finite numbers and equal bits of two runs. Both under the accuracy
//! rule of [`verify`](crate::verify).
//!
//! A [`Session`] times cases one after the other, by the device's own clock where it has one ([`Stopwatch`]), beside what the device can do
//! at most ([`Roof`]), and keeps a [`Report`].

mod about;
mod attention;
mod bridges;
mod call;
mod cases;
mod clock;
#[cfg(feature = "cuda")]
mod graph;
mod ops;
mod prefill;
mod report;
mod roof;
mod rule;
mod session;
mod targets;
mod visited;
pub mod weights;

pub use about::{About, Adapter};
pub use call::Runnable;
pub use cases::cases;
pub use clock::{Clock, Stopwatch, Timing};
#[cfg(feature = "cuda")]
pub use graph::GraphTiming;
pub use report::{Report, Row};
pub use roof::Roof;
pub use session::Session;
pub use targets::{Target, target};
pub use visited::{Blocks, Seen, Visited, spread_media, visited};
pub use weights::RandomWeights;

use crate::bridge::Precision;
use crate::ops::Attention;
use crate::verify::compare::Outcome;
use crate::{DType, Device, Result};
use attention::AttentionCase;
use bridges::BridgeCase;
use call::Call;
use ops::{OpCall, OpCase};

/// A named case.
#[derive(Debug, Clone)]
pub struct Case {
    /// `op/system-part/shape`; stable, so that numbers of different days can be compared.
    pub name: &'static str,
    /// Rows of the table of published shapes (spec section 13) that it stands for; none for single ops.
    pub rows: &'static [u8],
    /// Too long for a default run on two cores.
    pub full_only: bool,
    shape: Shape,
}

#[derive(Debug, Clone)]
enum Shape {
    Attention(AttentionCase),
    Op(OpCase),
    Bridge(BridgeCase),
}

enum Built {
    Attention(AttentionCase, Box<Call<Attention>>),
    Op(Box<OpCall>),
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
            Shape::Attention(case) => Built::Attention(*case, Box::new(case.build(device, dtype)?)),
            Shape::Op(case) => Built::Op(Box::new(case.build(device, dtype)?)),
            Shape::Bridge(case) => Built::Bridge(case.clone(), case.build(device, dtype, Precision::uniform(dtype))?),
        };
        Ok(BuiltCase { device: device.clone(), dtype, built })
    }

    /// Key blocks that the attention of the case visits (one head), where it has one attention that dominates.
    pub fn visited(&self) -> Option<Visited> {
        match &self.shape {
            Shape::Attention(case) => Some(case.visited()),
            Shape::Op(_) => None,
            Shape::Bridge(case) => case.visited(),
        }
    }
}

impl BuiltCase {
    /// What is timed.
    pub fn runnable(&mut self) -> &mut dyn Runnable {
        match &mut self.built {
            Built::Attention(_, call) => call.as_mut(),
            Built::Op(call) => call.runnable(),
            Built::Bridge(_, call) => call.as_mut(),
        }
    }

    /// Runs the case and judges it: the failures, empty if there is none.
    ///
    /// # Errors
    /// A device fault.
    pub fn check(&mut self) -> Result<Vec<String>> {
        if let Err(failure) = bridges::check_full(self.runnable())? {
            return Ok(vec![failure]);
        }
        let outcomes: Vec<Outcome> = match &self.built {
            Built::Attention(case, call) => case.check(&self.device, call, self.dtype)?,
            Built::Op(call) => call.check(&self.device, self.dtype)?,
            Built::Bridge(case, _) => case.check(&self.device, self.dtype)?,
        };
        Ok(outcomes.into_iter().filter_map(|o| o.failure).collect())
    }
}
