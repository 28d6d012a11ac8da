//! Work captured once and launched as a whole: a decode step of a few small kernels is worth it.

use std::sync::Arc;

use ::cudarc::driver::sys::CUstreamCaptureMode;

use super::context::{Context, Entered};
use super::driver::{self, CUgraph, CUgraphExec, CUstream};
use super::recorder::CudaRecorder;
use crate::{Error, Result};

/// The op in messages.
const OP: &str = "graph";

/// Captured launches with their addresses. Each launch of it reads and writes the same memory as
/// the calls that were captured, and gives bit-identical results.
///
/// Made by [`Device::capture`](crate::Device::capture) or [`crate::PreparedBridge::capture`]. An
/// engine that captures its stream itself needs neither: everything that is enqueued may be
/// captured.
pub struct CudaGraph {
    exec: CUgraphExec,
    /// The graph's kernels are loaded in its context.
    context: Arc<Context>,
}

// SAFETY: an executable graph may be launched from any thread; `&mut self` keeps it to one at a
// time.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// See `CudaGraph::launch` in `device/cuda.rs`.
    pub(crate) fn launch_on(&mut self, recorder: &CudaRecorder<'_>) -> Result<()> {
        self.context.expect_recorder(OP, recorder)?;
        let _entered = self.context.enter_for(OP)?;
        // SAFETY: the graph is alive; whoever captured it promised that its memory is too.
        unsafe { driver::graph_launch(self.exec, recorder.stream()) }.map_err(|fault| fault.during(OP))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter_for(OP) else { return };
        // SAFETY: instantiated by `Capturing::finish`. The driver keeps it until its launches are
        // done.
        let _ = unsafe { driver::graph_exec_destroy(self.exec) };
    }
}

impl std::fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CudaGraph")
    }
}

/// A stream that is being captured. Dropped, it ends the capture.
pub(crate) struct Capturing {
    stream: CUstream,
    open: bool,
    context: Arc<Context>,
    /// Last: the capture ends while the context is current.
    _entered: Entered,
}

impl Capturing {
    pub(in crate::backend::cuda) fn begin(context: &Arc<Context>, recorder: &CudaRecorder<'_>) -> Result<Self> {
        context.expect_recorder(OP, recorder)?;
        let (context, stream, entered) = (context.clone(), recorder.stream(), context.enter_for(OP)?);
        // Calls of other threads do not disturb the capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream of a recorder that the device accepts is alive.
        unsafe { driver::capture_begin(stream, mode) }.map_err(|fault| fault.during(OP))?;
        Ok(Capturing { stream, open: true, context, _entered: entered })
    }

    /// Ends the capture and gives the graph, which may be null where the capture was broken.
    fn end(&mut self) -> Result<CUgraph> {
        self.open = false;
        let mut graph = std::ptr::null_mut();
        // SAFETY: this stream's capture was begun by us.
        unsafe { driver::capture_end(self.stream, &mut graph) }.map_err(|fault| fault.during(OP))?;
        Ok(graph)
    }

    pub(crate) fn finish(mut self) -> Result<CudaGraph> {
        let graph = self.end()?;
        if graph.is_null() {
            return Err(Error::argument(OP, "record", "calls that may be captured", "a broken capture"));
        }
        // SAFETY: the graph is ours and complete; what is executed is a copy of it.
        let exec = unsafe {
            let exec = driver::graph_instantiate(graph, 0);
            let destroyed = driver::graph_destroy(graph);
            exec.and_then(|exec| destroyed.map(|()| exec))
        };
        Ok(CudaGraph { exec: exec.map_err(|fault| fault.during(OP))?, context: self.context.clone() })
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
            // SAFETY: made by the capture, and nobody else's. Of an incomplete one there is nothing
            // to report.
            let _ = unsafe { driver::graph_destroy(graph) };
        }
    }
}
