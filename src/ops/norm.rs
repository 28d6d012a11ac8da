//! `norm`: LayerNorm, RMSNorm or L2 normalisation over the last dimension, per row or per head.
//!
//! With x = input + add, over the last dimension of size D:
//!
//! ```text
//! Layer  out = weight · (x − mean x) / √(mean (x − mean x)² + eps) + bias          biased variance
//! Rms    out = weight · x / √(mean x² + eps)
//! L2     out = weight · x / max(‖x‖₂, eps)
//! ```
//!
//! Statistics in f32 (f64 on the reference), one rounding at the end. `add` is what these systems
//! add before a norm (frame, media and position embeddings); `rows` gathers the input from a table
//! (token embeddings). Sources: spec 1, 3.1, 5.1 (`BertEmbeddings`), 5.2 (`F.normalize`), 8.4.

use super::{Checker, Cost, Op, Operands, Parameters, Source, Visit, all_bytes, amount, sealed};
use crate::tensor::Spec;
use crate::{DType, Result};

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormKind {
    /// LayerNorm.
    Layer,
    /// RMSNorm.
    Rms,
    /// Division by the Euclidean norm, as `torch.nn.functional.normalize` does.
    L2,
}

/// Parameters of `norm`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Which norm.
    pub kind: NormKind,
    /// See the equations.
    pub eps: f32,
}

/// Operands of `norm`. Shapes are `[A, B, C, D]`; rows `[batch, rows, D]` are passed as `[batch,
/// rows, 1, D]` or `[1, batch, rows, D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct NormArgs<R, W> {
    /// Input `[A, B, C, D]`; with `rows`, the table `[1, V, 1, D]`. In place only without `rows`.
    pub x: Source<R>,
    /// Gather: x of `[a, b, c]` is row `rows[a, b]` of the table; `i32 [A, B]`. Values outside the
    /// table count as its first or last row. C must be 1.
    pub rows: Option<R>,
    /// Added to the input first, `[A, B, C, D]`, usually with strides 0.
    pub add: Option<R>,
    /// Factor `[D]`.
    pub weight: Option<R>,
    /// Offset `[D]`; only for [`NormKind::Layer`].
    pub bias: Option<R>,
    /// Result `[A, B, C, D]`.
    pub out: W,
}

impl<R, W> NormArgs<R, W> {
    /// `out = norm(x) · weight`, nothing else.
    pub fn new(x: Source<R>, weight: Option<R>, bias: Option<R>, out: W) -> Self {
        NormArgs { x, rows: None, add: None, weight, bias, out }
    }
}

impl sealed::Sealed for Norm {}

impl Operands for Norm {
    const NAME: &'static str = "norm";
    type Args<R, W> = NormArgs<R, W>;

    fn map<R, W, R2, W2>(a: NormArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<NormArgs<R2, W2>> {
        Ok(NormArgs {
            x: a.x.try_map(|r| v.read("x", r))?,
            rows: a.rows.map(|r| v.read("rows", r)).transpose()?,
            add: a.add.map(|r| v.read("add", r)).transpose()?,
            weight: a.weight.map(|r| v.read("weight", r)).transpose()?,
            bias: a.bias.map(|r| v.read("bias", r)).transpose()?,
            out: v.write("out", a.out)?,
        })
    }

    fn as_ref<R, W>(a: &NormArgs<R, W>) -> NormArgs<&R, &W> {
        NormArgs {
            x: a.x.as_ref(),
            rows: a.rows.as_ref(),
            add: a.add.as_ref(),
            weight: a.weight.as_ref(),
            bias: a.bias.as_ref(),
            out: &a.out,
        }
    }

    type Form = NormArgs<(), ()>;

    fn form(args: NormArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(a: &Self::Form, say: &mut Parameters<'_>) {
        say("x", a.x.name().into());
    }
}

impl Op for Norm {
    fn check(&self, a: &NormArgs<Spec, Spec>) -> Result<()> {
        let c = Checker { op: Self::NAME };
        c.that(self.eps.is_finite() && self.eps >= 0.0, "eps", "a finite number, at least 0", self.eps)?;
        c.rank("out", &a.out, "[a, b, c, width]", 4)?;
        c.rows("out", &a.out)?;
        c.written("out", &a.out)?;
        let width = a.out.dim(3);
        match (&a.x, &a.rows) {
            (Source::From(table), Some(rows)) => {
                c.rank("x", table, "[1, table rows, 1, width]", 4)?;
                c.rows("x", table)?;
                let fits = table.dim(0) == 1 && table.dim(2) == 1 && table.dim(3) == width;
                c.that(fits, "x", format!("a table [1, table rows, 1, {width}]"), table)?;
                c.that(table.dim(1) > 0 || a.out.elements() == 0, "x", "a table with at least one row", table)?;
                c.integers("rows", rows, DType::I32, "[a, b]", &a.out.shape()[..2])?;
                c.that(a.out.dim(2) == 1, "out", "shape [a, b, 1, width] with rows", a.out)?;
            }
            (Source::From(x), None) => {
                c.rows("x", x)?;
                c.shape("x", x, "that of out", a.out.shape())?;
            }
            (Source::InPlace, Some(_)) => c.refuse("rows", "none in place", "some")?,
            (Source::InPlace, None) => {}
        }
        if let Some(add) = &a.add {
            c.rows("add", add)?;
            c.shape("add", add, "that of out", a.out.shape())?;
        }
        for (name, spec) in [("weight", &a.weight), ("bias", &a.bias)] {
            if let Some(spec) = spec {
                c.rows(name, spec)?;
                c.shape(name, spec, "[width]", &[width])?;
            }
        }
        c.that(
            a.bias.is_none() || self.kind == NormKind::Layer,
            "bias",
            "none but for Layer",
            format!("{:?}", self.kind),
        )
    }

    fn cost(&self, a: &NormArgs<Spec, Spec>) -> Cost {
        let mut bytes = all_bytes::<Norm>(a);
        if a.x == Source::InPlace {
            bytes = bytes.saturating_add(super::operand_bytes(&a.out));
        }
        if let (Source::From(table), Some(_)) = (&a.x, &a.rows) {
            // Only the gathered rows are read.
            let gathered = amount([a.out.elements(), table.dtype().size()]);
            bytes = bytes.saturating_sub(super::operand_bytes(table)).saturating_add(gathered);
        }
        Cost { bytes, flops: amount([8, a.out.elements()]) }
    }
}
