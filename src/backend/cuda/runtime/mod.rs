//! What every op stands on: the driver and its calls, a context, its memory, where commands go. It names no op and no kernel.

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
