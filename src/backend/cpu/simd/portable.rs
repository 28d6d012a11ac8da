//! Lanes in plain Rust, which the compiler maps to the registers of the target.
//!
//! The ops run on eight lanes, the tiles of GEMM on four. `mul_add` never fuses: on targets without
//! such an instruction it would be a function call, a hundred times slower. `add_product` fuses if
//! every processor of the target can.

// SAFETY of every block here: `Vector`'s contract gives valid pointers. Accesses are unaligned.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]

use std::array::from_fn;

use half::{bf16, f16};

use super::{Kernel, Vector};

const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[derive(Clone, Copy)]
pub struct Lanes<const N: usize>([f32; N]);

impl<const N: usize> Lanes<N> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Lanes(from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl<const N: usize> Vector for Lanes<N> {
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.run::<Self>() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Lanes([value; N])
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const f32) -> Self {
        unsafe { Lanes([*from; N]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Lanes(from.cast::<[f32; N]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        let raw = unsafe { from.cast::<[f16; N]>().read_unaligned() };
        Lanes(raw.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        let raw = unsafe { from.cast::<[bf16; N]>().read_unaligned() };
        Lanes(raw.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16)))
    }
    #[inline(always)]
    unsafe fn widen_half<const UPPER: bool>(self) -> Self {
        let half = |bits: u32| if UPPER { bits & 0xffff_0000 } else { bits << 16 };
        Lanes(self.0.map(|x| f32::from_bits(half(x.to_bits()))))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        unsafe { to.cast::<[f16; N]>().write_unaligned(self.0.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe { to.cast::<[bf16; N]>().write_unaligned(self.0.map(bf16::from_f32)) }
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
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        let fused = |i: usize| a.0[i].mul_add(b.0[i], self.0[i]);
        let twice = |i: usize| self.0[i] + a.0[i] * b.0[i];
        Lanes(if FUSED { from_fn(fused) } else { from_fn(twice) })
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
    unsafe fn transpose(block: &mut [Self]) {
        let from: [[f32; N]; N] = from_fn(|i| block[i].0);
        for (i, register) in block.iter_mut().enumerate() {
            register.0 = from_fn(|j| from[j][i]);
        }
    }
}
