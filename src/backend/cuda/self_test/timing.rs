//! What benches need of a device: its clock, the size of its L2 cache, and an empty kernel.

use std::ffi::c_int;
use std::sync::Arc;

use crate::backend::cuda::compile::{KernelText, kernel};
use crate::backend::cuda::launch::Launch;
use crate::backend::cuda::runtime::driver::{self, CUevent, CUresult, Fault};
use crate::backend::cuda::runtime::probe;
use crate::backend::cuda::{Cuda, CudaRecorder, NAME};
use crate::backend::gpu::params;
use crate::device::{Device, DeviceOn, Recorder};
use crate::{Error, Result};

const OP: &str = "bench";

params! {
    /// See `kernels/empty.cu`.
    EmptyParams { unused: u32 }
}

/// Two events of a device: when work began and when it was done.
pub(crate) struct Events {
    backend: Arc<Cuda>,
    start: Event,
    end: Event,
    elapsed: Elapsed,
}

/// `cuEventElapsedTime`. cudarc knows either this call or a newer one of that name that older
/// drivers lack, so it is looked up by hand.
type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> c_int;

struct Event {
    raw: CUevent,
    /// It lives in this device's context.
    backend: Arc<Cuda>,
}

impl Event {
    fn new(backend: &Arc<Cuda>) -> Result<Self> {
        let _entered = backend.context.enter_for(OP)?;
        // SAFETY: the context is current.
        let raw = unsafe { driver::event_create(0) }.map_err(|fault| fault.during(OP))?;
        Ok(Event { raw, backend: backend.clone() })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_entered) = self.backend.context.enter_for(OP) else { return };
        // SAFETY: created by `new`, and used by nothing that outlives it.
        let _ = unsafe { driver::event_destroy(self.raw) };
    }
}

pub(super) fn on_cuda(device: &Device) -> Result<&Arc<Cuda>> {
    match &device.0 {
        DeviceOn::Cuda(backend) => Ok(backend),
        _ => Err(Error::Unsupported {
            op: OP,
            what: "timing in a graph".into(),
            backend: device.kind().name(),
            available: NAME.into(),
        }),
    }
}

pub(super) fn on_stream<'a, 'r>(recorder: &'a mut Recorder<'r>) -> Result<&'a mut CudaRecorder<'r>> {
    match recorder {
        Recorder::Cuda(recorder) => Ok(recorder),
        other => Err(Error::argument(OP, "recorder", "one of cuda", other.place())),
    }
}

/// What a report says of a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Major and minor.
    pub compute_capability: [u32; 2],
    pub multiprocessors: u32,
    pub l2_bytes: u32,
}

pub(crate) fn facts(device: &Device) -> Result<Facts> {
    let backend = on_cuda(device)?;
    Ok(Facts {
        compute_capability: [backend.arch.major, backend.arch.minor],
        multiprocessors: backend.limits.multiprocessors,
        l2_bytes: backend.limits.l2_bytes,
    })
}

/// Kernels on the recorder's stream so far.
pub(crate) fn launches(recorder: &mut Recorder<'_>) -> Result<u32> {
    Ok(on_stream(recorder)?.launches())
}

impl Events {
    /// Of a CUDA device.
    ///
    /// # Errors
    /// Another backend.
    pub fn new(device: &Device) -> Result<Self> {
        let backend = on_cuda(device)?;
        // SAFETY: the type is that of the function in cuda.h.
        let elapsed: Elapsed = unsafe { driver::optional("cuEventElapsedTime") }
            .ok_or_else(|| probe::unavailable("the CUDA driver has no cuEventElapsedTime"))?;
        let (start, end) = (Event::new(backend)?, Event::new(backend)?);
        Ok(Events { backend: backend.clone(), start, end, elapsed })
    }

    /// Microseconds of device time of what `work` enqueues; waits for it. None where the device has
    /// no clock, as an emulated one.
    pub fn time(
        &self,
        recorder: &mut Recorder<'_>,
        work: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<Option<f64>> {
        let fault = |fault: Fault| fault.during(OP);
        let stream = on_stream(recorder)?.stream();
        let _entered = self.backend.context.enter_for(OP)?;
        // SAFETY: the stream and both events are alive.
        unsafe { driver::event_record(self.start.raw, stream) }.map_err(fault)?;
        work(recorder)?;
        // SAFETY: as above; both events are recorded when the time between them is asked for.
        unsafe {
            driver::event_record(self.end.raw, stream).map_err(fault)?;
            driver::event_wait(self.end.raw).map_err(fault)?;
        };
        let mut milliseconds = 0.0f32;
        // SAFETY: as above.
        match unsafe { (self.elapsed)(&mut milliseconds, self.start.raw, self.end.raw) } {
            0 => Ok(Some(f64::from(milliseconds) * 1e3)),
            code if code == CUresult::CUDA_ERROR_NOT_SUPPORTED as c_int => Ok(None),
            code => Err(Error::argument(OP, NAME, "a time between two events", format!("code {code}"))),
        }
    }
}

/// A launch of a kernel that does nothing.
pub(crate) struct Empty {
    backend: Arc<Cuda>,
    launch: Launch,
}

impl Empty {
    pub fn new(device: &Device) -> Result<Self> {
        let backend = on_cuda(device)?;
        let source = KernelText::new(OP, "empty", kernel!("empty.cu"), &["unused"]).threads(32);
        let launch = Launch::new(backend, &source, &EmptyParams::default(), [1, 1, 1])?;
        Ok(Empty { backend: backend.clone(), launch })
    }

    pub fn record(&self, recorder: &mut Recorder<'_>) -> Result<()> {
        // SAFETY: the kernel touches no memory.
        unsafe { self.launch.record(&self.backend, on_stream(recorder)?, &[None]) }
    }
}
