//! `linear`: y = epilogue(x Wᵀ), the matrix product (GEMM) of the bridges' projections and MLPs.
//!
//! ```text
//! p = x Wᵀ + bias                        x [batch, rows, K], W [N, K]
//! a = activation(p)                      gated ones: a = act(x W_gateᵀ) · (x W_upᵀ)
//! y = residual + tanh(gate) · row_mask · a
//! ```
//!
//! Every part of the epilogue is optional. Without a gate its factor is 1, without a residual the
//! sum starts at 0. `reduce` then takes the largest or the mean over the rows of each batch entry
//! (ITC similarity, ITM logits). Sums in f32, one rounding at the end. Sources: spec 1
//! (`GatedBlock`), 3.1, 3.2, 4, 5.1, 5.2, 7.1.

use std::sync::Arc;

use super::{Checker, Cost, GemmShape, Op, Operands, Parameters, Source, Visit, Weight, all_bytes, amount, sealed};
use crate::tensor::Spec;
use crate::{DType, Result};

/// The nonlinearity of the epilogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// x · Φ(x), with erf. Never the tanh form, which differs by up to 4.7e-4.
    Gelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    SquaredRelu,
    /// silu(x W_gateᵀ) · (x W_upᵀ): needs a pair of matrices.
    SwiGlu,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Activation; 5] =
        [Activation::None, Activation::Gelu, Activation::Relu, Activation::SquaredRelu, Activation::SwiGlu];

    /// Whether it multiplies two products.
    pub const fn is_glu(self) -> bool {
        matches!(self, Activation::SwiGlu)
    }

    /// The name used in cases and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::None => "none",
            Activation::Gelu => "gelu",
            Activation::Relu => "relu",
            Activation::SquaredRelu => "squared_relu",
            Activation::SwiGlu => "swiglu",
        }
    }
}

/// The reduction over the rows of each batch entry, after the epilogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RowReduce {
    /// Nothing: y is `[batch, rows, N]`.
    #[default]
    None,
    /// The largest: y is `[batch, 1, N]`; NaN if any is NaN.
    Max,
    /// The mean: y is `[batch, 1, N]`.
    Mean,
}

/// The constant matrix of a GEMM.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Matrix<R> {
    /// An engine's own matrix `[N, K]`, read as it lies.
    View(R),
    /// An engine's own pair for gated activations: `W_gate [N, K]`, `W_up [N, K]`.
    Pair(R, R),
    /// Packed for the device beforehand.
    Prepared(Arc<Weight>),
}

impl<R> Matrix<R> {
    fn describe(&self) -> String {
        match self {
            Matrix::View(_) => "one matrix".into(),
            Matrix::Pair(..) => "a pair of matrices".into(),
            Matrix::Prepared(weight) => format!("{weight:?}"),
        }
    }
}

/// Prepared weights of one shape and dtype are equal: what is prepared for one serves the other.
impl<R: PartialEq> PartialEq for Matrix<R> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Matrix::View(a), Matrix::View(b)) => a == b,
            (Matrix::Pair(a, b), Matrix::Pair(c, d)) => a == c && b == d,
            (Matrix::Prepared(a), Matrix::Prepared(b)) => a.is_like(b),
            _ => false,
        }
    }
}

/// Parameters of `linear`.
///
/// A product with bias and ReLU, by a matrix that was packed once for the device:
///
/// ```
/// use std::sync::Arc;
/// use xattn::ops::{Activation, Linear, LinearArgs, Matrix};
/// use xattn::{DType, Device, Dispatch, HostTensor, View, ViewMut, Weight, WeightSource};
///
/// let device = Device::cpu();
/// let rows = HostTensor::from_slice(&[1f32, 2.0, -1.0, 0.0], &[2, 2])?;
/// let weight = Weight::prepare(&device, &WeightSource::stacked(vec![rows]), DType::F32)?;
/// let (x, bias, mut out) = ([3f32, 4.0], [0.5f32, 0.5], [0f32; 2]);
/// let matrix = Matrix::Prepared(Arc::new(weight));
/// let mut args = LinearArgs::new(View::new(&x, &[1, 1, 2])?, matrix, ViewMut::new(&mut out, &[1, 1, 2])?);
/// args.bias = Some(View::new(&bias, &[2])?);
/// Linear { activation: Activation::Relu, ..Linear::default() }.run(&device, args)?;
/// assert_eq!(out, [11.5, 0.0]);
/// # Ok::<(), xattn::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Linear {
    /// The nonlinearity.
    pub activation: Activation,
    /// Reduction over rows. Not beside a residual, a gate or a row mask.
    pub reduce: RowReduce,
}

/// Operands of `linear`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearArgs<R, W> {
    /// Input `[batch, rows, K]`.
    pub x: R,
    /// The matrix.
    pub weight: Matrix<R>,
    /// Added to the product, `[N]`. Not beside a gated activation.
    pub bias: Option<R>,
    /// Added to the result, `[batch, rows, N]`.
    pub residual: Option<Source<R>>,
    /// Raw gate, `[1]` or per channel `[N]`: tanh is applied inside.
    pub gate: Option<R>,
    /// `u32 [batch, rows]`: where it is 0, only the residual remains.
    pub row_mask: Option<R>,
    /// Result `[batch, rows, N]`, or `[batch, 1, N]` with a reduction.
    pub out: W,
}

impl<R, W> LinearArgs<R, W> {
    /// `out = x Wᵀ`, nothing else.
    pub fn new(x: R, weight: Matrix<R>, out: W) -> Self {
        LinearArgs { x, weight, bias: None, residual: None, gate: None, row_mask: None, out }
    }
}

/// Sizes that follow from the operands' shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinearSizes {
    /// Batch entries.
    pub batch: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of the result.
    pub n: usize,
    /// Columns of the input.
    pub k: usize,
}

impl<W> LinearArgs<Spec, W> {
    /// Sizes that follow from the shapes.
    pub fn sizes(&self) -> LinearSizes {
        let n = match &self.weight {
            Matrix::View(w) | Matrix::Pair(w, _) => w.dim(0),
            Matrix::Prepared(w) => w.n(),
        };
        LinearSizes { batch: self.x.dim(0), rows: self.x.dim(1), n, k: self.x.dim(2) }
    }
}

impl sealed::Sealed for Linear {}

impl Operands for Linear {
    const NAME: &'static str = "linear";
    type Args<R, W> = LinearArgs<R, W>;

    fn map<R, W, R2, W2>(a: LinearArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<LinearArgs<R2, W2>> {
        Ok(LinearArgs {
            x: v.read("x", a.x)?,
            weight: match a.weight {
                Matrix::View(r) => Matrix::View(v.read("weight", r)?),
                Matrix::Pair(gate, up) => Matrix::Pair(v.read("weight", gate)?, v.read("weight_up", up)?),
                Matrix::Prepared(w) => Matrix::Prepared(w),
            },
            bias: a.bias.map(|r| v.read("bias", r)).transpose()?,
            residual: a.residual.map(|s| s.try_map(|r| v.read("residual", r))).transpose()?,
            gate: a.gate.map(|r| v.read("gate", r)).transpose()?,
            row_mask: a.row_mask.map(|r| v.read("row_mask", r)).transpose()?,
            out: v.write("out", a.out)?,
        })
    }

    fn as_ref<R, W>(a: &LinearArgs<R, W>) -> LinearArgs<&R, &W> {
        LinearArgs {
            x: &a.x,
            weight: match &a.weight {
                Matrix::View(r) => Matrix::View(r),
                Matrix::Pair(gate, up) => Matrix::Pair(gate, up),
                Matrix::Prepared(w) => Matrix::Prepared(w.clone()),
            },
            bias: a.bias.as_ref(),
            residual: a.residual.as_ref().map(Source::as_ref),
            gate: a.gate.as_ref(),
            row_mask: a.row_mask.as_ref(),
            out: &a.out,
        }
    }

    type Form = LinearArgs<(), ()>;

    fn form(args: LinearArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(a: &Self::Form, say: &mut Parameters<'_>) {
        say("residual", a.residual.as_ref().map_or("none", Source::name).into());
        say("weight", a.weight.describe());
    }
}

impl Op for Linear {
    fn check(&self, a: &LinearArgs<Spec, Spec>) -> Result<()> {
        let c = Checker { op: Self::NAME };
        c.rank("x", &a.x, "[batch, rows, K]", 3)?;
        c.rows("x", &a.x)?;
        let s = a.sizes();
        let glu = self.activation.is_glu();
        match &a.weight {
            Matrix::View(w) => {
                c.that(!glu, "weight", "a pair of matrices for a gated activation", "one matrix")?;
                check_matrix(&c, "weight", w, s.n, s.k)?;
            }
            Matrix::Pair(gate, up) => {
                c.that(glu, "weight", "one matrix without a gated activation", "a pair")?;
                check_matrix(&c, "weight", gate, s.n, s.k)?;
                check_matrix(&c, "weight_up", up, s.n, s.k)?;
            }
            Matrix::Prepared(w) => {
                c.that(w.k() == s.k, "weight", format!("{} columns as x", s.k), format!("{w:?}"))?;
                c.that(
                    w.is_glu() == glu,
                    "weight",
                    if glu { "a prepared pair" } else { "no prepared pair" },
                    format!("{w:?}"),
                )?;
            }
        }
        let result = [s.batch, s.rows, s.n];
        if let Some(bias) = &a.bias {
            c.that(!glu, "bias", "none beside a gated activation", bias)?;
            c.rows("bias", bias)?;
            c.shape("bias", bias, "[N]", &[s.n])?;
        }
        if let Some(Source::From(residual)) = &a.residual {
            c.rows("residual", residual)?;
            c.shape("residual", residual, "[batch, rows, N]", &result)?;
        }
        if let Some(gate) = &a.gate {
            c.rows("gate", gate)?;
            c.that(
                gate.rank() == 1 && (gate.dim(0) == 1 || gate.dim(0) == s.n),
                "gate",
                format!("shape [1] or [{}]", s.n),
                gate,
            )?;
        }
        if let Some(mask) = &a.row_mask {
            c.integers("row_mask", mask, DType::U32, "[batch, rows]", &result[..2])?;
        }
        if self.reduce != RowReduce::None {
            let plain = a.residual.is_none() && a.gate.is_none() && a.row_mask.is_none();
            c.that(plain, "reduce", "None beside a residual, gate or row mask", format!("{:?}", self.reduce))?;
            c.that(s.rows > 0 || s.batch == 0, "x", "at least one row to reduce", a.x)?;
            let rows = s.batch.checked_mul(s.rows).filter(|&n| n <= u32::MAX as usize);
            c.that(rows.is_some(), "x", "at most 2^32 - 1 rows", a.x)?;
            c.shape("out", &a.out, "[batch, 1, N]", &[s.batch, 1, s.n])?;
        } else {
            c.shape("out", &a.out, "[batch, rows, N]", &result)?;
        }
        c.rows("out", &a.out)?;
        c.written("out", &a.out)
    }

    fn cost(&self, a: &LinearArgs<Spec, Spec>) -> Cost {
        let s = a.sizes();
        let halves = if self.activation.is_glu() { 2 } else { 1 };
        let mut bytes = all_bytes::<Linear>(a);
        if let Matrix::Prepared(w) = &a.weight {
            bytes = bytes.saturating_add(amount([halves, w.n(), w.k(), w.dtype().size()]));
        }
        if a.residual == Some(Source::InPlace) {
            bytes = bytes.saturating_add(super::operand_bytes(&a.out));
        }
        Cost { bytes, flops: amount([2, halves, s.batch, s.rows, s.n, s.k]) }
    }

    /// All batch entries share the matrix, so their rows form one GEMM.
    fn gemm(&self, a: &LinearArgs<Spec, Spec>) -> Option<GemmShape> {
        let s = a.sizes();
        let halves = if self.activation.is_glu() { 2 } else { 1 };
        Some(GemmShape { batch: 1, rows: s.batch.saturating_mul(s.rows), n: s.n.saturating_mul(halves), k: s.k })
    }
}

fn check_matrix(c: &Checker, name: &'static str, w: &Spec, n: usize, k: usize) -> Result<()> {
    c.rank(name, w, "[N, K]", 2)?;
    c.rows(name, w)?;
    c.shape(name, w, "[N, K]", &[n, k])
}
