//! Checkpoints in every layout, written, read back and compared with the tensors in memory.
#![cfg(feature = "cli")]

mod adapter_places;
mod adapters;
mod candidates;
mod changing;
mod command;
mod copies;
mod defaults;
mod errors;
mod escaped;
mod every_tensor;
mod explained;
mod fields;
mod inputs;
mod layouts;
mod mutations;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod on_devices;
mod outputs;
mod published;
mod shards;
mod small;
mod warnings;
