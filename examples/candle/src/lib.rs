//! xattn in a candle model: ops and bridges as candle custom ops, over candle's own memory.
//!
//! * [`operand`]: a candle tensor as an xattn view. Nothing is copied: strides and offsets are
//!   taken over.
//! * [`ops`]: `attention`, `media_index`, `norm`, `linear`, `gated_residual` as `InplaceOpN`s that
//!   write a tensor of the caller's.
//! * [`bridges`]: resampler, media projection and gated block, likewise.
//! * [`plain`]: the same modules in candle's own ops, to compare with and to time against.
//! * [`flamingo`]: a small decoder in which every bridge part is xattn's. [`weights`] makes its
//!   weights from a seed.

pub mod bridges;
pub mod flamingo;
mod kept;
pub mod operand;
pub mod ops;
pub mod plain;
pub mod weights;
