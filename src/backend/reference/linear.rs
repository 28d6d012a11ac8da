//! `linear`, as in the equation of `ops/linear.rs`.

use super::dense::{Dense, Operand, Promise, collect};
use super::real::{Order, Real};
use super::{Arithmetic, Reference};
use crate::backend::Implements;
use crate::ops::linear::LinearSizes;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Operands, RowReduce, Source};
use crate::tensor::{HostMemory, HostTensor, Spec};
use crate::{Error, Result, Weight};

/// The op and the sizes it was prepared for: a prepared matrix has sizes of its own.
pub(crate) struct PreparedLinear {
    op: Linear,
    sizes: LinearSizes,
}

impl Implements<Linear> for Reference {
    type Prepared = PreparedLinear;

    fn prepare(&self, op: &Linear, shapes: &<Linear as Operands>::Args<Spec, Spec>) -> Result<PreparedLinear> {
        let prepared = PreparedLinear { op: *op, sizes: shapes.sizes() };
        if let Matrix::Prepared(weight) = &shapes.weight {
            expect_weight(&prepared, weight)?;
        }
        Ok(prepared)
    }

    fn workspace_bytes(_: &PreparedLinear) -> usize {
        0
    }

    unsafe fn record(
        &self,
        prepared: &PreparedLinear,
        _: &mut (),
        args: &LinearArgs<Operand, Operand>,
        _: &HostMemory,
    ) -> Result<()> {
        // SAFETY: the contract of `record`, passed on.
        let memory = unsafe { Promise::of_enqueue() };
        match self.arithmetic {
            Arithmetic::F64 => linear::<f64>(prepared, &memory, args, &Order::new(0)),
            Arithmetic::F32 { permutation } => linear::<f32>(prepared, &memory, args, &Order::new(permutation)),
        }
    }
}

/// The matrices of a prepared weight, if it is of this backend and these sizes.
fn expect_weight<'w>(prepared: &PreparedLinear, weight: &'w Weight) -> Result<&'w super::PlainWeight> {
    let PreparedLinear { op, sizes } = prepared;
    let refuse = |expected: String| Err(Error::argument(Linear::NAME, "weight", expected, format!("{weight:?}")));
    let Some(matrices) = weight.packed::<super::PlainWeight>() else {
        return refuse("a weight prepared for reference".into());
    };
    if (weight.n(), weight.k(), weight.is_glu()) != (sizes.n, sizes.k, op.activation.is_glu()) {
        let pair = if op.activation.is_glu() { "a pair" } else { "a matrix" };
        return refuse(format!("{pair} [{}, {}] as prepared", sizes.n, sizes.k));
    }
    Ok(matrices)
}

fn host_matrix<R: Real>(tensor: &HostTensor<'_>) -> Result<Dense<R>> {
    Dense::new(tensor.shape(), tensor.to_f64()?).map(R::round_from)
}

/// The matrix `[N, K]`, and the second one of a gated activation.
fn matrices<R: Real>(
    prepared: &PreparedLinear,
    memory: &Promise,
    weight: &Matrix<Operand>,
) -> Result<(Dense<R>, Option<Dense<R>>)> {
    Ok(match weight {
        Matrix::View(w) => (memory.reals(w)?, None),
        Matrix::Pair(gate, up) => (memory.reals(gate)?, Some(memory.reals(up)?)),
        Matrix::Prepared(weight) => {
            let plain = expect_weight(prepared, weight)?;
            (host_matrix(&plain.parts)?, plain.up.as_ref().map(host_matrix).transpose()?)
        }
    })
}

fn activate<R: Real>(activation: Activation, x: R, up: impl FnOnce() -> R) -> R {
    let half = R::round_from(0.5);
    // Not `max`, which would turn NaN into 0.
    let relu = |x: R| if x < R::ZERO { R::ZERO } else { x };
    match activation {
        Activation::None => x,
        Activation::Gelu => x * half * (R::ONE + (x * R::round_from(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Activation::Relu => relu(x),
        Activation::SquaredRelu => relu(x) * relu(x),
        Activation::SwiGlu => x / (R::ONE + (-x).exp()) * up(),
    }
}

fn linear<R: Real>(
    prepared: &PreparedLinear,
    memory: &Promise,
    args: &LinearArgs<Operand, Operand>,
    order: &Order,
) -> Result<()> {
    let (op, LinearSizes { batch, rows, n, .. }) = (&prepared.op, prepared.sizes);
    if args.out.spec.elements() == 0 {
        if let Matrix::Prepared(weight) = &args.weight {
            expect_weight(prepared, weight)?;
        }
        return Ok(());
    }
    let x: Dense<R> = memory.reals(&args.x)?;
    let (weight, up) = matrices::<R>(prepared, memory, &args.weight)?;
    let bias = args.bias.as_ref().map(|b| memory.reals::<R>(b)).transpose()?;
    let residual: Option<Dense<R>> = match &args.residual {
        Some(Source::From(residual)) => Some(memory.reals(residual)?),
        Some(Source::InPlace) => Some(memory.reals(&args.out)?),
        None => None,
    };
    let gate = args.gate.as_ref().map(|g| memory.reals::<R>(g)).transpose()?;
    let row_mask = args.row_mask.as_ref().map(|m| memory.read::<u32>(m)).transpose()?;

    let mut y = Dense::filled(&[batch, rows, n], R::ZERO)?;
    for b in 0..batch {
        for i in 0..rows {
            for c in 0..n {
                let remains = residual.as_ref().map_or(R::ZERO, |r| *r.at(&[b, i, c]));
                if row_mask.as_ref().is_some_and(|m| *m.at(&[b, i]) == 0) {
                    *y.at_mut(&[b, i, c]) = remains;
                    continue;
                }
                let mut p = order.dot(x.row(&[b, i]), weight.row(&[c]));
                if let Some(bias) = &bias {
                    p = p + *bias.at(&[c]);
                }
                let mut a = activate(op.activation, p, || {
                    up.as_ref().map_or(R::ONE, |up| order.dot(x.row(&[b, i]), up.row(&[c])))
                });
                if let Some(gate) = &gate {
                    a = gate.at(&[c.min(gate.dim(0) - 1)]).tanh() * a;
                }
                *y.at_mut(&[b, i, c]) = if residual.is_some() { remains + a } else { a };
            }
        }
    }
    let out = match op.reduce {
        RowReduce::None => y,
        RowReduce::Max => reduce(&y, |column| {
            let larger = |m: R, x: R| if m.is_nan() || x.is_nan() { m + x } else { m.max(x) };
            column.iter().copied().reduce(larger).unwrap_or(R::NEG_INFINITY)
        })?,
        RowReduce::Mean => reduce(&y, |column| order.mean(column.len(), |i| column[i]))?,
    };
    order.expect_drawn()?;
    memory.write_reals(&args.out, out.map(Some)?)
}

/// `[batch, rows, N]` to `[batch, 1, N]`.
fn reduce<R: Real>(y: &Dense<R>, over_rows: impl Fn(&[R]) -> R) -> Result<Dense<R>> {
    let mut out = Dense::filled(&[y.dim(0), 1, y.dim(2)], R::ZERO)?;
    for b in 0..y.dim(0) {
        for c in 0..y.dim(2) {
            let column: Vec<R> = collect((0..y.dim(1)).map(|i| *y.at(&[b, i, c])))?;
            *out.at_mut(&[b, 0, c]) = over_rows(&column);
        }
    }
    Ok(out)
}
