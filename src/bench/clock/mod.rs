//! Taking time: by the device's own clock where it has one, else by the wall clock.

#[cfg(feature = "cuda")]
mod cuda_graph;
mod wall;
#[cfg(feature = "wgpu")]
mod wgpu;

use std::fmt;
use std::time::{Duration, Instant};

use super::roof::Roof;
use super::{BuiltCase, Case};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::DeviceOn;
use crate::{DType, Device, DeviceKind, Error, Recorder, Result};

/// What time is taken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockKind {
    /// The host's clock, around recording, submission and waiting.
    Wall,
    /// Timestamps of wgpu, around the work alone.
    GpuTimestamps,
    /// Events of CUDA around the replay of a captured graph.
    CudaGraph,
}

impl ClockKind {
    /// The name in text and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            ClockKind::Wall => "wall clock",
            ClockKind::GpuTimestamps => "GPU timestamps",
            ClockKind::CudaGraph => "CUDA graph",
        }
    }
}

impl fmt::Display for ClockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How long a call takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// What it was taken by.
    pub clock: ClockKind,
    /// Milliseconds of one call: in the median submission, the fastest and the slowest. None where
    /// the device tells no time.
    pub milliseconds: Option<[f64; 3]>,
    /// How many submissions, or replays of a graph.
    pub submissions: usize,
    /// Calls recorded back to back in each of them.
    pub calls: usize,
    /// What a captured graph has besides.
    pub graph: Option<GraphTiming>,
}

/// What is told of a call in a captured graph.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GraphTiming {
    /// Whether L2 is cold: calls rotate over copies of the operands that exceed twice its size.
    pub cold: bool,
    /// Microseconds of one launch of an empty kernel, in a graph of as many launches. None also
    /// where nothing compiles one.
    pub empty_us: Option<f64>,
    /// Launches of one call.
    pub launches: u32,
    /// Copies of the operands.
    pub copies: usize,
}

/// Records one run of what is timed.
pub type Work<'a> = dyn FnMut(&mut Recorder<'_>) -> Result<()> + 'a;

/// How long a case is repeated, and in how many submissions at least and at most.
const BUDGET: Duration = Duration::from_millis(500);
const SUBMISSIONS: [usize; 2] = [3, 10];

/// Calls in one submission at most.
const CALLS: usize = 256;

/// Seconds that a submission to a GPU should take: far above the resolution of its clock, far below
/// the patience of a driver.
const SUBMISSION: f64 = 0.03;

/// Takes time on a device.
pub trait Clock {
    /// The device.
    fn device(&self) -> &Device;

    /// What time is taken by from now on.
    fn kind(&self) -> ClockKind;

    /// Why it is not the device's own clock, where one was looked for.
    fn reason(&self) -> Option<&str> {
        None
    }

    /// Seconds of `calls` runs, recorded back to back, submitted at once and waited for.
    /// None where the device tells no time, as an emulated one.
    ///
    /// # Errors
    /// What `work` returns, a device fault.
    fn seconds(&mut self, work: &mut Work<'_>, calls: usize) -> Result<Option<f64>>;

    /// What the device can do at most, on which activations and matrices are of `dtype`.
    ///
    /// # Errors
    /// A device that has no roof, that fails, or whose kernels gave wrong results.
    fn roof(&mut self, dtype: DType) -> Result<Roof>;

    /// Whether a call of so many bytes is timed with a cold cache, with a warm one, or with either.
    fn cold(&self, _bytes: u64) -> &'static [bool] {
        &[false]
    }

    /// Submissions of a measurement at most.
    fn submissions(&self) -> usize {
        SUBMISSIONS[1]
    }

    /// Times the case that `built` holds, at least once, and that ran before: half a second or so.
    /// With a cold cache, as many more are built as that takes; they stay for the next call.
    ///
    /// # Errors
    /// A device fault; memory that cannot be had.
    fn measure(&mut self, _case: &Case, built: &mut Vec<BuiltCase>, _cold: bool) -> Result<Timing> {
        let call = first(built)?.runnable();
        let [least, most] = SUBMISSIONS;
        loop {
            let clock = self.kind();
            // Measuring the roof has emptied the caches.
            let once = self.told(&mut |recorder| call.enqueue(recorder), 1)?;
            let calls = self.calls(once);
            let mut times = Vec::with_capacity(most);
            let began = Instant::now();
            while times.len() < least || (times.len() < most && began.elapsed() < BUDGET) {
                times.push(self.told(&mut |recorder| call.enqueue(recorder), calls)? * 1e3 / calls as f64);
            }
            if self.kind() != clock {
                // The device's clock gave up on the way: once more by the other, which does not.
                continue;
            }
            let submissions = times.len();
            return Ok(Timing { clock, milliseconds: Some(summary(times)), submissions, calls, graph: None });
        }
    }

    /// Seconds, on a device that must tell them.
    ///
    /// # Errors
    /// As [`Clock::seconds`], and a device that tells no time.
    fn told(&mut self, work: &mut Work<'_>, calls: usize) -> Result<f64> {
        let seconds = self.seconds(work, calls)?;
        seconds.ok_or_else(|| Error::argument("bench", "device", "one that tells the time", self.device().info().name))
    }

    /// How many calls of so many seconds make a submission. On the host, where nothing is
    /// submitted, one.
    fn calls(&self, seconds: f64) -> usize {
        match self.device().kind() {
            DeviceKind::Reference | DeviceKind::Cpu => 1,
            DeviceKind::Wgpu | DeviceKind::Cuda => ((SUBMISSION / seconds) as usize).clamp(1, CALLS),
        }
    }

    /// Seconds of `runs` runs, in as many submissions as they need.
    ///
    /// # Errors
    /// As [`Clock::told`].
    fn total(&mut self, work: &mut Work<'_>, runs: u64) -> Result<f64> {
        let (mut sum, mut left, mut calls) = (0.0, runs, 1);
        while left > 0 {
            let now = left.min(calls);
            let seconds = self.told(work, now as usize)?;
            sum += seconds;
            left -= now;
            calls = self.calls(seconds / now as f64) as u64;
        }
        Ok(sum)
    }
}

/// The device's own clock where it has one, else the wall clock and [the reason](Clock::reason).
///
/// # Errors
/// A device that stopped answering.
pub fn clock(device: &Device) -> Result<Box<dyn Clock>> {
    #[cfg(feature = "cuda")]
    if let DeviceOn::Cuda(_) = &device.0 {
        return Ok(Box::new(cuda_graph::Graphs::new(device)?));
    }
    #[cfg(feature = "wgpu")]
    if let DeviceOn::Wgpu(backend) = &device.0 {
        return Ok(Box::new(wgpu::Timestamped::new(device, backend)?));
    }
    Ok(Box::new(wall::Wall(device.clone())))
}

/// The first of what was built.
fn first(built: &mut [BuiltCase]) -> Result<&mut BuiltCase> {
    built.first_mut().ok_or_else(|| Error::argument("bench", "built", "at least one", "none"))
}

/// Median, least and largest.
fn summary(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_unstable_by(f64::total_cmp);
    [times[times.len() / 2], times[0], times[times.len() - 1]]
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_summary_is_the_median_and_both_ends() {
        assert_eq!(summary(vec![3.0, 1.0, 2.0, 9.0, 4.0]), [3.0, 1.0, 9.0]);
    }
}
