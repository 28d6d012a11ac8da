//! The CUDA backend's runtime: an engine's own objects, what steady state does without, captured
//! graphs, faults, the cache, absence. `xattn verify --device cuda` judges the ops themselves. Runs
//! on an NVIDIA device, or with `scripts/emulated-cuda cargo test --features cuda --test cuda`.

mod absence;
mod bench;
mod cache;
mod cublaslt;
mod decode;
mod engine;
mod faults;
mod fork;
mod gaps;
mod graph;
mod hopper;
mod hostile;
#[path = "../hostile_values/mod.rs"]
mod hostile_values;
mod libraries;
mod linear;
mod nan;
mod owners;
mod steady;
mod support;
mod users;
