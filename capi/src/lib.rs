//! The C interface: opaque handles, status codes, size-versioned structs. `include/xattn.h` is generated from this crate.
//!
//! * Every function returns a [`xattn_status`]; [`xattn_last_error`](status::xattn_last_error) has the text for the calling thread.
//! * No panic leaves a function, and no argument that can be checked makes one crash: null pointers, wrong sizes, wrong enums, handles
//!   that were freed.
//! * Enums arrive as integers: C may pass any.
//! * A handle is a key into a table ([`handle`]), never an address.
//!
//! Division: `status.rs` errors; `handle.rs` the table; `tensor.rs` operands; `device.rs` devices, weights; `call.rs` what all ops and
//! bridge calls share; `ops/` one file per op; `bridge/` checkpoints and bridges.

#![allow(non_camel_case_types, reason = "the names are those of the C header")]

#[cfg(feature = "checkpoint")]
pub mod bridge;
pub mod call;
pub mod device;
pub mod handle;
pub mod ops;
pub mod status;
pub mod tensor;

pub use status::xattn_status;
