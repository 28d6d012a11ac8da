//! Benchmarks of `gated_residual`.

use serde_json::Value;

use super::{Benchmark, Window};
use crate::verify::cases::GatedResidualCase;
use crate::{Result, View};

impl Benchmark for GatedResidualCase {
    fn sizes(&self) -> Value {
        fields!(self; rows, width)
    }

    fn windows(&self) -> Vec<Window> {
        Window::of_rows(self.batch, self.rows, self.width)
    }

    fn part<'v>(&self, window: &Window, name: &str, operand: View<'v>) -> Result<(View<'v>, bool)> {
        Ok(match name {
            "gate" => (operand, false),
            _ => (operand.narrow(0, window.entry, 1)?, true),
        })
    }
}
