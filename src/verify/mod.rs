//! Validation: devices against the f64 reference, the reference against public implementations.
//!
//! [`run`] is what `xattn verify` calls. `docs/numerics.md` says how results are judged.
//!
//! ```
//! use xattn::verify::{Options, run};
//! use xattn::{DType, DeviceKind};
//!
//! let options = Options {
//!     devices: vec![DeviceKind::Cpu],
//!     dtypes: vec![DType::F32],
//!     filter: Some("gated_residual".into()),
//!     ..Options::default()
//! };
//! let report = run(&options, &|_done, _all| ())?;
//! assert_eq!(report.summary(), format!("{} passed, 0 failed, 0 skipped", report.entries.len()));
//! assert!(report.is_success(), "{}", report.table());
//! # Ok::<(), xattn::Error>(())
//! ```

pub mod cases;
pub mod classes;
pub mod compare;
pub mod fixture;
pub mod generate;
mod golden;
mod guarded;
mod report;
pub mod sampled;
#[cfg(feature = "wgpu")]
pub mod web;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use cases::{Case, Verdict};
use compare::Outcome;
pub use fixture::{Fixture, Mask};
pub use report::Report;

use crate::threads::Pool;
use crate::{DType, Device, DeviceInfo, DeviceKind, Error, Result};

/// What to verify.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Kinds of device; empty: every one that is found.
    pub devices: Vec<DeviceKind>,
    /// Element types of activations; empty: f32, f16 and bf16.
    pub dtypes: Vec<DType>,
    /// Only cases or files whose text contains this; a reproduction string runs that one case.
    pub filter: Option<String>,
    /// Random configurations besides the covering selection.
    pub full: bool,
    /// Every case also on wgpu's software adapters, not only each [`cases::REDUCED`]th of an op.
    pub every_case: bool,
    /// Fixture files, or folders of them; empty: cases of ops.
    pub paths: Vec<PathBuf>,
}

/// How something that ran is to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Every output is within its bound.
    Passed,
    /// Some output is not, or there is none.
    Failed,
    /// The device does not offer it.
    Skipped,
}

/// One case or fixture on one device in one dtype.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Reproduction string, or path of the fixture.
    pub case: String,
    /// The op's word, or the fixture's class.
    pub subject: String,
    /// The device.
    pub device: DeviceKind,
    /// Element type of activations.
    pub dtype: DType,
    /// How it is counted.
    pub status: Status,
    /// How each output compares.
    pub outcomes: Vec<Outcome>,
    /// Outputs of a fixture that no op computes yet.
    pub not_compared: Vec<String>,
    /// Why it could not run.
    pub reason: Option<String>,
}

impl Entry {
    fn compared(mut self, outcomes: Vec<Outcome>) -> Self {
        let passed = !outcomes.is_empty() && outcomes.iter().all(|o| o.failure.is_none());
        self.status = if passed { Status::Passed } else { Status::Failed };
        self.outcomes = outcomes;
        self
    }

    fn stopped(mut self, status: Status, reason: impl ToString) -> Self {
        (self.status, self.reason) = (status, Some(reason.to_string()));
        self
    }

    /// The output that takes most of its bound.
    pub fn worst(&self) -> Option<&Outcome> {
        self.outcomes.iter().max_by(|a, b| a.share().total_cmp(&b.share()))
    }
}

/// Called with the number of finished units and of all.
pub type Progress<'p> = &'p (dyn Fn(usize, usize) + Sync);

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Runs what the options select. Deterministic, whatever the number of threads.
///
/// # Errors
/// A named device that is missing, an element type that no device computes in, an unreadable path,
/// a filter that selects nothing. Later failures are entries of the report.
pub fn run(options: &Options, progress: Progress<'_>) -> Result<Report> {
    if let Some(dtype) = options.dtypes.iter().find(|d| !DTYPES.contains(d)) {
        return Err(Error::argument("verify", "dtype", "f32, f16 or bf16", dtype));
    }
    let (devices, mut notes) = devices(&options.devices)?;
    let emulated = devices.iter().map(Device::info).filter(DeviceInfo::is_emulated);
    notes.extend(emulated.map(|info| format!("{} ran on an emulator, not on hardware: {}", info.kind, info.name)));
    let dtypes = if options.dtypes.is_empty() { DTYPES.to_vec() } else { options.dtypes.clone() };
    let entries = if options.paths.is_empty() {
        run_cases(options, &devices, &dtypes, &mut notes, progress)?
    } else {
        run_fixtures(options, &devices, &dtypes, progress)?
    };
    Ok(Report { entries, notes })
}

/// The devices to run on, and what was not found.
fn devices(kinds: &[DeviceKind]) -> Result<(Vec<Device>, Vec<String>)> {
    if !kinds.is_empty() {
        let devices: Result<Vec<Device>> = kinds.iter().map(|&kind| Device::open(kind)).collect();
        return Ok((devices?, Vec::new()));
    }
    let (mut devices, mut notes) = (Vec::new(), Vec::new());
    for kind in DeviceKind::ALL {
        match Device::open(kind) {
            Ok(device) => devices.push(device),
            Err(e) => notes.push(e.to_string()),
        }
    }
    Ok((devices, notes))
}

/// Finished work, for progress.
struct Counter<'p> {
    done: AtomicUsize,
    all: usize,
    progress: Progress<'p>,
}

impl<'p> Counter<'p> {
    fn new(all: usize, progress: Progress<'p>) -> Self {
        Counter { done: AtomicUsize::new(0), all, progress }
    }

    fn tick(&self) {
        (self.progress)(self.done.fetch_add(1, Ordering::Relaxed) + 1, self.all);
    }
}

fn nothing(filter: &str, what: &str) -> Error {
    Error::argument("verify", "filter", format!("text that occurs in {what}"), filter)
}

/// The cases that the options select.
///
/// # Errors
/// A filter that selects nothing.
pub fn select(options: &Options) -> Result<Vec<Case>> {
    // A whole reproduction string is a case, even outside every selection.
    if let Some(text) = &options.filter
        && text.contains(":")
        && text.contains("seed=")
    {
        return Ok(vec![text.parse()?]);
    }
    let mut cases = cases::selection();
    if options.full {
        cases.extend(cases::random());
    }
    if let Some(text) = &options.filter {
        cases.retain(|case| case.to_string().contains(text.as_str()));
        if cases.is_empty() {
            return Err(nothing(text, "the reproduction string of a case"));
        }
    }
    Ok(cases)
}

fn run_cases(
    options: &Options,
    devices: &[Device],
    dtypes: &[DType],
    notes: &mut Vec<String>,
    progress: Progress<'_>,
) -> Result<Vec<Entry>> {
    let mut cases = select(options)?;
    if !options.dtypes.is_empty() {
        cases.retain(|case| case.dtype().is_none_or(|d| dtypes.contains(&d)));
    }
    // The reference judges all cases, and runs as a device only on request.
    let asked = options.devices.contains(&DeviceKind::Reference);
    let devices: Vec<Device> = devices.iter().filter(|d| asked || d.kind() != DeviceKind::Reference).cloned().collect();
    let reduced = (!options.every_case && options.filter.is_none()).then(|| cases::reduced(&cases));
    let runs = |device: &Device, i: usize| match &reduced {
        Some(few) if device.is_software_adapter() => few.contains(&i),
        _ => true,
    };
    notes.extend(devices.iter().filter(|device| device.is_software_adapter()).filter_map(|device| {
        let (few, all, name) = (reduced.as_ref()?.len(), cases.len(), device.info().name);
        Some(format!(
            "{} ran {few} of {all} cases, since {name} is a software adapter; --every-case runs all",
            device.kind()
        ))
    }));
    let wanted: Vec<usize> = (0..cases.len()).filter(|&i| devices.iter().any(|device| runs(device, i))).collect();
    let counter = Counter::new(wanted.len(), progress);
    let entries: Vec<Vec<Entry>> = Pool::callers().map(wanted.len(), |at| {
        let case = &cases[wanted[at]];
        let devices: Vec<Device> = devices.iter().filter(|device| runs(device, wanted[at])).cloned().collect();
        let verdicts = case.verify(&devices);
        counter.tick();
        devices.iter().zip(verdicts).map(|(device, verdict)| case_entry(case, device, verdict)).collect()
    });
    Ok(entries.into_iter().flatten().collect())
}

fn case_entry(case: &Case, device: &Device, verdict: Verdict) -> Entry {
    let entry = Entry {
        case: case.to_string(),
        subject: case.op().to_string(),
        device: device.kind(),
        dtype: case.dtype().unwrap_or(DType::I32),
        status: Status::Failed,
        outcomes: Vec::new(),
        not_compared: Vec::new(),
        reason: None,
    };
    match verdict {
        Verdict::Compared(outcomes) => entry.compared(outcomes),
        Verdict::Failed(reason) => entry.stopped(Status::Failed, reason),
        Verdict::Skipped(reason) => entry.stopped(Status::Skipped, reason),
    }
}

fn run_fixtures(options: &Options, devices: &[Device], dtypes: &[DType], progress: Progress<'_>) -> Result<Vec<Entry>> {
    let mut files = fixture::find(&options.paths)?;
    if let Some(text) = &options.filter {
        files.retain(|file| file.to_string_lossy().contains(text.as_str()));
        if files.is_empty() {
            return Err(nothing(text, "the path of a fixture"));
        }
    }
    let counter = Counter::new(files.len(), progress);
    let entries: Vec<Vec<Entry>> = Pool::callers().map(files.len(), |i| {
        let entries = golden::verify(&files[i], devices, dtypes);
        counter.tick();
        entries
    });
    Ok(entries.into_iter().flatten().collect())
}
