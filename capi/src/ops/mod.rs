//! One file per op: its struct, and three functions to run, prepare and enqueue it.
//!
//! The three are alike in every op and bridge call, but written out: cbindgen does not see what a
//! macro makes. Their common code is in [`crate::call`].

pub mod attention;
pub mod gated_residual;
pub mod linear;
pub mod media_index;
pub mod norm;

use xattn::ops::{Keys, Source};

use crate::status::{Fault, Result};
use crate::tensor::{Operand, xattn_tensor};

/// A number of the caller's as one of a list of values.
pub(crate) fn choice<T: Copy>(call: &str, argument: &str, number: i32, values: &[T]) -> Result<T> {
    let found = usize::try_from(number).ok().and_then(|i| values.get(i).copied());
    found.ok_or_else(|| Fault::argument(call, argument, format!("a number from 0 to {}", values.len() - 1), number))
}

/// A flag of the caller's.
pub(crate) fn flag(call: &str, argument: &str, number: u32) -> Result<bool> {
    choice(call, argument, i32::try_from(number).unwrap_or(i32::MAX), &[false, true])
}

/// An operand that may be in place: exactly one of address and flag.
///
/// # Safety
/// As [`Operand::read`].
pub(crate) unsafe fn source(
    call: &str,
    argument: &str,
    at: *const xattn_tensor,
    in_place: u32,
) -> Result<Option<Source<Operand>>> {
    // SAFETY: passed on.
    let operand = unsafe { Operand::read_optional(call, argument, at) }?;
    match (operand, flag(call, &format!("{argument}_in_place"), in_place)?) {
        (Some(_), true) => Err(Fault::argument(call, argument, "null beside the flag for in place", "a tensor")),
        (Some(operand), false) => Ok(Some(Source::From(operand))),
        (None, true) => Ok(Some(Source::InPlace)),
        (None, false) => Ok(None),
    }
}

/// Which keys exist: at most one of lengths and bits.
///
/// # Safety
/// As [`Operand::read`].
pub(crate) unsafe fn keys(
    call: &str,
    names: [&str; 2],
    lengths: *const xattn_tensor,
    bits: *const xattn_tensor,
) -> Result<Keys<Operand>> {
    // SAFETY: passed on.
    let found =
        unsafe { (Operand::read_optional(call, names[0], lengths)?, Operand::read_optional(call, names[1], bits)?) };
    match found {
        (None, None) => Ok(Keys::All),
        (Some(lengths), None) => Ok(Keys::Lengths(lengths)),
        (None, Some(bits)) => Ok(Keys::Bits(bits)),
        (Some(_), Some(_)) => Err(Fault::argument(call, names[1], format!("null beside {}", names[0]), "a tensor")),
    }
}
