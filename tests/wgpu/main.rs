//! The wgpu backend on whatever adapter there is: an engine's own objects, limits, faults,
//! numerics. `xattn verify --device wgpu` judges the ops themselves.

mod attention;
mod attention_variants;
mod bench;
mod bridges;
mod engine;
mod errors;
mod grids;
mod halves;
#[path = "../hostile_values/mod.rs"]
mod hostile_values;
mod limits;
mod media_index;
mod numbers;
mod numerics;
mod support;
