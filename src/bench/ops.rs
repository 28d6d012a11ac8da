//! Cases of single ops other than `attention`.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

use super::call::{Call, Copying, Input, Runnable, against_reference};
use super::sample;
use super::weights::RandomWeights;
use crate::ops::{
    Activation, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, MediaIndex, MediaIndexArgs, MediaSource,
    Norm, NormArgs, NormKind, Source, media_index,
};
use crate::threads::Pool;
use crate::verify::compare::{Outcome, STATISTICAL};
use crate::{DType, Device, Error, HostTensor, Result, Spec, Weight, WeightSource};

/// Neighbouring columns of each part of a large product that the reference recomputes.
const COLUMNS: usize = 96;
/// Numbers of another op that the reference recomputes whole.
const ELEMENTS: usize = 1 << 22;

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

impl OpCase {
    pub fn json(self) -> Value {
        match self {
            OpCase::MediaIndex { batch, rows, media } => json!({ "batch": batch, "rows": rows, "media": media }),
            OpCase::Norm { kind, rows, heads, width } => {
                json!({ "kind": format!("{kind:?}").to_lowercase(), "rows": rows, "heads": heads, "width": width })
            }
            OpCase::Linear { rows, n, k, activation, after } => {
                let after = match after {
                    After::Nothing => Value::Null,
                    After::Bias => "bias".into(),
                    After::GatedResidual => "gated_residual".into(),
                };
                json!({ "rows": rows, "n": n, "k": k, "activation": activation.name(), "epilogue": after })
            }
            OpCase::GatedResidual { rows, width } => json!({ "rows": rows, "width": width }),
        }
    }

    pub fn build(self, device: &Device, dtype: DType) -> Result<OpCall> {
        let mut random = RandomWeights::new(2).with_matrices(dtype);
        let mut real = |mean, deviation, shape: &[usize], dtype| {
            Input::new(device, &random.rounded(mean, deviation, shape, dtype)?, dtype)
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
                let matrices: Vec<HostTensor<'static>> =
                    (0..halves).map(|_| random.matrix(n, k)).collect::<Result<_>>()?;
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

/// A part of a product: rows and columns of its result.
struct Window {
    rows: Vec<Range<usize>>,
    columns: Range<usize>,
}

/// Parts of `rows` by `n` results of `k` terms: all of a small product; else a band of columns for
/// each eighth of the rows.
fn windows(rows: usize, n: usize, k: usize) -> Vec<Window> {
    if rows * n * k <= sample::WHOLE {
        return vec![Window { rows: sample::all(0..rows), columns: 0..n }];
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
            Window { rows, columns: first..first + width }
        })
        .collect()
}

/// Judges a product by the reference, in parts. `gather` copies operands, `output` is the whole
/// result. How many rows were compared.
pub(super) fn check_linear(
    device: &Device,
    op: &Linear,
    gather: &dyn Fn(&mut Copying<'_>) -> Result<LinearArgs<HostTensor<'static>, Spec>>,
    matrices: &[HostTensor<'static>],
    output: &HostTensor<'static>,
    dtype: DType,
) -> Result<(usize, Vec<Outcome>)> {
    let host = Device::reference();
    let [rows, n] = [output.shape()[1], output.shape()[2]];
    let windows = windows(rows, n, matrices.first().map_or(0, |matrix| matrix.shape()[1]));
    let mut gathered = Vec::with_capacity(windows.len());
    for Window { rows, columns } in &windows {
        let (column, m) = (columns.start, columns.len());
        let mut args = gather(&mut |name, view| match name {
            "x" => sample::rows_of(device, view, rows),
            "residual" => sample::rows_of(device, view.narrow(2, column, m)?, rows),
            "bias" => device.download(&view.narrow(0, column, m)?),
            _ => device.download(&view),
        })?;
        let part = |w: &HostTensor<'static>| host.download(&w.view()?.narrow(0, column, m)?);
        args.weight = match matrices {
            [gate, up] => Matrix::Pair(part(gate)?, part(up)?),
            [one] => Matrix::View(part(one)?),
            other => return Err(Error::argument("bench", "matrices", "one or two", other.len())),
        };
        let actual = sample::rows_of(&host, output.view()?.narrow(2, column, m)?, rows)?;
        args.out = actual.view()?.spec();
        gathered.push((args, actual));
    }
    let judged = Pool::callers().map(gathered.len(), |i| {
        let (args, actual) = &gathered[i];
        against_reference(op, args, std::slice::from_ref(actual), dtype)
    });
    let judged: Vec<Vec<Outcome>> = judged.into_iter().collect::<Result<_>>()?;
    let checked = windows.iter().map(|window| sample::count(&window.rows)).sum();
    Ok((checked, judged.into_iter().flatten().collect()))
}

impl OpCall {
    /// Judges outputs by the reference: all rows, or those of a sample. How many rows were
    /// compared.
    pub fn check(
        &self,
        device: &Device,
        outputs: &[HostTensor<'static>],
        dtype: DType,
    ) -> Result<(usize, Vec<Outcome>)> {
        let [output, ..] = outputs else { return Err(Error::argument("bench", "outputs", "at least one", "none")) };
        // Where a row's result follows from a row of some operands and all of the others.
        let runs = {
            let (rows, each) = (output.shape()[1], output.elements() / output.shape()[1].max(1));
            let count = if rows * each <= ELEMENTS { rows } else { sample::ROWS };
            sample::spread(&mut sample::chooser(), 0..rows, count)
        };
        let actual = || sample::rows_of(&Device::reference(), output.view()?, &runs);
        match self {
            OpCall::MediaIndex(call) => {
                let args = call.gathered(&mut |_, view| device.download(&view))?;
                let outcomes = against_reference(&MediaIndex::default(), &args, outputs, dtype)?;
                Ok((output.shape()[0] * output.shape()[1], outcomes))
            }
            OpCall::Norm(op, call) => {
                let actual = actual()?;
                let mut args = call.gathered(&mut |name, view| match name {
                    "x" => sample::rows_of(device, view, &runs),
                    _ => device.download(&view),
                })?;
                args.out = actual.view()?.spec();
                Ok((sample::count(&runs), against_reference(op, &args, &[actual], dtype)?))
            }
            OpCall::GatedResidual(call) => {
                let actual = actual()?;
                let mut args = call.gathered(&mut |name, view| match name {
                    "gate" => device.download(&view),
                    _ => sample::rows_of(device, view, &runs),
                })?;
                args.out = actual.view()?.spec();
                Ok((sample::count(&runs), against_reference(&GatedResidual, &args, &[actual], dtype)?))
            }
            OpCall::Linear(op, call, matrices) => {
                check_linear(device, op, &|copy| call.gathered(copy), matrices, output, dtype)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_product_reach_all_its_edges() {
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
