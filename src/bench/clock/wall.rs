//! The host's clock.

use std::time::Instant;

use super::{Clock, ClockKind, Work};
use crate::backend::cpu;
use crate::bench::Roof;
use crate::device::DeviceOn;
use crate::{DType, Device, Error, Result};

pub(super) struct Wall(pub Device);

impl Clock for Wall {
    fn device(&self) -> &Device {
        &self.0
    }

    fn kind(&self) -> ClockKind {
        ClockKind::Wall
    }

    fn seconds(&mut self, work: &mut Work<'_>, calls: usize) -> Result<Option<f64>> {
        elapsed(&self.0, work, calls).map(Some)
    }

    /// 50 ms or so on a processor, on its threads.
    fn roof(&mut self, _: DType) -> Result<Roof> {
        match &self.0.0 {
            DeviceOn::Cpu(backend) => Ok(cpu::roof::measure(backend)),
            _ => Err(Error::Unsupported {
                op: "roof",
                what: "measuring it".into(),
                backend: self.0.kind().name(),
                available: "cpu, wgpu, cuda".into(),
            }),
        }
    }
}

/// Seconds of recording, submitting and waiting.
pub(super) fn elapsed(device: &Device, work: &mut Work<'_>, calls: usize) -> Result<f64> {
    let start = Instant::now();
    let mut recorder = device.recorder()?;
    (0..calls).try_for_each(|_| work(&mut recorder))?;
    device.finish(recorder)?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_no_roof() {
        let error = Wall(Device::reference()).roof(DType::F32).unwrap_err();
        assert_eq!(error.to_string(), "roof: measuring it is not supported by reference; available: cpu, wgpu, cuda");
    }
}
