//! Packing: W into column panels, once, and rows of x into tiles, for each block of k.
//!
//! Panel p holds the outputs `16 p .. 16 p + 16` of W [n, k], k-major: element `(p * k + kk) * 16 +
//! lane` is `W[16 p + lane][kk]`, zero beyond n. In bf16 two values of k lie side by side: element
//! `(p * depth / 2 + kk / 2) * 32 + lane * 2 + kk % 2`, where depth is k rounded up to a multiple of
//! 32, and zero beyond k. That is the operand of the matrix registers of AMX and of the dot product
//! of AVX-512 BF16, and a shift and a mask widen it. With a gate and an up matrix the panels
//! alternate, gate first. The layout is the same for every instruction set.

use std::mem::MaybeUninit;

use super::micro::{Interleave, PANEL, Packing, Product, WHOLE_DEPTH};
use half::bf16;

use crate::DType;
use crate::backend::cpu::instructions::Detected;
use crate::backend::cpu::rows::{Raw, Store, Widen};
use crate::backend::cpu::{simd, tasks};
use crate::size::{Size, Word};
use crate::threads::Pool;

/// The most k values packed at a time; a stage of 16 rows is 16 KiB of stack.
pub(super) const STAGE: usize = 256;

/// Rows in another dtype than they have, f32 or pairs of bf16.
type Stage = [[MaybeUninit<f32>; STAGE]; PANEL];

/// A row beyond the matrix.
static ZEROS: [f32; STAGE] = [0.0; STAGE];

/// The rows of a matrix.
pub type RowAt<'a> = &'a (dyn Fn(usize) -> Raw + Sync);

/// f32 of the packed form of one matrix [n, k], or of a gate and an up matrix of that shape: whole
/// cache lines, or halves of them.
pub fn packed_len<W: Word>(n: usize, k: usize, glu: bool, dtype: DType) -> Size<W> {
    let panels = Size::of(n.div_ceil(PANEL)) * if glu { 2 } else { 1 };
    let depth = Size::of(k).next_multiple_of(if dtype == DType::BF16 { WHOLE_DEPTH } else { 1 });
    panels * depth * (PANEL * dtype.size() / size_of::<f32>())
}

/// Values of k in a panel of a matrix that fits the address space.
pub(super) fn panel_depth(k: usize, dtype: DType) -> usize {
    if dtype == DType::BF16 { k.next_multiple_of(WHOLE_DEPTH) } else { k }
}

/// Packs W [n, k], or a gate and an up matrix of that shape, at `to`, rounded to its dtype. A task
/// is a panel.
///
/// # Safety
/// The machine has `set`. Every matrix has n rows of k reals. `to` has room for [`packed_len`], and
/// no one else uses it.
pub unsafe fn pack(pool: &Pool, set: Detected, w: &[RowAt<'_>], n: usize, k: usize, to: Raw) {
    let panels = n.div_ceil(PANEL) * w.len();
    let kernels = Packing::of(set);
    // Packing a value takes as long as moving two.
    let threads = tasks::threads_for(pool, (panels * k * PANEL).saturating_mul(2));
    pool.deal(threads, panels, |_, panel| {
        let span = |k0: usize| {
            let row = panel / w.len() * PANEL;
            Span { row, rows: PANEL.min(n - row), k0, len: STAGE.min(k - k0) }
        };
        let matrix = w[panel % w.len()];
        if to.dtype() == DType::BF16 {
            let depth = panel_depth(k, DType::BF16);
            let panel = to.add(panel * depth * PANEL);
            for k0 in (0..k).step_by(STAGE) {
                let pairs = panel.add(k0 * PANEL).address().cast();
                // SAFETY: rows of the span are rows of the matrix. Whole panels of 16 rows take no
                // more room than they fill. Panels are disjoint.
                unsafe { interleave::<true>(kernels, set, matrix, span(k0), PANEL, None, pairs) };
            }
            let whole = k.next_multiple_of(2);
            // SAFETY: the rest of the panel.
            unsafe { panel.add(whole * PANEL).address().write_bytes(0, (depth - whole) * PANEL * size_of::<bf16>()) };
            return;
        }
        let mut block = [MaybeUninit::<f32>::uninit(); (STAGE + 1) * PANEL];
        for k0 in (0..k).step_by(STAGE) {
            let span = span(k0);
            let from = block.as_mut_ptr().cast();
            // SAFETY: rows of the span are rows of the matrix. `block` has room for `PANEL` rows of
            // `STAGE` values and the `PANEL` values more that `pack_rows` needs, and is then
            // written. Panels are disjoint.
            unsafe {
                interleave::<false>(kernels, set, matrix, span, PANEL, None, from);
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

/// Packs the rows of a span for `P`, and prefetches those of `next`: packed value v of its i-th row
/// goes to `to + v * rows + i`, or to `to + i * values + v` for matrix registers. What fills the
/// last step, and the last matrix register, is zero.
///
/// # Safety
/// The machine has `set`, whose kernels these are. The matrix has the rows of both spans. `to` has
/// room for [`Product::values`] of each row (of whole matrix registers), and for `PANEL` more.
pub(super) unsafe fn pack_rows<P: Product>(
    kernels: Packing,
    set: Detected,
    matrix: RowAt<'_>,
    span: Span,
    next: Option<Span>,
    to: *mut f32,
) {
    let values = P::values(span.len);
    // SAFETY: passed on to the caller.
    unsafe {
        if P::MATRICES {
            copy_pairs(matrix, span, values, to);
        } else if P::PER_VALUE == 2 {
            interleave::<true>(kernels, set, matrix, span, span.rows, next, to);
        } else {
            interleave::<false>(kernels, set, matrix, span, span.rows, next, to);
            to.add(span.len * span.rows).write_bytes(0, (values - span.len) * span.rows);
        }
    }
}

/// Copies the rows of a span, which are bf16: row i to `to + i * values`, and zeros behind it and
/// in the rows that are missing in the last matrix register.
///
/// # Safety
/// The matrix has the rows. `to` has room for the values of whole matrix registers.
unsafe fn copy_pairs(matrix: RowAt<'_>, span: Span, values: usize, to: *mut f32) {
    for i in 0..span.rows {
        let row = matrix(span.row + i).add(span.k0);
        let to = Raw::new(to.wrapping_add(i * values).cast(), DType::BF16);
        // SAFETY: passed on to the caller; `values` pairs are at least `len` values.
        unsafe {
            row.copy_to(to, span.len);
            to.add(span.len).address().write_bytes(0, (2 * values - span.len) * size_of::<bf16>());
        }
    }
    let missing = span.rows.next_multiple_of(PANEL) - span.rows;
    // SAFETY: as above.
    unsafe { to.add(span.rows * values).write_bytes(0, missing * values) };
}

/// Packs the rows of a span as f32, or with `PAIRS` as pairs of bf16, and prefetches those of
/// `next`: value v of its i-th row goes to `to + v * height + i`. Missing rows are zeros, so that
/// all of `len * height` values are written, or of `ceil(len / 2) * height` pairs. An odd value has
/// a zero beside it.
///
/// # Safety
/// The machine has `set`, whose kernels these are. The matrix has the rows of both spans. `to` has
/// room for what is written, and for `PANEL` values more.
unsafe fn interleave<const PAIRS: bool>(
    kernels: Packing,
    set: Detected,
    matrix: RowAt<'_>,
    span: Span,
    height: usize,
    next: Option<Span>,
    to: *mut f32,
) {
    let (dtype, len) = if PAIRS { (DType::BF16, span.len.div_ceil(2)) } else { (DType::F32, span.len) };
    let whole = !PAIRS || span.len.is_multiple_of(2);
    let mut stage: Stage = [[MaybeUninit::uninit(); STAGE]; PANEL];
    let mut rows = [ZEROS.as_ptr(); PANEL];
    for (i, (row, stage)) in rows.iter_mut().zip(&mut stage).take(span.rows).enumerate() {
        let from = matrix(span.row + i).add(span.k0);
        *row = match from.dtype() == dtype && whole {
            true => from.address().cast_const().cast(),
            // SAFETY: the caller promises the row, and `len` is at most `STAGE`.
            false if PAIRS => unsafe { round_to_pairs(set, from, span.len, stage) },
            // SAFETY: as above.
            false => unsafe { simd::run(set, Widen { from, n: span.len, to: stage.as_mut_ptr().cast() }) },
        };
    }
    let next = next.filter(|next| matrix(next.row).dtype() == dtype).map(|next| {
        let mut coming = rows;
        for (i, coming) in coming.iter_mut().take(next.rows).enumerate() {
            *coming = matrix(next.row + i).add(next.k0).address().cast_const().cast();
        }
        coming
    });
    // SAFETY: every row has `len` values or pairs, and the caller promises `to`.
    unsafe { kernels.interleave(height, &Interleave { rows, next, len, to }) }
}

/// `n` values as pairs of bf16 in `to`.
///
/// # Safety
/// The machine has `set`, the row exists, and `n` is at most `STAGE`.
unsafe fn round_to_pairs(set: Detected, from: Raw, n: usize, to: &mut [MaybeUninit<f32>; STAGE]) -> *const f32 {
    let mut wide = [MaybeUninit::<f32>::uninit(); STAGE];
    let pairs = Raw::new(to.as_mut_ptr().cast(), DType::BF16);
    // SAFETY: both buffers have room for `STAGE` values of 32 bits; `n` of 16 bits and a zero fill
    // at most half of `to`, or its two bytes of a single value.
    unsafe {
        let values = simd::run(set, Widen { from, n, to: wide.as_mut_ptr().cast() });
        simd::run(set, Store { from: values, n, to: pairs });
        if n % 2 == 1 {
            pairs.add(n).set_real(0.0);
        }
    }
    to.as_ptr().cast()
}
