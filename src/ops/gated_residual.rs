//! `gated_residual`: x + tanh(gate) · y on its own, for engines that own their matrix products.
//!
//! ```text
//! out = x + tanh(gate) · row_mask · y
//! ```
//!
//! Source: spec 1 (`GatedBlock`), 8.6: tanh in f32, `y * g + x`, one rounding at the end.

use super::{Checker, Cost, Op, Operands, Parameters, Source, Visit, all_bytes, amount, sealed};
use crate::tensor::Spec;
use crate::{DType, Result};

/// `gated_residual` has no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GatedResidual;

/// Operands of `gated_residual`.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedResidualArgs<R, W> {
    /// The residual stream `[batch, rows, D]`.
    pub x: Source<R>,
    /// The branch `[batch, rows, D]`.
    pub y: R,
    /// Raw gate, `[1]` or per channel `[D]`.
    pub gate: R,
    /// `u32 [batch, rows]`: where it is 0, only x remains.
    pub row_mask: Option<R>,
    /// Result `[batch, rows, D]`.
    pub out: W,
}

impl<R, W> GatedResidualArgs<R, W> {
    /// `out = x + tanh(gate) · y`, in every row.
    pub fn new(x: Source<R>, y: R, gate: R, out: W) -> Self {
        GatedResidualArgs { x, y, gate, row_mask: None, out }
    }
}

impl sealed::Sealed for GatedResidual {}

impl Operands for GatedResidual {
    const NAME: &'static str = "gated_residual";
    type Args<R, W> = GatedResidualArgs<R, W>;

    fn map<R, W, R2, W2>(
        a: GatedResidualArgs<R, W>,
        v: &mut impl Visit<R, W, R2, W2>,
    ) -> Result<GatedResidualArgs<R2, W2>> {
        Ok(GatedResidualArgs {
            x: a.x.try_map(|r| v.read("x", r))?,
            y: v.read("y", a.y)?,
            gate: v.read("gate", a.gate)?,
            row_mask: a.row_mask.map(|r| v.read("row_mask", r)).transpose()?,
            out: v.write("out", a.out)?,
        })
    }

    fn as_ref<R, W>(a: &GatedResidualArgs<R, W>) -> GatedResidualArgs<&R, &W> {
        GatedResidualArgs { x: a.x.as_ref(), y: &a.y, gate: &a.gate, row_mask: a.row_mask.as_ref(), out: &a.out }
    }

    type Form = GatedResidualArgs<(), ()>;

    fn form(args: GatedResidualArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(a: &Self::Form, say: &mut Parameters<'_>) {
        say("x", a.x.name().into());
    }
}

impl Op for GatedResidual {
    fn check(&self, a: &GatedResidualArgs<Spec, Spec>) -> Result<()> {
        let c = Checker { op: Self::NAME };
        c.rank("out", &a.out, "[batch, rows, width]", 3)?;
        c.rows("out", &a.out)?;
        c.written("out", &a.out)?;
        if let Source::From(x) = &a.x {
            c.rows("x", x)?;
            c.shape("x", x, "that of out", a.out.shape())?;
        }
        c.rows("y", &a.y)?;
        c.shape("y", &a.y, "that of out", a.out.shape())?;
        c.rows("gate", &a.gate)?;
        let width = a.out.dim(2);
        c.that(
            a.gate.rank() == 1 && (a.gate.dim(0) == 1 || a.gate.dim(0) == width),
            "gate",
            format!("shape [1] or [{width}]"),
            a.gate,
        )?;
        if let Some(mask) = &a.row_mask {
            c.integers("row_mask", mask, DType::U32, "[batch, rows]", &a.out.shape()[..2])?;
        }
        Ok(())
    }

    fn cost(&self, a: &GatedResidualArgs<Spec, Spec>) -> Cost {
        let mut bytes = all_bytes::<GatedResidual>(a);
        if a.x == Source::InPlace {
            bytes = bytes.saturating_add(super::operand_bytes(&a.out));
        }
        Cost { bytes, flops: amount([3, a.out.elements()]) }
    }
}
