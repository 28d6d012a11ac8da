//! Benchmarks of `media_index`.

use serde_json::{Value, json};

use super::{Benchmark, Window};
use crate::bench::sample;
use crate::verify::cases::MediaIndexCase;
use crate::verify::cases::media_index::SPREAD;
use crate::{Result, View};

impl Benchmark for MediaIndexCase {
    fn sizes(&self) -> Value {
        json!({ "batch": self.batch, "rows": self.rows, "media": self.rows.div_ceil(SPREAD) })
    }

    fn windows(&self) -> Vec<Window> {
        let whole = |entry| Window { entry, rows: sample::all(0..self.rows), columns: 0..1 };
        (0..self.batch).map(whole).collect()
    }

    fn part<'v>(&self, window: &Window, _: &str, operand: View<'v>) -> Result<(View<'v>, bool)> {
        Ok((operand.narrow(0, window.entry, 1)?, false))
    }
}
