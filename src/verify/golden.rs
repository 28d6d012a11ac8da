//! Fixtures on devices: the reference against the file, other devices by the accuracy rule.

use std::collections::BTreeMap;
use std::path::Path;

use super::compare::{Judge, Outcome, PERMUTATIONS, STATISTICAL, compare, half_ulp};
use super::fixture::Fixture;
use super::generate::Rng;
use super::{Entry, Status, classes, guarded};
use crate::{DType, Device, DeviceKind, Error, HostTensor, Result};

type Outputs = BTreeMap<String, HostTensor<'static>>;

/// Perturbed runs of the truth from which the sensitivity of small outputs is estimated.
const SAMPLES: u64 = 16;
/// Bound in estimated standard deviations: Hoeffding's 6, and 2 for an estimate from 16 samples (`docs/numerics.md`).
const DEVIATIONS: f64 = 12.0;

/// Runs a fixture file on every device: on the reference in f64, on others in every dtype.
pub(super) fn verify(path: &Path, devices: &[Device], dtypes: &[DType]) -> Vec<Entry> {
    let entry = |device: DeviceKind, dtype: DType| Entry {
        case: path.display().to_string(),
        subject: "fixture".into(),
        device,
        dtype,
        status: Status::Failed,
        outcomes: Vec::new(),
        not_compared: Vec::new(),
        reason: None,
    };
    let fixture = match guarded(|| Fixture::read(path)) {
        Ok(fixture) => fixture,
        // Nobody can run it: one failure, not one per device.
        Err(e) => return vec![entry(DeviceKind::Reference, DType::F64).stopped(Status::Failed, e)],
    };
    let entry = |device, dtype| Entry {
        subject: fixture.source_class.clone(),
        not_compared: fixture.outputs.keys().filter(|name| is_left_out(name)).cloned().collect(),
        ..entry(device, dtype)
    };
    let mut entries = Vec::new();
    if let Some(reference) = devices.iter().find(|d| d.kind() == DeviceKind::Reference) {
        let entry = entry(DeviceKind::Reference, DType::F64);
        entries.push(finish(entry, guarded(|| against_file(&fixture, reference))));
    }
    let others: Vec<&Device> = devices.iter().filter(|d| d.kind() != DeviceKind::Reference).collect();
    for &dtype in if others.is_empty() { &[] } else { dtypes } {
        let expected = guarded(|| Expected::new(&fixture, dtype));
        for device in &others {
            let entry = entry(device.kind(), dtype);
            let outcomes = match &expected {
                Ok(expected) => guarded(|| expected.judge(&fixture, device, dtype)),
                Err(e) => Err(e.clone()),
            };
            entries.push(finish(entry, outcomes));
        }
    }
    entries
}

fn finish(entry: Entry, outcomes: Result<Vec<Outcome>>) -> Entry {
    match outcomes {
        Ok(outcomes) => entry.compared(outcomes),
        Err(e @ Error::Unsupported { .. }) => entry.stopped(Status::Skipped, e),
        Err(e) => entry.stopped(Status::Failed, e),
    }
}

/// Losses wait for an op that computes them.
fn is_left_out(output: &str) -> bool {
    output.contains("_loss_")
}

/// A class run in which every output that the file expects is there.
fn outputs(fixture: &Fixture, device: &Device, dtype: DType) -> Result<Outputs> {
    let outputs: Outputs = classes::run(fixture, device, dtype)?.into_iter().collect();
    let missing = fixture.outputs.keys().find(|name| !is_left_out(name) && !outputs.contains_key(*name));
    match missing {
        Some(name) => Err(fixture.fault(format!("outputs.{name} was not computed"))),
        None => Ok(outputs),
    }
}

fn against_file(fixture: &Fixture, reference: &Device) -> Result<Vec<Outcome>> {
    let computed = outputs(fixture, reference, DType::F64)?;
    let visible = fixture.outputs.iter().filter(|(name, _)| !is_left_out(name));
    let visible = visible.map(|(name, t)| (name.clone(), t));
    let inner = fixture.intermediates.iter().map(|(name, t)| (format!("inter.{name}"), t));
    visible
        .chain(inner)
        .filter_map(|(name, expected)| computed.get(&name).map(|actual| (name, actual, expected)))
        .map(|(name, actual, expected)| compare(&name, actual, expected, &Judge::Fixture))
        .collect()
}

/// What devices are judged by, for one dtype.
struct Expected {
    truth: Outputs,
    yardsticks: Vec<Outputs>,
    /// Bounds of outputs below [`STATISTICAL`] elements, without their own rounding.
    bounds: BTreeMap<String, Vec<f64>>,
    rounded: Fixture,
}

impl Expected {
    fn new(fixture: &Fixture, dtype: DType) -> Result<Self> {
        let rounded = fixture.rounded(dtype)?;
        let truth = outputs(&rounded, &Device::reference(), DType::F64)?;
        let yardsticks: Result<Vec<Outputs>> =
            (0..PERMUTATIONS).map(|p| outputs(&rounded, &Device::yardstick(p), dtype)).collect();
        let bounds = sensitivity(&rounded, &truth, dtype)?;
        Ok(Expected { truth, yardsticks: yardsticks?, bounds, rounded })
    }

    fn judge(&self, fixture: &Fixture, device: &Device, dtype: DType) -> Result<Vec<Outcome>> {
        let computed = outputs(&self.rounded, device, dtype)?;
        let mut outcomes = Vec::with_capacity(computed.len());
        for (name, actual) in &computed {
            let truth = self.truth.get(name).ok_or_else(|| fixture.fault(format!("outputs.{name} has no truth")))?;
            let outcome = match self.bounds.get(name) {
                Some(bounds) => {
                    let wide = truth.to_f64()?;
                    let bounds: Vec<f64> =
                        bounds.iter().zip(wide).map(|(b, t)| b + half_ulp(t.abs() + b, actual.dtype())).collect();
                    compare(name, actual, truth, &Judge::Componentwise(&bounds))?
                }
                None => {
                    let runs: Option<Vec<_>> = self.yardsticks.iter().map(|y| y.get(name).cloned()).collect();
                    let runs = runs.ok_or_else(|| fixture.fault(format!("outputs.{name} has no yardstick")))?;
                    compare(name, actual, truth, &Judge::Yardstick(&runs))?
                }
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

/// Componentwise bounds of the small real outputs: how far the truth moves when weights and inputs carry random rounding errors.
fn sensitivity(fixture: &Fixture, truth: &Outputs, dtype: DType) -> Result<BTreeMap<String, Vec<f64>>> {
    let small = |t: &HostTensor<'_>| t.dtype().is_float() && t.elements() < STATISTICAL;
    let names: Vec<&String> = truth.iter().filter(|(_, t)| small(t)).map(|(name, _)| name).collect();
    let mut squares: BTreeMap<String, Vec<f64>> =
        names.iter().map(|&name| (name.clone(), vec![0.0; truth[name].elements()])).collect();
    for sample in 0..if names.is_empty() { 0 } else { SAMPLES } {
        let moved = outputs(&perturbed(fixture, dtype, sample)?, &Device::reference(), DType::F64)?;
        for (name, sums) in &mut squares {
            let (moved, still) = (moved[name].to_f64()?, truth[name].to_f64()?);
            for ((sum, m), t) in sums.iter_mut().zip(moved).zip(still) {
                // Infinite results have no distance; whether they match is judged apart.
                let moved = m - t;
                *sum += if moved.is_finite() { moved * moved } else { 0.0 };
            }
        }
    }
    for sums in squares.values_mut() {
        sums.iter_mut().for_each(|s| *s = DEVIATIONS * (*s / SAMPLES as f64).sqrt());
    }
    Ok(squares)
}

/// The fixture with relative errors of random sign: every element of weights and inputs by the roundings of a sum over its row, every
/// matrix row besides, which is every result of a product, by one rounding to `dtype`.
fn perturbed(fixture: &Fixture, dtype: DType, sample: u64) -> Result<Fixture> {
    let unit = dtype.epsilon() / 2.0;
    let shake = |kind: &str, tensors: &Outputs| -> Result<Outputs> {
        let shaken = tensors.iter().map(|(name, tensor)| {
            if !tensor.dtype().is_float() {
                return Ok((name.clone(), tensor.clone()));
            }
            let mut rng = Rng::named(sample, &format!("{kind}.{name}"));
            let mut sign = |size: f64| if rng.one_in(2) { size } else { -size };
            let width = tensor.shape().last().copied().unwrap_or(1).max(1);
            let matrix = kind == "weights" && tensor.shape().len() == 2;
            let each = if matrix { (width as f64).sqrt() * DType::F32.epsilon() / 2.0 } else { unit };
            let mut values = tensor.to_f64()?;
            for row in values.chunks_mut(width) {
                let whole = if matrix { sign(unit) } else { 0.0 };
                row.iter_mut().for_each(|x| *x *= 1.0 + whole + sign(each));
            }
            Ok((name.clone(), HostTensor::from_slice(&values, tensor.shape())?))
        });
        shaken.collect()
    };
    let (weights, inputs) = (shake("weights", &fixture.weights)?, shake("inputs", &fixture.inputs)?);
    Ok(Fixture { weights, inputs, ..fixture.clone() })
}
