//! What a child of `fork()` lacks: the threads of its parent, and the state of a driver.
//!
//! A child has one thread, a copy of the one that forked. Work handed to the parent's other threads
//! is never done, so that waiting for it never ends. A handler that the C library calls in the
//! child counts forks. The owner of threads or of a device compares that count with the one at its
//! beginning: one load, no system call. A child that executes another program begins anew. On
//! systems without `fork()` the count stays 0.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

/// Forks that led to this process since the handler was installed.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Where the threads that the caller brings were first used: rayon's global pool, or another one.
static POOL: Origin = Origin::unknown();

/// Where the first device of a GPU was opened.
static DEVICES: Origin = Origin::unknown();

/// The process in which something began that a fork does not carry over.
pub(crate) struct Origin(AtomicU32);

/// An origin in no process yet. No count of forks reaches it: each fork takes a living process.
const UNKNOWN: u32 = u32::MAX;

impl Origin {
    /// To be set by [`Origin::begin`].
    pub const fn unknown() -> Self {
        Origin(AtomicU32::new(UNKNOWN))
    }

    /// An origin in this process.
    pub fn here() -> Self {
        let origin = Origin::unknown();
        origin.begin();
        origin
    }

    /// Sets an unknown origin to this process. Threads may do so at the same time.
    pub fn begin(&self) {
        if self.0.load(Ordering::Relaxed) == UNKNOWN {
            install();
            let _ = self.0.compare_exchange(UNKNOWN, forks(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether this process was forked from the origin.
    pub fn is_parent(&self) -> bool {
        let origin = self.0.load(Ordering::Relaxed);
        origin != UNKNOWN && origin != forks()
    }
}

/// Whether this process was forked from one that had used the caller's threads. The first call
/// notes that this process uses them.
pub(crate) fn forked() -> bool {
    POOL.begin();
    POOL.is_parent()
}

/// Refuses GPU devices in a process that was forked from one that had opened one. The first call
/// notes that this process opens one.
#[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code, reason = "there is no GPU in this build"))]
pub(crate) fn refuse(backend: &'static str) -> Result<()> {
    DEVICES.begin();
    if DEVICES.is_parent() {
        let reason = "this process was forked from one that had opened a device, and drivers do not outlive fork(); open devices after it, or start \
                      processes by spawn";
        return Err(Error::Unavailable { backend, reason: reason.into() });
    }
    Ok(())
}

fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Installs the handler. Threads that do so at the same time install it twice, and each fork counts
/// as two: counts are compared for equality only.
#[cfg(unix)]
fn install() {
    use std::ffi::c_int;
    use std::sync::atomic::AtomicBool;

    type Handler = Option<unsafe extern "C" fn()>;

    unsafe extern "C" {
        /// POSIX; in the C library that the standard library links.
        fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int;
    }

    /// Runs in the child before fork() returns there: only async-signal-safe calls are allowed.
    unsafe extern "C" fn count() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }

    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.load(Ordering::Acquire) {
        // SAFETY: `count` touches only an atomic, and lives as long as this library: the C library
        // removes a library's handlers with it.
        let result = unsafe { pthread_atfork(None, None, Some(count)) };
        // Without memory for the handler, the next caller tries again.
        INSTALLED.store(result == 0, Ordering::Release);
    }
}

#[cfg(not(unix))]
fn install() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_the_parent_of_processes_that_forked_later() {
        let origin = Origin::unknown();
        assert!(!origin.is_parent(), "nothing has begun");
        origin.begin();
        assert!(!origin.is_parent() && !Origin::here().is_parent(), "no fork yet");
        // As a child sees it. `tests/fork.rs` forks.
        let elsewhere = Origin(AtomicU32::new(forks() + 1));
        elsewhere.begin();
        assert!(elsewhere.is_parent(), "what has begun does not begin again");
        assert!(!forked());
        refuse("cuda").unwrap();
    }
}
