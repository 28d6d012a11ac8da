//! Eight lanes: AVX2, FMA and F16C.

// SAFETY of every block here: the contract of `Vector` gives the instruction set and valid
// pointers. Accesses are unaligned.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Vector};

#[derive(Clone, Copy)]
pub struct Lanes(__m256);

impl Vector for Lanes {
    const LANES: usize = 8;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.run::<Self>() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Lanes(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const f32) -> Self {
        unsafe { Lanes(_mm256_broadcast_ss(&*from)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Lanes(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { Lanes(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Lanes(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn widen_half<const UPPER: bool>(self) -> Self {
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            Lanes(_mm256_castsi256_ps(match UPPER {
                true => _mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())),
                false => _mm256_slli_epi32::<16>(bits),
            }))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let high = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let chosen = _mm256_blendv_epi8(rounded, quiet, nan);
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256::<1>(chosen));
            _mm_storeu_si128(to.cast(), packed)
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Lanes(_mm256_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Lanes(_mm256_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Lanes(_mm256_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Lanes(_mm256_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { Lanes(_mm256_fmadd_ps(self.0, factor.0, term.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Lanes(_mm256_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Lanes(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        unsafe { Lanes(_mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0))) }
    }
    #[inline(always)]
    unsafe fn exponent(self) -> Self {
        unsafe { Lanes(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0)))) }
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [Self]) {
        let mut r: [__m256; 8] = std::array::from_fn(|i| block[i].0);
        unsafe {
            // Pairs of rows, then fours: register 4 i + j holds column j of each half, for the rows
            // 4 i .. 4 i + 4.
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
