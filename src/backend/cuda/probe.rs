//! Is there a driver? Asked with libloading before the first call of cudarc, which panics where a library or a symbol is missing.

use std::sync::OnceLock;

use libloading::Library;

use super::{NAME, driver};
use crate::{Error, Result};

/// Names of the driver's library, in the order in which cudarc tries them.
pub(super) const DRIVER: &[&str] =
    if cfg!(windows) { &["cuda.dll", "nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// Names of cuBLASLt, in the order in which cudarc tries them.
const CUBLASLT: &[&str] = if cfg!(windows) {
    &["cublasLt64_13.dll", "cublasLt64_12.dll", "cublasLt64_11.dll"]
} else {
    &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"]
};

pub(super) fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { backend: NAME, reason: reason.into() }
}

/// The first of these libraries that opens, or their names and what the loader said of the last one.
pub(super) fn open_library(names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Library, String> {
    let (mut tried, mut said) = (Vec::new(), String::new());
    for name in names {
        let name = name.as_ref();
        // SAFETY: a library of the system's, whose initialisers are trusted as the loader's search path is.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => said = reason(&error),
        }
        tried.push(name.to_string());
    }
    Err(format!("{} ({said})", tried.join(", ")))
}

/// The loader's words, without the name of the library that most loaders put in front.
fn reason(error: &libloading::Error) -> String {
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string());
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_string())
}

/// The first symbol that a library lacks.
fn lacks(library: &Library, symbols: &[&'static str]) -> Option<&'static str> {
    // SAFETY: the symbol is only looked up, not called.
    symbols.iter().copied().find(|symbol| unsafe { library.get::<unsafe extern "C" fn()>(*symbol) }.is_err())
}

/// The driver's library is there, has all that we call, and finds a device.
///
/// # Errors
/// [`Error::Unavailable`] with what was looked for.
pub(super) fn devices() -> Result<i32> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let library = || {
        let library = open_library(DRIVER).map_err(|said| format!("no CUDA driver: looked for {said}"))?;
        if let Some(symbol) = lacks(&library, driver::SYMBOLS) {
            return Err(format!("the CUDA driver is too old: it has no {symbol}"));
        }
        // cudarc opens it again: it stays loaded as long as the process.
        std::mem::forget(library);
        Ok(())
    };
    ANSWER.get_or_init(library).clone().map_err(unavailable)?;
    // SAFETY: the library is there and has these symbols.
    unsafe {
        match driver::init(0).and_then(|()| driver::device_count()) {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) => Err(unavailable("the CUDA driver finds no device")),
            Err(fault) => Err(unavailable(format!("the CUDA driver cannot be used: {fault}"))),
        }
    }
}

/// Whether cudarc's cuBLASLt can be called: the library is there, with these symbols. What was looked for, if not.
pub(super) fn cublaslt(symbols: &[&'static str]) -> Result<(), String> {
    let library = open_library(CUBLASLT).map_err(|said| format!("no cuBLASLt: looked for {said}"))?;
    if let Some(symbol) = lacks(&library, symbols) {
        return Err(format!("cuBLASLt is too old: it has no {symbol}"));
    }
    std::mem::forget(library);
    Ok(())
}
