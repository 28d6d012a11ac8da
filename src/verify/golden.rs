//! Fixtures on devices: the reference against the file, other devices by the accuracy rule.

use std::collections::BTreeMap;
use std::path::Path;

use super::compare::{Judge, Outcome, PERMUTATIONS, STATISTICAL, compare, half_ulp};
use super::fixture::Fixture;
use super::generate::Rng;
use super::guarded::guarded;
use super::sampled::Sampled;
use super::{Entry, Status, classes};
use crate::{DType, Device, DeviceKind, Error, HostTensor, Result};

type Outputs = BTreeMap<String, HostTensor<'static>>;

/// Perturbed runs of the truth that estimate the sensitivity of small outputs.
const SAMPLES: u64 = 16;
/// With fewer independent errors, an output gets twice the runs, which halves its factor.
const FEW: f64 = 32.0;
/// Bound in estimated standard deviations: Hoeffding's 6, times 2 (`docs/numerics.md`).
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
        // No device can run it: one failure, not one per device.
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

/// Losses have no op yet.
fn is_left_out(output: &str) -> bool {
    output.contains("_loss_")
}

/// Runs a class and checks that it returns every output of the file.
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

/// The rules for devices of one dtype.
struct Expected {
    truth: Outputs,
    /// Errors of naive runs for outputs of at least [`STATISTICAL`] elements.
    losses: BTreeMap<String, Sampled>,
    /// Bounds of outputs below [`STATISTICAL`] elements, without their own rounding.
    bounds: BTreeMap<String, Vec<f64>>,
    rounded: Fixture,
}

impl Expected {
    fn new(fixture: &Fixture, dtype: DType) -> Result<Self> {
        let rounded = fixture.rounded(dtype)?;
        let truth = outputs(&rounded, &Device::reference(), DType::F64)?;
        let (losses, bounds) = (losses(&rounded, &truth, dtype)?, sensitivity(&rounded, &truth, dtype)?);
        Ok(Expected { truth, losses, bounds, rounded })
    }

    fn judge(&self, fixture: &Fixture, device: &Device, dtype: DType) -> Result<Vec<Outcome>> {
        let computed = outputs(&self.rounded, device, dtype)?;
        let mut outcomes = Vec::with_capacity(computed.len());
        for (name, actual) in &computed {
            let truth = self.truth.get(name).ok_or_else(|| fixture.fault(format!("outputs.{name} has no truth")))?;
            let outcome = match (self.bounds.get(name), self.losses.get(name)) {
                (Some(bounds), _) => {
                    let wide = truth.to_f64()?;
                    let inner = unit_norms(name, &self.truth);
                    let bound = |(b, t): (&f64, f64)| b + inner + half_ulp(t.abs() + b + inner, actual.dtype());
                    let bounds: Vec<f64> = bounds.iter().zip(wide).map(bound).collect();
                    compare(name, actual, truth, &Judge::Componentwise(&bounds))?
                }
                (None, Some(losses)) => compare(name, actual, truth, &Judge::Sampled(losses))?,
                // Integers.
                (None, None) => compare(name, actual, truth, &Judge::Exact)?,
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

fn is_small(output: &HostTensor<'_>) -> bool {
    output.dtype().is_float() && output.elements() < STATISTICAL
}

/// Errors of naive runs for outputs that are not small. Run 0 has the file's inputs, later runs
/// perturbed ones; each is compared with the truth of its own inputs.
fn losses(fixture: &Fixture, truth: &Outputs, dtype: DType) -> Result<BTreeMap<String, Sampled>> {
    let large = truth.iter().filter(|(_, t)| t.dtype().is_float() && !is_small(t));
    let mut losses: BTreeMap<String, Sampled> = large.map(|(name, _)| (name.clone(), Sampled::default())).collect();
    for run in 0..2 * PERMUTATIONS {
        let settled = run == PERMUTATIONS && losses.values().all(|l| l.independent() >= FEW);
        if losses.is_empty() || settled {
            break;
        }
        let moved = if run == 0 { None } else { Some(neighbour(fixture, dtype, run)?) };
        let own = moved.as_ref().map(|f| outputs(f, &Device::reference(), DType::F64)).transpose()?;
        let naive = outputs(moved.as_ref().unwrap_or(fixture), &Device::yardstick(run), dtype)?;
        let own = own.as_ref().unwrap_or(truth);
        for (name, losses) in &mut losses {
            let absent = || fixture.fault(format!("outputs.{name} has no yardstick"));
            losses.add(name, naive.get(name).ok_or_else(absent)?, own.get(name).ok_or_else(absent)?)?;
        }
    }
    Ok(losses)
}

/// The fixture with every real number moved by up to `dtype`'s epsilon, and rounded.
fn neighbour(fixture: &Fixture, dtype: DType, run: u64) -> Result<Fixture> {
    let epsilon = dtype.epsilon();
    let moved = changed(fixture, run, |_, rng, _, values| {
        values.iter_mut().for_each(|x| *x *= 1.0 + epsilon * (2.0 * rng.unit() - 1.0));
    })?;
    moved.rounded(dtype)
}

/// Errors of L2 norms in outputs: no weight follows such a norm, so perturbation misses them.
fn unit_norms(output: &str, truth: &Outputs) -> f64 {
    let unit = DType::F32.epsilon() / 2.0;
    let width = |name: &str| truth.get(name).and_then(|t| t.shape().last().copied()).unwrap_or(0) as f64;
    // The sum of squares, the root, the product.
    let norm = |width: f64| ((width + 2.0) / 2.0 + 9.0) * unit;
    match output {
        "itc_image_embeds" | "itc_text_embeds" => norm(width(output)),
        "itc_logits_per_image" => 2.0 * norm(width("itc_text_embeds")) + (width("itc_text_embeds") + 2.0) * unit,
        _ => 0.0,
    }
}

/// Componentwise bounds of the small real outputs: the truth's movement under random rounding
/// errors of weights, inputs and LayerNorm means.
fn sensitivity(fixture: &Fixture, truth: &Outputs, dtype: DType) -> Result<BTreeMap<String, Vec<f64>>> {
    let names: Vec<&String> = truth.iter().filter(|(_, t)| is_small(t)).map(|(name, _)| name).collect();
    let mut squares: BTreeMap<String, Vec<f64>> =
        names.iter().map(|&name| (name.clone(), vec![0.0; truth[name].elements()])).collect();
    for sample in 0..if names.is_empty() { 0 } else { SAMPLES } {
        let device = Device::reference_with_rounded_means(sample);
        let moved = outputs(&perturbed(fixture, dtype, sample)?, &device, DType::F64)?;
        for (name, sums) in &mut squares {
            let (moved, still) = (moved[name].to_f64()?, truth[name].to_f64()?);
            for ((sum, m), t) in sums.iter_mut().zip(moved).zip(still) {
                // Infinite results have no distance; `compare` checks that they match.
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

/// The fixture with relative errors of random sign. Each element of a matrix gets the roundings of
/// a sum over its row, each row (every result of the GEMM) one rounding to `dtype`; other elements
/// get one rounding.
fn perturbed(fixture: &Fixture, dtype: DType, sample: u64) -> Result<Fixture> {
    let unit = dtype.epsilon() / 2.0;
    changed(fixture, sample, |kind, rng, shape, values| {
        let mut sign = |size: f64| if rng.one_in(2) { size } else { -size };
        let width = shape.last().copied().unwrap_or(1).max(1);
        let matrix = kind == "weights" && shape.len() == 2;
        let each = if matrix { (width as f64).sqrt() * DType::F32.epsilon() / 2.0 } else { unit };
        for row in values.chunks_mut(width) {
            let whole = if matrix { sign(unit) } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= 1.0 + whole + sign(each));
        }
    })
}

/// The fixture with real weights and inputs changed in f64. `change` gets the kind (weights or
/// inputs), the tensor's own generator, shape and values.
fn changed(fixture: &Fixture, seed: u64, change: impl Fn(&str, &mut Rng, &[usize], &mut [f64])) -> Result<Fixture> {
    let all = |kind: &str, tensors: &Outputs| -> Result<Outputs> {
        let changed = tensors.iter().map(|(name, tensor)| {
            if !tensor.dtype().is_float() {
                return Ok((name.clone(), tensor.clone()));
            }
            let mut values = tensor.to_f64()?;
            change(kind, &mut Rng::named(seed, &format!("{kind}.{name}")), tensor.shape(), &mut values);
            Ok((name.clone(), HostTensor::from_slice(&values, tensor.shape())?))
        });
        changed.collect()
    };
    let (weights, inputs) = (all("weights", &fixture.weights)?, all("inputs", &fixture.inputs)?);
    Ok(Fixture { weights, inputs, ..fixture.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Fixture {
        Fixture::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
    }

    #[test]
    fn neighbours_lie_within_two_numbers_of_the_dtype() {
        let fixture = fixture("D3_tiny_itg.safetensors").rounded(DType::BF16).unwrap();
        let moved = neighbour(&fixture, DType::BF16, 1).unwrap();
        assert_eq!(moved.inputs["input_ids"], fixture.inputs["input_ids"]);
        let (mut same, mut all) = (0, 0);
        for (name, tensor) in &fixture.weights {
            let values = moved.weights[name].to_f64().unwrap();
            for (x, y) in tensor.to_f64().unwrap().into_iter().zip(values) {
                assert!((x - y).abs() <= 4.0 * half_ulp(x, DType::BF16), "{name}: {x} became {y}");
                assert_eq!(y, super::super::compare::round_to(y, DType::BF16));
                (same, all) = (same + usize::from(x == y), all + 1);
            }
        }
        assert!((all / 5..all / 2).contains(&same), "{same} of {all} stayed where they were");
    }

    /// In bf16, orders of one sum share one error; perturbed inputs give many.
    #[test]
    fn runs_on_neighbours_are_samples_where_permutations_are_copies() {
        let fixture = fixture("D3_tiny_itg.safetensors").rounded(DType::BF16).unwrap();
        let (name, bf16) = ("last_hidden_state", DType::BF16);
        let truth = outputs(&fixture, &Device::reference(), DType::F64).unwrap();
        let mut permuted = Sampled::default();
        for permutation in 0..PERMUTATIONS {
            let run = outputs(&fixture, &Device::yardstick(permutation), bf16).unwrap();
            permuted.add(name, &run[name], &truth[name]).unwrap();
        }
        assert!(permuted.independent() < 1.5, "{}", permuted.independent());
        let sampled = &losses(&fixture, &truth, bf16).unwrap()[name];
        assert!(sampled.independent() > FEW, "{}", sampled.independent());
        // The samples have the same size: the bound grows because they differ.
        let growth = sampled.rms() / permuted.rms();
        assert!((1.0..1.4).contains(&growth), "{growth}");
    }

    /// The text sees one query row of the image: all outputs share its error.
    #[test]
    fn an_error_that_all_outputs_share_is_judged_as_one() {
        let fixture = fixture("random/D4_r20261129_59.safetensors");
        let mut expected = Expected::new(&fixture, DType::F32).unwrap();
        let logits = &expected.losses["cached_logits"];
        assert!(logits.independent() < 2.0, "{}", logits.independent());
        let factors = logits.factors();
        assert!((3.4..4.9).contains(&factors.max) && (3.2..4.9).contains(&factors.rms), "{factors:?}");
        let failed = |expected: &Expected| -> Vec<String> {
            let outcomes = expected.judge(&fixture, &Device::cpu(), DType::F32).unwrap();
            outcomes.into_iter().filter(|o| o.failure.is_some()).map(|o| o.output).collect()
        };
        assert_eq!(failed(&expected), Vec::<String>::new());
        // Every output behind it shows an error of a thousandth in this projection.
        let name = "bert.encoder.layer.2.attention.self.value.weight";
        let scaled: Vec<f64> = fixture.weights[name].to_f64().unwrap().iter().map(|x| x * 1.001).collect();
        let scaled = HostTensor::from_slice(&scaled, fixture.weights[name].shape()).unwrap();
        expected.rounded.weights.insert(name.into(), scaled);
        let all = [
            "bidirectional_hidden",
            "cached_logits",
            "joint_hidden",
            "joint_logits",
            "query_hidden",
            "text_only_hidden",
        ];
        assert_eq!(failed(&expected), all);
    }

    /// A resampler that returns the LayerNorm of its latents: all its matrices are 0.
    fn norm_of_latents(latents: &[f32], width: usize) -> Fixture {
        let tensor =
            |shape: &[usize], value: f32| HostTensor::from_slice(&vec![value; shape.iter().product()], shape).unwrap();
        let rows = latents.len() / width;
        let mut weights =
            Outputs::from([("latents".to_string(), HostTensor::from_slice(latents, &[rows, width]).unwrap())]);
        for (name, shape) in [
            ("0.to_q", [2, width]),
            ("0.to_kv", [4, width]),
            ("0.to_out", [width, 2]),
            ("1.1", [4, width]),
            ("1.3", [width, 4]),
        ] {
            weights.insert(format!("layers.0.{name}.weight"), tensor(&shape, 0.0));
        }
        for norm in ["layers.0.0.norm_media", "layers.0.0.norm_latents", "layers.0.1.0", "norm"] {
            weights.insert(format!("{norm}.weight"), tensor(&[width], 1.0));
            weights.insert(format!("{norm}.bias"), tensor(&[width], 0.0));
        }
        Fixture {
            path: "norm of latents".into(),
            source_class: "flamingo_pytorch.flamingo_pytorch.PerceiverResampler".into(),
            config: serde_json::json!({"ctor": {"heads": 1}}),
            weights,
            inputs: Outputs::from([("x".to_string(), tensor(&[1, 1, 1, width], 1.0))]),
            outputs: Outputs::from([("out".to_string(), tensor(&[1, 1, rows, width], 0.0))]),
            ..fixture("A1_tiny.safetensors")
        }
    }

    /// LayerNorm of two columns is always ±1, so no perturbed operand shows what rounding the mean
    /// costs: `offset` units, if the mean is `offset` times the spread.
    #[test]
    fn narrow_norms_of_rows_with_a_large_mean_have_the_error_of_the_mean() {
        let mut rng = Rng::new(14);
        for width in [1, 2, 3, 4] {
            for offset in [1.0, 48.0, 1000.0] {
                let latents: Vec<f32> =
                    (0..240 / width * width).map(|_| ((rng.normal() + offset) / offset) as f32).collect();
                let fixture = norm_of_latents(&latents, width);
                let expected = Expected::new(&fixture, DType::F32).unwrap();
                let bounds = &expected.bounds["out"];
                assert_eq!(bounds.len(), latents.len());
                // Section 3's bound of a mean of two terms, over half their distance.
                let unit = DType::F32.epsilon() / 2.0;
                for (row, bounds) in latents.chunks(width).zip(bounds.chunks(width)).filter(|_| width == 2) {
                    let [a, b] = [f64::from(row[0]), f64::from(row[1])];
                    let mean = unit * (a + b).abs() / (a - b).abs();
                    assert!(
                        bounds.iter().all(|&bound| bound <= DEVIATIONS * 1.5 * (mean + unit)),
                        "{row:?}: {bounds:?}"
                    );
                }
                let device = expected.judge(&fixture, &Device::cpu(), DType::F32).unwrap();
                for outcome in device {
                    assert_eq!(outcome.failure, None, "width {width}, offset {offset}");
                }
            }
        }
    }

    #[test]
    fn cosines_of_width_1_have_the_error_of_two_norms() {
        let embeds = HostTensor::from_slice(&[1.0f64, -1.0], &[2, 1]).unwrap();
        let truth = Outputs::from([("itc_text_embeds".to_string(), embeds)]);
        let units = |output: &str| unit_norms(output, &truth) / (DType::F32.epsilon() / 2.0);
        // A sum of three (half), a root, a product: 1.5 + 9. Twice that, and a GEMM of width 1.
        assert_eq!(["itc_text_embeds", "itc_logits_per_image", "itm_logits"].map(units), [10.5, 24.0, 0.0]);
    }
}
