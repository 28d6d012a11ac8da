//! The register tiles of each instruction set, compiled separately.
//!
//! A tile keeps its sums in registers. It has enough of them to hide the latency of the
//! multiply-add, and no more than fit beside the weights and one broadcast value of x.

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use super::super::simd::{Avx2, Avx512, Avx512Bf16};
use super::super::simd::{Portable, Vector};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::micro::Bf16Matrices;
use super::micro::{Interleave, Interleaved, Job, PANEL, Product, Tile};
use crate::backend::cpu::instructions::{Detected, InstructionSet};

/// The kernels of one instruction set for one form of products and a number of rows. They need that
/// instruction set, and the contract of the kernel that they run.
pub(super) struct RowTiles<P: Product> {
    /// How many panels `wide` takes.
    pub panels: usize,
    pub wide: unsafe fn(&mut Job<'_, P::Weight>),
    pub single: unsafe fn(&mut Job<'_, P::Weight>),
}

const fn row<V: Vector, P: Product, const VECTORS: usize, const ROWS: usize, const PANELS: usize>() -> RowTiles<P> {
    RowTiles {
        panels: PANELS,
        // SAFETY: the contract of `RowTiles`.
        wide: |job| unsafe { V::run(Tile::<P, ROWS, PANELS, VECTORS>(job)) },
        // SAFETY: as above.
        single: |job| unsafe { V::run(Tile::<P, ROWS, 1, VECTORS>(job)) },
    }
}

/// A table for 1, 2, ... rows: registers of the tile and how many a panel fills, then rows x panels of each tile.
macro_rules! table {
    ($V:ty, $vectors:literal: $($rows:literal x $panels:literal),*) => {
        const { &[$(row::<$V, P, $vectors, $rows, $panels>()),*] }
    };
}

/// The table for 32 registers of 16 lanes. 12 rows x 32 outputs: 24 sums, 2 registers of weights and
/// 1 broadcast fill 27 of them. A step is 24 multiply-adds (12 cycles at two per cycle) against 14
/// loads.
macro_rules! table_of_512 {
    ($V:ty) => {
        table!($V, 1:
            1 x 4, 2 x 4, 3 x 4, 4 x 4, 5 x 2, 6 x 2, 7 x 2, 8 x 2, 9 x 2, 10 x 2, 11 x 2, 12 x 2)
    };
}

pub(super) fn of<P: Product>(set: Detected) -> &'static [RowTiles<P>] {
    // The tiles of AVX-512 on arrays of 16 lanes, so that tests on any machine cover their shape.
    #[cfg(test)]
    if set.has_wide_shape() {
        return table_of_512!(Portable<16>);
    }
    match set.set() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx512Bf16 if P::PER_VALUE == 2 => table_of_512!(Avx512Bf16),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Amx | InstructionSet::Avx512Bf16 | InstructionSet::Avx512 => table_of_512!(Avx512),
        // 6 rows x 16 outputs: 12 sums, 2 registers of weights and 1 broadcast fill 15 of 16
        // registers. A step of k is 12 multiply-adds (6 cycles at two per cycle), which hide 8
        // loads. Fewer than 8 sums cannot hide the latency of 4 cycles, hence more panels for one
        // or two rows. (3 rows x 2 panels need 17 registers; spills cost more than 6 sums do.)
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx2 => table!(Avx2, 2: 1 x 4, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1),
        // 3 rows x 16 outputs are 12 sums for the 16 registers of SSE2. 64-bit ARM has 32 registers
        // and takes 6 rows.
        #[cfg(not(target_arch = "aarch64"))]
        _ => table!(Portable<4>, 4: 1 x 2, 2 x 1, 3 x 1),
        #[cfg(target_arch = "aarch64")]
        _ => table!(Portable<4>, 4: 1 x 2, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1),
    }
}

/// The micro-kernels on matrix registers: one for up to 16 rows, one for up to 32.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) fn matrices() -> &'static [RowTiles<Bf16Matrices>] {
    const FEW: RowTiles<Bf16Matrices> =
        RowTiles { panels: 2, wide: amx::run::<false, true>, single: amx::run::<false, false> };
    const MANY: RowTiles<Bf16Matrices> =
        RowTiles { panels: 2, wide: amx::run::<true, true>, single: amx::run::<true, false> };
    static ROWS: [RowTiles<Bf16Matrices>; 2 * amx::ROWS] = [
        FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, FEW, //
        MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY, MANY,
    ];
    &ROWS
}

/// The kernels of an instruction set that pack rows.
pub(super) struct Packing {
    /// For 1, 2, ... rows.
    pub rows: &'static [unsafe fn(&Interleave)],
    /// For `PANEL` rows.
    pub panel: unsafe fn(&Interleave),
}

/// Registers and lanes of the transposition, and the numbers of rows.
macro_rules! packing {
    ($V:ty, $lanes:literal: $($rows:literal),*) => {
        &Packing {
            // SAFETY: the contract of `Packing`: that of the kernel, and the instruction set.
            rows: &[$(|job| unsafe { <$V>::run(Interleaved::<$lanes, $rows>(job)) }),*],
            // SAFETY: as above.
            panel: |job| unsafe { <$V>::run(Interleaved::<$lanes, PANEL>(job)) },
        }
    };
}

/// The rows of a tile of [`of`] on the same set.
pub(super) fn packing(set: Detected) -> &'static Packing {
    #[cfg(test)]
    if set.has_wide_shape() {
        return packing!(Portable<16>, 16: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    }
    match set.set() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Amx | InstructionSet::Avx512Bf16 | InstructionSet::Avx512 => {
            packing!(Avx512, 16: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
        }
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx2 => packing!(Avx2, 8: 1, 2, 3, 4, 5, 6),
        #[cfg(not(target_arch = "aarch64"))]
        _ => packing!(Portable<8>, 8: 1, 2, 3),
        #[cfg(target_arch = "aarch64")]
        _ => packing!(Portable<8>, 8: 1, 2, 3, 4, 5, 6),
    }
}
