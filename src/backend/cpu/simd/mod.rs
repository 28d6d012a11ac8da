//! Registers of f32 lanes, and one way to run a kernel with those of an instruction set.
//!
//! A kernel is a [`Kernel`]: generic over [`Vector`], `#[inline(always)]` throughout, so that [`run`] compiles all of it once per
//! instruction set, with that set's features. Baseline x86-64 code would use four lanes and no fused multiply-add.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod math;
mod portable;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use super::instructions::{Detected, InstructionSet};

pub(super) use portable::Lanes as Portable;

/// A register of f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of the implementing type; pointers are valid for `LANES` elements (`broadcast`: one)
/// and need no alignment.
pub(super) trait Vector: Copy {
    const LANES: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn broadcast(from: *const f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to nearest even.
    unsafe fn store_f16(self, to: *mut f16);
    /// Rounds to nearest even; a NaN stays one.
    unsafe fn store_bf16(self, to: *mut bf16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once where the instruction set can.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger one; `other` where one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// Per lane: `self < bound ? yes : no`; `no` where one is NaN.
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// The bits shifted left by 23 places: 2^(n - 127) for a float whose lowest mantissa bits hold n.
    unsafe fn exponent(self) -> Self;
    /// Asks for the cache line of an address, which need not be valid.
    unsafe fn prefetch(from: *const f32);
}

/// Work that is compiled once per instruction set.
pub(super) trait Kernel {
    type Output;

    /// # Safety
    /// The machine has the instruction set of `V`, and whatever the kernel itself asks for holds. Implementations are
    /// `#[inline(always)]`, and so is all they call.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Runs a kernel on an instruction set.
///
/// # Safety
/// What the kernel asks for.
#[inline]
pub(super) unsafe fn run<K: Kernel>(on: Detected, kernel: K) -> K::Output {
    match on.set() {
        // SAFETY: a `Detected` set is one that the machine has; the rest is the caller's.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: needs no features; the rest is the caller's.
        _ => unsafe { kernel.run::<Portable>() },
    }
}
