//! Whether there is a driver. Asked before its first call, and before anything of cudarc's that
//! would make one, which panics where a library or a symbol is missing.

use std::sync::OnceLock;

use super::{NAME, driver, libraries};
use crate::{Error, Result, fork};

pub(in crate::backend::cuda) fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { backend: NAME, reason: reason.into() }
}

/// Loads the driver, checks that it has all calls, and counts devices. [`Error::Unavailable`] says
/// what was looked for, or that this is a child of `fork()`.
pub(in crate::backend::cuda) fn devices() -> Result<i32> {
    fork::refuse(NAME)?;
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let library = || {
        let library = libraries::driver().map_err(|said| format!("no CUDA driver: looked for {said}"))?;
        driver::load(library).map_err(|symbol| format!("the CUDA driver is too old: it has no {symbol}"))
    };
    ANSWER.get_or_init(library).clone().map_err(unavailable)?;
    // SAFETY: they write numbers.
    unsafe {
        match driver::init(0).and_then(|()| driver::device_count()) {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) => Err(unavailable("the CUDA driver finds no device")),
            Err(fault) => Err(unavailable(format!("the CUDA driver cannot be used: {fault}"))),
        }
    }
}
