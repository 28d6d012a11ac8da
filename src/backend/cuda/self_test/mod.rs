//! Beside the runtime: a device's limits, its clock, and tests of the instructions of kernels.

pub(crate) mod roof;
pub(crate) mod timing;
pub(super) mod wrappers;
