//! Taking time: by the device's own clock where it has one, else by the wall clock.

use std::fmt;
use std::time::{Duration, Instant};

use super::call::Runnable;
#[cfg(feature = "wgpu")]
use crate::device::DeviceOn;
use crate::{Device, DeviceKind, Recorder, Result};

/// What time is taken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The host's clock, around recording, submission and waiting.
    Wall,
    /// The device's own, around the work alone.
    GpuTimestamps,
}

impl Clock {
    /// The name in text and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Clock::Wall => "wall clock",
            Clock::GpuTimestamps => "GPU timestamps",
        }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Something that can be recorded again and again.
pub(super) trait Record {
    fn record(&mut self, recorder: &mut Recorder<'_>) -> Result<()>;
}

/// A case.
pub(super) struct Run<'a>(pub &'a mut dyn Runnable);

impl Record for Run<'_> {
    fn record(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        self.0.enqueue(recorder)
    }
}

/// A kernel of a backend's own that is no op.
#[cfg(feature = "wgpu")]
pub(super) struct Submission<F>(F);

#[cfg(feature = "wgpu")]
impl<F: FnMut(&mut crate::WgpuRecorder<'_>) -> Result<()>> Submission<F> {
    pub fn wgpu(record: F) -> Self {
        Submission(record)
    }
}

#[cfg(feature = "wgpu")]
impl<F: FnMut(&mut crate::WgpuRecorder<'_>) -> Result<()>> Record for Submission<F> {
    fn record(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        match recorder {
            Recorder::Wgpu(recorder) => (self.0)(recorder),
            other => Err(crate::Error::argument("roof", "recorder", "wgpu", other.place())),
        }
    }
}

/// Runs a call many times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// What it was taken by.
    pub clock: Clock,
    /// Of one call, in the median submission.
    pub milliseconds: f64,
    /// Of one call, in the fastest and the slowest submission.
    pub spread: [f64; 2],
    /// How many submissions.
    pub submissions: usize,
    /// Calls recorded one behind the other in each of them.
    pub calls: usize,
}

/// Takes time on a device.
pub struct Stopwatch {
    device: Device,
    /// Why the device's own clock is not used, where one was looked for.
    reason: Option<String>,
    #[cfg(feature = "wgpu")]
    timestamps: Option<crate::backend::wgpu::timestamps::Timestamps>,
}

/// How long a case is repeated, and in how many submissions at least and at most.
const BUDGET: Duration = Duration::from_millis(500);
const SUBMISSIONS: [usize; 2] = [3, 10];

/// Calls in one submission at most.
const CALLS: usize = 256;

impl Stopwatch {
    /// Seconds that a submission to a GPU should take: far above the resolution of its clock, far
    /// below the patience of a driver.
    pub const SUBMISSION: f64 = 0.03;

    /// Submissions of a measurement at most.
    pub const MOST: usize = SUBMISSIONS[1];

    /// The device's own clock where it has one, else the wall clock and [the reason](Self::reason).
    ///
    /// # Errors
    /// A device that stopped answering.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(feature = "wgpu")]
        if let DeviceOn::Wgpu(backend) = &device.0 {
            return match backend.timestamps() {
                Ok(timestamps) => Ok(Stopwatch { device: device.clone(), reason: None, timestamps: Some(timestamps) }),
                Err(error @ crate::Error::Unsupported { .. }) => Ok(Self::wall(device, Some(error.to_string()))),
                Err(error) => Err(error),
            };
        }
        Ok(Self::wall(device, None))
    }

    fn wall(device: &Device, reason: Option<String>) -> Self {
        Stopwatch {
            device: device.clone(),
            reason,
            #[cfg(feature = "wgpu")]
            timestamps: None,
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What time is taken by from now on.
    pub fn clock(&self) -> Clock {
        #[cfg(feature = "wgpu")]
        if self.timestamps.is_some() {
            return Clock::GpuTimestamps;
        }
        Clock::Wall
    }

    /// Why it is not the device's own clock. None on the host, whose clock is the wall's.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Seconds of `calls` runs, recorded one behind the other, submitted at once and waited for. A
    /// device whose clock does not advance is timed by the wall clock from then on.
    pub(super) fn seconds(&mut self, submission: &mut dyn Record, calls: usize) -> Result<f64> {
        #[cfg(feature = "wgpu")]
        if let (DeviceOn::Wgpu(backend), Some(timestamps)) = (&self.device.0, &self.timestamps) {
            let elapsed = backend.elapsed(timestamps, |recorder| {
                let mut recorder = Recorder::Wgpu(recorder);
                (0..calls).try_for_each(|_| submission.record(&mut recorder))
            })?;
            if let Some(seconds) = elapsed {
                return Ok(seconds);
            }
            self.timestamps = None;
            self.reason = Some("timestamps did not advance between beginning and end of a pass".into());
        }
        let start = Instant::now();
        let mut recorder = self.device.recorder()?;
        (0..calls).try_for_each(|_| submission.record(&mut recorder))?;
        self.device.finish(recorder)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// How many calls of so many seconds make a submission. On the host, where nothing is
    /// submitted, one.
    pub(super) fn calls(&self, seconds: f64) -> usize {
        match self.device.kind() {
            DeviceKind::Reference | DeviceKind::Cpu => 1,
            DeviceKind::Wgpu | DeviceKind::Cuda => ((Self::SUBMISSION / seconds) as usize).clamp(1, CALLS),
        }
    }

    /// Seconds of `runs` runs of a call, in as many submissions as they need.
    ///
    /// # Errors
    /// A device fault.
    pub fn total(&mut self, call: &mut dyn Runnable, runs: u64) -> Result<f64> {
        let (mut sum, mut left, mut calls) = (0.0, runs, 1);
        while left > 0 {
            let now = left.min(calls);
            let seconds = self.seconds(&mut Run(call), now as usize)?;
            sum += seconds;
            left -= now;
            calls = self.calls(seconds / now as f64) as u64;
        }
        Ok(sum)
    }

    /// Times a call that ran before: half a second or so.
    ///
    /// # Errors
    /// A device fault.
    pub fn measure(&mut self, call: &mut dyn Runnable) -> Result<Timing> {
        let [least, most] = SUBMISSIONS;
        loop {
            let clock = self.clock();
            // Measuring the roof has emptied the caches.
            let once = self.seconds(&mut Run(call), 1)?;
            let calls = self.calls(once);
            let mut times = Vec::with_capacity(most);
            let began = Instant::now();
            while times.len() < least || (times.len() < most && began.elapsed() < BUDGET) {
                times.push(self.seconds(&mut Run(call), calls)? * 1e3 / calls as f64);
            }
            if self.clock() != clock {
                // The device's clock gave up on the way: once more by the other, which does not.
                continue;
            }
            times.sort_unstable_by(f64::total_cmp);
            return Ok(Timing {
                clock,
                milliseconds: times[times.len() / 2],
                spread: [times[0], times[times.len() - 1]],
                submissions: times.len(),
                calls,
            });
        }
    }
}
