//! Hand-written GPU and CPU kernels for the bridge between a vision encoder and a language model.

#![warn(missing_docs)]

pub mod backend;
pub mod bridge;
pub mod checkpoint;
mod dtype;
mod error;
pub mod ops;
#[cfg(feature = "verify")]
pub mod profile;
mod program;
mod tensor;
#[cfg(feature = "verify")]
pub mod verify;

pub use backend::{Device, DeviceInfo, DeviceKind, Dispatch, Prepared, Recorder, Weight, WeightSource, Workspace};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use program::PreparedBridge;
pub use tensor::{HostMemory, HostTensor, MAX_RANK, Memory, Spec, Tensor, View, ViewMut, bit_words, pack_bits};
