//! What is no part of the runtime: limits of a device, its clock, and an account of the instructions that kernels use.

pub(crate) mod roof;
pub(crate) mod timing;
pub(super) mod wrappers;
