//! AVX2 + FMA + F16C: 6 rows x 16 outputs.
//!
//! 12 accumulators, 2 registers of weights and 1 broadcast fill 15 of 16 registers. A step of k is 12 multiply-adds (6 cycles at two
//! per cycle) against 8 loads, so the loads hide behind the arithmetic; fewer than 8 accumulators cannot hide the latency of 4
//! cycles, hence more panels for one or two rows. (3 rows x 2 panels need 17 registers, and the spills cost more than 6 accumulators do.)

#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all bodies: that of `Vector`")]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use std::mem::MaybeUninit;

use super::{Element, Interleave, Job, Kernels, RowKernels, Vector};
use half::{bf16, f16};

#[derive(Clone, Copy)]
struct Lanes(__m256);

// SAFETY of every body: the trait's contract gives the instruction set and the validity of the pointers; all accesses are unaligned.
impl Vector for Lanes {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Self(_mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { Self(_mm256_broadcast_ss(&*from)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self]) {
        let mut r: [__m256; 8] = std::array::from_fn(|i| block[i].0);
        unsafe {
            // Pairs of rows, then fours: register 4 i + j holds column j of each half, for the rows 4 i .. 4 i + 4.
            let t: [__m256; 8] = std::array::from_fn(|i| match i % 2 {
                0 => _mm256_unpacklo_ps(r[i], r[i + 1]),
                _ => _mm256_unpackhi_ps(r[i - 1], r[i]),
            });
            for i in [0, 4] {
                let t: [__m256d; 4] = std::array::from_fn(|j| _mm256_castps_pd(t[i + j]));
                r[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[0], t[2]));
                r[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[0], t[2]));
                r[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[1], t[3]));
                r[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[1], t[3]));
            }
            for j in 0..4 {
                block[j].0 = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
                block[4 + j].0 = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
            }
        }
    }
}

/// # Safety
/// As [`super::tile`], on a machine with the three features.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<E: Element, const ROWS: usize, const PANELS: usize>(job: &Job<E>) {
    // SAFETY: the contract is the same.
    unsafe { super::tile::<Lanes, E, ROWS, PANELS, 2>(job) }
}

/// # Safety
/// As [`super::widen`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen<E: Element>(from: &[E], to: &mut [MaybeUninit<f32>]) {
    // SAFETY: the contract is the same.
    unsafe { super::widen::<Lanes, E>(from, to) }
}

/// # Safety
/// As [`super::interleave`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn interleave<const ROWS: usize>(job: &Interleave) {
    // SAFETY: the contract is the same.
    unsafe { super::interleave::<Lanes, 8, ROWS>(job) }
}

const fn row<E: Element, const ROWS: usize, const PANELS: usize>() -> RowKernels<E> {
    RowKernels {
        panels: PANELS,
        wide: tile::<E, ROWS, PANELS>,
        single: tile::<E, ROWS, 1>,
        interleave: interleave::<ROWS>,
    }
}

pub(super) const fn kernels<E: Element>() -> Kernels<E> {
    Kernels {
        rows: const {
            &[
                row::<E, 1, 4>(),
                row::<E, 2, 2>(),
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
