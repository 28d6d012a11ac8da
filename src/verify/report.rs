//! Reports of `verify`: a table for people, JSON for machines, one line of counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

use super::{Entry, Status};
use crate::DeviceKind;
use crate::shown::escaped;
use crate::verify::compare::Outcome;

/// Up to this many entries have a line each; more are summed up per op, device and dtype.
const LINES: usize = 64;

/// Everything that ran.
#[derive(Debug, Clone)]
pub struct Report {
    /// One per case or fixture, device and dtype.
    pub entries: Vec<Entry>,
    /// Devices that were not found, and why.
    pub notes: Vec<String>,
}

impl Report {
    /// How many entries have this status.
    pub fn count(&self, status: Status) -> usize {
        self.entries.iter().filter(|e| e.status == status).count()
    }

    /// Whether something ran and nothing failed.
    pub fn is_success(&self) -> bool {
        self.count(Status::Failed) == 0 && self.count(Status::Passed) > 0
    }

    /// `N passed, N failed, N skipped`.
    pub fn summary(&self) -> String {
        let count = |status| self.count(status);
        format!(
            "{} passed, {} failed, {} skipped",
            count(Status::Passed),
            count(Status::Failed),
            count(Status::Skipped)
        )
    }

    /// The table: maximum and RMS error with bounds per line; then every failure in full.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |cells: [&str; 9]| {
            let [subject, device, dtype, runs, max, max_bound, rms, rms_bound, status] = cells;
            let _ = writeln!(
                text,
                "{subject:<44} {device:<9} {dtype:<5} {runs:>6} {max:>10} {max_bound:>10} {rms:>10} {rms_bound:>10}  {status}"
            );
        };
        line(["case", "device", "dtype", "runs", "max error", "bound", "rms error", "bound", ""]);
        for group in self.groups() {
            let cells = group.cells();
            line(cells.each_ref().map(String::as_str));
        }
        for (output, files) in self.not_compared() {
            let _ = writeln!(
                text,
                "not compared: {} of {} (no op computes losses)",
                escaped(output),
                plural(files, "file")
            );
        }
        for entry in self.entries.iter().filter(|e| e.status != Status::Passed) {
            entry.describe(&mut text);
        }
        if self.entries.is_empty() {
            text.push_str("note: nothing ran: no selected case has the element type that was asked for\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// Outputs that no op computes, each with the number of files that hold it.
    fn not_compared(&self) -> BTreeMap<&str, usize> {
        let mut cases: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for entry in &self.entries {
            for output in &entry.not_compared {
                cases.entry(output).or_default().insert(&entry.case);
            }
        }
        cases.into_iter().map(|(output, cases)| (output, cases.len())).collect()
    }

    fn groups(&self) -> Vec<Group<'_>> {
        if self.entries.len() <= LINES {
            return self
                .entries
                .iter()
                .map(|e| Group { name: escaped(&e.case).to_string(), entries: vec![e] })
                .collect();
        }
        let mut groups: BTreeMap<(&str, DeviceKind, &str), Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            groups.entry((&entry.subject, entry.device, entry.dtype.name())).or_default().push(entry);
        }
        groups.into_iter().map(|((name, ..), entries)| Group { name: escaped(name).to_string(), entries }).collect()
    }

    /// Everything, for machines. Infinite numbers are null.
    pub fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "passed": self.count(Status::Passed),
            "failed": self.count(Status::Failed),
            "skipped": self.count(Status::Skipped),
            "notes": self.notes,
            "entries": self.entries.iter().map(Entry::json).collect::<Vec<_>>(),
        })
    }
}

/// Entries that share a line.
struct Group<'r> {
    name: String,
    entries: Vec<&'r Entry>,
}

impl Group<'_> {
    fn cells(&self) -> [String; 9] {
        let worst: Option<&Outcome> =
            self.entries.iter().filter_map(|e| e.worst()).max_by(|a, b| a.share().total_cmp(&b.share()));
        let number = |f: fn(&Outcome) -> f64| match worst.map(f) {
            Some(x) if x.is_finite() => format!("{x:.2e}"),
            _ => "-".to_string(),
        };
        let count = |status| self.entries.iter().filter(|e| e.status == status).count();
        let mut status = Vec::new();
        for (kind, word) in [(Status::Passed, "passed"), (Status::Failed, "FAILED"), (Status::Skipped, "skipped")] {
            match count(kind) {
                0 => {}
                n if n == self.entries.len() => status.push(word.to_string()),
                n => status.push(format!("{n} {word}")),
            }
        }
        if let Some(share) = worst.map(Outcome::share).filter(|s| s.is_finite()) {
            status.push(format!("({:.0} % of the bound)", 100.0 * share));
        }
        let first = self.entries[0];
        // A long name keeps its end: paths end in the file's name.
        let start = self.name.char_indices().rev().nth(43).map_or(0, |(i, _)| i);
        [
            self.name[start..].to_string(),
            first.device.to_string(),
            first.dtype.to_string(),
            self.entries.len().to_string(),
            number(|o| o.max_error),
            number(|o| o.max_bound),
            number(|o| o.rms_error),
            number(|o| o.rms_bound),
            status.join(", "),
        ]
    }
}

impl Entry {
    fn describe(&self, text: &mut String) {
        let word = if self.status == Status::Failed { "FAILED" } else { "skipped" };
        let _ = writeln!(text, "{word} {} [{} {}]", escaped(&self.case), self.device, self.dtype);
        if let Some(reason) = &self.reason {
            let _ = writeln!(text, "    {reason}");
        } else if self.outcomes.is_empty() {
            let _ = writeln!(text, "    no output was compared");
        }
        for outcome in &self.outcomes {
            let Some(failure) = &outcome.failure else { continue };
            let _ = write!(text, "    {}: {failure}", escaped(&outcome.output));
            if let Some(w) = &outcome.worst {
                let _ = write!(text, "; worst element {:?}: expected {:e}, got {:e}", w.index, w.expected, w.actual);
            }
            let _ = writeln!(text);
        }
    }

    fn json(&self) -> Value {
        let outcome = |o: &Outcome| {
            let worst = o.worst.as_ref().map(
                // As text, since JSON has neither NaN nor infinity.
                |w| json!({ "index": w.index, "expected": w.expected.to_string(), "actual": w.actual.to_string() }),
            );
            json!({
                "output": o.output, "elements": o.elements, "max_error": o.max_error, "max_bound": o.max_bound,
                "rms_error": o.rms_error, "rms_bound": o.rms_bound, "worst": worst, "failure": o.failure,
            })
        };
        let status = match self.status {
            Status::Passed => "passed",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
        };
        json!({
            "case": self.case, "subject": self.subject, "device": self.device.name(), "dtype": self.dtype.name(),
            "status": status, "reason": self.reason, "not_compared": self.not_compared,
            "outputs": self.outcomes.iter().map(outcome).collect::<Vec<_>>(),
        })
    }
}

fn plural(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}
