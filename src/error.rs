//! The one error type of the crate.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::shown::{escaped, some_of};

/// Result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the names that a caller needs to mend it.
///
/// The library never panics on input, never prints and never exits: every failure is one of these
/// values. Messages show control characters in names, paths and texts of files escaped (`\n`,
/// `\u{1b}`); the fields hold them unchanged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument does not fit the contract of an op, a bridge or a view.
    #[error("{op}: {}: expected {expected}, got {}", escaped(argument), escaped(actual))]
    Argument {
        /// The op or call that refused, for example `attention`.
        op: &'static str,
        /// The operand or field, for example `q` or `second.v`.
        argument: Cow<'static, str>,
        /// What the contract asks for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A backend cannot be used on this machine or in this build.
    #[error("{backend} is unavailable: {reason}")]
    Unavailable {
        /// The backend that was asked for.
        backend: &'static str,
        /// What was looked for and not found.
        reason: String,
    },
    /// A backend is present, but does not offer this.
    #[error("{op}: {what} is not supported by {backend}; available: {available}")]
    Unsupported {
        /// The op or call that refused.
        op: &'static str,
        /// What was asked for.
        what: String,
        /// The backend that was asked.
        backend: &'static str,
        /// What could be used instead.
        available: String,
    },
    /// The device was lost.
    #[error("{backend}: device lost in {op}: {reason}")]
    DeviceLost {
        /// The backend whose device is gone.
        backend: &'static str,
        /// The op or call that noticed.
        op: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// Memory could not be allocated.
    #[error("{backend}: out of memory: {bytes} bytes for {purpose}")]
    OutOfMemory {
        /// The backend that was asked.
        backend: &'static str,
        /// What the memory was for.
        purpose: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// A file cannot be read, or its contents are invalid.
    #[error("{}: {}", escaped(path.display()), escaped(fault))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// Named tensors do not form the bridge that was asked for. The field has all problems; the
    /// message shows three and counts the rest.
    #[error("{}: {}", escaped(family), some_of(problems, "; "))]
    Weights {
        /// The bridge or checkpoint family.
        family: String,
        /// One entry per missing, surplus or mis-shaped tensor.
        problems: Vec<String>,
    },
}

impl Error {
    /// An [`Error::Argument`] from anything that displays.
    pub fn argument(
        op: &'static str,
        argument: impl Into<Cow<'static, str>>,
        expected: impl ToString,
        actual: impl ToString,
    ) -> Self {
        Error::Argument { op, argument: argument.into(), expected: expected.to_string(), actual: actual.to_string() }
    }

    /// An [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, fault: impl ToString) -> Self {
        Error::File { path: path.into(), fault: fault.to_string() }
    }
}
