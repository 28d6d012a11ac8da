//! What a session says: a line per case for people, JSON for machines.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::about::About;
use super::check::Check;
use super::clock::{Clock, Stopwatch, Timing};
use super::roof::Roof;
use super::visited::Visited;
use crate::DType;

/// Everything that was timed, failed or could not run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The device.
    pub about: About,
    /// Element type of activations and matrices.
    pub dtype: DType,
    /// The f32 peak of a data sheet, in GFLOP/s.
    pub peak: Option<f64>,
    /// What time was taken by; the wall clock, if it was for any case.
    pub clock: Clock,
    /// Why it was not the device's own.
    pub clock_reason: Option<String>,
    /// When the session began, in seconds since 1970 (UTC).
    pub unix_seconds: u64,
    /// What was timed.
    pub rows: Vec<Row>,
    /// What gave a wrong result or lost the device, and how.
    pub failed: Vec<(&'static str, Vec<String>)>,
    /// What the device cannot run, and why.
    pub refused: Vec<(&'static str, String)>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// A timed case.
#[derive(Debug, Clone)]
pub struct Row {
    /// Of the case.
    pub name: &'static str,
    /// How long it takes.
    pub timing: Timing,
    /// Bytes of one call, every operand once, but K and V that no row sees.
    pub bytes: u64,
    /// Operations of one call, two per multiply-add.
    pub flops: u64,
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
}

const SOFTWARE: &str = "software adapter: these numbers say nothing about graphics hardware";

impl Report {
    pub(super) fn new(about: About, dtype: DType, peak: Option<f64>, stopwatch: &Stopwatch) -> Self {
        Report {
            about,
            dtype,
            peak,
            clock: stopwatch.clock(),
            clock_reason: stopwatch.reason().map(String::from),
            unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            rows: Vec::new(),
            failed: Vec::new(),
            refused: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, row: Row) -> String {
        let line = row.line(self.peak);
        self.rows.push(row);
        line
    }

    pub(super) fn fail(&mut self, name: &'static str, failures: Vec<String>) -> String {
        let line = format!("{name:<46} FAILED: {}", failures.join("; "));
        self.failed.push((name, failures));
        line
    }

    pub(super) fn refuse(&mut self, name: &'static str, reason: String) -> String {
        self.refused.push((name, reason));
        format!("{name:<46} cannot run here: see the end")
    }

    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Whether something was timed and nothing failed.
    pub fn is_success(&self) -> bool {
        self.failed.is_empty() && !self.rows.is_empty()
    }

    /// Lines above the table, and its head.
    pub fn head(&self) -> String {
        let info = &self.about.info;
        let mut lines = vec![format!("{} ({}), {}", info.name, info.details, self.dtype)];
        if self.about.is_software_adapter() {
            lines.push(SOFTWARE.into());
        }
        let reason = self.clock_reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        lines.push(format!("{}{reason}; medians of up to {} submissions", self.clock, Stopwatch::MOST));
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
            self.refused.iter().map(|(name, reason)| format!("cannot run here: {name}: {reason}")).collect();
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        if self.about.is_software_adapter() {
            lines.push(format!("note: {SOFTWARE}"));
        }
        let [timed, failed, refused] = [self.rows.len(), self.failed.len(), self.refused.len()];
        lines.push(format!("{timed} timed, {failed} failed, {refused} cannot run here"));
        lines.join("\n")
    }

    /// Everything, for machines. `commit` is the program's, if it is known.
    pub fn json(&self, commit: Option<&str>) -> Value {
        let failed = |(name, failures): &(&str, Vec<String>)| json!({ "case": name, "failures": failures });
        let refused = |(name, reason): &(&str, String)| json!({ "case": name, "reason": reason });
        json!({
            "device": self.about.json(), "dtype": self.dtype.name(),
            "warning": self.about.is_software_adapter().then_some(SOFTWARE),
            "clock": self.clock.name(), "clock_reason": self.clock_reason,
            "fp32_peak": { "source": if self.peak.is_some() { "given" } else { "measured before each case" },
                           "gflop_per_s": self.peak },
            "date": date(self.unix_seconds), "unix_seconds": self.unix_seconds,
            "version": env!("CARGO_PKG_VERSION"), "commit": commit,
            "cases": self.rows.iter().map(|row| row.json(self)).collect::<Vec<_>>(),
            "failed": self.failed.iter().map(failed).collect::<Vec<_>>(),
            "cannot_run": self.refused.iter().map(refused).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

impl Row {
    /// Bytes per nanosecond.
    pub fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.timing.milliseconds / 1e6
    }

    /// Operations per nanosecond.
    pub fn gflop_per_s(&self) -> f64 {
        self.flops as f64 / self.timing.milliseconds / 1e6
    }

    /// The least time that the device needs for these bytes or operations, over the time taken.
    pub fn roof_share(&self) -> Option<f64> {
        self.roof.map(|roof| roof.seconds(self.bytes, self.flops) * 1e3 / self.timing.milliseconds)
    }

    /// Operations per second, over those of the f32 peak: the given one in GFLOP/s, else the
    /// measured one.
    pub fn fp32_share(&self, peak: Option<f64>) -> Option<f64> {
        let peak = peak.or(self.roof.map(|roof| roof.flops_per_s / 1e9))?;
        Some(self.gflop_per_s() / peak)
    }

    fn line(&self, peak: Option<f64>) -> String {
        let share = |share: Option<f64>| share.map_or("-".into(), |share| format!("{share:.2}"));
        let visited = self.visited.map_or("-".into(), |v| format!("{} of {}", v.visited, v.total));
        format!(
            "{:<46} {:>10.3} {:>8.2} {:>9.2} {:>6} {:>6} {visited:>15} {:>7.1} M",
            self.name,
            self.timing.milliseconds,
            self.gb_per_s(),
            self.gflop_per_s(),
            share(self.roof_share()),
            share(self.fp32_share(peak)),
            self.workspace as f64 / f64::from(1 << 20)
        )
    }

    /// `median_us` and the names beside it are those of `xattn bench --graph`.
    fn json(&self, report: &Report) -> Value {
        let Timing { clock, milliseconds, spread, submissions, calls } = self.timing;
        let [median, least, largest] = [milliseconds, spread[0], spread[1]].map(|ms| 1e3 * ms);
        json!({
            "case": self.name, "backend": report.about.info.kind.name(), "dtype": report.dtype.name(),
            "median_us": median, "least_us": least, "largest_us": largest,
            "rows": self.check.rows, "checked_rows": self.check.checked_rows,
            "values": self.check.values, "checked_values": self.check.checked_values,
            "clock": clock.name(), "ms": milliseconds, "ms_least": spread[0], "ms_most": spread[1],
            "submissions": submissions, "calls_per_submission": calls, "bytes": self.bytes, "flops": self.flops,
            "gb_per_s": self.gb_per_s(), "gflop_per_s": self.gflop_per_s(), "roof_share": self.roof_share(),
            "fp32_share": self.fp32_share(report.peak), "roof_gflop_per_s": self.roof.map(|r| r.flops_per_s / 1e9),
            "roof_gb_per_s": self.roof.map(|r| r.bytes_per_s / 1e9),
            "key_blocks_visited": self.visited.map(|v| v.visited), "key_blocks": self.visited.map(|v| v.total),
            "scratch_bytes": self.workspace, "largest_activation_bytes": self.largest,
        })
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
