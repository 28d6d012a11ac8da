//! Sixteen lanes: AVX-512F (beside AVX2, FMA and F16C), and the same with AVX-512 BF16.

// SAFETY of every block here: the contract of `Vector` gives the instruction set and valid
// pointers. Accesses are unaligned.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Vector, add_widened_pairs};

/// Registers; with the instruction for the dot product of bf16 pairs or without.
#[derive(Clone, Copy)]
pub struct Lanes<const PAIRS: bool>(__m512);

pub type Avx512 = Lanes<false>;
pub type Avx512Bf16 = Lanes<true>;

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    unsafe { kernel.run::<Avx512>() }
}

#[target_feature(enable = "avx512bf16,avx512f,avx2,fma,f16c")]
unsafe fn run_with_pairs<K: Kernel>(kernel: K) -> K::Output {
    unsafe { kernel.run::<Avx512Bf16>() }
}

impl<const PAIRS: bool> Vector for Lanes<PAIRS> {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        unsafe { if PAIRS { run_with_pairs(kernel) } else { run(kernel) } }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Lanes(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const f32) -> Self {
        unsafe { Lanes(_mm512_set1_ps(*from)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Lanes(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { Lanes(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Lanes(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn widen_half<const UPPER: bool>(self) -> Self {
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            Lanes(_mm512_castsi512_ps(match UPPER {
                true => _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())),
                false => _mm512_slli_epi32::<16>(bits),
            }))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(chosen))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Lanes(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Lanes(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Lanes(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Lanes(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { Lanes(_mm512_fmadd_ps(self.0, factor.0, term.0)) }
    }
    #[inline(always)]
    unsafe fn add_pairs(self, a: Self, b: Self) -> Self {
        unsafe {
            if !PAIRS {
                return add_widened_pairs(self, a, b);
            }
            let pairs = |x: Self| std::mem::transmute::<__m512, __m512bh>(x.0);
            Lanes(_mm512_dpbf16_ps(self.0, pairs(a), pairs(b)))
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Lanes(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Lanes(_mm512_abs_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
            Lanes(_mm512_mask_blend_ps(less, no.0, yes.0))
        }
    }
    #[inline(always)]
    unsafe fn exponent(self) -> Self {
        unsafe { Lanes(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0)))) }
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [Self]) {
        let mut r: [__m512; 16] = std::array::from_fn(|i| block[i].0);
        unsafe {
            // Pairs of rows, then fours: register 4 i + j holds column j of each 128-bit quarter,
            // for the rows 4 i .. 4 i + 4.
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
