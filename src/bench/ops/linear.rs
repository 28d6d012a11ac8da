//! Benchmarks of `linear`.

use serde_json::Value;

use super::{Benchmark, Window};
use crate::bench::sample;
use crate::verify::cases::LinearCase;
use crate::verify::cases::linear::Residual;
use crate::verify::compare::STATISTICAL;
use crate::{Result, View};

/// Neighbouring columns of each part of a large GEMM that the reference recomputes.
const COLUMNS: usize = 96;

impl Benchmark for LinearCase {
    fn sizes(&self) -> Value {
        let epilogue = match (self.bias, self.residual) {
            (_, Residual::From | Residual::InPlace) => "gated_residual".into(),
            (true, Residual::None) => "bias".into(),
            (false, Residual::None) => Value::Null,
        };
        let mut sizes = fields!(self; rows, n, k);
        (sizes["activation"], sizes["epilogue"]) = (self.activation.to_string().into(), epilogue);
        sizes
    }

    fn windows(&self) -> Vec<Window> {
        let entry =
            |entry| windows(self.rows, self.n, self.k).into_iter().map(move |window| Window { entry, ..window });
        (0..self.batch).flat_map(entry).collect()
    }

    fn part<'v>(&self, window: &Window, name: &str, operand: View<'v>) -> Result<(View<'v>, bool)> {
        let (entry, first, n) = (window.entry, window.columns.start, window.columns.len());
        Ok(match name {
            "x" => (operand.narrow(0, entry, 1)?, true),
            "residual" | "out" => (operand.narrow(0, entry, 1)?.narrow(2, first, n)?, true),
            "weight" | "weight_up" | "bias" => (operand.narrow(0, first, n)?, false),
            _ => (operand, false),
        })
    }
}

/// Parts of `rows` by `n` results of `k` terms: all of a small product; else a band of columns for
/// each eighth of the rows.
fn windows(rows: usize, n: usize, k: usize) -> Vec<Window> {
    if rows * n * k <= sample::WHOLE {
        return vec![Window { entry: 0, rows: sample::all(0..rows), columns: 0..n }];
    }
    let mut rng = sample::chooser();
    let parts = if rows < sample::PARTS * sample::RUN { 1 } else { sample::PARTS };
    (0..parts)
        .map(|i| {
            let part = rows * i / parts..rows * (i + 1) / parts;
            let rows = sample::spread(&mut rng, part, sample::ROWS / sample::PARTS);
            // Few rows: as many columns as keep the part a statistic.
            let width = COLUMNS.max(STATISTICAL.div_ceil(sample::count(&rows).max(1))).min(n);
            let first = match i {
                0 => 0,
                _ if i + 1 == parts => n - width,
                _ => rng.below(n - width + 1),
            };
            Window { entry: 0, rows, columns: first..first + width }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_a_gemm_reach_all_its_edges() {
        let parts = windows(16384, 4096, 512);
        let rows = |i: usize| [parts[i].rows[0].start, parts[i].rows.last().unwrap().end];
        assert_eq!((parts.len(), rows(0), rows(7)), (8, [0, 2048], [14336, 16384]));
        assert_eq!((parts[0].columns.clone(), parts[7].columns.clone()), (0..96, 4000..4096));
        assert_eq!(parts.iter().map(|part| sample::count(&part.rows)).sum::<usize>(), 256);
        // Small enough to be recomputed whole; too large with rows that are fewer than the parts.
        let small = windows(1, 4096, 4096);
        assert_eq!((small.len(), small[0].rows.clone(), small[0].columns.clone()), (1, sample::all(0..1), 0..4096));
        let flat = windows(2, 30523, 4096);
        assert_eq!((flat.len(), flat[0].rows.clone(), flat[0].columns.clone()), (1, sample::all(0..2), 0..128));
    }
}
