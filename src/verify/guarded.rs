//! Panics as failures.

use crate::{Error, Result};

/// Runs `f` so that a panic of a backend is a failure of one case and not the end of the run.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        Err(Error::argument("verify", "run", "no panic", text))
    })
}
