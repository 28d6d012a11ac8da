//! Standard output and standard error. Results that cannot be printed are an error; a reader that closed the pipe has read enough.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, StdoutLock, Write};

use xattn::Error;

/// Standard output, locked.
pub struct Printer {
    out: StdoutLock<'static>,
    closed: bool,
}

impl Printer {
    /// Nothing was written yet.
    pub fn new() -> Self {
        Printer { out: std::io::stdout().lock(), closed: false }
    }

    /// Writes a line, or several, at once. What follows a closed pipe goes nowhere.
    ///
    /// # Errors
    /// [`Error::File`] when the line could not be written, as on a full disk.
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

    /// Whether nobody reads on.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

/// The error of standard output that cannot be written to.
pub fn failed(error: std::io::Error) -> Error {
    Error::file("standard output", error)
}

/// A line on standard error. There is nowhere to say that it could not be written.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// One line on the terminal, overwritten by the next; nothing where standard error is a file or a pipe.
pub fn progress(text: impl Display) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
    }
}
