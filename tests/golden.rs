//! The reference against outputs of the public implementations: every file under `tests/golden`, to
//! 1e-6 of each tensor's largest value.
//!
//! The comparison is independent of `xattn verify`'s: one mistake must not hide in both.

#![cfg(feature = "verify")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use xattn::verify::{Fixture, classes};
use xattn::{DType, Device, HostTensor};

/// Files under `tests/golden`: a lost one must not pass unnoticed.
const FILES: usize = 80;
/// Largest error over largest expected value.
const TOLERANCE: f64 = 1e-6;

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = [root.clone(), root.join("random")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    files
}

/// Losses wait for an op that computes them.
fn is_compared(output: &str) -> bool {
    !output.contains("_loss_")
}

fn outputs(fixture: &Fixture) -> BTreeMap<String, HostTensor<'static>> {
    classes::run(fixture, &Device::reference(), DType::F64).unwrap().into_iter().collect()
}

/// max |actual − expected| / max |expected|; infinite where shapes differ or a value is not finite.
fn relative_error(actual: &HostTensor<'_>, expected: &HostTensor<'_>) -> f64 {
    if actual.shape() != expected.shape() {
        return f64::INFINITY;
    }
    let (actual, expected) = (actual.to_f64().unwrap(), expected.to_f64().unwrap());
    let largest = expected.iter().fold(0.0f64, |m, e| m.max(e.abs()));
    let error = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs());
    let error = error.fold(0.0f64, |m, e| if e.is_finite() { m.max(e) } else { f64::INFINITY });
    if error == 0.0 { 0.0 } else { error / largest }
}

#[test]
fn every_class_and_every_file_is_here() {
    let files = files();
    assert_eq!(files.len(), FILES, "files under tests/golden");
    let found: BTreeSet<String> = files.iter().map(|f| Fixture::read(f).unwrap().source_class).collect();
    let known: BTreeSet<String> = classes::known().map(str::to_string).collect();
    assert_eq!(found, known);
}

#[test]
fn reference_computes_what_the_public_implementations_compute() {
    let mut compared = 0;
    for file in files() {
        let fixture = Fixture::read(&file).unwrap();
        let computed = outputs(&fixture);
        for (name, expected) in fixture.outputs.iter().filter(|(name, _)| is_compared(name)) {
            let Some(actual) = computed.get(name) else { panic!("{}: outputs.{name} is not computed", file.display()) };
            let error = relative_error(actual, expected);
            assert!(error <= TOLERANCE, "{}: outputs.{name}: relative error {error:e}", file.display());
            compared += 1;
        }
        for (name, expected) in &fixture.intermediates {
            if let Some(actual) = computed.get(&format!("inter.{name}")) {
                let error = relative_error(actual, expected);
                assert!(error <= TOLERANCE, "{}: outputs.inter.{name}: relative error {error:e}", file.display());
            }
        }
    }
    assert!(compared >= FILES, "{compared} outputs compared over {FILES} files");
}

/// The judge is not blind: weights that are off by one part in a thousand fail, in every class.
#[test]
fn weights_that_are_slightly_off_are_noticed() {
    let mut seen = BTreeSet::new();
    for file in files() {
        let mut fixture = Fixture::read(&file).unwrap();
        if !seen.insert(fixture.source_class.clone()) {
            continue;
        }
        for tensor in fixture.weights.values_mut() {
            let moved: Vec<f64> = tensor.to_f64().unwrap().iter().map(|w| w * 1.001).collect();
            *tensor = HostTensor::from_slice(&moved, tensor.shape()).unwrap();
        }
        let computed = outputs(&fixture);
        let worst = fixture
            .outputs
            .iter()
            .filter(|(name, _)| is_compared(name))
            .map(|(name, expected)| relative_error(&computed[name], expected))
            .fold(0.0f64, f64::max);
        assert!(worst > 10.0 * TOLERANCE, "{}: relative error only {worst:e}", file.display());
    }
}
