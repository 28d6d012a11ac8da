//! What only CUDA devices have.

use std::sync::Arc;

use super::kinds::{Cuda, CudaRecorder, DeviceOn};
use super::{Device, Recorder};
use crate::backend::Backend;
use crate::backend::cuda::{CudaGraph, CudaOptions};
use crate::{Error, Result};

const OP: &str = "graph";

impl Device {
    /// Opens a CUDA device of our own: retains its primary context, which other libraries share.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what was looked for.
    pub fn open_cuda(options: &CudaOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Cuda(Arc::new(Cuda::open(options)?))))
    }

    /// Uses an engine's CUDA context. No stream is created on it, and memory is allocated only for
    /// tensors, weights and workspaces. The ordinal among `options` is ignored.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a device without kernels, or an invalid folder of cubins.
    pub fn from_cuda(context: Arc<::cudarc::driver::CudaContext>, options: &CudaOptions) -> Result<Self> {
        Ok(Device(DeviceOn::Cuda(Arc::new(Cuda::adopt(context, options)?))))
    }

    /// As [`Device::from_cuda`], for a raw context: of any version of cudarc, or without it.
    ///
    /// # Errors
    /// As [`Device::from_cuda`].
    ///
    /// # Safety
    /// `context` is a live context, and stays so until this device and all that was made with it
    /// are dropped.
    pub unsafe fn from_raw_cuda(context: ::cudarc::driver::sys::CUcontext, options: &CudaOptions) -> Result<Self> {
        // SAFETY: passed on to the caller.
        Ok(Device(DeviceOn::Cuda(Arc::new(unsafe { Cuda::adopt_raw(context, options)? }))))
    }

    /// The CUDA context behind this device, if there is one: the primary one if we opened it.
    pub fn as_cuda(&self) -> Option<::cudarc::driver::sys::CUcontext> {
        match &self.0 {
            DeviceOn::Cuda(b) => Some(b.context()),
            _ => None,
        }
    }

    /// Captures what `record` enqueues on the recorder's stream, instead of running it. CUDA only;
    /// the stream may not be the legacy one.
    ///
    /// ```no_run
    /// # fn f(device: &xattn::Device, stream: &std::sync::Arc<xattn::cudarc::driver::CudaStream>, norm: &xattn::Prepared<xattn::ops::Norm>,
    /// #   args: xattn::ops::NormArgs<xattn::View<'_>, xattn::ViewMut<'_>>, workspace: &mut xattn::Workspace) -> xattn::Result<()> {
    /// let mut recorder = xattn::Recorder::Cuda(xattn::CudaRecorder::from_stream(stream));
    /// // SAFETY: operands, workspace and the prepared op outlive the graph.
    /// let mut graph = unsafe { device.capture(&mut recorder, |recorder| norm.enqueue(recorder, args, workspace))? };
    /// graph.launch(&mut recorder)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Another backend, a stream that cannot be captured, and what `record` returns.
    ///
    /// # Safety
    /// Until the graph is dropped and its last launch is done, everything that `record` used stays
    /// alive where it is: prepared ops and bridges, operands, workspaces, and the device. Each
    /// launch uses them as the captured calls would: two that run at once, on streams that the
    /// caller has not ordered, are in conflict. The same holds for an engine that captures its
    /// stream itself.
    pub unsafe fn capture(
        &self,
        recorder: &mut Recorder<'_>,
        record: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<CudaGraph> {
        let DeviceOn::Cuda(backend) = &self.0 else {
            return Err(Error::Unsupported {
                op: OP,
                what: "capture".into(),
                backend: self.kind().name(),
                available: Cuda::NAME.into(),
            });
        };
        let capturing = backend.begin_capture(own(recorder)?)?;
        record(recorder)?;
        capturing.finish()
    }
}

impl CudaGraph {
    /// Enqueues the captured work on the recorder's stream, by one driver call.
    /// Allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// A recorder of another device, and errors of the driver.
    pub fn launch(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        self.launch_on(own(recorder)?)
    }
}

fn own<'a, 'r>(recorder: &'a Recorder<'r>) -> Result<&'a CudaRecorder<'r>> {
    match recorder {
        Recorder::Cuda(own) => Ok(own),
        other => Err(Error::argument(OP, "recorder", "one of cuda", other.place())),
    }
}
