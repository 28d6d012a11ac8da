//! Where commands go: a stream of ours, or the caller's.

use std::marker::PhantomData;
use std::sync::Arc;

use ::cudarc::driver::CudaStream;

use super::context::{Context, Stream};
use super::driver::CUstream;
use crate::{Error, Result};

/// `CU_STREAM_LEGACY`.
const LEGACY: usize = 1;
/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// Enqueues ops on a stream. Creates none and waits for none.
///
/// It belongs to a device: to the one whose [`Device::recorder`](crate::Device::recorder) made it,
/// whose stream it keeps alive, or to those on the context of an engine's stream. Others refuse it.
///
/// An engine makes one over its own stream, enqueues, and goes on:
///
/// ```no_run
/// # fn f(stream: &std::sync::Arc<xattn::cudarc::driver::CudaStream>, prepared: &xattn::Prepared<xattn::ops::Norm>,
/// #   args: xattn::ops::NormArgs<xattn::View<'_>, xattn::ViewMut<'_>>, workspace: &mut xattn::Workspace) -> xattn::Result<()> {
/// let mut recorder = xattn::Recorder::Cuda(xattn::CudaRecorder::from_stream(stream));
/// prepared.enqueue(&mut recorder, args, workspace)?;
/// # Ok(())
/// # }
/// ```
pub struct CudaRecorder<'r> {
    stream: CUstream,
    of: Of<'r>,
    launches: u32,
}

/// Who keeps the stream alive, and knows its context.
enum Of<'r> {
    /// We: it is a device's own.
    Device(Arc<Stream>),
    /// The engine, as long as the borrow.
    Engine(&'r Arc<CudaStream>),
    /// The caller, who has promised both.
    Caller(PhantomData<&'r ()>),
}

// SAFETY: a stream's handle may be used from any thread; the rest is `Send` anyway.
unsafe impl Send for CudaRecorder<'_> {}

impl<'r> CudaRecorder<'r> {
    /// The caller's stream. Devices on another context than the stream's refuse it.
    pub fn from_stream(stream: &'r Arc<CudaStream>) -> Self {
        CudaRecorder { stream: stream.cu_stream(), of: Of::Engine(stream), launches: 0 }
    }

    /// The caller's stream by its handle; null is the context's legacy stream.
    ///
    /// # Safety
    /// The stream belongs to the context of every device whose ops are enqueued on it, and lives
    /// until the last of them is enqueued. Its handle alone does not tell, so that nobody checks.
    pub unsafe fn from_raw_stream(stream: ::cudarc::driver::sys::CUstream) -> Self {
        CudaRecorder { stream, of: Of::Caller(PhantomData), launches: 0 }
    }

    /// Kernels enqueued so far.
    pub fn launches(&self) -> u32 {
        self.launches
    }

    /// The stream's handle.
    pub fn stream(&self) -> ::cudarc::driver::sys::CUstream {
        self.stream
    }

    pub(in crate::backend::cuda) fn own(stream: Arc<Stream>) -> Self {
        CudaRecorder { stream: stream.raw(), of: Of::Device(stream), launches: 0 }
    }

    /// Whether the stream is of a device's context, as far as is known.
    pub(in crate::backend::cuda) fn is_of(&self, context: &Context) -> bool {
        match &self.of {
            Of::Device(own) => own.context().serial() == context.serial(),
            Of::Engine(stream) => stream.context().cu_ctx() == context.raw(),
            Of::Caller(_) => true,
        }
    }

    /// Which stream this is: equal numbers are one stream, whose commands run in order. Never 0.
    pub(in crate::backend::cuda) fn identity(&self) -> usize {
        thread_local!(static THREAD: u8 = const { 0 });
        match self.stream as usize {
            // The legacy stream by either of its handles.
            0 | LEGACY => LEGACY,
            // One for each thread.
            PER_THREAD => THREAD.with(|place| std::ptr::from_ref(place) as usize),
            stream => stream,
        }
    }

    pub(in crate::backend::cuda) fn is_own(&self) -> bool {
        matches!(self.of, Of::Device(_))
    }

    pub(in crate::backend::cuda) fn count(&mut self) {
        self.launches += 1;
    }
}

impl Context {
    /// Refuses a recorder of another device.
    pub fn expect_recorder(&self, op: &'static str, recorder: &CudaRecorder<'_>) -> Result<()> {
        if recorder.is_of(self) {
            return Ok(());
        }
        Err(Error::argument(op, "recorder", "one of this device", "one of another cuda device or context"))
    }
}
