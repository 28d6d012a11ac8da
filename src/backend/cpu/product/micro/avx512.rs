//! AVX-512F: 12 rows x 32 outputs (two panels).
//!
//! 24 accumulators, 2 registers of weights and 1 broadcast fill 27 of 32 registers. A step of k is 24 multiply-adds (12 cycles at two
//! per cycle) against 14 loads.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all bodies: that of `Vector`")]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use std::mem::MaybeUninit;

use super::{Element, Interleave, Job, Kernels, RowKernels, Vector};
use half::{bf16, f16};

#[derive(Clone, Copy)]
struct Lanes(__m512);

// SAFETY of every body: the trait's contract gives the instruction set and the validity of the pointers; all accesses are unaligned.
impl Vector for Lanes {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Self(_mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { Self(_mm512_set1_ps(*from)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self]) {
        let mut r: [__m512; 16] = std::array::from_fn(|i| block[i].0);
        unsafe {
            // Pairs of rows, then fours: register 4 i + j holds column j of each 128-bit quarter, for the rows 4 i .. 4 i + 4.
            let t: [__m512; 16] = std::array::from_fn(|i| match i % 2 {
                0 => _mm512_unpacklo_ps(r[i], r[i + 1]),
                _ => _mm512_unpackhi_ps(r[i - 1], r[i]),
            });
            for i in (0..16).step_by(4) {
                let t: [__m512d; 4] = std::array::from_fn(|j| _mm512_castps_pd(t[i + j]));
                r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[0], t[2]));
                r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[0], t[2]));
                r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[1], t[3]));
                r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[1], t[3]));
            }
            // Then the quarters: 0x88 takes the even ones of both operands, 0xdd the odd ones.
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
                let lower_even = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
                let lower_odd = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
                block[j].0 = _mm512_shuffle_f32x4::<0x88>(even, lower_even);
                block[4 + j].0 = _mm512_shuffle_f32x4::<0x88>(odd, lower_odd);
                block[8 + j].0 = _mm512_shuffle_f32x4::<0xdd>(even, lower_even);
                block[12 + j].0 = _mm512_shuffle_f32x4::<0xdd>(odd, lower_odd);
            }
        }
    }
}

/// # Safety
/// As [`super::tile`], on a machine with AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn tile<E: Element, const ROWS: usize, const PANELS: usize>(job: &Job<E>) {
    // SAFETY: the contract is the same.
    unsafe { super::tile::<Lanes, E, ROWS, PANELS, 1>(job) }
}

/// # Safety
/// As [`super::widen`].
#[target_feature(enable = "avx512f")]
unsafe fn widen<E: Element>(from: &[E], to: &mut [MaybeUninit<f32>]) {
    // SAFETY: the contract is the same.
    unsafe { super::widen::<Lanes, E>(from, to) }
}

/// # Safety
/// As [`super::interleave`].
#[target_feature(enable = "avx512f")]
unsafe fn interleave<const ROWS: usize>(job: &Interleave) {
    // SAFETY: the contract is the same.
    unsafe { super::interleave::<Lanes, 16, ROWS>(job) }
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
        widen: widen::<E>,
        interleave_panel: interleave::<{ super::PANEL }>,
    }
}
