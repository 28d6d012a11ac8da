//! Where the rows of x and of W come from, and how they become tiles (k-major groups of a few rows).

use super::ProductError;

/// k values staged at a time while rows are interleaved; a stage of 16 rows is 16 KiB of stack.
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
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

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

/// Interleaves the values `k0 .. k0 + len` of `rows` rows from `row` on into `to`: value k of the i-th of them goes to `k * height + i`.
/// Blocks of `STAGE` values, so that what is written stays in L1 until all rows have contributed; four rows at a time, so that both
/// reads and writes are 16 bytes.
pub(super) fn interleave(
    source: &impl Rows,
    row: usize,
    rows: usize,
    k0: usize,
    len: usize,
    height: usize,
    to: &mut [f32],
) {
    let mut stage = [[0.0f32; STAGE]; 4];
    for start in (0..len).step_by(STAGE) {
        let part = STAGE.min(len - start);
        let to = &mut to[start * height..];
        for first in (0..rows).step_by(4) {
            let mut values = [[].as_slice(); 4];
            let count = values.len().min(rows - first);
            for (i, (values, stage)) in values.iter_mut().zip(&mut stage).take(count).enumerate() {
                let (row, k0) = (row + first + i, k0 + start);
                *values = match source.borrow(row, k0, part) {
                    Some(values) => values,
                    None => {
                        source.read(row, k0, &mut stage[..part]);
                        &stage[..part]
                    }
                };
            }
            if count == 4 {
                interleave_four(values, height, &mut to[first..]);
            } else {
                for (i, values) in values.into_iter().take(count).enumerate() {
                    for (to, &value) in to[first + i..].iter_mut().step_by(height).zip(values) {
                        *to = value;
                    }
                }
            }
        }
    }
}

fn interleave_four(values: [&[f32]; 4], height: usize, to: &mut [f32]) {
    let len = values[0].len();
    let [a, b, c, d] = values.map(|values| values[..len].as_chunks::<4>());
    let blocks = a.0.iter().zip(b.0).zip(c.0.iter().zip(d.0));
    for (((a, b), (c, d)), to) in blocks.zip(to.chunks_mut(4 * height)) {
        for (i, to) in to.chunks_mut(height).enumerate() {
            to[..4].copy_from_slice(&[a[i], b[i], c[i], d[i]]);
        }
    }
    let done = len / 4 * 4;
    for (k, to) in to.chunks_mut(height).enumerate().skip(done).take(len - done) {
        to[..4].copy_from_slice(&values.map(|values| values[k]));
    }
}
