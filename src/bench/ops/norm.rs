//! Benchmarks of `norm`.

use serde_json::Value;

use super::{Benchmark, Window};
use crate::verify::cases::NormCase;
use crate::{Result, View};

impl Benchmark for NormCase {
    fn sizes(&self) -> Value {
        let mut sizes = fields!(self; rows, heads, width);
        sizes["kind"] = self.kind.to_string().into();
        sizes
    }

    fn windows(&self) -> Vec<Window> {
        Window::of_rows(self.batch, self.rows, self.heads * self.width)
    }

    fn part<'v>(&self, window: &Window, name: &str, operand: View<'v>) -> Result<(View<'v>, bool)> {
        Ok(match name {
            "x" | "add" | "out" => (operand.narrow(0, window.entry, 1)?, true),
            _ => (operand, false),
        })
    }
}
