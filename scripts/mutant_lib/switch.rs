//! Selects the active mutant. scripts/mutants writes this into its copy; it is no part of the
//! crate.
//!
//! Nothing here allocates before a text is requested: tests count heap allocations of calls.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

const NAMES: &[&str] = &[/* names */];

/// Number, text of the file, old, new.
const TEXTS: &[(usize, &str, &str, &str)] = &[
    /* texts */
];

const UNKNOWN: usize = usize::MAX;
const NONE: usize = usize::MAX - 1;

static ACTIVE: AtomicUsize = AtomicUsize::new(UNKNOWN);
static REACHED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
    fn creat(path: *const c_char, mode: c_int) -> c_int;
    fn close(file: c_int) -> c_int;
}

/// Whether this mutant is on. True means that its code is reached.
#[inline(always)]
pub fn on(number: usize) -> bool {
    let active = ACTIVE.load(Relaxed);
    (active == number || active == UNKNOWN) && is_on(number)
}

#[cold]
fn is_on(number: usize) -> bool {
    let on = active() == number;
    if on && !REACHED.swap(true, Relaxed) {
        // SAFETY: the environment is not written to meanwhile; the path ends with a 0.
        unsafe {
            let path = getenv(c"XATTN_MUTANT_REACHED".as_ptr());
            if !path.is_null() {
                close(creat(path, 0o644));
            }
        }
    }
    on
}

fn active() -> usize {
    if ACTIVE.load(Relaxed) == UNKNOWN {
        // SAFETY: as above.
        let name = unsafe {
            let value = getenv(c"XATTN_MUTANT".as_ptr());
            if value.is_null() { c"" } else { CStr::from_ptr(value) }
        };
        let found = NAMES.iter().position(|known| known.as_bytes() == name.to_bytes());
        ACTIVE.store(found.unwrap_or(NONE), Relaxed);
    }
    ACTIVE.load(Relaxed)
}

/// A kernel's text, changed if it is the mutant's.
pub fn text<'t>(text: &'t str) -> &'t str {
    static CHANGED: OnceLock<Option<(usize, &'static str, String)>> = OnceLock::new();
    let changed = CHANGED.get_or_init(|| {
        let (number, text, old, new) = TEXTS.iter().find(|(number, ..)| *number == active())?;
        Some((*number, *text, text.replacen(old, new, 1)))
    });
    match changed {
        Some((number, original, changed)) if *original == text && on(*number) => changed.as_str(),
        _ => text,
    }
}
