//! The innermost tile of the product: `ROWS` rows of x times `PANELS` column panels of W, over one block of k.
//!
//! One generic function, [`tile`], is the only arithmetic of the module. An instruction set supplies a [`Vector`] and a table of
//! `tile` instances compiled with its target features, so the order of operations is the same everywhere: every output has one
//! accumulator, starts at zero, takes one multiply-add per k in ascending order, and is added to the sum of the earlier blocks.
//! That is why a value does not depend on which tile shape computed it.

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod avx2;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod avx512;
mod portable;

use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::super::instructions::{Detected, InstructionSet};

/// Outputs in one column panel: two AVX2 registers, one AVX-512 register, four NEON or SSE registers, and exactly one cache line
/// of f32 per k. It is the same for every instruction set, so packed weights can be stored and moved between machines.
pub const PANEL: usize = 16;

/// The most panels any tile takes at once.
pub(super) const MAX_PANELS: usize = 4;

/// A register of f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of the implementing type; pointers must be valid for `LANES` elements (`splat`: one)
/// and need no alignment.
pub(super) trait Vector: Copy {
    unsafe fn zero() -> Self;
    unsafe fn splat(from: *const f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    /// `self + a * b`, rounded once where the instruction set can.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// Transposes `LANES` registers: lane j of the i-th becomes lane i of the j-th.
    unsafe fn transpose(block: &mut [Self]);
    const LANES: usize;
}

/// The type that packed weights are stored in. 16-bit weights are widened (exactly) on the fly: half the memory traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F32,
    F16,
    Bf16,
}

impl Storage {
    /// Bytes of one packed weight.
    pub fn element_bytes(self) -> usize {
        match self {
            Storage::F32 => size_of::<f32>(),
            Storage::F16 | Storage::Bf16 => size_of::<u16>(),
        }
    }
}

/// A storage type of packed weights; widening to f32 is exact.
pub(super) trait Element: Copy + Send + Sync + 'static {
    const STORAGE: Storage;
    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load<V: Vector>(from: *const Self) -> V;
    fn kernels(on: Detected) -> &'static Kernels<Self>;
}

impl Element for f32 {
    const STORAGE: Storage = Storage::F32;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's contract is that of `Vector::load`.
        unsafe { V::load(from) }
    }

    fn kernels(on: Detected) -> &'static Kernels<Self> {
        kernels(on)
    }
}

impl Element for f16 {
    const STORAGE: Storage = Storage::F16;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's contract is that of `Vector::load`.
        unsafe { V::load_f16(from) }
    }

    fn kernels(on: Detected) -> &'static Kernels<Self> {
        kernels(on)
    }
}

impl Element for bf16 {
    const STORAGE: Storage = Storage::Bf16;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's contract is that of `Vector::load`.
        unsafe { V::load_bf16(from) }
    }

    fn kernels(on: Detected) -> &'static Kernels<Self> {
        kernels(on)
    }
}

fn kernels<E: Element>(on: Detected) -> &'static Kernels<E> {
    #[cfg(test)]
    if on.has_wide_shape() {
        return const { &portable::wide_shape::kernels::<E>() };
    }
    match on.set() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx512 => const { &avx512::kernels::<E>() },
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        InstructionSet::Avx2 => const { &avx2::kernels::<E>() },
        _ => const { &portable::kernels::<E>() },
    }
}

/// Everything one instruction set offers for one storage type.
pub(super) struct Kernels<E: 'static> {
    /// For 1, 2, ... rows.
    rows: &'static [RowKernels<E>],
    widen: unsafe fn(&[E], &mut [MaybeUninit<f32>]),
    /// [`interleave`] for `PANEL` rows.
    interleave_panel: unsafe fn(&Interleave),
}

/// The tiles for one number of rows; a table holds them for 1, 2, ... rows in order.
struct RowKernels<E> {
    /// How many panels `wide` takes: enough that its accumulators hide the latency of the multiply-add, no more than fit registers.
    panels: usize,
    wide: Tile<E>,
    single: Tile<E>,
    interleave: unsafe fn(&Interleave),
}

type Tile<E> = unsafe fn(&Job<E>);

/// What one tile reads and writes.
///
/// # Contract
/// `x` is valid for `depth * ROWS` reads, k-major; panel `p` starts at `w + p * panel_stride` and is valid for `depth * PANEL` reads,
/// k-major; for every row and panel, `sums + row * row_stride + columns[p]` is valid for `PANEL` reads and writes, and no other
/// thread touches them. No pointer needs alignment. `next` is only prefetched from and may be anything.
struct Job<E> {
    depth: usize,
    x: *const f32,
    w: *const E,
    panel_stride: usize,
    sums: *mut f32,
    row_stride: usize,
    columns: [usize; MAX_PANELS],
    first: bool,
    next: *const u8,
    next_step: usize,
    next_stride: usize,
}

/// Asks for a cache line in L2.
#[inline(always)]
fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the architecture, and a prefetch never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// See the module's header.
///
/// # Safety
/// `job` keeps the contract of [`Job`] for `ROWS` and `PANELS`, `VECTORS * V::LANES == PANEL`, and the caller has the target features
/// of `V`.
#[inline(always)]
unsafe fn tile<V: Vector, E: Element, const ROWS: usize, const PANELS: usize, const VECTORS: usize>(job: &Job<E>) {
    const { assert!(VECTORS * V::LANES == PANEL && PANELS <= MAX_PANELS) };
    // SAFETY: every offset below stays inside the ranges named by the contract of `Job`.
    unsafe {
        let mut acc = [[[V::zero(); VECTORS]; PANELS]; ROWS];
        let (mut x, mut w, mut next) = (job.x, job.w, job.next);
        for _ in 0..job.depth {
            // Look at the machine code after touching these loops. With the panels outermost LLVM keeps the broadcasts of all rows
            // alive and spills accumulators; with `flatten` it does not unroll, and every accumulator lives in memory (8 times slower).
            let mut weights = [[V::zero(); VECTORS]; PANELS];
            for (p, weights) in weights.iter_mut().enumerate() {
                prefetch(next.wrapping_add(p * job.next_stride));
                for (v, weights) in weights.iter_mut().enumerate() {
                    *weights = E::load(w.add(p * job.panel_stride + v * V::LANES));
                }
            }
            for (row, acc) in acc.iter_mut().enumerate() {
                let value = V::splat(x.add(row));
                for (acc, weights) in acc.iter_mut().zip(&weights) {
                    for (acc, &weights) in acc.iter_mut().zip(weights) {
                        *acc = acc.add_product(value, weights);
                    }
                }
            }
            x = x.add(ROWS);
            w = w.add(PANEL);
            next = next.wrapping_add(job.next_step);
        }
        for (row, acc) in acc.iter().enumerate() {
            for (acc, &column) in acc.iter().zip(&job.columns) {
                for (v, &acc) in acc.iter().enumerate() {
                    let sums = job.sums.add(row * job.row_stride + column + v * V::LANES);
                    let total = if job.first { acc } else { V::load(sums).add(acc) };
                    total.store(sums);
                }
            }
        }
    }
}

/// Widens as many elements as both slices have.
///
/// # Safety
/// The caller has the target features of `V`.
#[inline(always)]
unsafe fn widen<V: Vector, E: Element>(from: &[E], to: &mut [MaybeUninit<f32>]) {
    for (from, to) in from.chunks_exact(PANEL).zip(to.chunks_exact_mut(PANEL)) {
        for lane in (0..PANEL).step_by(V::LANES) {
            // SAFETY: both chunks hold `PANEL` elements, a multiple of `LANES`.
            unsafe { E::load::<V>(from.as_ptr().add(lane)).store(to.as_mut_ptr().add(lane).cast()) }
        }
    }
}

/// Rows that become one tile: value k of the i-th row goes to `to + k * ROWS + i`.
///
/// # Contract
/// The first `ROWS` of `rows` are valid for `len` reads, `to` for `len * ROWS + PANEL` writes. `next` are only prefetched from.
struct Interleave {
    rows: [*const f32; PANEL],
    next: Option<[*const f32; PANEL]>,
    len: usize,
    to: *mut f32,
}

/// Transposes blocks of `LANES` x `LANES` values in registers and stores each column as a whole register: what exceeds the rows is overwritten
/// by the next column. Prefetching the rows to come matters: they lie in L3, often a power of two apart, so that no earlier prefetch
/// survives in L2. (Four rows at a time in 16-byte pieces took 2.8 cycles a value.)
///
/// # Safety
/// `job` keeps the contract of [`Interleave`]; the caller has the target features of `V`.
#[inline(always)]
unsafe fn interleave<V: Vector, const LANES: usize, const ROWS: usize>(job: &Interleave) {
    const { assert!(V::LANES == LANES && LANES <= PANEL && (ROWS <= LANES || ROWS.is_multiple_of(LANES))) };
    let whole = job.len / LANES * LANES;
    // SAFETY: the contract bounds every row and `to`.
    unsafe {
        for k in (0..whole).step_by(LANES) {
            if let Some(next) = &job.next {
                for next in &next[..ROWS] {
                    prefetch(next.wrapping_add(k).cast());
                }
            }
            for group in (0..ROWS).step_by(LANES) {
                let mut block: [V; LANES] = std::array::from_fn(|i| match group + i < ROWS {
                    true => V::load(job.rows[group + i].add(k)),
                    false => V::zero(),
                });
                V::transpose(&mut block);
                for (i, column) in block.iter().enumerate() {
                    column.store(job.to.add((k + i) * ROWS + group));
                }
            }
        }
        for k in whole..job.len {
            for (i, row) in job.rows[..ROWS].iter().enumerate() {
                *job.to.add(k * ROWS + i) = *row.add(k);
            }
        }
    }
}

/// The operands of [`Available::run`], as slices.
pub(super) struct Operands<'a, E> {
    /// Rows of x, k-major: `depth * rows` values.
    pub x: &'a [MaybeUninit<f32>],
    /// From the first panel on; panel p begins at `p * panel_stride`.
    pub w: &'a [MaybeUninit<E>],
    pub panel_stride: usize,
    pub depth: usize,
    /// Where each panel's sums begin inside a row of sums.
    pub columns: [usize; MAX_PANELS],
    pub row_stride: usize,
    /// Whether this is the first block of k: the sums are then overwritten.
    pub first: bool,
    pub next: Next,
}

/// What a tile prefetches: from `start` on, `step` bytes further at each k; the same for as many panels as it computes, `stride` bytes
/// apart.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub start: *const u8,
    pub step: usize,
    pub stride: usize,
}

/// The kernels of an instruction set that this machine has.
#[derive(Clone, Copy)]
pub(super) struct Available<E: 'static>(&'static Kernels<E>);

impl<E: Element> Available<E> {
    pub fn new(on: Detected) -> Self {
        Self(E::kernels(on))
    }

    /// The most rows one tile takes.
    pub fn max_rows(self) -> usize {
        self.0.rows.len()
    }

    /// How many panels a tile of so many rows should take.
    pub fn panels(self, rows: usize) -> usize {
        self.0.rows[rows - 1].panels
    }

    /// Widens panels to f32, exactly.
    pub fn widen(self, from: &[E], to: &mut [MaybeUninit<f32>]) {
        // SAFETY: `self` exists only if the instruction set is available.
        unsafe { (self.0.widen)(from, to) }
    }

    /// Interleaves `len` values of each row, at most [`Self::max_rows`] rows or `PANEL`; `to` has `PANEL` values more than that takes. `next`,
    /// at most as many rows, are prefetched.
    pub fn interleave(self, rows: &[&[f32]], next: Option<&[&[f32]]>, len: usize, to: &mut [MaybeUninit<f32>]) {
        assert!(to.len() >= len * rows.len() + PANEL && rows.iter().all(|row| row.len() >= len));
        let interleave = match rows.len() {
            PANEL => self.0.interleave_panel,
            rows => self.0.rows[rows - 1].interleave,
        };
        let pointers = |rows: &[&[f32]]| std::array::from_fn(|i| rows.get(i).unwrap_or(&rows[0]).as_ptr());
        let job = Interleave { rows: pointers(rows), next: next.map(pointers), len, to: to.as_mut_ptr().cast() };
        // SAFETY: the assertion above is the contract of `Interleave`, and the instruction set is available.
        unsafe { interleave(&job) }
    }

    /// Runs one tile of `rows` rows and `panels` panels (1, or [`Self::panels`] of `rows`) on `sums`.
    ///
    /// # Safety
    /// What the tile reads has been written: `depth` values of x for each row, `depth * PANEL` of each panel, and the sums unless this is the first
    /// block.
    #[inline]
    pub unsafe fn run(self, rows: usize, panels: usize, operands: Operands<'_, E>, sums: &mut [MaybeUninit<f32>]) {
        let kernels = &self.0.rows[rows - 1];
        let kernel = if panels == 1 { kernels.single } else { kernels.wide };
        let last_column = operands.columns[..panels].iter().max().map_or(0, |&c| c);
        assert!(panels == 1 || panels == kernels.panels);
        assert!(operands.x.len() >= operands.depth * rows);
        assert!(operands.w.len() >= (panels - 1) * operands.panel_stride + operands.depth * PANEL);
        assert!(sums.len() >= (rows - 1) * operands.row_stride + last_column + PANEL);
        let job = Job {
            depth: operands.depth,
            x: operands.x.as_ptr().cast(),
            w: operands.w.as_ptr().cast(),
            panel_stride: operands.panel_stride,
            sums: sums.as_mut_ptr().cast(),
            row_stride: operands.row_stride,
            columns: operands.columns,
            first: operands.first,
            next: operands.next.start,
            next_step: operands.next.step,
            next_stride: operands.next.stride,
        };
        // SAFETY: the assertions above and the caller keep the contract of `Job`, `sums` is borrowed mutably, and the instruction set is
        // available.
        unsafe { kernel(&job) }
    }
}
