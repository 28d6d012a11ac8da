//! Work captured once and launched as a whole: what a decode step of a few small kernels is worth capturing for.

use std::sync::Arc;

use ::cudarc::driver::sys::CUstreamCaptureMode;

use super::runtime::driver::{self, CUgraph, CUgraphExec, CUstream};
use super::{Cuda, NAME};
use crate::backend::{Device, DeviceOn, Recorder};
use crate::{Error, Result};

/// The op in messages.
const OP: &str = "graph";

/// Captured launches with their addresses. Each launch of it reads and writes the same memory as the calls that were captured, and gives the same
/// bits as they do.
///
/// Made by [`Device::capture`] or [`crate::PreparedBridge::capture`]. An engine that captures its stream itself needs neither: everything that
/// is enqueued may be captured.
pub struct CudaGraph {
    exec: CUgraphExec,
    /// The graph's kernels are loaded in its context.
    backend: Arc<Cuda>,
}

// SAFETY: an executable graph may be launched from any thread; `&mut self` keeps it to one at a time.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Enqueues the captured work on the recorder's stream, with one call of the driver. Allocates and waits for nothing.
    ///
    /// # Errors
    /// A recorder of another device, and what the driver answers.
    pub fn launch(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        let stream = stream(&self.backend, recorder)?;
        let _entered = self.backend.context.enter_for(OP)?;
        // SAFETY: the graph is alive; whoever captured it promised that its memory is too.
        unsafe { driver::graph_launch(self.exec, stream) }.map_err(|fault| fault.during(OP))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        let Ok(_entered) = self.backend.context.enter_for(OP) else { return };
        // SAFETY: instantiated by `capture`. The driver keeps it until its launches are done.
        let _ = unsafe { driver::graph_exec_destroy(self.exec) };
    }
}

impl std::fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CudaGraph")
    }
}

fn stream(backend: &Cuda, recorder: &Recorder<'_>) -> Result<CUstream> {
    match recorder {
        Recorder::Cuda(own) => backend.context.expect_recorder(OP, own).map(|()| own.stream()),
        other => Err(Error::argument(OP, "recorder", "one of cuda", other.place())),
    }
}

/// A stream that is being captured. Dropped, it ends the capture.
struct Capturing {
    stream: CUstream,
    open: bool,
}

impl Capturing {
    fn begin(stream: CUstream) -> Result<Self> {
        // What other threads do meanwhile is their business.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream of a recorder that the backend accepts is alive.
        unsafe { driver::capture_begin(stream, mode) }.map_err(|fault| fault.during(OP))?;
        Ok(Capturing { stream, open: true })
    }

    /// Ends the capture and gives the graph, which may be null where the capture was broken.
    fn end(&mut self) -> Result<CUgraph> {
        self.open = false;
        let mut graph = std::ptr::null_mut();
        // SAFETY: this stream's capture was begun by us.
        unsafe { driver::capture_end(self.stream, &mut graph) }.map_err(|fault| fault.during(OP))?;
        Ok(graph)
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if let Ok(graph) = self.end()
            && !graph.is_null()
        {
            // SAFETY: made by the capture, and nobody else's. Of an incomplete one there is nothing to report.
            let _ = unsafe { driver::graph_destroy(graph) };
        }
    }
}

impl Device {
    /// Captures what `record` enqueues on the recorder's stream, instead of running it. CUDA only; the stream may not be the legacy one.
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
    /// Until the graph is dropped and its last launch is done, everything that `record` used stays alive where it is: prepared ops and bridges,
    /// operands, workspaces, and the device. Each launch uses them as the captured calls would: two that run at once, on streams that the caller
    /// has not ordered, are in conflict. The same holds for an engine that captures its stream itself.
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
                available: NAME.into(),
            });
        };
        let stream = stream(backend, recorder)?;
        let _entered = backend.context.enter_for(OP)?;
        let mut capturing = Capturing::begin(stream)?;
        record(recorder)?;
        let graph = capturing.end()?;
        if graph.is_null() {
            return Err(Error::argument(OP, "record", "calls that may be captured", "a broken capture"));
        }
        // SAFETY: the graph is ours and complete; what is executed is a copy of it.
        let exec = unsafe {
            let exec = driver::graph_instantiate(graph, 0);
            let destroyed = driver::graph_destroy(graph);
            exec.and_then(|exec| destroyed.map(|()| exec))
        };
        let exec = exec.map_err(|fault| fault.during(OP))?;
        Ok(CudaGraph { exec, backend: backend.clone() })
    }
}
