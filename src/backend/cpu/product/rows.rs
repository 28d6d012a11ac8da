//! Where the rows of x and of W come from, and how they become tiles (k-major groups of a few rows).

use std::mem::MaybeUninit;

use super::ProductError;
use super::micro::{Available, Element, PANEL};

/// The most k values interleaved at a time; a stage of 16 rows is 16 KiB of stack.
pub(super) const STAGE: usize = 256;

/// The rows of a matrix [rows, k], readable from many threads at once.
///
/// Any closure `Fn(row, k0, to: &mut [f32])` that writes the values `k0 .. k0 + to.len()` of a row is one.
pub trait Rows: Sync {
    /// Writes the values `k0 .. k0 + to.len()` of `row`.
    fn read(&self, row: usize, k0: usize, to: &mut [f32]);

    /// Those values where they lie, if they lie in memory as f32.
    fn borrow(&self, _row: usize, _k0: usize, _len: usize) -> Option<&[f32]> {
        None
    }

    /// Whether `rows` rows of `k` values can be read.
    fn check(&self, _rows: usize, _k: usize) -> Result<(), ProductError> {
        Ok(())
    }
}

impl<F: Fn(usize, usize, &mut [f32]) + Sync> Rows for F {
    fn read(&self, row: usize, k0: usize, to: &mut [f32]) {
        self(row, k0, to);
    }
}

/// Rows of f32 in memory, `stride` elements apart.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

#[cfg(test)]
impl Rows for StridedRows<'_> {
    fn read(&self, row: usize, k0: usize, to: &mut [f32]) {
        let start = row * self.stride + k0;
        to.copy_from_slice(&self.values[start..start + to.len()]);
    }

    fn borrow(&self, row: usize, k0: usize, len: usize) -> Option<&[f32]> {
        let start = row * self.stride + k0;
        Some(&self.values[start..start + len])
    }

    fn check(&self, rows: usize, k: usize) -> Result<(), ProductError> {
        let needed = match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(self.stride).and_then(|start| start.checked_add(k)),
        };
        ProductError::check_length("rows", needed, self.values.len())
    }
}

/// Room for the values of rows that cannot be borrowed.
pub(super) type Stage = [[f32; STAGE]; PANEL];

pub(super) const EMPTY_STAGE: Stage = [[0.0; STAGE]; PANEL];

/// A row where the source has none.
static ZEROS: [f32; STAGE] = [0.0; STAGE];

/// Some rows of a source.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub row: usize,
    pub rows: usize,
    pub k0: usize,
    pub len: usize,
}

/// Interleaves the rows of a span, at most `STAGE` values of each: value k of its i-th row goes to `to[k * height + i]`, and zeros where
/// there is no such row, so that `len * height` values are written. `to` has `PANEL` values more than that takes. The rows of `next` are asked for meanwhile.
pub(super) fn interleave<E: Element>(
    kernels: Available<E>,
    source: &impl Rows,
    span: Span,
    height: usize,
    next: Option<Span>,
    to: &mut [MaybeUninit<f32>],
    stage: &mut Stage,
) {
    let mut values = [&ZEROS[..span.len]; PANEL];
    for (i, (values, stage)) in values.iter_mut().zip(stage.iter_mut()).take(span.rows).enumerate() {
        *values = match source.borrow(span.row + i, span.k0, span.len) {
            Some(values) => values,
            None => {
                source.read(span.row + i, span.k0, &mut stage[..span.len]);
                &stage[..span.len]
            }
        };
    }
    let mut coming = [[].as_slice(); PANEL];
    let next = next.and_then(|next| {
        for (i, coming) in coming.iter_mut().enumerate().take(next.rows) {
            *coming = source.borrow(next.row + i, next.k0, next.len)?;
        }
        Some(&coming[..next.rows])
    });
    kernels.interleave(&values[..height], next, span.len, to);
}
