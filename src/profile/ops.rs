//! Cases of single ops other than `attention`.

use std::sync::Arc;

use super::call::{Call, Input, Runnable, against_reference};
use super::weights::RandomWeights;
use crate::ops::{
    Activation, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, MediaIndex, MediaIndexArgs, MediaSource,
    Norm, NormArgs, NormKind, Source, media_index,
};
use crate::verify::compare::Outcome;
use crate::{DType, Device, HostTensor, Result, Spec, Weight, WeightSource};

/// Rows and columns of a sample that the reference recomputes.
const SAMPLE: [usize; 2] = [4, 96];

/// What the epilogue of a product does besides its activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum After {
    Nothing,
    Bias,
    GatedResidual,
}

/// Shapes of an op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum OpCase {
    MediaIndex { batch: usize, rows: usize, media: usize },
    Norm { kind: NormKind, rows: usize, heads: usize, width: usize },
    Linear { rows: usize, n: usize, k: usize, activation: Activation, after: After },
    GatedResidual { rows: usize, width: usize },
}

/// A built op, and what its check needs.
pub(super) enum OpCall {
    MediaIndex(Call<MediaIndex>),
    Norm(Norm, Call<Norm>),
    /// With the matrices as they were before packing.
    Linear(Linear, Call<Linear>, Vec<HostTensor<'static>>),
    GatedResidual(Call<GatedResidual>),
}

impl OpCall {
    pub fn runnable(&mut self) -> &mut dyn Runnable {
        match self {
            OpCall::MediaIndex(c) => c,
            OpCall::Norm(_, c) => c,
            OpCall::Linear(_, c, _) => c,
            OpCall::GatedResidual(c) => c,
        }
    }
}

fn rows_and_columns(sizes: [usize; 2]) -> Vec<[usize; 2]> {
    let [rows, columns] = sizes;
    let last = [rows.saturating_sub(SAMPLE[0]), columns.saturating_sub(SAMPLE[1])];
    let mut starts = vec![[0, 0], last];
    starts.dedup();
    starts
}

impl OpCase {
    pub fn build(self, device: &Device, dtype: DType) -> Result<OpCall> {
        let mut random = RandomWeights::new(2);
        let mut real = |mean, deviation, shape: &[usize], dtype| {
            Input::new(device, &random.tensor(mean, deviation, shape)?, dtype)
        };
        Ok(match self {
            OpCase::MediaIndex { batch, rows, media } => {
                let step = rows / media.max(1);
                let ids: Vec<i32> = (0..batch * rows).map(|i| i32::from(i % rows % step.max(1) == 0)).collect();
                let ids = HostTensor::from_slice(&ids, &[batch, rows])?;
                let args = MediaIndexArgs {
                    source: MediaSource::Tokens { ids: Input::new(device, &ids, DType::I32)?, token: 1 },
                    carry_in: None,
                    carry_out: None,
                    media_count: None,
                    media_index: Spec::contiguous(DType::I32, &[batch, rows])?,
                    plan: Some(Spec::contiguous(DType::U32, &media_index::plan_shape(batch, rows))?),
                };
                OpCall::MediaIndex(Call::op(device, &MediaIndex::default(), args)?)
            }
            OpCase::Norm { kind, rows, heads, width } => {
                let shape = [1, rows, heads, width];
                let args = NormArgs {
                    x: Source::From(real(0.5, 1.0, &shape, dtype)?),
                    rows: None,
                    add: None,
                    weight: Some(real(1.0, 0.1, &[width], DType::F32)?),
                    bias: if kind == NormKind::Layer { Some(real(0.0, 0.1, &[width], DType::F32)?) } else { None },
                    out: Spec::contiguous(dtype, &shape)?,
                };
                let op = Norm { kind, eps: 1e-5 };
                OpCall::Norm(op, Call::op(device, &op, args)?)
            }
            OpCase::Linear { rows, n, k, activation, after } => {
                let out = [1, rows, n];
                let x = real(0.0, 1.0, &[1, rows, k], dtype)?;
                let (mut bias, mut residual, mut gate) = (None, None, None);
                match after {
                    After::Nothing => {}
                    After::Bias => bias = Some(real(0.0, 0.1, &[n], DType::F32)?),
                    After::GatedResidual => {
                        residual = Some(Source::From(real(0.0, 1.0, &out, dtype)?));
                        gate = Some(real(0.7, 0.1, &[1], DType::F32)?);
                    }
                }
                let halves = if activation.is_glu() { 2 } else { 1 };
                let matrices: Vec<HostTensor<'static>> = (0..halves)
                    .map(|_| Ok(random.matrix(n, k)?.to_dtype(dtype)?.into_owned()))
                    .collect::<Result<_>>()?;
                let source = match matrices.as_slice() {
                    [gate, up] => WeightSource::glu(gate.clone(), up.clone()),
                    _ => WeightSource::stacked(matrices.clone()),
                };
                let weight = Matrix::Prepared(Arc::new(Weight::prepare(device, &source, dtype)?));
                let out = Spec::contiguous(dtype, &out)?;
                let args = LinearArgs { bias, residual, gate, ..LinearArgs::new(x, weight, out) };
                let op = Linear { activation, ..Linear::default() };
                OpCall::Linear(op, Call::op(device, &op, args)?, matrices)
            }
            OpCase::GatedResidual { rows, width } => {
                let shape = [1, rows, width];
                let args = GatedResidualArgs {
                    x: Source::From(real(0.0, 1.0, &shape, dtype)?),
                    y: real(0.0, 1.0, &shape, dtype)?,
                    gate: real(0.7, 0.1, &[1], DType::F32)?,
                    row_mask: None,
                    out: Spec::contiguous(dtype, &shape)?,
                };
                OpCall::GatedResidual(Call::op(device, &GatedResidual, args)?)
            }
        })
    }
}

impl OpCall {
    /// Recomputes samples by the reference: rows at both ends, for products also columns at both ends; φ and the plan whole.
    pub fn check(&self, device: &Device, dtype: DType) -> Result<Vec<Outcome>> {
        let host = Device::reference();
        let mut outcomes = Vec::new();
        match self {
            OpCall::MediaIndex(call) => {
                let args = call.gathered(device, &mut |_, view| Ok(view))?;
                outcomes = against_reference(&MediaIndex::default(), args, call.outputs()?, dtype)?;
            }
            OpCall::Norm(op, call) => {
                let output = &call.outputs()?[0];
                let rows = output.shape()[1];
                for [row, _] in rows_and_columns([rows, 0]) {
                    let n = SAMPLE[0].min(rows);
                    let mut args = call.gathered(device, &mut |name, view| match name {
                        "x" => view.narrow(1, row, n),
                        _ => Ok(view),
                    })?;
                    let view = output.view()?.narrow(1, row, n)?;
                    args.out = view.spec();
                    outcomes.extend(against_reference(op, args, vec![host.download(&view)?], dtype)?);
                }
            }
            OpCall::GatedResidual(call) => {
                let output = &call.outputs()?[0];
                let rows = output.shape()[1];
                for [row, _] in rows_and_columns([rows, 0]) {
                    let n = SAMPLE[0].min(rows);
                    let mut args = call.gathered(device, &mut |name, view| match name {
                        "gate" => Ok(view),
                        _ => view.narrow(1, row, n),
                    })?;
                    let view = output.view()?.narrow(1, row, n)?;
                    args.out = view.spec();
                    outcomes.extend(against_reference(&GatedResidual, args, vec![host.download(&view)?], dtype)?);
                }
            }
            OpCall::Linear(op, call, matrices) => {
                let output = &call.outputs()?[0];
                let [rows, columns] = [output.shape()[1], output.shape()[2]];
                // One row alone: as many columns as keep the sample a statistic.
                let wide = if rows < SAMPLE[0] { SAMPLE[0] * SAMPLE[1] } else { SAMPLE[1] };
                for [row, column] in rows_and_columns([rows, columns]) {
                    let (n, m) = (SAMPLE[0].min(rows), wide.min(columns));
                    let column = column.min(columns - m);
                    let mut args = call.gathered(device, &mut |name, view| match name {
                        "x" => view.narrow(1, row, n),
                        "residual" => view.narrow(1, row, n)?.narrow(2, column, m),
                        "bias" => view.narrow(0, column, m),
                        _ => Ok(view),
                    })?;
                    let part = |w: &HostTensor<'static>| host.download(&w.view()?.narrow(0, column, m)?);
                    args.weight = match matrices.as_slice() {
                        [gate, up] => Matrix::Pair(part(gate)?, part(up)?),
                        _ => Matrix::View(part(&matrices[0])?),
                    };
                    let view = output.view()?.narrow(1, row, n)?.narrow(2, column, m)?;
                    args.out = view.spec();
                    outcomes.extend(against_reference(op, args, vec![host.download(&view)?], dtype)?);
                }
            }
        }
        Ok(outcomes)
    }
}
