//! Eight lanes in plain Rust, which the compiler maps to whatever registers the target has. No fused multiply-add: where the
//! target lacks one it would be a function call.

// SAFETY of every block here: the trait's contract gives the validity of the pointers; accesses are unaligned.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]

use std::array::from_fn;

use half::{bf16, f16};

use super::Vector;

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Lanes([f32; LANES]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Lanes(from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Lanes {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Lanes([value; LANES])
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const f32) -> Self {
        unsafe { Lanes([*from; LANES]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Lanes(from.cast::<[f32; LANES]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        let raw = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        Lanes(raw.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        let raw = unsafe { from.cast::<[bf16; LANES]>().read_unaligned() };
        Lanes(raw.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(self.0.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(self.0.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        Lanes(from_fn(|i| self.0[i] * factor.0[i] + term.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Lanes(self.0.map(f32::abs))
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        Lanes(from_fn(|i| if self.0[i] < bound.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    unsafe fn exponent(self) -> Self {
        Lanes(self.0.map(|x| f32::from_bits(x.to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}
