//! Standard output and error. A failed write is an error; a closed pipe ends the output quietly.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, StdoutLock, Write};

use xattn::Error;

/// Standard output, locked.
pub struct Printer {
    out: StdoutLock<'static>,
    closed: bool,
}

impl Printer {
    /// Before anything is written.
    pub fn new() -> Self {
        Printer { out: std::io::stdout().lock(), closed: false }
    }

    /// Writes one or more lines at once. After the pipe was closed, nothing is written.
    ///
    /// # Errors
    /// [`Error::File`] if the write fails, for example on a full disk.
    pub fn line(&mut self, text: impl Display) -> Result<(), Error> {
        if self.closed {
            return Ok(());
        }
        match writeln!(self.out, "{text}").and_then(|()| self.out.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Whether the reader has closed the pipe.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

/// The error of standard output that cannot be written to.
pub fn failed(error: std::io::Error) -> Error {
    Error::file("standard output", error)
}

/// A line on standard error, whose own failures cannot be reported.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// One line on the terminal, overwritten by the next; nothing if standard error is a file or pipe.
pub fn progress(text: impl Display) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
    }
}
