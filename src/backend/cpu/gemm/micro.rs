//! The micro-kernel of GEMM: `ROWS` rows of x times `PANELS` column panels of W, over one block of
//! k, with the sums in registers.
//!
//! [`Tile`] is the only arithmetic of `gemm/`. Every output has one accumulator per block, which
//! starts at zero and takes one multiply-add per k, or per pair of k, in ascending order. It is
//! then added to the sum of the earlier blocks. So a value does not depend on the shape of the tile
//! that computed it.

use std::mem::MaybeUninit;

use half::f16;

use super::super::simd::{Kernel, Vector, prefetch};
use super::tiles;
use crate::backend::cpu::instructions::Detected;

/// Outputs in one column panel: two AVX2 registers, one AVX-512 register, four NEON or SSE
/// registers, and exactly one cache line of f32 per k. It is the same for every instruction set, so
/// packed weights can be stored and moved between machines.
pub const PANEL: usize = 16;

pub(super) const MAX_PANELS: usize = 4;

/// Values of k in a matrix register, of which packed bf16 weights have whole ones.
pub(super) const WHOLE_DEPTH: usize = 32;

/// How packed rows of x meet packed weights. A step of the micro-kernel takes one [`Self::Weight`]
/// of every output, and [`Self::VALUES`] 32-bit values of every row of x.
pub(super) trait Product: Copy + Sync + 'static {
    /// What is stored for an output and a step.
    type Weight: Copy + Send + Sync + 'static;
    /// Values of k in a weight.
    const PER_WEIGHT: usize;
    /// Values of k in a packed value of x.
    const PER_VALUE: usize;
    /// Packed values of x in a step.
    const VALUES: usize = Self::PER_WEIGHT / Self::PER_VALUE;
    /// Whether weights are not f32 and meet an x that is.
    const WIDENS: bool;
    /// Whether x is in whole matrix registers: rows of x behind one another, of whole 16 pairs, and
    /// whole 16 rows.
    const MATRICES: bool = false;

    /// Packed values of a row of x for so many values of k.
    fn values(depth: usize) -> usize {
        depth.div_ceil(Self::PER_WEIGHT) * Self::VALUES
    }

    /// The weights that meet the packed value `value` of x in this step.
    ///
    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load<V: Vector>(from: *const Self::Weight, value: usize) -> V;

    /// # Safety
    /// The machine has the instruction set of `V`.
    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, x: V, w: V) -> V {
        // SAFETY: passed on to the caller.
        unsafe { sum.add_product(x, w) }
    }

    /// The micro-kernels for 1, 2, ... rows.
    fn tiles(set: Detected) -> &'static [tiles::RowTiles<Self>] {
        tiles::of(set)
    }
}

/// Weights in f32.
#[derive(Clone, Copy)]
pub(super) struct F32;

/// Weights in f16, widened where they are used (exactly): half the memory traffic.
#[derive(Clone, Copy)]
pub(super) struct F16;

/// Weights in pairs of bf16, widened where they are used (exactly).
#[derive(Clone, Copy)]
pub(super) struct Bf16;

/// Weights and x in pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Bf16Pairs;

/// Weights and x in pairs of bf16, in the matrix registers of AMX.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[derive(Clone, Copy)]
pub(super) struct Bf16Matrices;

/// Two bf16 of an output, the lower k in the lower half.
pub(super) type Pair = u32;

impl Product for F32 {
    type Weight = f32;
    const PER_WEIGHT: usize = 1;
    const PER_VALUE: usize = 1;
    const WIDENS: bool = false;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32, _: usize) -> V {
        // SAFETY: the contract is that of `Vector::load`.
        unsafe { V::load(from) }
    }
}

impl Product for F16 {
    type Weight = f16;
    const PER_WEIGHT: usize = 1;
    const PER_VALUE: usize = 1;
    const WIDENS: bool = true;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f16, _: usize) -> V {
        // SAFETY: the contract is that of `Vector::load`.
        unsafe { V::load_f16(from) }
    }
}

impl Product for Bf16 {
    type Weight = Pair;
    const PER_WEIGHT: usize = 2;
    const PER_VALUE: usize = 1;
    const WIDENS: bool = true;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Pair, value: usize) -> V {
        // SAFETY: the contract is that of `Vector::load`.
        unsafe {
            let pairs = V::load(from.cast());
            if value == 0 { pairs.widen_half::<false>() } else { pairs.widen_half::<true>() }
        }
    }
}

impl Product for Bf16Pairs {
    type Weight = Pair;
    const PER_WEIGHT: usize = 2;
    const PER_VALUE: usize = 2;
    const WIDENS: bool = false;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Pair, _: usize) -> V {
        // SAFETY: the contract is that of `Vector::load`.
        unsafe { V::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, x: V, w: V) -> V {
        // SAFETY: passed on to the caller.
        unsafe { sum.add_pairs(x, w) }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Product for Bf16Matrices {
    type Weight = Pair;
    const PER_WEIGHT: usize = 2;
    const PER_VALUE: usize = 2;
    const WIDENS: bool = false;
    const MATRICES: bool = true;

    fn values(depth: usize) -> usize {
        depth.next_multiple_of(WHOLE_DEPTH) / 2
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Pair, _: usize) -> V {
        // SAFETY: the contract is that of `Vector::load`.
        unsafe { V::load(from.cast()) }
    }

    fn tiles(_: Detected) -> &'static [tiles::RowTiles<Self>] {
        tiles::matrices()
    }
}

/// Operands of one tile. `next` is only prefetched.
pub(super) struct Job<'a, W> {
    /// Packed rows of x, k-major: `steps * VALUES * rows` values.
    pub x: &'a [MaybeUninit<f32>],
    /// From the first panel on; panel p begins at `p * panel_stride`.
    pub w: &'a [MaybeUninit<W>],
    pub panel_stride: usize,
    pub steps: usize,
    pub sums: &'a mut [MaybeUninit<f32>],
    pub row_stride: usize,
    /// The offset of each panel's sums in a row of sums.
    pub columns: [usize; MAX_PANELS],
    /// Whether this is the first block of k: the sums are then overwritten.
    pub first: bool,
    pub next: Next,
}

/// Addresses that a tile prefetches: from `start` on, `step` bytes further at each step of k; the
/// same for as many panels as it computes, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub start: *const u8,
    pub step: usize,
    pub stride: usize,
}

/// The tile of `ROWS` rows and `PANELS` panels of `VECTORS` registers each. `VECTORS * V::LANES` is
/// [`PANEL`].
///
/// Contract: [`MicroKernels::run`] has checked the lengths of the job, and what it reads is
/// written.
pub(super) struct Tile<'a, 'j, P: Product, const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
    pub &'a mut Job<'j, P::Weight>,
);

impl<P: Product, const ROWS: usize, const PANELS: usize, const VECTORS: usize> Kernel
    for Tile<'_, '_, P, ROWS, PANELS, VECTORS>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        const { assert!(VECTORS * V::LANES == PANEL && PANELS <= MAX_PANELS) };
        let job = self.0;
        // SAFETY: every offset below stays inside the lengths that the contract of `Tile` names.
        unsafe {
            let mut acc = [[[V::splat(0.0); VECTORS]; PANELS]; ROWS];
            let mut x: *const f32 = job.x.as_ptr().cast();
            let mut w: *const P::Weight = job.w.as_ptr().cast();
            let (all_sums, mut next): (*mut f32, _) = (job.sums.as_mut_ptr().cast(), job.next.start);
            for _ in 0..job.steps {
                // Look at the machine code after touching these loops. With the panels outermost
                // LLVM keeps the broadcasts of all rows alive and spills accumulators. With
                // `flatten` it does not unroll, and accumulators live in memory (8 times slower).
                for p in 0..PANELS {
                    prefetch::<false>(next.wrapping_add(p * job.next.stride));
                }
                for value in 0..P::VALUES {
                    let mut weights = [[V::splat(0.0); VECTORS]; PANELS];
                    for (p, weights) in weights.iter_mut().enumerate() {
                        for (v, weights) in weights.iter_mut().enumerate() {
                            *weights = P::load(w.add(p * job.panel_stride + v * V::LANES), value);
                        }
                    }
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let value = V::broadcast(x.add(row));
                        for (acc, weights) in acc.iter_mut().zip(&weights) {
                            for (acc, &weights) in acc.iter_mut().zip(weights) {
                                *acc = P::add(*acc, value, weights);
                            }
                        }
                    }
                    x = x.add(ROWS);
                }
                w = w.add(PANEL);
                next = next.wrapping_add(job.next.step);
            }
            for (row, acc) in acc.iter().enumerate() {
                for (acc, &column) in acc.iter().zip(&job.columns) {
                    for (v, &acc) in acc.iter().enumerate() {
                        let sums = all_sums.add(row * job.row_stride + column + v * V::LANES);
                        let total = if job.first { acc } else { V::load(sums).add(acc) };
                        total.store(sums);
                    }
                }
            }
        }
    }
}

/// Widens the weights of as many steps as both slices have: f32 of one k after the other.
///
/// Contract: those of the first have been written.
pub(super) struct WidenPanels<'a, P: Product>(pub &'a [MaybeUninit<P::Weight>], pub &'a mut [MaybeUninit<f32>]);

impl<P: Product> Kernel for WidenPanels<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for (from, to) in self.0.chunks_exact(PANEL).zip(self.1.chunks_exact_mut(P::VALUES * PANEL)) {
            for (value, to) in to.chunks_exact_mut(PANEL).enumerate() {
                for lane in (0..PANEL).step_by(V::LANES) {
                    // SAFETY: both chunks hold `PANEL` elements, a multiple of `LANES`.
                    unsafe {
                        P::load::<V>(from.as_ptr().add(lane).cast(), value).store(to.as_mut_ptr().add(lane).cast());
                    }
                }
            }
        }
    }
}

/// Rows that become one packed tile: value k of the i-th row goes to `to + k * ROWS + i`. A value
/// is an f32, or a pair of bf16, which is moved like one.
///
/// Contract: the first `ROWS` of `rows` are valid for `len` reads and need no alignment, `to` for
/// `len * ROWS + PANEL` writes. `next` is only prefetched.
pub(super) struct Interleave {
    pub rows: [*const f32; PANEL],
    pub next: Option<[*const f32; PANEL]>,
    pub len: usize,
    pub to: *mut f32,
}

/// Packs `ROWS` rows: transposes blocks of `LANES` x `LANES` values in registers and stores each
/// column as a whole register. The next column overwrites lanes beyond the rows. Prefetching the
/// rows to come matters: they lie in L3, often a power of two apart, so that no earlier prefetch
/// survives in L2. (Four rows at a time in 16-byte pieces took 2.8 cycles a value.)
///
/// Contract: that of [`Interleave`].
pub(super) struct Interleaved<'a, const LANES: usize, const ROWS: usize>(pub &'a Interleave);

impl<const LANES: usize, const ROWS: usize> Kernel for Interleaved<'_, LANES, ROWS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        const { assert!(V::LANES == LANES && LANES <= PANEL && (ROWS <= LANES || ROWS.is_multiple_of(LANES))) };
        let job = self.0;
        let whole = job.len / LANES * LANES;
        // SAFETY: the contract of `Interleave` bounds every row and `to`.
        unsafe {
            for k in (0..whole).step_by(LANES) {
                if let Some(next) = &job.next {
                    for next in &next[..ROWS] {
                        prefetch::<false>(next.wrapping_add(k).cast());
                    }
                }
                for group in (0..ROWS).step_by(LANES) {
                    let mut block: [V; LANES] = std::array::from_fn(|i| match group + i < ROWS {
                        true => V::load(job.rows[group + i].add(k)),
                        false => V::splat(0.0),
                    });
                    V::transpose(&mut block);
                    for (i, column) in block.iter().enumerate() {
                        column.store(job.to.add((k + i) * ROWS + group));
                    }
                }
            }
            for k in whole..job.len {
                for (i, row) in job.rows[..ROWS].iter().enumerate() {
                    // Integers, since moving an f32 may change the bits of a NaN.
                    *job.to.add(k * ROWS + i).cast::<u32>() = row.add(k).cast::<u32>().read_unaligned();
                }
            }
        }
    }
}

/// The micro-kernels of an instruction set that this machine has, for one form of products.
#[derive(Clone, Copy)]
pub(super) struct MicroKernels<P: Product>(&'static [tiles::RowTiles<P>]);

impl<P: Product> MicroKernels<P> {
    pub fn of(set: Detected) -> Self {
        Self(P::tiles(set))
    }

    pub fn max_rows(self) -> usize {
        self.0.len()
    }

    /// Panels of a wide tile of `rows` rows.
    pub fn panels(self, rows: usize) -> usize {
        self.0[rows - 1].panels
    }

    /// Runs one tile of `rows` rows and `panels` panels: 1, or [`Self::panels`] of `rows`.
    ///
    /// # Safety
    /// What the tile reads has been written: the values of x for each row and step, the weights of
    /// each panel and step, and the sums unless this is the first block.
    #[inline]
    pub unsafe fn run(self, rows: usize, panels: usize, mut job: Job<'_, P::Weight>) {
        let kernels = &self.0[rows - 1];
        let kernel = if panels == 1 { kernels.single } else { kernels.wide };
        let last_column = job.columns[..panels].iter().max().map_or(0, |&c| c);
        assert!(panels == 1 || panels == kernels.panels);
        assert!(job.x.len() >= P::values(job.steps * P::PER_WEIGHT) * rows);
        assert!(job.w.len() >= (panels - 1) * job.panel_stride + job.steps * PANEL);
        assert!(job.sums.len() >= (rows - 1) * job.row_stride + last_column + PANEL);
        // SAFETY: the assertions and the caller keep the contract of `Tile`. `self` exists only if
        // the machine has the instruction set.
        unsafe { kernel(&mut job) }
    }
}

/// The kernels that pack rows on an instruction set that this machine has.
#[derive(Clone, Copy)]
pub(super) struct Packing(&'static tiles::Packing);

impl Packing {
    pub fn of(set: Detected) -> Self {
        Self(tiles::packing(set))
    }

    /// Packs `rows` rows, at most those of a tile in vector registers, or `PANEL` of them.
    ///
    /// # Safety
    /// The contract of [`Interleave`].
    pub unsafe fn interleave(self, rows: usize, job: &Interleave) {
        let interleave = if rows == PANEL { self.0.panel } else { self.0.rows[rows - 1] };
        // SAFETY: `self` exists only if the machine has the instruction set; the rest is passed on.
        unsafe { interleave(job) }
    }
}
