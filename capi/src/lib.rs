//! The C interface: opaque handles, status codes, versioned structs. It generates `xattn.h`.
//!
//! * Every function returns a [`xattn_status`];
//!   [`xattn_last_error`](status::xattn_last_error) has the text for the calling thread.
//! * No panic leaves a function. Null pointers, freed handles, wrong sizes and enums never crash
//!   one.
//! * Enums arrive as integers: C may pass any.
//! * A handle is a key into a table ([`handle`]), never an address.
//!
//! `status.rs` has the errors, `handle.rs` the table, `tensor.rs` operands, `device.rs` devices and
//! weights, `call.rs` the common code of ops and bridge calls; `ops/` has one file per op,
//! `bridge/` checkpoints and bridges.

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
