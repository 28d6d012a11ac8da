//! Status codes, and the text of a thread's last error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use xattn::Error;

/// What became of a call. Everything but `XATTN_STATUS_OK` leaves a text behind:
/// `xattn_last_error`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xattn_status {
    /// Done.
    XATTN_STATUS_OK = 0,
    /// An argument does not fit the contract; the text names it, what was expected and what came.
    XATTN_STATUS_INVALID_ARGUMENT = 1,
    /// A handle that is null, of another kind, or was freed.
    XATTN_STATUS_INVALID_HANDLE = 2,
    /// The backend cannot be used on this machine or in this build.
    XATTN_STATUS_UNAVAILABLE = 3,
    /// The backend is there, but does not offer this.
    XATTN_STATUS_UNSUPPORTED = 4,
    /// Memory could not be had.
    XATTN_STATUS_OUT_OF_MEMORY = 5,
    /// The device stopped answering.
    XATTN_STATUS_DEVICE_LOST = 6,
    /// A file cannot be read or does not hold what it should.
    XATTN_STATUS_FILE = 7,
    /// Tensors of a checkpoint do not form the bridge that was asked for.
    XATTN_STATUS_WEIGHTS = 8,
    /// A defect of this library. Nothing is known about outputs of the call.
    XATTN_STATUS_PANIC = 9,
}

use xattn_status::*;

/// A status with its text.
#[derive(Debug)]
pub(crate) struct Fault {
    pub status: xattn_status,
    pub text: String,
}

pub(crate) type Result<T = (), E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// An argument outside the contract, in the words of the library's errors.
    pub fn argument(
        call: &str,
        argument: &str,
        expected: impl std::fmt::Display,
        actual: impl std::fmt::Display,
    ) -> Self {
        let text = format!("{call}: {argument}: expected {expected}, got {actual}");
        Fault { status: XATTN_STATUS_INVALID_ARGUMENT, text }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Unavailable { .. } => XATTN_STATUS_UNAVAILABLE,
            Error::Unsupported { .. } => XATTN_STATUS_UNSUPPORTED,
            Error::DeviceLost { .. } => XATTN_STATUS_DEVICE_LOST,
            Error::OutOfMemory { .. } => XATTN_STATUS_OUT_OF_MEMORY,
            Error::File { .. } => XATTN_STATUS_FILE,
            Error::Weights { .. } => XATTN_STATUS_WEIGHTS,
            // `Error` may grow: a new kind counts as an argument until it has a code.
            _ => XATTN_STATUS_INVALID_ARGUMENT,
        };
        Fault { status, text: error.to_string() }
    }
}

/// Refuses an output address that is null.
pub(crate) fn expect_out<T>(call: &str, out: *mut T) -> Result {
    if out.is_null() {
        return Err(Fault::argument(call, "out", "an address for the result", "null"));
    }
    Ok(())
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(text: String) {
    let clean = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
    // In an ending thread, another destructor may call after this text is gone.
    let _ = LAST.try_with(|last| *last.borrow_mut() = clean);
}

/// Runs the body of an exported function: errors become a status and the thread's text, and a panic
/// stays here.
pub(crate) fn guard(body: impl FnOnce() -> Result) -> xattn_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => XATTN_STATUS_OK,
        Ok(Err(fault)) => {
            remember(fault.text);
            fault.status
        }
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            remember(format!("a defect of xattn: {}", words.as_deref().unwrap_or("a panic without words")));
            XATTN_STATUS_PANIC
        }
    }
}

/// The text of this thread's last failure, empty before the first and while the thread ends. Valid
/// until the thread's next failure. Never null.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name of a status, for example `XATTN_STATUS_OK`; of another number `unknown status`. Never
/// null, valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_status_name(status: i32) -> *const c_char {
    const NAMES: [&CStr; 10] = [
        c"XATTN_STATUS_OK",
        c"XATTN_STATUS_INVALID_ARGUMENT",
        c"XATTN_STATUS_INVALID_HANDLE",
        c"XATTN_STATUS_UNAVAILABLE",
        c"XATTN_STATUS_UNSUPPORTED",
        c"XATTN_STATUS_OUT_OF_MEMORY",
        c"XATTN_STATUS_DEVICE_LOST",
        c"XATTN_STATUS_FILE",
        c"XATTN_STATUS_WEIGHTS",
        c"XATTN_STATUS_PANIC",
    ];
    let name = usize::try_from(status).ok().and_then(|i| NAMES.get(i)).unwrap_or(&c"unknown status");
    name.as_ptr()
}

/// Raised when a function or struct changes incompatibly; fields are added behind `struct_size`
/// without that.
pub const XATTN_ABI_VERSION: u32 = 2;

/// `XATTN_ABI_VERSION` of the library that is linked.
#[unsafe(no_mangle)]
pub extern "C" fn xattn_abi_version() -> u32 {
    XATTN_ABI_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: never null, valid until the thread's next failure.
        unsafe { CStr::from_ptr(xattn_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_stays_inside_and_leaves_its_words() {
        assert_eq!(guard(|| panic!("row {}", 7)), XATTN_STATUS_PANIC);
        assert_eq!(last(), "a defect of xattn: row 7");
    }

    #[test]
    fn texts_belong_to_their_thread() {
        assert_eq!(guard(|| Err(Fault::argument("norm", "x", "a tensor", "null"))), XATTN_STATUS_INVALID_ARGUMENT);
        assert_eq!(std::thread::spawn(last).join().ok().as_deref(), Some(""));
        assert_eq!(last(), "norm: x: expected a tensor, got null");
    }

    /// A destructor that runs when the thread's text is gone calls again: that neither panics nor
    /// aborts.
    #[test]
    fn a_thread_that_is_ending_may_still_call() {
        struct AtEnd(std::sync::mpsc::Sender<(xattn_status, String)>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                let status = guard(|| Err(Fault::argument("norm", "x", "a tensor", "null")));
                // The receiver is gone only if the test has failed already.
                let _ = self.0.send((status, last()));
            }
        }
        thread_local! {
            static FIRST: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
        }
        let (tell, told) = std::sync::mpsc::channel();
        // Destructors run in reverse order of first use: LAST's before FIRST's.
        let ended = std::thread::spawn(move || {
            FIRST.with(|first| *first.borrow_mut() = Some(AtEnd(tell)));
            remember("before the end".into());
        });
        ended.join().unwrap();
        let (status, text) = told.recv().unwrap();
        assert_eq!(status, XATTN_STATUS_INVALID_ARGUMENT);
        assert!(["", "norm: x: expected a tensor, got null"].contains(&text.as_str()), "{text}");
    }

    #[test]
    fn every_status_has_its_name() {
        // SAFETY: never null, valid for ever.
        let name = |status: i32| unsafe { CStr::from_ptr(xattn_status_name(status)) }.to_string_lossy().into_owned();
        for status in [XATTN_STATUS_OK, XATTN_STATUS_INVALID_HANDLE, XATTN_STATUS_FILE, XATTN_STATUS_PANIC] {
            assert_eq!(name(status as i32), format!("{status:?}"));
        }
        assert_eq!([name(-1), name(10)], ["unknown status", "unknown status"]);
    }
}
