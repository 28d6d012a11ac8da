//! The micro-kernels of attention: its two GEMMs on register tiles.
//!
//! Scores are computed transposed, key by key: a register holds one key's scores of 8 or 16 rows of
//! the tile. So K is read in place (one broadcast per element, no transposition, no packing), the
//! softmax runs down the keys without horizontal steps, and the second GEMM reads its weights for
//! neighbouring rows from neighbouring addresses.
//!
//! Every score has one accumulator over head_dim in ascending order, every output one per chunk
//! over its keys in ascending order: results do not depend on the shape of the register tile.

use super::super::simd::{Kernel, Vector};
use super::logit::Logit;

/// Rows of the second GEMM's register tile.
const ROWS: usize = 6;

/// Keys of the first GEMM's register tile. Two registers of rows times 6 keys, with their operands,
/// fit 16 registers; 32 registers take 8 keys.
const fn most_keys(lanes: usize, registers: usize) -> usize {
    if registers == 1 || lanes == 16 { 8 } else { 6 }
}

/// Start of part `i` of `n` items in `parts` parts of nearly equal size.
#[inline(always)]
fn cut(n: usize, parts: usize, i: usize) -> usize {
    n / parts * i + (n % parts).min(i)
}

/// `to[key * stride + m] = logit(⟨q_m, k_key⟩)` for all rows m < stride, a multiple of `LANES`.
///
/// Contract: `q` holds head_dim x stride f32 (row m of the tile is column m), every key head_dim
/// f32, `to` keys x stride.
pub(super) struct Scores<'a> {
    pub q: *const f32,
    pub stride: usize,
    pub head_dim: usize,
    pub keys: &'a [*const f32],
    pub logit: Logit,
    pub to: *mut f32,
}

// The three steps of a chunk are kernels of their own, so that their register tiles are compiled
// once per instruction set. Inlined into each sweep, they multiplied the crate's build time.
impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Scores { q, stride, head_dim, keys, logit, to } = self;
        let mut m = 0;
        while m < stride {
            let registers = if stride - m >= 2 * V::LANES { 2 } else { 1 };
            let parts = keys.len().div_ceil(most_keys(V::LANES, registers));
            for part in 0..parts {
                let (start, end) = (cut(keys.len(), parts, part), cut(keys.len(), parts, part + 1));
                let to = to.wrapping_add(start * stride + m);
                let tile = ScoreTile { q: q.wrapping_add(m), stride, head_dim, logit, to };
                let keys = &keys[start..end];
                macro_rules! tiles {
                    ($($n:literal)*) => {
                        match (keys.len(), registers) {
                            // SAFETY: the contract; columns m.. and rows start.. are inside both
                            // arrays.
                            $(($n, 1) => unsafe { tile.run::<V, $n, 1>(keys) },
                            // SAFETY: as above.
                            ($n, _) => unsafe { tile.run::<V, $n, 2>(keys) },)*
                            _ => unreachable!("parts hold 1 to 8 keys"),
                        }
                    };
                }
                tiles!(1 2 3 4 5 6 7 8);
            }
            m += registers * V::LANES;
        }
    }
}

struct ScoreTile {
    q: *const f32,
    stride: usize,
    head_dim: usize,
    logit: Logit,
    to: *mut f32,
}

impl ScoreTile {
    /// # Safety
    /// As [`Scores`], for `KEYS` keys and `REGISTERS` registers of rows.
    #[inline(always)]
    unsafe fn run<V: Vector, const KEYS: usize, const REGISTERS: usize>(&self, keys: &[*const f32]) {
        let key: [*const f32; KEYS] = std::array::from_fn(|i| keys[i]);
        // SAFETY: as the caller promises.
        unsafe {
            let mut acc = [[V::splat(0.0); REGISTERS]; KEYS];
            let mut q = self.q;
            for at in 0..self.head_dim {
                let mut rows = [V::splat(0.0); REGISTERS];
                for (r, rows) in rows.iter_mut().enumerate() {
                    *rows = V::load(q.add(r * V::LANES));
                }
                for (acc, key) in acc.iter_mut().zip(key) {
                    let element = V::broadcast(key.add(at));
                    for (acc, &rows) in acc.iter_mut().zip(&rows) {
                        *acc = element.mul_add(rows, *acc);
                    }
                }
                q = q.add(self.stride);
            }
            for (i, acc) in acc.iter().enumerate() {
                for (r, &acc) in acc.iter().enumerate() {
                    self.logit.of(acc).store(self.to.add(i * self.stride + r * V::LANES));
                }
            }
        }
    }
}

/// The accumulators of the second GEMM.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub at: *mut f32,
    /// Distance between rows.
    pub stride: usize,
    /// Columns in use, a multiple of `LANES`.
    pub columns: usize,
    /// Factor of the earlier sums, per row; `None` for the first chunk, which overwrites.
    pub decay: Option<*const f32>,
}

/// `sums[m] = decay[m] · sums[m] + Σ_key weights[key * stride + m] · v_key` for the rows m <
/// `rows`.
///
/// Contract: `weights` holds values x stride f32, each value and each row of sums `columns`.
pub(super) struct Accumulate<'a> {
    pub weights: *const f32,
    pub stride: usize,
    pub rows: usize,
    pub values: &'a [*const f32],
    pub sums: Sums,
}

impl Kernel for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Accumulate { weights, stride, rows, values, sums } = self;
        let parts = rows.div_ceil(ROWS);
        let wide = if V::LANES == 16 { 4 } else { 2 };
        for part in 0..parts {
            let (start, end) = (cut(rows, parts, part), cut(rows, parts, part + 1));
            let most = match end - start {
                1 => 8,
                2 | 3 => 4,
                _ => wide,
            };
            let mut column = 0;
            while column < sums.columns {
                let left = (sums.columns - column) / V::LANES;
                let registers = if left >= 8 && most == 8 {
                    8
                } else if left >= 4 && most >= 4 {
                    4
                } else if left >= 2 {
                    2
                } else {
                    1
                };
                let tile =
                    AccumulateTile { weights: weights.wrapping_add(start), stride, values, row: start, column, sums };
                // SAFETY: passed on; rows start..end and the columns from `column` on are inside.
                unsafe {
                    match (end - start, registers) {
                        (1, 8) => tile.run::<V, 1, 8>(),
                        (1, 4) => tile.run::<V, 1, 4>(),
                        (1, 2) => tile.run::<V, 1, 2>(),
                        (1, _) => tile.run::<V, 1, 1>(),
                        (2, 4) => tile.run::<V, 2, 4>(),
                        (2, 2) => tile.run::<V, 2, 2>(),
                        (2, _) => tile.run::<V, 2, 1>(),
                        (3, 4) => tile.run::<V, 3, 4>(),
                        (3, 2) => tile.run::<V, 3, 2>(),
                        (3, _) => tile.run::<V, 3, 1>(),
                        (4, 4) => tile.run::<V, 4, 4>(),
                        (4, 2) => tile.run::<V, 4, 2>(),
                        (4, _) => tile.run::<V, 4, 1>(),
                        (5, 4) => tile.run::<V, 5, 4>(),
                        (5, 2) => tile.run::<V, 5, 2>(),
                        (5, _) => tile.run::<V, 5, 1>(),
                        (_, 4) => tile.run::<V, 6, 4>(),
                        (_, 2) => tile.run::<V, 6, 2>(),
                        (_, _) => tile.run::<V, 6, 1>(),
                    }
                }
                column += registers * V::LANES;
            }
        }
    }
}

struct AccumulateTile<'a> {
    weights: *const f32,
    stride: usize,
    values: &'a [*const f32],
    row: usize,
    column: usize,
    sums: Sums,
}

impl AccumulateTile<'_> {
    /// # Safety
    /// As [`Accumulate`], for `ROWS` rows and `REGISTERS` registers of columns.
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const REGISTERS: usize>(&self) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut acc = [[V::splat(0.0); REGISTERS]; ROWS];
            let mut weights = self.weights;
            for value in self.values {
                let value = value.add(self.column);
                let mut columns = [V::splat(0.0); REGISTERS];
                for (r, columns) in columns.iter_mut().enumerate() {
                    *columns = V::load(value.add(r * V::LANES));
                }
                for (row, acc) in acc.iter_mut().enumerate() {
                    let weight = V::broadcast(weights.add(row));
                    for (acc, &columns) in acc.iter_mut().zip(&columns) {
                        *acc = weight.mul_add(columns, *acc);
                    }
                }
                weights = weights.add(self.stride);
            }
            for (row, acc) in acc.iter().enumerate() {
                let sums = self.sums.at.add((self.row + row) * self.sums.stride + self.column);
                for (r, &acc) in acc.iter().enumerate() {
                    let to = sums.add(r * V::LANES);
                    match self.sums.decay {
                        None => acc.store(to),
                        Some(decay) => V::load(to).mul_add(V::broadcast(decay.add(self.row + row)), acc).store(to),
                    }
                }
            }
        }
    }
}
