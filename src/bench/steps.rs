//! The ops that a case is made of, each with the least that it moves and computes.

use serde_json::{Value, json};

use crate::ops::{Attention, Cost, GemmShape, Op, Operands};
use crate::{Prepared, PreparedBridge};

/// An op of a case, and how often it occurs in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The op's name.
    pub op: &'static str,
    /// Where in the bridge it stands, or stands first; the op's name where the case is this op
    /// alone.
    pub label: String,
    /// Bytes and operations of it once; K and V that no row sees are not read.
    pub cost: Cost,
    /// The GEMM that this step amounts to, if any.
    pub gemm: Option<GemmShape>,
    /// How often.
    pub count: usize,
}

impl Step {
    pub(super) fn of_op<O: Op>(op: &Prepared<O>) -> Vec<Step> {
        let (cost, gemm) = (op.cost(), op.gemm());
        vec![Step { op: O::NAME, label: O::NAME.into(), cost, gemm, count: 1 }]
    }

    pub(super) fn of_bridge<C: Operands>(bridge: &PreparedBridge<C>) -> Vec<Step> {
        let one = bridge.steps().map(|step| Step {
            op: step.op,
            label: step.label.into(),
            cost: step.cost,
            gemm: step.gemm,
            count: 1,
        });
        one.collect()
    }

    /// As reports have it.
    pub(super) fn json(&self) -> Value {
        let product = self.gemm.map(|p| json!({ "rows": p.rows, "n": p.n, "k": p.k, "batch": p.batch }));
        json!({
            "op": self.op, "label": self.label, "bytes": self.cost.bytes, "flops": self.cost.flops, "product": product,
            "count": self.count,
        })
    }
}

/// Subtracts unread K and V from the bytes of the attention step.
pub(super) fn without(steps: &mut [Step], unread: u64) {
    if let Some(step) = steps.iter_mut().find(|step| step.op == Attention::NAME) {
        step.cost.bytes = step.cost.bytes.saturating_sub(unread);
    }
}

/// The same steps, those that are equal but for their place counted where the first of them stands.
pub(super) fn counted(steps: Vec<Step>) -> Vec<Step> {
    let mut all: Vec<Step> = Vec::new();
    for step in steps {
        let same = |other: &&mut Step| (other.op, other.cost, other.gemm) == (step.op, step.cost, step.gemm);
        match all.iter_mut().find(same) {
            Some(known) => known.count += step.count,
            None => all.push(step),
        }
    }
    all
}
