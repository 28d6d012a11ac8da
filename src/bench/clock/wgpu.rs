//! Timestamps of a wgpu device, and the wall clock where it has none.

use std::sync::Arc;

use super::{Clock, ClockKind, SUBMISSION, Work, wall};
use crate::backend::wgpu::Wgpu;
use crate::backend::wgpu::roof::{Copy, MultiplyAdd};
use crate::backend::wgpu::timestamps::Timestamps;
use crate::bench::Roof;
use crate::{DType, Device, Error, Recorder, Result, WgpuRecorder};

pub(super) struct Timestamped {
    device: Device,
    backend: Arc<Wgpu>,
    /// Or why the wall clock is used.
    timestamps: std::result::Result<Timestamps, String>,
}

/// Workgroups of multiply-adds: the first guess, which an emulator can do too, and the most, many
/// times what a device holds at once, so that the last ones do not show.
const WORKGROUPS: [usize; 2] = [64, 16384];

/// Bytes to copy: beyond caches, whatever they are called. Less where memory is short, but not so
/// little that it measures a cache.
const COPIED: [usize; 2] = [256 << 20, 16 << 20];

impl Timestamped {
    pub fn new(device: &Device, backend: &Arc<Wgpu>) -> Result<Self> {
        let timestamps = match backend.timestamps() {
            Ok(timestamps) => Ok(timestamps),
            Err(error @ Error::Unsupported { .. }) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        Ok(Timestamped { device: device.clone(), backend: backend.clone(), timestamps })
    }

    /// Seconds of one run, in the fastest of three submissions. The one before them compiles,
    /// clears memory and wakes the clock up.
    fn fastest(&mut self, record: &dyn Fn(&mut WgpuRecorder<'_>) -> Result<()>) -> Result<f64> {
        let mut work = |recorder: &mut Recorder<'_>| match recorder {
            Recorder::Wgpu(recorder) => record(recorder),
            other => Err(Error::argument("roof", "recorder", "wgpu", other.place())),
        };
        self.told(&mut work, 1)?;
        let once = self.told(&mut work, 1)?;
        let calls = self.calls(once);
        (0..3).try_fold(once, |best, _| Ok(best.min(self.told(&mut work, calls)? / calls as f64)))
    }
}

impl Clock for Timestamped {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kind(&self) -> ClockKind {
        if self.timestamps.is_ok() { ClockKind::GpuTimestamps } else { ClockKind::Wall }
    }

    fn reason(&self) -> Option<&str> {
        self.timestamps.as_ref().err().map(String::as_str)
    }

    /// A device whose clock does not advance is timed by the wall clock from then on.
    fn seconds(&mut self, work: &mut Work<'_>, calls: usize) -> Result<Option<f64>> {
        if let Ok(timestamps) = &self.timestamps {
            let elapsed = self.backend.elapsed(timestamps, |recorder| {
                let mut recorder = Recorder::Wgpu(recorder);
                (0..calls).try_for_each(|_| work(&mut recorder))
            })?;
            if elapsed.is_some() {
                return Ok(elapsed);
            }
            self.timestamps = Err("timestamps did not advance between beginning and end of a pass".into());
        }
        wall::elapsed(&self.device, work, calls).map(Some)
    }

    /// Two kernels, each the fastest of three submissions.
    fn roof(&mut self, _: DType) -> Result<Roof> {
        let backend = self.backend.clone();
        let [first, most] = WORKGROUPS;
        let probe = MultiplyAdd::new(&backend, first)?;
        let seconds = self.fastest(&|recorder| probe.record(&backend, recorder))?;
        let workgroups = (first as f64 * SUBMISSION / seconds) as usize;
        let kernel = MultiplyAdd::new(&backend, workgroups.clamp(first, most))?;
        let multiplying = self.fastest(&|recorder| kernel.record(&backend, recorder))?;
        kernel.check(&backend)?;

        let [wanted, least] = COPIED;
        let copy = Copy::new(&backend, wanted, least)?;
        let copying = self.fastest(&|recorder| copy.record(&backend, recorder))?;
        copy.check(&backend)?;
        Ok(Roof::measured(copy.bytes() as f64 / copying, kernel.flops() as f64 / multiplying))
    }
}
