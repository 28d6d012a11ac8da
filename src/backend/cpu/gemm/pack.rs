//! Packing: W into column panels, once, and rows of x into tiles, for each block of k.
//!
//! Panel p holds the outputs `16 p .. 16 p + 16` of W [n, k], k-major: element `(p * k + kk) * 16 +
//! lane` is `W[16 p + lane][kk]`, zero beyond n. With a gate and an up matrix the panels alternate,
//! gate first. The layout is the same for every instruction set.

use std::mem::MaybeUninit;

use super::micro::{Interleave, MicroKernels, PANEL};
use crate::DType;
use crate::backend::cpu::instructions::Detected;
use crate::backend::cpu::rows::{FlatRows, Raw, Store, Widen};
use crate::backend::cpu::{simd, tasks};
use crate::size::{Size, Word};
use crate::threads::Pool;

/// The most k values packed at a time; a stage of 16 rows is 16 KiB of stack.
pub(super) const STAGE: usize = 256;

/// 16-bit rows, widened to f32.
type Stage = [[MaybeUninit<f32>; STAGE]; PANEL];

/// A row beyond the matrix.
static ZEROS: [f32; STAGE] = [0.0; STAGE];

/// f32 of the packed form of one matrix [n, k], or of a gate and an up matrix of that shape: whole
/// cache lines, or halves of them.
pub fn packed_len<W: Word>(n: usize, k: usize, glu: bool, dtype: DType) -> Size<W> {
    let panels = Size::of(n.div_ceil(PANEL)) * if glu { 2 } else { 1 };
    panels * k * (PANEL * dtype.size() / size_of::<f32>())
}

/// Packs W [n, k], or a gate and an up matrix of that shape, at `to`, rounded to its dtype. A task
/// is a panel.
///
/// # Safety
/// The machine has `set`. Every matrix has n rows of k reals. `to` has room for [`packed_len`], and
/// no one else uses it.
pub unsafe fn pack(pool: &Pool, set: Detected, w: &[FlatRows], n: usize, k: usize, to: Raw) {
    let panels = n.div_ceil(PANEL) * w.len();
    let kernels = MicroKernels::of(set);
    // Packing a value takes as long as moving two.
    let threads = tasks::threads_for(pool, (panels * k * PANEL).saturating_mul(2));
    pool.deal(threads, panels, |_, panel| {
        let mut block = [MaybeUninit::<f32>::uninit(); (STAGE + 1) * PANEL];
        let (matrix, row) = (&w[panel % w.len()], panel / w.len() * PANEL);
        for k0 in (0..k).step_by(STAGE) {
            let span = Span { row, rows: PANEL.min(n - row), k0, len: STAGE.min(k - k0) };
            let from = block.as_mut_ptr().cast();
            // SAFETY: rows of the span are rows of the matrix. `block` has room for `PANEL` rows of
            // `STAGE` values and the `PANEL` values more that `pack_rows` needs, and is then
            // written. Panels are disjoint.
            unsafe {
                pack_rows(kernels, set, matrix, span, PANEL, None, from);
                simd::run(set, Store { from, n: span.len * PANEL, to: to.add((panel * k + k0) * PANEL) });
            }
        }
    });
}

/// Some rows of a matrix, at most `PANEL`, and at most `STAGE` values of each.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub row: usize,
    pub rows: usize,
    pub k0: usize,
    pub len: usize,
}

/// Packs the rows of a span, and prefetches those of `next`: value k of its i-th row goes to `to +
/// k * height + i`. Missing rows are zeros, so that `len * height` values are written.
///
/// # Safety
/// The machine has `set`, whose kernels these are. The matrix has the rows of both spans. `to` has
/// room for `len * height + PANEL` values.
pub(super) unsafe fn pack_rows(
    kernels: MicroKernels<f32>,
    set: Detected,
    matrix: &FlatRows,
    span: Span,
    height: usize,
    next: Option<Span>,
    to: *mut f32,
) {
    let mut stage: Stage = [[MaybeUninit::uninit(); STAGE]; PANEL];
    let mut rows = [ZEROS.as_ptr(); PANEL];
    for (i, (row, stage)) in rows.iter_mut().zip(&mut stage).take(span.rows).enumerate() {
        let from = matrix.at(span.row + i).add(span.k0);
        *row = match from.as_f32() {
            Some(at) => at,
            // SAFETY: the caller promises the row, and `len` is at most `STAGE`.
            None => unsafe { simd::run(set, Widen { from, n: span.len, to: stage.as_mut_ptr().cast() }) },
        };
    }
    let next = next.filter(|next| matrix.at(next.row).as_f32().is_some()).map(|next| {
        let mut coming = rows;
        for (i, coming) in coming.iter_mut().take(next.rows).enumerate() {
            *coming = matrix.at(next.row + i).add(next.k0).address().cast_const().cast();
        }
        coming
    });
    // SAFETY: every row has `len` values, and the caller promises `to`.
    unsafe { kernels.interleave(height, &Interleave { rows, next, len: span.len, to }) }
}
