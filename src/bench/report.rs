//! What a session says: lines per case for people, JSON for machines.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::about::About;
use super::clock::{Clock, ClockKind};
use super::roof::{Limit, Roof};
use super::row::{COLUMNS, Row};
use crate::DType;

/// What became of a case.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// One row, or of a captured graph one per state of the L2 cache.
    Timed(Vec<Row>),
    /// It gave a wrong result or lost the device: how.
    Failed(Vec<String>),
    /// The device, or the kernel that was named, cannot run it: why.
    Refused(String),
}

/// Everything that was timed, failed or could not run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The device.
    pub about: About,
    /// Element type of activations and matrices.
    pub dtype: DType,
    /// The f32 peak of a data sheet, in GFLOP/s.
    pub peak: Option<f64>,
    /// What the environment asked for in place of the backend's own choices.
    pub variant: Option<String>,
    /// The limits of a CUDA device, which are measured once.
    pub roof: Option<Roof>,
    /// What time was taken by; the wall clock, if it was for any case.
    pub clock: ClockKind,
    /// Why it was not the device's own.
    pub clock_reason: Option<String>,
    /// Submissions of a case at most.
    submissions: usize,
    /// When the session began, in seconds since 1970 (UTC).
    pub unix_seconds: u64,
    /// Every case in its order.
    pub cases: Vec<(&'static str, Outcome)>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

const SOFTWARE: &str = "software adapter: these numbers say nothing about graphics hardware";

impl Report {
    pub(super) fn new(about: About, dtype: DType, clock: &dyn Clock) -> Self {
        Report {
            about,
            dtype,
            peak: None,
            variant: None,
            roof: None,
            clock: clock.kind(),
            clock_reason: clock.reason().map(String::from),
            submissions: clock.submissions(),
            unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            cases: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a case. Returns its lines of the table.
    pub(super) fn add(&mut self, name: &'static str, outcome: Outcome) -> String {
        let line = match &outcome {
            Outcome::Timed(rows) => rows.iter().map(|row| row.line(self)).collect::<Vec<_>>().join("\n"),
            Outcome::Failed(failures) => format!("{name:<46} FAILED: {}", failures.join("; ")),
            Outcome::Refused(_) => format!("{name:<46} cannot run here: see the end"),
        };
        self.cases.push((name, outcome));
        line
    }

    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// What was timed.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.cases.iter().flat_map(|(_, outcome)| match outcome {
            Outcome::Timed(rows) => rows.as_slice(),
            _ => &[],
        })
    }

    /// What failed, and how.
    pub fn failed(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        self.cases.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Failed(failures) => Some((*name, failures.as_slice())),
            _ => None,
        })
    }

    /// What cannot run, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.cases.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Refused(reason) => Some((*name, reason.as_str())),
            _ => None,
        })
    }

    /// Cases that were timed, that failed, that cannot run.
    fn counts(&self) -> [usize; 3] {
        let [failed, refused] = [self.failed().count(), self.refused().count()];
        [self.cases.len() - failed - refused, failed, refused]
    }

    /// Whether something was timed and nothing failed.
    pub fn is_success(&self) -> bool {
        let [timed, failed, _] = self.counts();
        timed > 0 && failed == 0
    }

    /// Lines above the table, and its head.
    pub fn head(&self) -> String {
        let info = &self.about.info;
        let mut lines = vec![format!("{} ({}), {}", info.name, info.details, self.dtype)];
        if self.about.is_software_adapter() {
            lines.push(SOFTWARE.into());
        }
        let reason = self.clock_reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        lines.push(format!("{}{reason}; medians of up to {} submissions", self.clock, self.submissions));
        if let Some(roof) = &self.roof {
            let limit = |limit: &Limit, unit: f64| match limit {
                Ok(rate) => format!("{:.1}", rate / unit),
                Err(reason) => format!("- ({reason})"),
            };
            lines.push(format!(
                "roofs: copy {} GB/s, multiply-adds in f32 {} TFLOP/s, product {} TFLOP/s; microseconds per call",
                limit(&roof.bytes_per_s, 1e9),
                limit(&roof.flops_per_s, 1e12),
                limit(&roof.gemm_flops_per_s, 1e12),
            ));
            let columns = COLUMNS.map(|[name, _]| format!(" {name:>9}")).concat();
            lines.push(format!("{:<46} {:<4} {:>8}{columns} {:>11}", "case", "L2", "launches", "checked"));
            return lines.join("\n");
        }
        lines.push(match self.peak {
            Some(peak) => format!("FP32: share of {peak} GFLOP/s, as given"),
            None => "FP32: share of the multiply-adds measured before each case".into(),
        });
        lines.push(format!(
            "{:<46} {:>10} {:>8} {:>9} {:>6} {:>6} {:>15} {:>9}",
            "case", "ms", "GB/s", "GFLOP/s", "roof", "FP32", "key blocks", "scratch"
        ));
        lines.join("\n")
    }

    /// Lines below the table: what could not run and why; the last one counts.
    pub fn foot(&self) -> String {
        let mut lines: Vec<String> =
            self.refused().map(|(name, reason)| format!("cannot run here: {name}: {reason}")).collect();
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        if self.about.is_software_adapter() {
            lines.push(format!("note: {SOFTWARE}"));
        }
        let [timed, failed, refused] = self.counts();
        lines.push(format!("{timed} timed, {failed} failed, {refused} cannot run here"));
        lines.join("\n")
    }

    /// Everything, for machines. `commit` is the program's, if it is known.
    pub fn json(&self, commit: Option<&str>) -> Value {
        let version = env!("CARGO_PKG_VERSION");
        #[cfg(feature = "cuda")]
        if let (Some(cuda), Some(roof)) = (&self.about.cuda, &self.roof) {
            let [major, minor] = cuda.compute_capability;
            return json!({
                "device": self.about.info.name, "details": self.about.info.details,
                "compute_capability": format!("{major}.{minor}"), "multiprocessors": cuda.multiprocessors,
                "l2_bytes": cuda.l2_bytes, "roofs": roof.json(), "dtype": self.dtype.name(), "variant": self.variant,
                "version": version, "commit": commit, "unix_seconds": self.unix_seconds, "cases": self.in_graphs(),
            });
        }
        let failed = |(name, failures)| json!({ "case": name, "failures": failures });
        let refused = |(name, reason)| json!({ "case": name, "reason": reason });
        json!({
            "device": self.about.json(), "dtype": self.dtype.name(),
            "warning": self.about.is_software_adapter().then_some(SOFTWARE),
            "clock": self.clock.name(), "clock_reason": self.clock_reason,
            "fp32_peak": { "source": if self.peak.is_some() { "given" } else { "measured before each case" },
                           "gflop_per_s": self.peak },
            "date": date(self.unix_seconds), "unix_seconds": self.unix_seconds, "version": version, "commit": commit,
            "cases": self.rows().map(|row| row.json(self)).collect::<Vec<_>>(),
            "failed": self.failed().map(failed).collect::<Vec<_>>(),
            "cannot_run": self.refused().map(refused).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    /// Records of captured graphs: what failed or cannot run stands among them, in the order of the
    /// cases.
    #[cfg(feature = "cuda")]
    fn in_graphs(&self) -> Vec<Value> {
        let other = |name: &str, what: &str, value: Value| {
            json!({
                "case": name, "backend": self.about.info.kind.name(), "dtype": self.dtype.name(), "variant": self.variant,
                (what): value,
            })
        };
        let records = |(name, outcome): &(&'static str, Outcome)| match outcome {
            Outcome::Timed(rows) => rows.iter().map(|row| row.json(self)).collect(),
            Outcome::Failed(failures) => vec![other(name, "failed", json!(failures))],
            Outcome::Refused(reason) => vec![other(name, "refused", json!(reason))],
        };
        self.cases.iter().flat_map(records).collect()
    }
}

/// Day and time of seconds since 1970, as ISO 8601 writes them. Years are counted from March, so
/// that the leap day is the last.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_767_225_599), "2025-12-31T23:59:59Z");
    }
}
