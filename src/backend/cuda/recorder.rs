//! Where commands go: a stream of ours, or the caller's.

use std::marker::PhantomData;
use std::sync::Arc;

use ::cudarc::driver::CudaStream;

use super::driver::CUstream;

/// Enqueues ops on a stream. Creates none and waits for none.
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
    own: bool,
    launches: u32,
    life: PhantomData<&'r ()>,
}

// SAFETY: a stream's handle may be used from any thread.
unsafe impl Send for CudaRecorder<'_> {}

impl<'r> CudaRecorder<'r> {
    /// The caller's stream, of the device's context.
    pub fn from_stream(stream: &'r Arc<CudaStream>) -> Self {
        CudaRecorder { stream: stream.cu_stream(), own: false, launches: 0, life: PhantomData }
    }

    /// The caller's stream by its handle; null is the context's legacy stream.
    ///
    /// # Safety
    /// The stream belongs to the device's context, and lives until the ops are enqueued.
    pub unsafe fn from_raw_stream(stream: ::cudarc::driver::sys::CUstream) -> Self {
        CudaRecorder { stream, own: false, launches: 0, life: PhantomData }
    }

    /// Kernels enqueued so far.
    pub fn launches(&self) -> u32 {
        self.launches
    }

    /// The stream's handle.
    pub fn stream(&self) -> ::cudarc::driver::sys::CUstream {
        self.stream
    }

    pub(super) fn own(stream: CUstream) -> Self {
        CudaRecorder { stream, own: true, launches: 0, life: PhantomData }
    }

    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    pub(super) fn count(&mut self) {
        self.launches += 1;
    }
}
