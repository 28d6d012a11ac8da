//! Any machine: arrays of four lanes, which LLVM turns into whatever 128-bit registers there are.
//!
//! 3 rows x 16 outputs are 12 accumulators for the 16 registers of SSE2; 64-bit ARM has 32 registers and takes 6 rows. Multiply-adds are fused only
//! where the target always has the instruction, since the library function is a hundred times slower.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all bodies: that of `Vector`")]

use std::mem::MaybeUninit;

use super::{Element, Interleave, Job, Kernels, RowKernels, Vector};
use half::{bf16, f16};

const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[derive(Clone, Copy)]
struct Lanes<const N: usize>([f32; N]);

// SAFETY of every body: the trait's contract gives the validity of the pointers; all accesses are unaligned.
impl<const N: usize> Vector for Lanes<N> {
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; N])
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { Self([*from; N]) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(from.cast::<[f32; N]>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { Self(from.cast::<[f16; N]>().read_unaligned().map(f16::to_f32)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe { Self(from.cast::<[u16; N]>().read_unaligned().map(|bits| f32::from_bits(u32::from(bits) << 16))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(
            |i| if FUSED { a.0[i].mul_add(b.0[i], self.0[i]) } else { self.0[i] + a.0[i] * b.0[i] },
        ))
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self]) {
        let from: [[f32; N]; N] = std::array::from_fn(|i| block[i].0);
        for (i, register) in block.iter_mut().enumerate() {
            register.0 = std::array::from_fn(|j| from[j][i]);
        }
    }
}

/// # Safety
/// As [`super::tile`].
unsafe fn tile<E: Element, const ROWS: usize, const PANELS: usize>(job: &Job<E>) {
    // SAFETY: the contract is the same.
    unsafe { super::tile::<Lanes<4>, E, ROWS, PANELS, 4>(job) }
}

/// # Safety
/// As [`super::widen`].
unsafe fn widen<E: Element>(from: &[E], to: &mut [MaybeUninit<f32>]) {
    // SAFETY: the contract is the same.
    unsafe { super::widen::<Lanes<4>, E>(from, to) }
}

/// Registers of eight lanes, since 64-bit ARM takes six rows.
///
/// # Safety
/// As [`super::interleave`].
unsafe fn interleave<const ROWS: usize>(job: &Interleave) {
    // SAFETY: the contract is the same.
    unsafe { super::interleave::<Lanes<8>, 8, ROWS>(job) }
}

const fn row<E: Element, const ROWS: usize, const PANELS: usize>() -> RowKernels<E> {
    RowKernels {
        panels: PANELS,
        wide: tile::<E, ROWS, PANELS>,
        single: tile::<E, ROWS, 1>,
        interleave: interleave::<ROWS>,
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) const fn kernels<E: Element>() -> Kernels<E> {
    Kernels {
        rows: const {
            &[
                row::<E, 1, 2>(),
                row::<E, 2, 1>(),
                row::<E, 3, 1>(),
                row::<E, 4, 1>(),
                row::<E, 5, 1>(),
                row::<E, 6, 1>(),
            ]
        },
        widen: widen::<E>,
        interleave_panel: interleave::<{ super::PANEL }>,
    }
}

#[cfg(not(target_arch = "aarch64"))]
pub(super) const fn kernels<E: Element>() -> Kernels<E> {
    Kernels {
        rows: const { &[row::<E, 1, 2>(), row::<E, 2, 1>(), row::<E, 3, 1>()] },
        widen: widen::<E>,
        interleave_panel: interleave::<{ super::PANEL }>,
    }
}

/// The tile shapes of AVX-512 on arrays of 16 lanes, so that tests on any machine reach what depends on the shape.
#[cfg(test)]
pub(super) mod wide_shape {
    use super::{Element, Interleave, Job, Kernels, Lanes, RowKernels};

    /// # Safety
    /// As [`super::super::interleave`].
    unsafe fn interleave<const ROWS: usize>(job: &Interleave) {
        // SAFETY: the contract is the same.
        unsafe { super::super::interleave::<Lanes<16>, 16, ROWS>(job) }
    }

    /// # Safety
    /// As [`super::super::tile`].
    unsafe fn tile<E: Element, const ROWS: usize, const PANELS: usize>(job: &Job<E>) {
        // SAFETY: the contract is the same.
        unsafe { super::super::tile::<Lanes<16>, E, ROWS, PANELS, 1>(job) }
    }

    const fn row<E: Element, const ROWS: usize, const PANELS: usize>() -> RowKernels<E> {
        RowKernels {
            panels: PANELS,
            wide: tile::<E, ROWS, PANELS>,
            single: tile::<E, ROWS, 1>,
            interleave: interleave::<ROWS>,
        }
    }

    pub(in super::super) const fn kernels<E: Element>() -> Kernels<E> {
        Kernels {
            rows: const {
                &[
                    row::<E, 1, 4>(),
                    row::<E, 2, 4>(),
                    row::<E, 3, 4>(),
                    row::<E, 4, 4>(),
                    row::<E, 5, 2>(),
                    row::<E, 6, 2>(),
                    row::<E, 7, 2>(),
                    row::<E, 8, 2>(),
                    row::<E, 9, 2>(),
                    row::<E, 10, 2>(),
                    row::<E, 11, 2>(),
                    row::<E, 12, 2>(),
                ]
            },
            widen: super::widen::<E>,
            interleave_panel: interleave::<16>,
        }
    }
}
