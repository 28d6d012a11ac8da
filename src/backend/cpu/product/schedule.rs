//! How a product is cut into pieces and handed to threads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::micro::{Available, Element, MAX_PANELS, Next, Operands, PANEL};
use super::rows::{EMPTY_STAGE, Rows, Span, Stage, interleave};
use super::{Epilogue, INLINE_PACKING, INLINE_PRODUCT};

/// Values of k in one block, for every shape and instruction set, since it decides how sums are rounded: 256 x 16 weights are 16 KiB,
/// half of a 32 KiB L1, and stay there while all rows of a task pass; the rest takes 6 or 12 rows of x.
const DEPTH: usize = 256;

/// The most rows of one task: 144 x 256 values of x are 144 KiB of L2, and a line of weights fetched from memory is used for 144 rows.
const TASK_ROWS: usize = 144;

/// The most panels of one task. Its sums are then at most 144 x 128 x 4 = 72 KiB of L2.
const TASK_PANELS: usize = 8;

/// The most values of x packed at a time (16 MiB), unless `TASK_ROWS` rows are more.
const GROUP_VALUES: usize = 4 << 20;

/// From this many tiles of rows on, 16-bit weights are widened once into L1 instead of once per tile.
const WIDEN_TILES: usize = 3;

/// Tasks per thread below which tasks are made smaller.
const TASKS_PER_THREAD: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub glu: bool,
}

/// f32 elements of scratch for `threads` threads; `None` if they exceed the address space. It does not depend on the storage type of the weights
/// nor on whether there are two matrices.
pub fn scratch_len(m: usize, n: usize, k: usize, threads: usize) -> Option<usize> {
    let x = group_rows(m, k).checked_mul(k)?;
    threads.checked_mul(worker_len(m, n))?.checked_add(x)
}

/// Rows of x that are packed at a time.
fn group_rows(m: usize, k: usize) -> usize {
    let most = (GROUP_VALUES / k.max(1)).max(TASK_ROWS);
    m.div_ceil(m.div_ceil(most).max(1))
}

/// Scratch of one worker: the sums of a task, a block of widened panels, and room to align the latter.
fn worker_len(m: usize, n: usize) -> usize {
    let panels = n.div_ceil(PANEL).saturating_mul(2).min(TASK_PANELS);
    m.min(TASK_ROWS) * panels * PANEL + MAX_PANELS * DEPTH * PANEL + PANEL
}

/// `count` things in `parts` runs whose lengths differ by at most one, the longer ones first: the run `index`.
fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (short, longer) = (count / parts, count % parts);
    let start = index * short + index.min(longer);
    start..start + short + usize::from(index < longer)
}

/// Everything the tasks of one group of rows share.
struct Group<'a, E: Element> {
    shape: Shape,
    kernels: Available<E>,
    widened: Available<f32>,
    panels: &'a [E],
    /// The packed rows: tile i of `tiles` is `share(rows, tiles, i)`, k-major.
    x: &'a [f32],
    first_row: usize,
    rows: usize,
    tiles: usize,
    row_tasks: usize,
    task_panels: usize,
}

pub(super) fn run<E: Element>(
    shape: Shape,
    x: &impl Rows,
    panels: &[E],
    kernels: Available<E>,
    widened: Available<f32>,
    epilogue: &impl Epilogue,
    scratch: &mut [f32],
) {
    let Shape { m, n, k, glu } = shape;
    if m == 0 || n == 0 {
        return;
    }
    let most_rows = group_rows(m, k);
    let (packed, rest) = scratch.split_at_mut(most_rows * k);
    let worker_len = worker_len(m, n);
    let all_panels = n.div_ceil(PANEL) * if glu { 2 } else { 1 };
    let work = all_panels.saturating_mul(PANEL).saturating_mul(m).saturating_mul(k);
    let threads = if work < INLINE_PRODUCT { 1 } else { rayon::current_num_threads().min(rest.len() / worker_len) };

    for first_row in (0..m).step_by(most_rows) {
        let rows = most_rows.min(m - first_row);
        let tiles = rows.div_ceil(kernels.max_rows());
        let packed = &mut packed[..rows * k];
        pack_rows(x, first_row, rows, tiles, k, packed, threads);

        let (row_tasks, task_panels) = cut(rows, tiles, all_panels, threads);
        let group =
            Group { shape, kernels, widened, panels, x: packed, first_row, rows, tiles, row_tasks, task_panels };
        let tasks = row_tasks * all_panels.div_ceil(task_panels);
        let next = AtomicUsize::new(0);
        let work = |scratch: &mut [f32]| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                group.task(task, all_panels, epilogue, scratch);
            }
        };
        if threads == 1 {
            work(&mut rest[..worker_len]);
        } else {
            rest.par_chunks_exact_mut(worker_len).take(threads.min(tasks)).with_max_len(1).for_each(work);
        }
    }
}

/// Into how many runs the tiles of rows are cut, and how many panels a task takes.
fn cut(rows: usize, tiles: usize, all_panels: usize, threads: usize) -> (usize, usize) {
    let mut row_tasks = rows.div_ceil(TASK_ROWS);
    let mut task_panels = TASK_PANELS;
    let enough = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
    while row_tasks * all_panels.div_ceil(task_panels) < enough {
        if task_panels > 2 {
            task_panels /= 2;
        } else if row_tasks * 4 <= tiles {
            row_tasks *= 2;
        } else {
            break;
        }
    }
    (row_tasks, task_panels)
}

/// Packs rows into tiles. The taller tiles come first, so both kinds are equal chunks of memory.
fn pack_rows(x: &impl Rows, first_row: usize, rows: usize, tiles: usize, k: usize, packed: &mut [f32], threads: usize) {
    if k == 0 {
        return;
    }
    let pack = |stage: &mut Stage, (tile, to): (usize, &mut [f32])| {
        let range = share(rows, tiles, tile);
        let span = Span { row: first_row + range.start, rows: range.len(), k0: 0, len: k };
        interleave(x, span, range.len(), to, stage);
    };
    let (short, taller) = (rows / tiles, rows % tiles);
    let (tall_part, short_part) = packed.split_at_mut(taller * (short + 1) * k);
    let shift = |(index, to)| (taller + index, to);
    if threads == 1 || rows * k < INLINE_PACKING {
        let tall = tall_part.chunks_exact_mut((short + 1) * k).enumerate();
        let short = short_part.chunks_exact_mut(short * k).enumerate().map(shift);
        let mut stage = EMPTY_STAGE;
        tall.chain(short).for_each(|tile| pack(&mut stage, tile));
    } else {
        let tall = tall_part.par_chunks_exact_mut((short + 1) * k).enumerate();
        let short = short_part.par_chunks_exact_mut(short * k).enumerate().map(shift);
        tall.chain(short).for_each_init(|| EMPTY_STAGE, pack);
    }
}

impl<E: Element> Group<'_, E> {
    /// One task: a run of row tiles times a run of panels, all of k. Tasks with the same panels follow each other, so threads that
    /// work on them at the same time share the weights in L3.
    fn task(&self, task: usize, all_panels: usize, epilogue: &impl Epilogue, scratch: &mut [f32]) {
        let Shape { n, k, glu, .. } = self.shape;
        let tiles = share(self.tiles, self.row_tasks, task % self.row_tasks);
        let first_panel = task / self.row_tasks * self.task_panels;
        let panels = first_panel..all_panels.min(first_panel + self.task_panels);
        let rows = share(self.rows, self.tiles, tiles.start).start..share(self.rows, self.tiles, tiles.end - 1).end;
        let row_stride = panels.len() * PANEL;

        let (sums, rest) = scratch.split_at_mut(rows.len() * row_stride);
        let wide_start = rest.as_ptr().align_offset(64).min(PANEL);
        let wide = &mut rest[wide_start..][..MAX_PANELS * DEPTH * PANEL];
        if k == 0 {
            sums.fill(0.0);
        }
        for k0 in (0..k).step_by(DEPTH) {
            self.block(tiles.clone(), rows.start, panels.clone(), k0, sums, wide);
        }

        let matrices = if glu { 2 } else { 1 };
        let col = first_panel / matrices * PANEL;
        let cols = (row_stride / matrices).min(n - col);
        for (row, sums) in rows.zip(sums.chunks_exact(row_stride)) {
            let up = glu.then(|| &sums[row_stride / 2..][..cols]);
            epilogue.store(self.first_row + row, col, &sums[..cols], up);
        }
    }

    /// One block of k of a task: panel after panel (each stays in L1), all tiles of rows (which stay in L2).
    fn block(
        &self,
        tiles: Range<usize>,
        first_row: usize,
        panels: Range<usize>,
        k0: usize,
        sums: &mut [f32],
        wide: &mut [f32],
    ) {
        let Shape { k, glu, .. } = self.shape;
        let depth = DEPTH.min(k - k0);
        let row_stride = panels.len() * PANEL;
        let column = |panel: usize| match glu {
            false => panel * PANEL,
            true => panel / 2 * PANEL + panel % 2 * (row_stride / 2),
        };
        let height = |tile: usize| share(self.rows, self.tiles, tile).len();
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
                let rows = share(self.rows, self.tiles, tile);
                let x = &self.x[rows.start * k + k0 * rows.len()..];
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
                    self.widened.run(rows.len(), count, operands, sums);
                } else {
                    let operands =
                        Operands { x, w, panel_stride: k * PANEL, depth, columns, row_stride, first: k0 == 0, next };
                    self.kernels.run(rows.len(), count, operands, sums);
                }
            }
            panel += count;
        }
    }
}
