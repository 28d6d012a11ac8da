//! The division of a GEMM into tasks.
//!
//! A task is a run of row tiles times a run of panels, over all of k. For each block of k it packs
//! its rows into L2 and multiplies them with panel after panel. The sums stay in L2 until the last
//! block. Rows are packed once per task, so that scratch is a constant per thread. Packed once per
//! GEMM they took m * k values, more than the largest activation of a small bridge, and threads
//! waited for each other. A task is wide enough to make up for it (`TASK_SUMS`).

use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use super::Epilogue;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::micro::Bf16Matrices;
use super::micro::{
    Bf16, Bf16Pairs, F16, F32, Job, MAX_PANELS, MicroKernels, Next, PANEL, Packing, Product, WHOLE_DEPTH, WidenPanels,
};
use super::pack::{STAGE, Span, pack_rows, packed_len, panel_depth};
use crate::DType;
use crate::backend::cpu::instructions::Detected;
use crate::backend::cpu::rows::{FlatRows, Raw};
use crate::backend::cpu::simd;
use crate::backend::cpu::tasks::{self, Tasks};
use crate::size::{Size, Word};
use crate::tensor::HostMemory;
use crate::threads::Pool;

/// Values of k in one block. The same for every shape and instruction set, since it decides how
/// sums are rounded. 256 x 16 weights are 16 KiB, half of a 32 KiB L1, and stay there for all rows
/// of a task. The rest takes 6 or 12 rows of x.
const DEPTH: usize = STAGE;

/// The most rows of one task: 144 x 256 values of x are 144 KiB of L2, and a line of weights
/// fetched from memory is used for 144 rows.
const TASK_ROWS: usize = 144;

/// The same of tiles in matrix registers, whose rows divide it.
const MATRIX_TASK_ROWS: usize = 128;

/// Rows of a tile in matrix registers: two of them.
const MATRIX_ROWS: usize = 32;

/// The most sums of one task (256 KiB of L2), which decides how many panels it takes.
const TASK_SUMS: usize = 64 << 10;

/// The most panels of one task, a power of two: 512 multiply-adds for each packed value.
const TASK_PANELS: usize = 32;

/// With fewer panels, rows are split further before panels are.
const FEW_PANELS: usize = 8;

/// From this many row tiles on, 16-bit weights are widened once into L1, not once per tile.
const WIDEN_TILES: usize = 3;

/// Below this many tasks per thread, tasks are made smaller.
const TASKS_PER_THREAD: usize = 2;

/// Multiply-adds of a GEMM in the time of one multiply-add of another op.
const GEMM_SPEED: usize = 8;

/// The product of x [m, k] and W [n, k], or a gate and an up matrix of that shape.
#[derive(Clone, Copy)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub glu: bool,
    /// The dtype of x.
    pub x: DType,
    /// The packed weights' dtype.
    pub dtype: DType,
}

impl Shape {
    /// Whether bf16 meets bf16, which need not be widened.
    fn is_bf16(self) -> bool {
        self.dtype == DType::BF16 && self.x == DType::BF16
    }

    /// Panels of both matrices, if there are two.
    fn panels(self) -> usize {
        self.n.div_ceil(PANEL).saturating_mul(if self.glu { 2 } else { 1 })
    }

    /// The most rows of one task. The rows of a full tile divide `TASK_ROWS` on every instruction
    /// set, so a run of tiles never exceeds it.
    fn task_rows(self) -> usize {
        self.m.min(TASK_ROWS)
    }

    fn task_panels(self) -> usize {
        let most = (TASK_SUMS / PANEL / self.task_rows().max(1)).clamp(2, TASK_PANELS);
        1 << most.ilog2()
    }

    /// f32 of scratch for each thread.
    pub fn scratch<W: Word>(self) -> Size<W> {
        Size::of(self.worker().len())
    }

    /// Scratch of one worker, in parts that begin on cache lines.
    fn worker(self) -> Worker {
        let panels = self.task_panels().min(self.panels()).next_multiple_of(2);
        // Whole matrix registers, and pairs, where there may be any.
        let (rows, whole) = match self.is_bf16() {
            true => (self.task_rows().next_multiple_of(PANEL), WHOLE_DEPTH),
            false => (self.task_rows(), 2),
        };
        Worker {
            sums: rows * row_stride(panels),
            x: (rows * DEPTH.min(self.k).next_multiple_of(whole)).next_multiple_of(PANEL) + PANEL,
            wide: if self.dtype == DType::F32 { 0 } else { MAX_PANELS * DEPTH * PANEL },
        }
    }
}

/// Distance of the rows of sums: one line more than they fill, since rows a power of two apart
/// would share few sets of the L1.
fn row_stride(panels: usize) -> usize {
    (panels + 1) * PANEL
}

/// Lengths of the parts of a worker's scratch: sums, packed rows, widened panels.
#[derive(Clone, Copy)]
struct Worker {
    sums: usize,
    x: usize,
    wide: usize,
}

impl Worker {
    const fn len(self) -> usize {
        self.sums + self.x + self.wide
    }
}

/// Run `index` of `count` items in `parts` runs of nearly equal length, the longer ones first.
fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (short, longer) = (count / parts, count % parts);
    let start = index * short + index.min(longer);
    start..start + short + usize::from(index < longer)
}

/// A planned GEMM: its tasks, and their scratch in the workspace.
#[derive(Clone, Copy)]
pub struct Gemm {
    shape: Shape,
    /// Rows of a tile in matrix registers: all but the last one have as many.
    whole_rows: Option<usize>,
    tiles: usize,
    row_tasks: usize,
    task_panels: usize,
    tasks: Tasks,
}

impl Gemm {
    /// Plans a GEMM of at least one output. `shared` f32 before its scratch are the caller's.
    /// `None` if the workspace does not fit the address space.
    pub fn plan(pool: &Pool, set: Detected, shape: Shape, shared: Size) -> Option<Self> {
        let work = shape.panels().saturating_mul(PANEL).saturating_mul(shape.m).saturating_mul(shape.k) / GEMM_SPEED;
        let whole_rows = (shape.is_bf16() && set.has_matrices()).then_some(MATRIX_ROWS);
        let tiles = shape.m.div_ceil(whole_rows.unwrap_or(MicroKernels::<F32>::of(set).max_rows()));
        let task_rows = if whole_rows.is_some() { MATRIX_TASK_ROWS } else { TASK_ROWS };
        let (row_tasks, task_panels) = cut(shape, task_rows, tiles, tasks::threads_for(pool, work));
        let count = Size::product(&[row_tasks, shape.panels().div_ceil(task_panels)]);
        let tasks = Tasks::of(pool, shared, shape.scratch(), work, count)?;
        Some(Gemm { shape, whole_rows, tiles, row_tasks, task_panels, tasks })
    }

    pub fn bytes(&self) -> usize {
        self.tasks.bytes()
    }

    /// The rows of a tile: nearly equal numbers, or whole matrix registers.
    fn rows(&self, tile: usize) -> Range<usize> {
        match self.whole_rows {
            Some(rows) => tile * rows..self.shape.m.min((tile + 1) * rows),
            None => share(self.shape.m, self.tiles, tile),
        }
    }

    /// Computes the GEMM.
    ///
    /// # Safety
    /// The machine has `set`, and the GEMM was planned for it. `x` has m rows of k reals, `w` is
    /// what [`pack`](super::pack) wrote of matrices of this shape and dtype, and no one writes to
    /// either. The contract of [`Tasks::spread`] holds for `workspace`.
    pub unsafe fn run(
        &self,
        pool: &Pool,
        set: Detected,
        x: &FlatRows,
        w: Raw,
        epilogue: &impl Epilogue,
        workspace: &HostMemory,
    ) {
        // SAFETY: passed on to the caller, for weights of their dtype.
        unsafe {
            match self.shape.dtype {
                DType::F16 => self.run_on::<F16>(pool, set, x, w, epilogue, workspace),
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                DType::BF16 if self.whole_rows.is_some() => {
                    self.run_on::<Bf16Matrices>(pool, set, x, w, epilogue, workspace);
                }
                DType::BF16 if self.shape.is_bf16() && set.has_pairs() => {
                    self.run_on::<Bf16Pairs>(pool, set, x, w, epilogue, workspace);
                }
                DType::BF16 => self.run_on::<Bf16>(pool, set, x, w, epilogue, workspace),
                _ => self.run_on::<F32>(pool, set, x, w, epilogue, workspace),
            }
        }
    }

    /// # Safety
    /// As [`Gemm::run`], for weights and x as `P` says.
    unsafe fn run_on<P: Product>(
        &self,
        pool: &Pool,
        set: Detected,
        x: &FlatRows,
        w: Raw,
        epilogue: &impl Epilogue,
        workspace: &HostMemory,
    ) {
        let Shape { n, k, glu, dtype, .. } = self.shape;
        let len = packed_len(n, k, glu, dtype).get().unwrap_or(0) * size_of::<f32>() / size_of::<P::Weight>();
        let (kernels, widened, packing) = (MicroKernels::of(set), MicroKernels::of(set), Packing::of(set));
        // SAFETY: the caller promises packed weights of this shape.
        let panels: &[MaybeUninit<P::Weight>] = unsafe { slice::from_raw_parts(w.address().cast(), len) };
        let call: Call<'_, P, _> =
            Call { gemm: self, set, kernels, widened, packing, panels, x, epilogue, worker: self.shape.worker() };
        // SAFETY: the caller's contract is that of `spread` and `task`; scratch is as planned.
        unsafe {
            self.tasks.spread(pool, workspace, usize::MAX, |task, scratch| {
                call.task(task, slice::from_raw_parts_mut(scratch.cast(), call.worker.len()));
            });
        }
    }
}

struct Call<'a, P: Product, E> {
    gemm: &'a Gemm,
    set: Detected,
    kernels: MicroKernels<P>,
    widened: MicroKernels<F32>,
    packing: Packing,
    panels: &'a [MaybeUninit<P::Weight>],
    x: &'a FlatRows,
    epilogue: &'a E,
    worker: Worker,
}

/// The number of runs of row tiles, and the panels of a task.
fn cut(shape: Shape, task_rows: usize, tiles: usize, threads: usize) -> (usize, usize) {
    let mut row_tasks = shape.m.div_ceil(task_rows);
    let mut task_panels = shape.task_panels();
    let enough = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
    while row_tasks.saturating_mul(shape.panels().div_ceil(task_panels)) < enough {
        if task_panels > FEW_PANELS {
            task_panels /= 2;
        } else if row_tasks * 4 <= tiles {
            row_tasks *= 2;
        } else if task_panels > 2 {
            task_panels /= 2;
        } else {
            break;
        }
    }
    (row_tasks, task_panels)
}

impl<P: Product, E: Epilogue> Call<'_, P, E> {
    /// One task. Tasks with the same panels follow each other, so threads that work on them at the
    /// same time share the weights in L3.
    ///
    /// # Safety
    /// As [`Gemm::run`]. `scratch` is one worker's.
    unsafe fn task(&self, task: usize, scratch: &mut [MaybeUninit<f32>]) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: products in matrix registers are chosen only if the machine has them. A task runs
        // on one thread, and calls nothing else that uses them.
        let _registers = P::MATRICES.then(|| unsafe { amx::Registers::take() });
        let &Gemm { shape, tiles: all_tiles, row_tasks, task_panels, .. } = self.gemm;
        let Shape { n, k, glu, .. } = shape;
        let tiles = share(all_tiles, row_tasks, task % row_tasks);
        let first_panel = task / row_tasks * task_panels;
        let panels = first_panel..shape.panels().min(first_panel + task_panels);
        let rows = self.gemm.rows(tiles.start).start..self.gemm.rows(tiles.end - 1).end;
        let row_stride = row_stride(panels.len());

        let (sums, rest) = scratch.split_at_mut(self.worker.sums);
        let (x, wide) = rest.split_at_mut(self.worker.x);
        // Matrix registers are stored whole.
        let height = if P::MATRICES { rows.len().next_multiple_of(PANEL) } else { rows.len() };
        let sums = &mut sums[..height * row_stride];
        if k == 0 {
            sums.fill(MaybeUninit::new(0.0));
        }
        for k0 in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - k0);
            let values = P::values(depth);
            for tile in tiles.clone() {
                let span = |tile: usize| {
                    let rows = self.gemm.rows(tile);
                    Span { row: rows.start, rows: rows.len(), k0, len: depth }
                };
                let (this, next) = (span(tile), (tile + 1 < tiles.end).then(|| span(tile + 1)));
                let height = if P::MATRICES { this.rows.next_multiple_of(PANEL) } else { this.rows };
                let to = &mut x[(this.row - rows.start) * values..];
                assert!(to.len() >= height * values + PANEL);
                // SAFETY: the spans are rows of x, and `to` has room for the packed tile.
                unsafe {
                    pack_rows::<P>(self.packing, self.set, &|row| self.x.at(row), this, next, to.as_mut_ptr().cast())
                };
            }
            // SAFETY: x was just packed, and the sums so far are of the same rows and columns.
            unsafe { self.block(tiles.clone(), rows.start, panels.clone(), k0, x, sums, wide) };
        }

        let matrices = if glu { 2 } else { 1 };
        let col = first_panel / matrices * PANEL;
        let half = panels.len() / matrices * PANEL;
        let cols = half.min(n - col);
        for (row, sums) in rows.zip(sums.chunks_exact(row_stride)) {
            // SAFETY: every tile stores whole panels, whose columns are all those of the task.
            let finished = |at: usize| unsafe { slice::from_raw_parts(sums[at..][..cols].as_ptr().cast(), cols) };
            self.epilogue.store(row, col, finished(0), glu.then(|| finished(half)));
        }
    }

    /// One block of k of a task: panel after panel (each stays in L1), all row tiles (in L2).
    ///
    /// # Safety
    /// `x` holds the rows' values of this block, and `sums`, unless it is the first block, the sums
    /// of the one before.
    #[allow(clippy::too_many_arguments, reason = "one private caller")]
    unsafe fn block(
        &self,
        tiles: Range<usize>,
        first_row: usize,
        panels: Range<usize>,
        k0: usize,
        x: &[MaybeUninit<f32>],
        sums: &mut [MaybeUninit<f32>],
        wide: &mut [MaybeUninit<f32>],
    ) {
        let Shape { k, glu, .. } = self.gemm.shape;
        let depth = DEPTH.min(k - k0);
        // Steps of the block, of those before it, and of a panel.
        let all = panel_depth(k, self.gemm.shape.dtype) / P::PER_WEIGHT;
        let [steps, before] = [depth, k0].map(|k| k.div_ceil(P::PER_WEIGHT));
        let values = P::values(depth);
        let row_stride = row_stride(panels.len());
        let column = |panel: usize| match glu {
            false => panel * PANEL,
            true => (panel / 2 + panel % 2 * (panels.len() / 2)) * PANEL,
        };
        let height = |tile: usize| self.gemm.rows(tile).len();
        let (most, least) = (self.kernels.panels(height(tiles.start)), self.kernels.panels(height(tiles.end - 1)));
        let at_once = if most == least { most } else { 1 };
        let widens = P::WIDENS && tiles.len() >= WIDEN_TILES;

        let next_block = if k0 + DEPTH < k { panels.start * all + before + steps } else { panels.end * all };
        let mut panel = panels.start;
        while panel < panels.end {
            let count = if panel + at_once <= panels.end { at_once } else { 1 };
            let columns = std::array::from_fn(|i| column(panel - panels.start + i));
            let w = &self.panels[(panel * all + before) * PANEL..];
            let next_block = if panel + count < panels.end { (panel + count) * all + before } else { next_block };
            let next = self.panels.as_ptr().wrapping_add(next_block * PANEL).cast::<u8>();
            let step = (PANEL * size_of::<P::Weight>()).div_ceil(tiles.len());
            if widens {
                for (i, wide) in wide.chunks_exact_mut(DEPTH * PANEL).take(count).enumerate() {
                    let panel = &w[i * all * PANEL..][..steps * PANEL];
                    // SAFETY: the caller promises packed weights.
                    unsafe { simd::run(self.set, WidenPanels::<P>(panel, wide)) };
                }
            }
            for (i, tile) in tiles.clone().enumerate() {
                let next = Next {
                    start: next.wrapping_add(i * steps * step),
                    step,
                    stride: all * PANEL * size_of::<P::Weight>(),
                };
                let rows = self.gemm.rows(tile);
                let x = &x[(rows.start - first_row) * values..];
                let sums = &mut sums[(rows.start - first_row) * row_stride..];
                let (first, height) = (k0 == 0, rows.len());
                // SAFETY: weights are written, and `widen` has written those of the block's steps.
                // The rest is the caller's contract.
                unsafe {
                    if widens {
                        let (w, panel_stride) = (&*wide, DEPTH * PANEL);
                        let job = Job { x, w, panel_stride, steps: values, sums, row_stride, columns, first, next };
                        self.widened.run(height, count, job);
                    } else {
                        let panel_stride = all * PANEL;
                        let job = Job { x, w, panel_stride, steps, sums, row_stride, columns, first, next };
                        self.kernels.run(height, count, job);
                    }
                }
            }
            panel += count;
        }
    }
}
