//! Checking and timing cases one after the other in captured CUDA graphs: what
//! `xattn bench --graph` runs.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::check::Check;
use super::graph::GraphTiming;
use super::graph_roofs::GraphRoofs;
use super::steps::Step;
use super::targets::{Rates, target};
use super::{BuiltCase, Case};
use crate::backend::cuda::self_test::timing::facts;
use crate::{DType, Device, Error, Result};

/// A device with its roofs, and a record per case and state of the cache. No case ends it.
pub struct GraphSession {
    device: Device,
    dtype: DType,
    /// What the environment asked for in place of the backend's own choices.
    variant: Option<String>,
    roofs: GraphRoofs,
    lost: bool,
    unix_seconds: u64,
    records: Vec<Value>,
    /// Cases that were timed, that failed, that the device or the named kernel cannot run.
    counts: [usize; 3],
}

impl GraphSession {
    /// Measures the roofs of a CUDA device, in which activations and matrices are of `dtype` from
    /// then on. `variant` is kept with every record.
    ///
    /// # Errors
    /// Another backend, a device that was lost.
    pub fn new(device: &Device, dtype: DType, variant: Option<String>) -> Result<Self> {
        Ok(GraphSession {
            device: device.clone(),
            dtype,
            variant,
            roofs: GraphRoofs::measure(device, dtype)?,
            lost: false,
            unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            records: Vec::new(),
            counts: [0; 3],
        })
    }

    /// Builds, checks and times a case, cold, and warm where its operands fit into the L2 cache.
    /// Lines that say how it went.
    pub fn run(&mut self, case: &Case) -> String {
        if self.lost {
            return self.refuse(case, "the device was lost before");
        }
        match self.time(case) {
            Ok(lines) => lines,
            Err(error @ Error::DeviceLost { .. }) => {
                self.lost = true;
                self.fail(case, vec![error.to_string()])
            }
            // A lost device may first show in an error of another kind.
            Err(error) => match self.device.recorder().and_then(|recorder| self.device.finish(recorder)) {
                Ok(()) => self.refuse(case, &error.to_string()),
                Err(lost) => {
                    self.lost = true;
                    self.fail(case, vec![error.to_string(), lost.to_string()])
                }
            },
        }
    }

    fn time(&mut self, case: &Case) -> Result<String> {
        let start = Instant::now();
        let mut built = vec![case.build(&self.device, self.dtype)?];
        let built_after = start.elapsed().as_secs_f64();
        let check = built[0].check()?;
        let checked_after = start.elapsed().as_secs_f64();
        if !check.failures.is_empty() {
            return Ok(self.fail(case, check.failures));
        }
        let fits = built[0].runnable().cost().bytes <= u64::from(facts(&self.device)?.l2_bytes);
        let mut lines = Vec::new();
        for cold in [true, false] {
            if !cold && !fits {
                continue;
            }
            let since = Instant::now();
            let timing = case.time_in_graph(&mut built, cold)?;
            let mut record = self.record(case.name, &mut built[0], &check, &timing);
            record["seconds"] = json!({
                "build": built_after, "check": checked_after - built_after, "time": since.elapsed().as_secs_f64(),
            });
            lines.push(line(&record, &timing));
            self.records.push(record);
        }
        self.counts[0] += 1;
        Ok(lines.join("\n"))
    }

    fn record(&self, name: &str, built: &mut BuiltCase, check: &Check, timing: &GraphTiming) -> Value {
        let steps = built.steps();
        let cost = built.runnable().cost();
        let asked = target(name).filter(|_| timing.cold && self.dtype == DType::BF16);
        let floor = asked.map_or_else(|| Rates::h200(self.dtype).floor_us(&steps), |target| target.floor_us);
        let here = self.rates().map(|rates| rates.floor_us(&steps));
        let times = |i: usize| timing.microseconds.map(|times| times[i]);
        json!({
            "case": name, "backend": "cuda", "dtype": self.dtype.name(), "variant": self.variant, "cold": timing.cold,
            "median_us": times(0), "least_us": times(1), "largest_us": times(2), "empty_us": timing.empty,
            "floor_us": floor, "floor_here_us": here, "bar_us": asked.map(|target| target.bar_us),
            "launches": timing.launches, "calls": timing.calls, "copies": timing.copies,
            "bytes": cost.bytes, "flops": cost.flops, "steps": steps.iter().map(Step::json).collect::<Vec<_>>(),
            "rows": check.rows, "checked_rows": check.checked_rows,
            "values": check.values, "checked_values": check.checked_values, "peers": {},
        })
    }

    /// This device's own rates, where both sides were measured.
    fn rates(&self) -> Option<Rates> {
        let flops = match self.dtype {
            DType::F32 => &self.roofs.fp32_flops,
            _ => &self.roofs.product_flops,
        };
        Some(Rates { bytes_per_second: *self.roofs.copy_bytes_per_second.as_ref().ok()?, flops: *flops.as_ref().ok()? })
    }

    fn put(&mut self, case: &Case, what: &str, value: Value) {
        let mut record = json!({
            "case": case.name, "backend": "cuda", "dtype": self.dtype.name(), "variant": self.variant,
        });
        record[what] = value;
        self.records.push(record);
    }

    fn fail(&mut self, case: &Case, failures: Vec<String>) -> String {
        let line = format!("{:<46} FAILED: {}", case.name, failures.join("; "));
        self.counts[1] += 1;
        self.put(case, "failed", json!(failures));
        line
    }

    fn refuse(&mut self, case: &Case, reason: &str) -> String {
        self.counts[2] += 1;
        self.put(case, "refused", json!(reason));
        format!("{:<46} cannot run here: {reason}", case.name)
    }

    /// Lines above the table, and its head.
    pub fn head(&self) -> String {
        let info = self.device.info();
        let columns = ["median", "least", "largest", "empty", "floor", "here", "bar"];
        let limit = |limit: &std::result::Result<f64, String>, unit: f64| match limit {
            Ok(rate) => format!("{:.1}", rate / unit),
            Err(reason) => format!("- ({reason})"),
        };
        format!(
            "{} ({}), {}; microseconds per call in a graph\nroofs: copy {} GB/s, multiply-adds in f32 {} TFLOP/s, product {} TFLOP/s\n{:<46} {:<4} {:>8}{} {:>11}",
            info.name,
            info.details,
            self.dtype,
            limit(&self.roofs.copy_bytes_per_second, 1e9),
            limit(&self.roofs.fp32_flops, 1e12),
            limit(&self.roofs.product_flops, 1e12),
            "case",
            "L2",
            "launches",
            columns.map(|name| format!(" {name:>9}")).concat(),
            "checked"
        )
    }

    /// The last line.
    pub fn foot(&self) -> String {
        let [timed, failed, refused] = self.counts;
        format!("{timed} timed, {failed} failed, {refused} cannot run here")
    }

    /// Whether something was timed and nothing failed.
    pub fn is_success(&self) -> bool {
        self.counts[0] > 0 && self.counts[1] == 0
    }

    /// Everything so far, for machines. `commit` is the program's, if it is known.
    ///
    /// # Errors
    /// None on a CUDA device.
    pub fn json(&self, commit: Option<&str>) -> Result<Value> {
        let (info, facts) = (self.device.info(), facts(&self.device)?);
        let [major, minor] = facts.compute_capability;
        Ok(json!({
            "device": info.name, "details": info.details, "compute_capability": format!("{major}.{minor}"),
            "multiprocessors": facts.multiprocessors, "l2_bytes": facts.l2_bytes, "roofs": self.roofs.json(),
            "dtype": self.dtype.name(), "variant": self.variant, "version": env!("CARGO_PKG_VERSION"), "commit": commit,
            "unix_seconds": self.unix_seconds, "cases": self.records,
        }))
    }
}

/// A record for people.
fn line(record: &Value, timing: &GraphTiming) -> String {
    let names = ["median_us", "least_us", "largest_us", "empty_us", "floor_us", "floor_here_us", "bar_us"];
    let numbers =
        names.map(|name| record[name].as_f64().map_or(format!(" {:>9}", "-"), |number| format!(" {number:>9.2}")));
    let l2 = if timing.cold { "cold" } else { "warm" };
    let name = record["case"].as_str().unwrap_or_default();
    let checked = format!("{}/{}", record["checked_rows"], record["rows"]);
    format!("{name:<46} {l2:<4} {:>8}{} {checked:>11}", timing.launches, numbers.concat())
}
