//! A timed case, as a line for people and as JSON for machines.

use serde_json::{Value, json};

use super::check::Check;
use super::clock::{GraphTiming, Timing};
use super::goals::goal;
use super::report::Report;
use super::roof::Roof;
use super::steps::Step;
use super::visited::Visited;
use crate::DType;
use crate::ops::Cost;

/// A timed case. In a captured graph, one with a cold or a warm L2 cache.
#[derive(Debug, Clone)]
pub struct Row {
    /// Of the case.
    pub name: &'static str,
    /// How long it takes.
    pub timing: Timing,
    /// Of one call: bytes, every operand once, but K and V that no row sees; operations, two per
    /// multiply-add.
    pub cost: Cost,
    /// The ops of one call.
    pub steps: Vec<Step>,
    /// What the device could do at most just before.
    pub roof: Option<Roof>,
    /// Key blocks.
    pub visited: Option<Visited>,
    /// Scratch memory in bytes.
    pub workspace: usize,
    /// Bytes of the largest activation.
    pub largest: usize,
    /// How it was checked.
    pub check: Check,
    /// Seconds that it took to build, to check and to time the case.
    pub seconds: [f64; 3],
}

/// Columns of the table of a captured graph: heads and keys.
pub(super) const COLUMNS: [[&str; 2]; 7] = [
    ["median", "median_us"],
    ["least", "least_us"],
    ["largest", "largest_us"],
    ["empty", "empty_us"],
    ["floor", "floor_us"],
    ["here", "floor_here_us"],
    ["goal", "bar_us"],
];

impl Row {
    fn milliseconds(&self) -> Option<f64> {
        self.timing.milliseconds.map(|[median, ..]| median)
    }

    /// Bytes per nanosecond.
    pub fn gb_per_s(&self) -> Option<f64> {
        Some(self.cost.bytes as f64 / self.milliseconds()? / 1e6)
    }

    /// Operations per nanosecond.
    pub fn gflop_per_s(&self) -> Option<f64> {
        Some(self.cost.flops as f64 / self.milliseconds()? / 1e6)
    }

    /// The least time that the device needs for these bytes or operations in f32, over the time
    /// taken.
    pub fn roof_share(&self) -> Option<f64> {
        Some(self.roof.as_ref()?.seconds(self.cost, DType::F32)? * 1e3 / self.milliseconds()?)
    }

    /// Operations per second, over those of the f32 peak: the given one in GFLOP/s, else the
    /// measured one.
    pub fn fp32_share(&self, peak: Option<f64>) -> Option<f64> {
        Some(self.gflop_per_s()? / peak.or(self.roof_gflop_per_s())?)
    }

    fn roof_gflop_per_s(&self) -> Option<f64> {
        Some(self.roof.as_ref()?.flops_per_s.as_ref().ok()? / 1e9)
    }

    pub(super) fn line(&self, report: &Report) -> String {
        if let Some(graph) = self.timing.graph {
            let record = self.json(report);
            let number =
                |[_, name]: [&str; 2]| record[name].as_f64().map_or("-".into(), |number| format!("{number:.2}"));
            let numbers = COLUMNS.map(|column| format!(" {:>9}", number(column))).concat();
            let l2 = if graph.cold { "cold" } else { "warm" };
            let checked = format!("{}/{}", self.check.checked_rows, self.check.rows);
            return format!("{:<46} {l2:<4} {:>8}{numbers} {checked:>11}", self.name, graph.launches);
        }
        let number = |number: Option<f64>, digits| number.map_or("-".into(), |number| format!("{number:.digits$}"));
        let visited = self.visited.map_or("-".into(), |v| format!("{} of {}", v.visited, v.total));
        format!(
            "{:<46} {:>10} {:>8} {:>9} {:>6} {:>6} {visited:>15} {:>7.1} M",
            self.name,
            number(self.milliseconds(), 3),
            number(self.gb_per_s(), 2),
            number(self.gflop_per_s(), 2),
            number(self.roof_share(), 2),
            number(self.fp32_share(report.peak), 2),
            self.workspace as f64 / f64::from(1 << 20)
        )
    }

    /// What every clock tells, and what is its own.
    pub(super) fn json(&self, report: &Report) -> Value {
        let us = |i: usize| self.timing.milliseconds.map(|ms| 1e3 * ms[i]);
        let mut record = json!({
            "case": self.name, "backend": report.about.info.kind.name(), "dtype": report.dtype.name(),
            "median_us": us(0), "least_us": us(1), "largest_us": us(2), "bytes": self.cost.bytes, "flops": self.cost.flops,
            "rows": self.check.rows, "checked_rows": self.check.checked_rows,
            "values": self.check.values, "checked_values": self.check.checked_values,
        });
        let own = match self.timing.graph {
            Some(graph) => self.in_graph(graph, report),
            None => self.submitted(report),
        };
        if let (Value::Object(record), Value::Object(own)) = (&mut record, own) {
            record.extend(own);
        }
        record
    }

    fn submitted(&self, report: &Report) -> Value {
        let Timing { clock, milliseconds, submissions, calls, .. } = self.timing;
        let ms = |i: usize| milliseconds.map(|ms| ms[i]);
        let bytes_per_s = self.roof.as_ref().and_then(|roof| roof.bytes_per_s.as_ref().ok());
        json!({
            "clock": clock.name(), "ms": ms(0), "ms_least": ms(1), "ms_most": ms(2),
            "submissions": submissions, "calls_per_submission": calls,
            "gb_per_s": self.gb_per_s(), "gflop_per_s": self.gflop_per_s(), "roof_share": self.roof_share(),
            "fp32_share": self.fp32_share(report.peak), "roof_gflop_per_s": self.roof_gflop_per_s(),
            "roof_gb_per_s": bytes_per_s.map(|bytes| bytes / 1e9),
            "key_blocks_visited": self.visited.map(|v| v.visited), "key_blocks": self.visited.map(|v| v.total),
            "scratch_bytes": self.workspace, "largest_activation_bytes": self.largest,
        })
    }

    fn in_graph(&self, graph: GraphTiming, report: &Report) -> Value {
        let asked = goal(self.name).filter(|_| graph.cold && report.dtype == DType::BF16);
        let floor = asked.map(|goal| goal.floor_us).or_else(|| Roof::h200().floor_us(&self.steps, report.dtype));
        let here = self.roof.as_ref().and_then(|roof| roof.floor_us(&self.steps, report.dtype));
        let [build, check, time] = self.seconds;
        json!({
            "variant": report.variant, "cold": graph.cold, "empty_us": graph.empty_us,
            "floor_us": floor, "floor_here_us": here, "bar_us": asked.map(|goal| goal.goal_us),
            "launches": graph.launches, "calls": self.timing.calls, "copies": graph.copies,
            "steps": self.steps.iter().map(Step::json).collect::<Vec<_>>(), "peers": {},
            "seconds": { "build": build, "check": check, "time": time },
        })
    }
}
