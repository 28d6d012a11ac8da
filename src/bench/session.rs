//! Checking and timing cases one after the other on one device.

use std::time::Instant;

use super::Case;
use super::about::About;
use super::clock::{Clock, ClockKind, clock};
use super::report::{Outcome, Report};
use super::roof::Roof;
use super::row::Row;
use crate::{DType, Device, Error, Result};

/// A device with its clock, and what came out so far. No case ends it: what fails or cannot run is
/// written down with the reason.
pub struct Session {
    clock: Box<dyn Clock>,
    lost: bool,
    report: Report,
}

impl Session {
    /// A session in which activations and matrices are of `dtype`. The roofs of a CUDA device are
    /// measured here, those of others before each case.
    ///
    /// # Errors
    /// A device that stopped answering.
    pub fn new(device: &Device, dtype: DType) -> Result<Self> {
        let mut clock = clock(device)?;
        let mut report = Report::new(About::new(device), dtype, clock.as_ref());
        if clock.kind() == ClockKind::CudaGraph {
            report.roof = Some(clock.roof(dtype)?);
        }
        Ok(Session { clock, lost: false, report })
    }

    /// With the f32 peak in GFLOP/s that a data sheet promises; without it, shares are of the
    /// measured one.
    ///
    /// # Errors
    /// A peak that is not a positive number.
    pub fn with_peak(mut self, peak: f64) -> Result<Self> {
        if !(peak.is_finite() && peak > 0.0) {
            return Err(Error::argument("bench", "peak", "a positive number of GFLOP/s", peak));
        }
        self.report.peak = Some(peak);
        Ok(self)
    }

    /// With what the environment asked for in place of the backend's own choices.
    pub fn with_variant(mut self, variant: Option<String>) -> Self {
        self.report.variant = variant;
        self
    }

    /// Builds, checks and times a case. The lines that say how it went.
    pub fn run(&mut self, case: &Case) -> String {
        let outcome = self.outcome(case);
        self.report.add(case.name, outcome)
    }

    fn outcome(&mut self, case: &Case) -> Outcome {
        if self.lost {
            return Outcome::Refused("the device was lost before".into());
        }
        match self.time(case) {
            Ok(outcome) => outcome,
            Err(error @ Error::DeviceLost { .. }) => {
                self.lost = true;
                Outcome::Failed(vec![error.to_string()])
            }
            // A lost device may first show in an error of another kind.
            Err(error) => match self.answers() {
                Ok(()) => Outcome::Refused(error.to_string()),
                Err(lost) => {
                    self.lost = true;
                    Outcome::Failed(vec![error.to_string(), lost.to_string()])
                }
            },
        }
    }

    /// Whether the device still runs what it is given.
    fn answers(&self) -> Result<()> {
        let device = self.clock.device();
        device.finish(device.recorder()?)
    }

    /// The rows of a case, or why its check failed.
    fn time(&mut self, case: &Case) -> Result<Outcome> {
        let start = Instant::now();
        let mut built = vec![case.build(self.clock.device(), self.report.dtype)?];
        let build = start.elapsed().as_secs_f64();
        let check = built[0].check()?;
        let checked = start.elapsed().as_secs_f64();
        if !check.failures.is_empty() {
            return Ok(Outcome::Failed(check.failures));
        }
        let roof = self.roof()?;
        let steps = built[0].steps();
        let call = built[0].runnable();
        let (cost, workspace, largest) = (call.cost(), call.workspace_bytes(), call.largest_tensor_bytes());
        let mut rows = Vec::new();
        for &cold in self.clock.cold(cost.bytes) {
            let since = Instant::now();
            let timing = self.clock.measure(case, &mut built, cold)?;
            rows.push(Row {
                name: case.name,
                timing,
                cost,
                steps: steps.clone(),
                roof: roof.clone(),
                visited: case.visited(),
                workspace,
                largest,
                check: check.clone(),
                seconds: [build, checked - build, since.elapsed().as_secs_f64()],
            });
        }
        if let (ClockKind::Wall, Some(reason)) = (self.clock.kind(), self.clock.reason()) {
            self.report.clock_reason = Some(reason.into());
            self.report.clock = ClockKind::Wall;
        }
        Ok(Outcome::Timed(rows))
    }

    /// What the device can do at most, or a note why it is not known.
    fn roof(&mut self) -> Result<Option<Roof>> {
        match self.clock.roof(self.report.dtype) {
            Ok(roof) => Ok(Some(roof)),
            Err(error @ Error::DeviceLost { .. }) => Err(error),
            Err(error) => {
                self.report.note(format!("no roof: {error}"));
                Ok(None)
            }
        }
    }

    /// What came out so far.
    pub fn report(&self) -> &Report {
        &self.report
    }
}
