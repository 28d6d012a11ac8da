//! The register tiles of each instruction set, compiled separately.
//!
//! A tile keeps its sums in registers. It has enough of them to hide the latency of the
//! multiply-add, and no more than fit beside the weights and one broadcast value of x.

use std::mem::MaybeUninit;

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use super::super::simd::{Avx2, Avx512, Avx512Bf16};
use super::super::simd::{Portable, Vector};
use super::micro::{Interleave, Interleaved, Job, PANEL, Product, Tile, WidenPanels};
use crate::backend::cpu::instructions::{Detected, InstructionSet};

/// The kernels of one instruction set for one form of products. They need that instruction
/// set, and the contract of the kernel that they run.
pub(super) struct Table<P: Product> {
    /// For 1, 2, ... rows.
    pub rows: &'static [RowTiles<P>],
    pub widen: unsafe fn(&[MaybeUninit<P::Weight>], &mut [MaybeUninit<f32>]),
    /// Packs `PANEL` rows.
    pub interleave_panel: unsafe fn(&Interleave),
}

pub(super) struct RowTiles<P: Product> {
    /// How many panels `wide` takes.
    pub panels: usize,
    pub wide: unsafe fn(&mut Job<'_, P::Weight>),
    pub single: unsafe fn(&mut Job<'_, P::Weight>),
    pub interleave: unsafe fn(&Interleave),
}

/// `V` are the registers of the tile, `T` those in which rows are transposed.
const fn row<
    V: Vector,
    T: Vector,
    P: Product,
    const VECTORS: usize,
    const LANES: usize,
    const ROWS: usize,
    const PANELS: usize,
>() -> RowTiles<P> {
    RowTiles {
        panels: PANELS,
        // SAFETY: the contract of `Table`.
        wide: |job| unsafe { V::run(Tile::<P, ROWS, PANELS, VECTORS>(job)) },
        // SAFETY: as above.
        single: |job| unsafe { V::run(Tile::<P, ROWS, 1, VECTORS>(job)) },
        // SAFETY: as above.
        interleave: |job| unsafe { T::run(Interleaved::<LANES, ROWS>(job)) },
    }
}

/// A table: registers of the tile and how many a panel fills, registers and lanes of the
/// transposition, then rows x panels of each tile.
macro_rules! table {
    ($V:ty, $vectors:literal, $T:ty, $lanes:literal: $($rows:literal x $panels:literal),*) => {
        const {
            &Table::<P> {
                rows: &[$(row::<$V, $T, P, $vectors, $lanes, $rows, $panels>()),*],
                // SAFETY: the contract of `Table`.
                widen: |from, to| unsafe { <$V>::run(WidenPanels::<P>(from, to)) },
                // SAFETY: as above.
                interleave_panel: |job| unsafe { <$T>::run(Interleaved::<$lanes, PANEL>(job)) },
            }
        }
    };
}

/// The table for 32 registers of 16 lanes. 12 rows x 32 outputs: 24 sums, 2 registers of weights and
/// 1 broadcast fill 27 of them. A step is 24 multiply-adds (12 cycles at two per cycle) against 14
/// loads.
macro_rules! table_of_512 {
    ($V:ty, $T:ty) => {
        table!($V, 1, $T, 16:
            1 x 4, 2 x 4, 3 x 4, 4 x 4, 5 x 2, 6 x 2, 7 x 2, 8 x 2, 9 x 2, 10 x 2, 11 x 2, 12 x 2)
    };
}

pub(super) fn of<P: Product>(set: Detected) -> &'static Table<P> {
    // The tiles of AVX-512 on arrays of 16 lanes, so that tests on any machine cover their shape.
    #[cfg(test)]
    if set.has_wide_shape() {
        return table_of_512!(Portable<16>, Portable<16>);
    }
    match set.set() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx512Bf16 if P::X_DEPTH == 2 => table_of_512!(Avx512Bf16, Avx512),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx512Bf16 | InstructionSet::Avx512 => table_of_512!(Avx512, Avx512),
        // 6 rows x 16 outputs: 12 sums, 2 registers of weights and 1 broadcast fill 15 of 16
        // registers. A step of k is 12 multiply-adds (6 cycles at two per cycle), which hide 8
        // loads. Fewer than 8 sums cannot hide the latency of 4 cycles, hence more panels for one
        // or two rows. (3 rows x 2 panels need 17 registers; spills cost more than 6 sums do.)
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx2 => table!(Avx2, 2, Avx2, 8: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1),
        // 3 rows x 16 outputs are 12 sums for the 16 registers of SSE2. 64-bit ARM has 32 registers
        // and takes 6 rows, which eight lanes transpose.
        #[cfg(not(target_arch = "aarch64"))]
        _ => table!(Portable<4>, 4, Portable<8>, 8: 1 x 2, 2 x 1, 3 x 1),
        #[cfg(target_arch = "aarch64")]
        _ => table!(Portable<4>, 4, Portable<8>, 8: 1 x 2, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1),
    }
}
