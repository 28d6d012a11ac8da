//! Timing cases one after the other on one device.

use super::about::About;
use super::clock::Stopwatch;
use super::report::{Report, Row};
use super::roof::Roof;
use super::{Case, Clock};
use crate::{DType, Device, Error, Result};

/// A device with its stopwatch, and what came out so far. No case ends it: what fails or cannot run
/// is written down with the reason.
pub struct Session {
    stopwatch: Stopwatch,
    lost: bool,
    report: Report,
}

impl Session {
    /// A session in which activations and matrices are of `dtype`. `peak` is the f32 peak in
    /// GFLOP/s that a data sheet promises; without it shares are of the measured one.
    ///
    /// # Errors
    /// A peak that is not a positive number; a device that stopped answering.
    pub fn new(device: &Device, dtype: DType, peak: Option<f64>) -> Result<Self> {
        if let Some(peak) = peak.filter(|peak| !(peak.is_finite() && *peak > 0.0)) {
            return Err(Error::argument("bench", "peak", "a positive number of GFLOP/s", peak));
        }
        let stopwatch = Stopwatch::new(device)?;
        let report = Report::new(About::new(device), dtype, peak, &stopwatch);
        Ok(Session { stopwatch, lost: false, report })
    }

    /// Builds, checks and times a case. The line that says how it went.
    pub fn run(&mut self, case: &Case) -> String {
        if self.lost {
            return self.report.refuse(case.name, "the device was lost before".into());
        }
        match self.time(case) {
            Ok(Ok(row)) => self.report.add(row),
            Ok(Err(failures)) => self.report.fail(case.name, failures),
            Err(error @ Error::DeviceLost { .. }) => {
                self.lost = true;
                self.report.fail(case.name, vec![error.to_string()])
            }
            Err(error) => match self.answers() {
                Ok(()) => self.report.refuse(case.name, error.to_string()),
                Err(lost) => {
                    self.lost = true;
                    self.report.fail(case.name, vec![error.to_string(), lost.to_string()])
                }
            },
        }
    }

    /// Whether the device still runs what it is given. A lost one may first show in an error of
    /// another kind.
    fn answers(&self) -> Result<()> {
        let device = self.stopwatch.device();
        device.finish(device.recorder()?)
    }

    /// The row of a case, or why its check failed.
    fn time(&mut self, case: &Case) -> Result<Result<Row, Vec<String>>> {
        let mut built = case.build(self.stopwatch.device(), self.report.dtype)?;
        let check = built.check()?;
        if !check.failures.is_empty() {
            return Ok(Err(check.failures));
        }
        let roof = match Roof::measure(&mut self.stopwatch) {
            Ok(roof) => Some(roof),
            Err(error @ Error::DeviceLost { .. }) => return Err(error),
            Err(error) => {
                self.report.note(format!("no roof: {error}"));
                None
            }
        };
        let call = built.runnable();
        let timing = self.stopwatch.measure(call)?;
        if let (Clock::Wall, Some(reason)) = (timing.clock, self.stopwatch.reason()) {
            self.report.clock_reason = Some(reason.into());
            self.report.clock = Clock::Wall;
        }
        let cost = call.cost();
        Ok(Ok(Row {
            name: case.name,
            timing,
            bytes: cost.bytes,
            flops: cost.flops,
            roof,
            visited: case.visited(),
            workspace: call.workspace_bytes(),
            largest: call.largest_tensor_bytes(),
            check,
        }))
    }

    /// What came out so far.
    pub fn report(&self) -> &Report {
        &self.report
    }
}
