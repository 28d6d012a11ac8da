//! `norm`, as in the equations of `ops/norm.rs`.

use super::dense::{Dense, Operand, Promise, collect};
use super::real::{Order, Real, Rounding};
use super::{Arithmetic, Reference};
use crate::Result;
use crate::backend::Implements;
use crate::ops::{Norm, NormArgs, NormKind, Operands, Source};
use crate::tensor::{HostMemory, Spec};

impl Implements<Norm> for Reference {
    type Prepared = Norm;

    fn prepare(&self, op: &Norm, _: &<Norm as Operands>::Args<Spec, Spec>) -> Result<Norm> {
        Ok(*op)
    }

    fn workspace_bytes(_: &Norm) -> usize {
        0
    }

    unsafe fn record(&self, op: &Norm, _: &mut (), args: &NormArgs<Operand, Operand>, _: &HostMemory) -> Result<()> {
        // SAFETY: the contract of `record`, passed on.
        let memory = unsafe { Promise::of_enqueue() };
        match self.arithmetic {
            Arithmetic::F64 => norm::<f64>(op, &memory, args, &Order::new(0), self.rounding),
            Arithmetic::F32 { permutation } => norm::<f32>(op, &memory, args, &Order::new(permutation), None),
        }
    }
}

fn norm<R: Real>(
    op: &Norm,
    memory: &Promise,
    args: &NormArgs<Operand, Operand>,
    order: &Order,
    rounding: Option<Rounding>,
) -> Result<()> {
    if args.out.spec.elements() == 0 {
        return Ok(());
    }
    let input: Dense<R> = match &args.x {
        Source::From(x) => memory.reals(x)?,
        Source::InPlace => memory.reals(&args.out)?,
    };
    let rows = args.rows.as_ref().map(|r| memory.read::<i32>(r)).transpose()?;
    let [add, weight, bias] = [&args.add, &args.weight, &args.bias].map(|o| o.as_ref().map(|o| memory.reals::<R>(o)));
    let (add, weight, bias) = (add.transpose()?, weight.transpose()?, bias.transpose()?);
    let mut out = Dense::filled(args.out.spec.shape(), R::ZERO)?;
    for a in 0..out.dim(0) {
        for b in 0..out.dim(1) {
            for c in 0..out.dim(2) {
                let x = match &rows {
                    Some(rows) => input.row(&[0, clamp_row(*rows.at(&[a, b]), input.dim(1)), 0]),
                    None => input.row(&[a, b, c]),
                };
                let mut x = collect(x.iter().copied())?;
                if let Some(add) = &add {
                    x.iter_mut().zip(add.row(&[a, b, c])).for_each(|(x, &add)| *x = *x + add);
                }
                let mut y = normalise(op, &x, order, rounding)?;
                if let Some(weight) = &weight {
                    y.iter_mut().zip(weight.row(&[])).for_each(|(y, &w)| *y = w * *y);
                }
                if let Some(bias) = &bias {
                    y.iter_mut().zip(bias.row(&[])).for_each(|(y, &b)| *y = *y + b);
                }
                out.row_mut(&[a, b, c]).copy_from_slice(&y);
            }
        }
    }
    order.expect_drawn()?;
    memory.write_reals(&args.out, out.map(Some)?)
}

fn normalise<R: Real>(op: &Norm, x: &[R], order: &Order, rounding: Option<Rounding>) -> Result<Vec<R>> {
    let width = x.len();
    let [eps, zero, one] = [f64::from(op.eps), 0.0, 1.0].map(R::round_from);
    let (mean, divisor) = match op.kind {
        NormKind::Layer => {
            let mean = rounding.map_or_else(|| order.mean(width, |i| x[i]), |rounding| rounding.mean(x));
            let variance = order.mean(width, |i| (x[i] - mean) * (x[i] - mean));
            (mean, (variance + eps).sqrt())
        }
        NormKind::Rms => (zero, (order.mean(width, |i| x[i] * x[i]) + eps).sqrt()),
        NormKind::L2 => {
            let norm = order.dot(x, x).sqrt();
            // Not `max`, which would turn NaN into eps.
            (zero, if norm < eps { eps } else { norm })
        }
    };
    // A product, not a division: the yardstick has the roundings of devices and of PyTorch.
    let factor = one / divisor;
    collect(x.iter().map(|&x| (x - mean) * factor))
}

/// Clamps an id to a table of at least one row.
fn clamp_row(row: i32, rows: usize) -> usize {
    usize::try_from(row).unwrap_or(0).min(rows - 1)
}
