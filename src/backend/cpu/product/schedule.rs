//! How a product is cut into tasks and handed to threads.
//!
//! A task is a run of row tiles times a run of panels, all of k. For each block of k it interleaves its rows into L2 and multiplies them with
//! panel after panel; the sums stay in L2 until the last block. Rows are interleaved once per task, so that scratch memory is a constant
//! per thread, whatever m, n and k: interleaved once per product they took m * k values, more than the largest activation of a small
//! bridge, and their threads had to wait for each other. A task is wide enough to make up for it (`TASK_SUMS`).

use std::mem::MaybeUninit;
use std::ops::Range;

use super::micro::{Available, Element, MAX_PANELS, Next, Operands, PANEL};
use super::rows::{EMPTY_STAGE, Rows, STAGE, Span, Stage, interleave};
use super::{Epilogue, INLINE_PRODUCT, Storage, as_uninit, written};
use crate::size::{Size, Word};
use crate::threads::{Pool, Tasks};

/// Values of k in one block, for every shape and instruction set, since it decides how sums are rounded: 256 x 16 weights are 16 KiB,
/// half of a 32 KiB L1, and stay there while all rows of a task pass; the rest takes 6 or 12 rows of x.
const DEPTH: usize = STAGE;

/// The most rows of one task: 144 x 256 values of x are 144 KiB of L2, and a line of weights fetched from memory is used for 144 rows.
const TASK_ROWS: usize = 144;

/// The most sums of one task (256 KiB of L2), which decides how many panels it takes.
const TASK_SUMS: usize = 64 << 10;

/// The most panels of one task, a power of two: 512 multiply-adds for each interleaved value.
const TASK_PANELS: usize = 32;

/// Panels below which more rows are split off before panels are.
const FEW_PANELS: usize = 8;

/// From this many tiles of rows on, 16-bit weights are widened once into L1 instead of once per tile.
const WIDEN_TILES: usize = 3;

/// Tasks per thread below which tasks are made smaller.
const TASKS_PER_THREAD: usize = 2;

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub glu: bool,
}

impl Shape {
    /// Panels of both matrices, if there are two.
    fn panels(self) -> usize {
        self.n.div_ceil(PANEL).saturating_mul(if self.glu { 2 } else { 1 })
    }

    /// The most rows of one task. The rows of a full tile divide `TASK_ROWS` on every instruction set, so a run of tiles never exceeds it.
    fn task_rows(self) -> usize {
        self.m.min(TASK_ROWS)
    }

    /// The most panels of one task.
    fn task_panels(self) -> usize {
        let most = (TASK_SUMS / PANEL / self.task_rows().max(1)).clamp(2, TASK_PANELS);
        1 << most.ilog2()
    }

    /// Scratch of one worker, in parts that begin on cache lines.
    fn worker(self, storage: Storage) -> Worker {
        let panels = self.task_panels().min(self.panels()).next_multiple_of(2);
        Worker {
            sums: self.task_rows() * row_stride(panels),
            x: (self.task_rows() * DEPTH.min(self.k)).next_multiple_of(PANEL) + PANEL,
            wide: if storage == Storage::F32 { 0 } else { MAX_PANELS * DEPTH * PANEL },
        }
    }
}

/// Elements between the rows of sums: one line more than they fill, since rows a power of two apart would share few sets of the L1.
fn row_stride(panels: usize) -> usize {
    (panels + 1) * PANEL
}

/// Lengths of the parts of a worker's scratch: sums, interleaved rows, widened panels.
#[derive(Clone, Copy)]
struct Worker {
    sums: usize,
    x: usize,
    wide: usize,
}

impl Worker {
    fn len(self) -> usize {
        self.sums + self.x + self.wide
    }
}

/// f32 elements of scratch for `threads` threads.
pub fn scratch_len<W: Word>(m: usize, n: usize, k: usize, glu: bool, storage: Storage, threads: usize) -> Size<W> {
    Size::of(Shape { m, n, k, glu }.worker(storage).len()) * threads
}

/// `count` things in `parts` runs whose lengths differ by at most one, the longer ones first: the run `index`.
fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (short, longer) = (count / parts, count % parts);
    let start = index * short + index.min(longer);
    start..start + short + usize::from(index < longer)
}

/// Everything the tasks of one product share.
struct Product<'a, E: Element, R, P> {
    shape: Shape,
    kernels: Available<E>,
    widened: Available<f32>,
    panels: &'a [E],
    x: &'a R,
    epilogue: &'a P,
    worker: Worker,
    /// Tile i is the rows `share(m, tiles, i)`.
    tiles: usize,
    row_tasks: usize,
    task_panels: usize,
}

#[allow(clippy::too_many_arguments, reason = "one caller")]
pub(super) fn run<E: Element>(
    pool: &Pool,
    shape: Shape,
    x: &impl Rows,
    panels: &[E],
    kernels: Available<E>,
    widened: Available<f32>,
    epilogue: &impl Epilogue,
    scratch: &mut [MaybeUninit<f32>],
) {
    let Shape { m, n, k, .. } = shape;
    if m == 0 || n == 0 {
        return;
    }
    let worker = shape.worker(E::STORAGE);
    let work = shape.panels().saturating_mul(PANEL).saturating_mul(m).saturating_mul(k);
    let threads = if work < INLINE_PRODUCT { 1 } else { pool.threads().min(scratch.len() / worker.len()) };
    let tiles = m.div_ceil(kernels.max_rows());
    let (row_tasks, task_panels) = cut(shape, tiles, threads);
    let product = Product { shape, kernels, widened, panels, x, epilogue, worker, tiles, row_tasks, task_panels };
    let count = row_tasks * shape.panels().div_ceil(task_panels);
    let tasks = Tasks::new(count);
    pool.parts(&mut scratch[..threads.min(count) * worker.len()], worker.len(), |scratch| {
        let mut stage = EMPTY_STAGE;
        while let Some(task) = tasks.draw() {
            product.task(task, scratch, &mut stage);
        }
    });
}

/// Into how many runs the tiles of rows are cut, and how many panels a task takes.
fn cut(shape: Shape, tiles: usize, threads: usize) -> (usize, usize) {
    let mut row_tasks = shape.m.div_ceil(TASK_ROWS);
    let mut task_panels = shape.task_panels();
    let enough = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
    while row_tasks * shape.panels().div_ceil(task_panels) < enough {
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

impl<E: Element, R: Rows, P: Epilogue> Product<'_, E, R, P> {
    /// One task. Tasks with the same panels follow each other, so threads that work on them at the same time share the weights in L3.
    fn task(&self, task: usize, scratch: &mut [MaybeUninit<f32>], stage: &mut Stage) {
        let Shape { m, n, k, glu } = self.shape;
        let tiles = share(self.tiles, self.row_tasks, task % self.row_tasks);
        let first_panel = task / self.row_tasks * self.task_panels;
        let panels = first_panel..self.shape.panels().min(first_panel + self.task_panels);
        let rows = share(m, self.tiles, tiles.start).start..share(m, self.tiles, tiles.end - 1).end;
        let row_stride = row_stride(panels.len());

        let (sums, rest) = scratch.split_at_mut(self.worker.sums);
        let (x, wide) = rest.split_at_mut(self.worker.x);
        let sums = &mut sums[..rows.len() * row_stride];
        if k == 0 {
            sums.fill(MaybeUninit::new(0.0));
        }
        for k0 in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - k0);
            let mut at = 0;
            for tile in tiles.clone() {
                let span = |tile: usize| {
                    let rows = share(m, self.tiles, tile);
                    Span { row: rows.start, rows: rows.len(), k0, len: depth }
                };
                let (this, next) = (span(tile), (tile + 1 < tiles.end).then(|| span(tile + 1)));
                interleave(self.widened, self.x, this, this.rows, next, &mut x[at..], stage);
                at += this.rows * depth;
            }
            // SAFETY: x was interleaved just now, and the sums of the block before are those of the same rows and columns.
            unsafe { self.block(tiles.clone(), rows.start, panels.clone(), k0, x, sums, wide) };
        }

        let matrices = if glu { 2 } else { 1 };
        let col = first_panel / matrices * PANEL;
        let half = panels.len() / matrices * PANEL;
        let cols = half.min(n - col);
        for (row, sums) in rows.zip(sums.chunks_exact(row_stride)) {
            // SAFETY: every tile stores whole panels, whose columns are all those of the task.
            let finished = |at: usize| unsafe { written(&sums[at..][..cols]) };
            self.epilogue.store(row, col, finished(0), glu.then(|| finished(half)));
        }
    }

    /// One block of k of a task: panel after panel (each stays in L1), all tiles of rows (which stay in L2).
    ///
    /// # Safety
    /// `x` holds the rows' values of this block, and `sums`, unless it is the first block, what the one before left there.
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
        let Shape { m, k, glu, .. } = self.shape;
        let depth = DEPTH.min(k - k0);
        let row_stride = row_stride(panels.len());
        let column = |panel: usize| match glu {
            false => panel * PANEL,
            true => (panel / 2 + panel % 2 * (panels.len() / 2)) * PANEL,
        };
        let height = |tile: usize| share(m, self.tiles, tile).len();
        let (most, least) = (self.kernels.panels(height(tiles.start)), self.kernels.panels(height(tiles.end - 1)));
        let at_once = if most == least { most } else { 1 };
        let widens = size_of::<E>() != size_of::<f32>() && tiles.len() >= WIDEN_TILES;

        let next_block = if k0 + DEPTH < k { panels.start * k + k0 + DEPTH } else { panels.end * k };
        let mut panel = panels.start;
        while panel < panels.end {
            let count = if panel + at_once <= panels.end { at_once } else { 1 };
            let columns = std::array::from_fn(|i| column(panel - panels.start + i));
            let w = &self.panels[(panel * k + k0) * PANEL..];
            let next_block = if panel + count < panels.end { (panel + count) * k + k0 } else { next_block };
            let next = self.panels.as_ptr().wrapping_add(next_block * PANEL).cast::<u8>();
            let step = (PANEL * size_of::<E>()).div_ceil(tiles.len());
            if widens {
                for (i, wide) in wide.chunks_exact_mut(DEPTH * PANEL).take(count).enumerate() {
                    self.kernels.widen(&w[i * k * PANEL..][..depth * PANEL], wide);
                }
            }
            for (i, tile) in tiles.clone().enumerate() {
                let next =
                    Next { start: next.wrapping_add(i * depth * step), step, stride: k * PANEL * size_of::<E>() };
                let rows = share(m, self.tiles, tile);
                let x = &x[(rows.start - first_row) * depth..];
                let sums = &mut sums[(rows.start - first_row) * row_stride..];
                if widens {
                    let operands = Operands {
                        x,
                        w: wide,
                        panel_stride: DEPTH * PANEL,
                        depth,
                        columns,
                        row_stride,
                        first: k0 == 0,
                        next,
                    };
                    // SAFETY: `widen` has written `depth` steps of each panel; the rest is the caller's.
                    unsafe { self.widened.run(rows.len(), count, operands, sums) };
                } else {
                    let (w, panel_stride) = (as_uninit(w), k * PANEL);
                    let operands = Operands { x, w, panel_stride, depth, columns, row_stride, first: k0 == 0, next };
                    // SAFETY: weights are written; the rest is the caller's.
                    unsafe { self.kernels.run(rows.len(), count, operands, sums) };
                }
            }
            panel += count;
        }
    }
}
