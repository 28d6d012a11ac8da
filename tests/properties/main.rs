//! Properties of ops and bridges: statements that hold whatever the numbers are. Public API only,
//! on every device that runs here.

mod attention_layout;
mod attention_media;
mod attention_unseen;
mod cache;
mod engine;
mod errors;
mod gated_block;
mod problem;
mod qformer;
mod resampler;
mod support;
