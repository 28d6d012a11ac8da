//! Registers of f32 lanes, and the way to run a kernel on those of an instruction set.
//!
//! This is the only vector layer, for the ops and the micro-kernels of GEMM. A [`Kernel`] is
//! generic over [`Vector`] and `#[inline(always)]` throughout, so that [`Vector::run`] compiles all
//! of it once per instruction set, with that set's features. [`run`] chooses the set at run time;
//! GEMM chooses a table of kernels (`gemm/tiles.rs`). Baseline x86-64 code would use four lanes and
//! no fused multiply-add.

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod avx2;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod avx512;
pub(super) mod math;
mod portable;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use super::instructions::{Detected, InstructionSet};

pub(super) use portable::Lanes as Portable;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
pub(super) use {avx2::Lanes as Avx2, avx512::Avx512, avx512::Avx512Bf16};

/// A register of f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of the implementing type. Pointers are valid for
/// `LANES` elements (`broadcast`: one) and need no alignment.
pub(super) trait Vector: Copy {
    const LANES: usize;
    /// Runs a kernel on these registers, compiled with the features of their instruction set.
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn broadcast(from: *const f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// The lower bf16 of each 32-bit lane, or the `UPPER` one.
    unsafe fn widen_half<const UPPER: bool>(self) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to nearest even.
    unsafe fn store_f16(self, to: *mut f16);
    /// Rounds to nearest even; NaN stays NaN.
    unsafe fn store_bf16(self, to: *mut bf16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once if the instruction set can.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self + a * b`, the multiply-add of GEMM. The portable set fuses it if every processor of
    /// the target can; its `mul_add` is never fused.
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has the instruction set.
        unsafe { a.mul_add(b, self) }
    }
    /// `self` + the dot product of the bf16 pairs in each 32-bit lane of `a` and `b`: two
    /// multiply-adds. AVX-512 BF16 has an instruction for it, which adds the upper product first
    /// and takes subnormal numbers for 0.
    #[inline(always)]
    unsafe fn add_pairs(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has the instruction set.
        unsafe { add_widened_pairs(self, a, b) }
    }
    /// The larger one; `other` if one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// Per lane: `self < bound ? yes : no`; `no` if one is NaN.
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// The bits shifted left by 23: 2^(n - 127) for a float whose lowest mantissa bits hold n.
    unsafe fn exponent(self) -> Self;
    /// Transposes `LANES` registers: lane j of the i-th becomes lane i of the j-th.
    unsafe fn transpose(block: &mut [Self]);
}

/// [`Vector::add_pairs`] without an instruction for it, the lower product first.
///
/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn add_widened_pairs<V: Vector>(sum: V, a: V, b: V) -> V {
    // SAFETY: passed on to the caller.
    unsafe {
        let lower = sum.add_product(a.widen_half::<false>(), b.widen_half::<false>());
        lower.add_product(a.widen_half::<true>(), b.widen_half::<true>())
    }
}

/// Prefetches the cache line of an address, which need not be valid, into L1 (`IN_L1`) or L2.
#[inline(always)]
pub(super) fn prefetch<const IN_L1: bool>(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the architecture, and a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match IN_L1 {
            true => _mm_prefetch::<_MM_HINT_T0>(line.cast()),
            false => _mm_prefetch::<_MM_HINT_T1>(line.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Work that is compiled once per instruction set.
pub(super) trait Kernel {
    type Output;

    /// # Safety
    /// The machine has the instruction set of `V`, and the kernel's own requirements hold.
    /// Implementations are `#[inline(always)]`, and so is all they call.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Runs a kernel on an instruction set.
///
/// # Safety
/// The kernel's own requirements.
#[inline]
pub(super) unsafe fn run<K: Kernel>(on: Detected, kernel: K) -> K::Output {
    match on.set() {
        // SAFETY: the machine has every `Detected` set. The rest is the caller's contract.
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Amx | InstructionSet::Avx512Bf16 | InstructionSet::Avx512 => unsafe { Avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx2 => unsafe { Avx2::run(kernel) },
        // SAFETY: the portable set needs no features. The rest is the caller's contract.
        _ => unsafe { Portable::<8>::run(kernel) },
    }
}
