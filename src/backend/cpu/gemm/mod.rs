//! The matrix product (GEMM): y = x Wᵀ for constant weights.
//!
//! W is packed once into column panels, blocks of x into tiles at each call. Every finished row
//! segment goes to an epilogue while it is in L2.
//!
//! `pack.rs` is the layout of W and of the tiles of x, `schedule.rs` the division of a GEMM into
//! tasks, `micro.rs` the micro-kernel, `tiles.rs` the register tiles of each instruction set,
//! `amx.rs` the micro-kernel on matrix registers. A value's bits depend only on its row of x, its row of W and the instruction set.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod micro;
mod pack;
mod schedule;
#[cfg(test)]
mod tests;
mod tiles;

pub use pack::{RowAt, pack, packed_len};
pub use schedule::{Gemm, Shape};

/// Consumes finished sums.
pub trait Epilogue: Sync {
    /// Takes the f32 sums of the outputs `col .. col + acc.len()` of `row`. With a gate and an up
    /// matrix `acc` are the gate's and `up` the up matrix's. Every output is in exactly one call.
    /// Calls come from several threads at the same time.
    fn store(&self, row: usize, col: usize, acc: &[f32], up: Option<&[f32]>);
}
