//! The base of every op: driver calls, a context, its memory, recorders. Names no op, no kernel.

pub(super) mod arch;
pub(super) mod context;
pub(super) mod driver;
pub(super) mod graph;
pub(super) mod libraries;
pub(super) mod memory;
pub(super) mod probe;
pub(super) mod recorder;
pub(super) mod tensor_map;

/// The backend's name in messages.
pub(super) const NAME: &str = "cuda";
