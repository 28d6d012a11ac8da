//! What a device can do at most, measured: both sides of a roofline. A device's clock changes from
//! one second to the next, so measure beside what is to be judged.

use super::clock::Stopwatch;
#[cfg(feature = "wgpu")]
use super::clock::Submission;
use crate::backend::cpu;
use crate::device::DeviceOn;
use crate::{Error, Result};

/// The two limits of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roof {
    /// Floating-point operations per second in f32, two per multiply-add.
    pub flops_per_s: f64,
    /// Bytes per second from memory; on a GPU from and to memory.
    pub bytes_per_s: f64,
}

impl Roof {
    /// Measures a device by its stopwatch: 50 ms or so on a processor, on its threads.
    ///
    /// # Errors
    /// A device that has no roof, that fails, or whose kernels gave wrong results.
    pub fn measure(stopwatch: &mut Stopwatch) -> Result<Self> {
        let device = stopwatch.device().clone();
        match device.0 {
            DeviceOn::Cpu(backend) => Ok(cpu::roof::measure(&backend)),
            #[cfg(feature = "wgpu")]
            DeviceOn::Wgpu(backend) => of_wgpu(&backend, stopwatch),
            _ => Err(Error::Unsupported {
                op: "roof",
                what: "measuring it".into(),
                backend: stopwatch.device().kind().name(),
                available: "cpu, wgpu".into(),
            }),
        }
    }

    /// The least seconds that so many bytes and operations can take.
    pub fn seconds(&self, bytes: u64, flops: u64) -> f64 {
        (bytes as f64 / self.bytes_per_s).max(flops as f64 / self.flops_per_s)
    }
}

/// Workgroups of multiply-adds: the first guess, which an emulator can do too, and the most, many
/// times what a device holds at once, so that the last ones do not show.
#[cfg(feature = "wgpu")]
const WORKGROUPS: [usize; 2] = [64, 16384];

/// Bytes to copy: beyond caches, whatever they are called. Less where memory is short, but not so
/// little that it measures a cache.
#[cfg(feature = "wgpu")]
const COPIED: [usize; 2] = [256 << 20, 16 << 20];

/// Two kernels, each the fastest of three submissions.
#[cfg(feature = "wgpu")]
fn of_wgpu(backend: &crate::backend::wgpu::Wgpu, stopwatch: &mut Stopwatch) -> Result<Roof> {
    use crate::backend::wgpu::roof::{Copy, MultiplyAdd};

    let [first, most] = WORKGROUPS;
    let probe = MultiplyAdd::new(backend, first)?;
    let mut record = Submission::wgpu(|recorder| probe.record(backend, recorder));
    let seconds = fastest(stopwatch, &mut record)?;
    let workgroups = (first as f64 * Stopwatch::SUBMISSION / seconds) as usize;
    let kernel = MultiplyAdd::new(backend, workgroups.clamp(first, most))?;
    let multiplying = fastest(stopwatch, &mut Submission::wgpu(|recorder| kernel.record(backend, recorder)))?;
    kernel.check(backend)?;

    let [wanted, least] = COPIED;
    let copy = Copy::new(backend, wanted, least)?;
    let copying = fastest(stopwatch, &mut Submission::wgpu(|recorder| copy.record(backend, recorder)))?;
    copy.check(backend)?;
    Ok(Roof { flops_per_s: kernel.flops() as f64 / multiplying, bytes_per_s: copy.bytes() as f64 / copying })
}

/// Seconds of one run, in the fastest of three submissions. The one before them compiles, clears
/// memory and wakes the clock up.
#[cfg(feature = "wgpu")]
fn fastest(stopwatch: &mut Stopwatch, submission: &mut dyn super::clock::Record) -> Result<f64> {
    stopwatch.seconds(submission, 1)?;
    let once = stopwatch.seconds(submission, 1)?;
    let calls = stopwatch.calls(once);
    let mut best = once;
    for _ in 0..3 {
        best = best.min(stopwatch.seconds(submission, calls)? / calls as f64);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn the_slower_side_bounds() {
        let roof = Roof { flops_per_s: 1e9, bytes_per_s: 1e8 };
        assert_eq!((roof.seconds(100_000_000, 0), roof.seconds(1, 4_000_000_000)), (1.0, 4.0));
    }

    #[test]
    fn the_reference_has_no_roof() {
        let error = Roof::measure(&mut Stopwatch::new(&Device::reference()).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "roof: measuring it is not supported by reference; available: cpu, wgpu");
    }
}
