//! Any machine: arrays of four lanes, which LLVM turns into whatever 128-bit registers there are.
//!
//! 3 rows x 16 outputs are 12 accumulators for the 16 registers of SSE2; 64-bit ARM has 32 registers and takes 6 rows. Multiply-adds are fused only
//! where the target always has the instruction, since the library function is a hundred times slower.

use super::{Element, Job, Kernels, RowKernels, Vector};
use half::{bf16, f16};

const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[derive(Clone, Copy)]
struct Lanes([f32; 4]);

// SAFETY of every body: the trait's contract gives the validity of the pointers; all accesses are unaligned.
impl Vector for Lanes {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { Self([*from; 4]) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(from.cast::<[f32; 4]>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { Self(from.cast::<[f16; 4]>().read_unaligned().map(f16::to_f32)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe { Self(from.cast::<[u16; 4]>().read_unaligned().map(|bits| f32::from_bits(u32::from(bits) << 16))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
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
}

/// # Safety
/// As [`super::tile`].
unsafe fn tile<E: Element, const ROWS: usize, const PANELS: usize>(job: &Job<E>) {
    // SAFETY: the contract is the same.
    unsafe { super::tile::<Lanes, E, ROWS, PANELS, 4>(job) }
}

/// # Safety
/// As [`super::widen`].
unsafe fn widen<E: Element>(from: &[E], to: &mut [f32]) {
    // SAFETY: the contract is the same.
    unsafe { super::widen::<Lanes, E>(from, to) }
}

const fn row<E: Element, const ROWS: usize, const PANELS: usize>() -> RowKernels<E> {
    RowKernels { panels: PANELS, wide: tile::<E, ROWS, PANELS>, single: tile::<E, ROWS, 1> }
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
    }
}

#[cfg(not(target_arch = "aarch64"))]
pub(super) const fn kernels<E: Element>() -> Kernels<E> {
    Kernels { rows: const { &[row::<E, 1, 2>(), row::<E, 2, 1>(), row::<E, 3, 1>()] }, widen: widen::<E> }
}
