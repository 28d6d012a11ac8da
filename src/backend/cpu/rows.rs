//! Rows of any real dtype as f32 and back, and pointers that threads may share.

use half::{bf16, f16};

use super::simd::{Kernel, Vector};
use crate::DType;
use crate::tensor::{Bound, HostMemory, Spec};

/// Lanes of the widest register: scratch rows are padded to a multiple of it.
pub(super) const PAD: usize = 16;

/// `n` rounded up to whole registers; for plans, in which that may overflow, see
/// [`Size::next_multiple_of`].
pub(super) const fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// An address of elements of some dtype, shared between threads. Users ensure disjoint writes.
#[derive(Clone, Copy)]
pub(super) struct Raw {
    at: *mut u8,
    dtype: DType,
}

// SAFETY: an address; every access through it is unsafe and governed by the contract of `record`.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    pub fn of(bound: &Bound<HostMemory>) -> Self {
        Raw::new(bound.memory.address(), bound.spec.dtype())
    }

    pub fn f32s(at: *mut f32) -> Self {
        Raw::new(at.cast(), DType::F32)
    }

    pub fn new(at: *mut u8, dtype: DType) -> Self {
        Raw { at, dtype }
    }

    pub fn dtype(self) -> DType {
        self.dtype
    }

    #[inline(always)]
    pub fn address(self) -> *mut u8 {
        self.at
    }

    #[inline(always)]
    pub fn add(self, elements: usize) -> Self {
        Raw { at: self.at.wrapping_add(elements * self.dtype.size()), ..self }
    }

    #[inline(always)]
    pub fn as_f32(self) -> Option<*mut f32> {
        (self.dtype == DType::F32).then_some(self.at.cast())
    }

    /// # Safety
    /// The element exists and is 4 bytes wide.
    #[inline(always)]
    pub unsafe fn u32(self) -> u32 {
        // SAFETY: passed on to the caller.
        unsafe { self.at.cast::<u32>().read() }
    }

    /// # Safety
    /// The element exists and is 4 bytes wide.
    #[inline(always)]
    pub unsafe fn i32(self) -> i32 {
        // SAFETY: passed on to the caller.
        unsafe { self.at.cast::<i32>().read() }
    }

    /// # Safety
    /// The element exists, is 4 bytes wide, and no one else accesses it.
    #[inline(always)]
    pub unsafe fn set_u32(self, value: u32) {
        // SAFETY: passed on to the caller.
        unsafe { self.at.cast::<u32>().write(value) }
    }

    /// Stores one real, rounded once.
    ///
    /// # Safety
    /// The element exists, and no one else accesses it.
    #[inline(always)]
    pub unsafe fn set_real(self, value: f32) {
        // SAFETY: passed on to the caller; the dtype is the operand's.
        unsafe {
            match self.dtype {
                DType::F16 => self.at.cast::<f16>().write(f16::from_f32(value)),
                DType::BF16 => self.at.cast::<bf16>().write(bf16::from_f32(value)),
                _ => self.at.cast::<f32>().write(value),
            }
        }
    }

    /// One real, as f32; it needs no alignment.
    ///
    /// # Safety
    /// The element exists.
    #[inline(always)]
    pub unsafe fn real(self) -> f32 {
        // SAFETY: passed on to the caller; the dtype is the operand's.
        unsafe {
            match self.dtype {
                DType::F16 => self.at.cast::<f16>().read_unaligned().to_f32(),
                DType::BF16 => self.at.cast::<bf16>().read_unaligned().to_f32(),
                _ => self.at.cast::<f32>().read_unaligned(),
            }
        }
    }

    /// Copies `n` elements to elements of the same dtype.
    ///
    /// # Safety
    /// Both rows exist and do not overlap, and no one else writes either.
    #[inline(always)]
    pub unsafe fn copy_to(self, to: Raw, n: usize) {
        debug_assert_eq!(self.dtype, to.dtype);
        // SAFETY: passed on to the caller.
        unsafe { std::ptr::copy_nonoverlapping(self.at, to.at, n * self.dtype.size()) }
    }

    /// The row of `n` elements as f32: in place if it is f32, else converted into `scratch`.
    ///
    /// # Safety
    /// The row exists, `scratch` holds `n` f32, the machine has the instruction set of `V`.
    #[inline(always)]
    pub unsafe fn borrow<V: Vector>(self, n: usize, scratch: *mut f32) -> *const f32 {
        match self.as_f32() {
            Some(at) => at,
            None => {
                // SAFETY: passed on to the caller.
                unsafe { self.load::<V>(n, scratch) };
                scratch
            }
        }
    }

    /// Converts `n` elements to f32.
    ///
    /// # Safety
    /// As [`Raw::borrow`].
    #[inline(always)]
    pub unsafe fn load<V: Vector>(self, n: usize, to: *mut f32) {
        let whole = n / V::LANES * V::LANES;
        // SAFETY: whole registers end at `whole` <= n; the rest goes element by element.
        unsafe {
            match self.dtype {
                DType::F16 => {
                    let from = self.at.cast::<f16>();
                    for i in (0..whole).step_by(V::LANES) {
                        V::load_f16(from.add(i)).store(to.add(i));
                    }
                }
                DType::BF16 => {
                    let from = self.at.cast::<bf16>();
                    for i in (0..whole).step_by(V::LANES) {
                        V::load_bf16(from.add(i)).store(to.add(i));
                    }
                }
                _ => {
                    std::ptr::copy_nonoverlapping(self.at.cast::<f32>(), to, n);
                    return;
                }
            }
            for i in whole..n {
                *to.add(i) = self.add(i).real();
            }
        }
    }

    /// Stores `n` f32, each rounded once.
    ///
    /// # Safety
    /// The row exists and no one else accesses it, `from` holds `n` f32 (and may be this row, if it
    /// is f32), the machine has the instruction set of `V`.
    #[inline(always)]
    pub unsafe fn store<V: Vector>(self, n: usize, from: *const f32) {
        let whole = n / V::LANES * V::LANES;
        // SAFETY: whole registers end at `whole` <= n; the rest goes element by element.
        unsafe {
            match self.dtype {
                DType::F16 => {
                    let to = self.at.cast::<f16>();
                    for i in (0..whole).step_by(V::LANES) {
                        V::load(from.add(i)).store_f16(to.add(i));
                    }
                }
                DType::BF16 => {
                    let to = self.at.cast::<bf16>();
                    for i in (0..whole).step_by(V::LANES) {
                        V::load(from.add(i)).store_bf16(to.add(i));
                    }
                }
                _ => {
                    std::ptr::copy(from, self.at.cast::<f32>(), n);
                    return;
                }
            }
            for i in whole..n {
                self.add(i).set_real(*from.add(i));
            }
        }
    }
}

/// A row as f32: in place if it is stored as f32, else converted into `to`.
///
/// Contract: that of [`Raw::borrow`].
pub(super) struct Widen {
    pub from: Raw,
    pub n: usize,
    pub to: *mut f32,
}

impl Kernel for Widen {
    type Output = *const f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> *const f32 {
        // SAFETY: the contract is that of `Raw::borrow`.
        unsafe { self.from.borrow::<V>(self.n, self.to) }
    }
}

/// Stores a row of f32, each rounded once.
///
/// Contract: that of [`Raw::store`].
pub(super) struct Store {
    pub from: *const f32,
    pub n: usize,
    pub to: Raw,
}

impl Kernel for Store {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the contract is that of `Raw::store`.
        unsafe { self.to.store::<V>(self.n, self.from) }
    }
}

/// The rows of an operand whose last dimension is contiguous, by up to three indices.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    base: Raw,
    strides: [usize; 3],
}

impl Rows {
    /// The operand's leading strides; missing dimensions have stride 0.
    pub fn of(bound: &Bound<HostMemory>) -> Self {
        let spec: &Spec = &bound.spec;
        let mut strides = [0; 3];
        let leading = spec.rank().saturating_sub(1).min(3);
        strides[..leading].copy_from_slice(&spec.strides()[..leading]);
        Rows { base: Raw::of(bound), strides }
    }

    pub fn f32s(at: *mut f32, strides: [usize; 2]) -> Self {
        Rows { base: Raw::f32s(at), strides: [strides[0], strides[1], 0] }
    }

    #[inline(always)]
    pub fn at(&self, index: [usize; 3]) -> Raw {
        self.base.add(index[0] * self.strides[0] + index[1] * self.strides[1] + index[2] * self.strides[2])
    }
}

/// The rows of an operand `[entries, rows, k]`, under one index.
#[derive(Clone, Copy)]
pub(super) struct FlatRows {
    pub rows: Rows,
    /// Rows per entry, not 0.
    pub per_entry: usize,
}

impl FlatRows {
    pub fn matrix(w: &Bound<HostMemory>) -> Self {
        FlatRows { rows: Rows::of(w), per_entry: 1 }
    }

    #[inline(always)]
    pub fn at(&self, row: usize) -> Raw {
        self.rows.at([row / self.per_entry, row % self.per_entry, 0])
    }
}
