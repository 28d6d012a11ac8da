//! A context with its owner, the modules loaded into it, and our stream on it.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::cudarc::driver::CudaContext;

use super::NAME;
use super::driver::{self, CUcontext, CUdevice, CUmodule, CUstream, Fault};
use crate::{Result, fork};

/// Devices opened or adopted so far.
static DEVICES: AtomicU64 = AtomicU64::new(0);

/// A CUDA context, its owner, and the code that was loaded into it.
pub(in crate::backend::cuda) struct Context {
    raw: CUcontext,
    /// Which of our devices it is of, counted from 1.
    serial: u64,
    device: CUdevice,
    owner: Owner,
    /// Unloaded with the context: a running kernel needs its code, and NVIDIA does not promise that
    /// unloading waits for it.
    modules: Mutex<Vec<Module>>,
}

struct Module(CUmodule);

// SAFETY: handles of a context may be used from any thread in which it is current.
unsafe impl Send for Module {}

/// Who keeps the context alive.
pub(in crate::backend::cuda) enum Owner {
    /// The device's primary context, retained by us.
    Primary,
    /// An engine's, kept alive.
    Engine(#[expect(dead_code, reason = "held, not read")] Arc<CudaContext>),
    /// An engine's, by its handle: it lives longer than we do.
    Caller,
}

// SAFETY: a context's handle may be used from any thread; `enter` makes it current there.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn new(raw: CUcontext, device: CUdevice, owner: Owner) -> Self {
        let serial = DEVICES.fetch_add(1, Ordering::Relaxed) + 1;
        Context { raw, serial, device, owner, modules: Mutex::default() }
    }

    /// The context of a caller, by its handle.
    pub fn of_caller(raw: CUcontext) -> std::result::Result<Self, Fault> {
        let mut context = Context::new(raw, 0, Owner::Caller);
        let entered = context.enter()?;
        // SAFETY: a context is current.
        let device = unsafe { driver::current_device() };
        drop(entered);
        context.device = device?;
        Ok(context)
    }

    pub fn raw(&self) -> CUcontext {
        self.raw
    }

    pub fn serial(&self) -> u64 {
        self.serial
    }

    pub fn device(&self) -> CUdevice {
        self.device
    }

    /// Keeps a module that was loaded into the context as long as the context.
    pub fn keep(&self, module: CUmodule) {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).push(Module(module));
    }

    /// Makes the context current, unless it is, until the result is dropped.
    pub fn enter(&self) -> std::result::Result<Entered, Fault> {
        // SAFETY: the context is alive as long as `self`.
        unsafe {
            let pushed = driver::current()? != self.raw;
            if pushed {
                driver::push(self.raw)?;
            }
            Ok(Entered { pushed, thread: PhantomData })
        }
    }

    /// The same for an op; refused in a child of `fork()`.
    pub fn enter_for(&self, op: &'static str) -> Result<Entered> {
        fork::refuse(NAME)?;
        self.enter().map_err(|fault| fault.during(op))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.unload();
        if let Owner::Primary = self.owner {
            // SAFETY: retained once by `Context::primary`. At the end of the process the driver may
            // already be gone, which does no harm.
            let _ = unsafe { driver::primary_release(self.device) };
        }
    }
}

impl Context {
    /// Unloads the modules when nothing runs any more. Where that cannot be waited for (device
    /// lost, capture in progress), they stay as long as the driver's own context.
    fn unload(&mut self) {
        let modules = std::mem::take(self.modules.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: the context is current. Nothing that holds a kernel of the modules is left, and
        // no launch of one is.
        unsafe {
            if !modules.is_empty() && driver::context_wait().is_ok() {
                let _ = modules.iter().try_for_each(|module| driver::module_unload(module.0));
            }
        }
    }
}

/// The context is current on this thread.
pub(in crate::backend::cuda) struct Entered {
    pushed: bool,
    /// Not `Send`: it is this thread's context that is restored.
    thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.pushed {
            // SAFETY: undoes the push of `Context::enter` on this thread. It fails only when the
            // driver is gone.
            let _ = unsafe { driver::pop() };
        }
    }
}

/// A stream of ours, or the legacy stream of an engine's context.
pub(in crate::backend::cuda) struct Stream {
    raw: CUstream,
    context: Arc<Context>,
}

// SAFETY: a stream's handle may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the context that is ours from now on, or its legacy stream (null).
    pub fn new(raw: CUstream, context: Arc<Context>) -> Self {
        Stream { raw, context }
    }

    pub fn raw(&self) -> CUstream {
        self.raw
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: created by `Cuda::open`. What still runs on it finishes.
        let _ = unsafe { driver::stream_destroy(self.raw) };
    }
}
