//! Errors of naive runs of a bridge, and the bound that they give (`docs/numerics.md`, section 4).

use super::compare::{MAX_FACTOR, RMS_FACTOR};
use crate::{Error, HostTensor, Result};

/// The chance that one of the factors refuses a correct device.
const CHANCE: f64 = 1e-7;
/// From this many independent errors on, eight runs and the plain factors have a smaller chance.
const MANY: f64 = 256.0;

/// Errors of naive runs, each on its own inputs and against their truth.
#[derive(Debug, Clone, Default)]
pub struct Sampled {
    errors: Vec<Vec<f64>>,
}

/// Allowed errors, as multiples of the runs' largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Of the maximum error.
    pub max: f64,
    /// Of the RMS error.
    pub rms: f64,
}

impl Factors {
    /// The factors for many independent errors.
    pub const PLAIN: Factors = Factors { max: MAX_FACTOR, rms: RMS_FACTOR };
}

impl Sampled {
    /// Adds a run.
    ///
    /// # Errors
    /// A run whose elements are not those of the truth, or of the runs before.
    pub fn add(&mut self, output: &str, run: &HostTensor<'_>, truth: &HostTensor<'_>) -> Result<()> {
        let (run, truth) = (run.to_f64()?, truth.to_f64()?);
        let expected = self.errors.first().map_or(truth.len(), Vec::len);
        if run.len() != truth.len() || run.len() != expected {
            return Err(Error::argument("verify", format!("yardstick of {output}"), expected, run.len()));
        }
        // Elements that are not finite have no distance; `compare` checks that they match.
        let error = |(y, t): (&f64, &f64)| if (y - t).is_finite() { y - t } else { 0.0 };
        self.errors.push(run.iter().zip(&truth).map(error).collect());
        Ok(())
    }

    /// The largest maximum error of a run.
    pub fn max(&self) -> f64 {
        self.errors.iter().flatten().fold(0.0, |m, e| m.max(e.abs()))
    }

    /// The largest RMS error of a run.
    pub fn rms(&self) -> f64 {
        let rms = |errors: &Vec<f64>| (dot(errors, errors) / errors.len().max(1) as f64).sqrt();
        self.errors.iter().map(rms).fold(0.0, f64::max)
    }

    /// How many independent errors of equal size vary as these do: tr(Σ)² / tr(Σ²) of their
    /// covariance Σ. Two runs e, e' estimate its terms by |e|² and (e·e')².
    pub fn independent(&self) -> f64 {
        let runs = self.errors.len();
        let trace = self.errors.iter().map(|e| dot(e, e)).sum::<f64>() / runs as f64;
        let pairs = (0..runs).flat_map(|i| (0..i).map(move |j| (i, j)));
        let squares: f64 = pairs.map(|(i, j)| dot(&self.errors[i], &self.errors[j]).powi(2)).sum();
        let count = runs * runs.saturating_sub(1) / 2;
        // The runs have nothing in common, or no errors.
        if squares == 0.0 { MANY } else { (trace * trace * count as f64 / squares).max(1.0) }
    }

    /// The factors that a further run exceeds with a chance of 10⁻⁷; at least the plain ones.
    pub fn factors(&self) -> Factors {
        let (independent, runs) = (self.independent(), self.errors.len() as f64);
        if independent >= MANY || runs == 0.0 {
            return Factors::PLAIN;
        }
        Factors {
            max: quantile(MAX_FACTOR, |factor| independent * exceeds(1.0, runs * independent, factor)),
            rms: quantile(RMS_FACTOR, |factor| exceeds(independent, runs, factor)),
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The smallest factor, at least `least`, whose chance is at most [`CHANCE`].
fn quantile(least: f64, chance: impl Fn(f64) -> f64) -> f64 {
    if chance(least) <= CHANCE {
        return least;
    }
    let (mut low, mut high) = (least, 2.0 * least);
    while chance(high) > CHANCE && high < 1e6 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..20 {
        let middle = (low + high) / 2.0;
        *(if chance(middle) > CHANCE { &mut low } else { &mut high }) = middle;
    }
    high
}

/// The chance that the norm of `dimensions` normal numbers exceeds `factor` times the largest of
/// `runs` such norms: ∫ f(y) F(y / factor)^runs dy with the density f and the distribution F of the
/// χ distribution.
fn exceeds(dimensions: f64, runs: f64, factor: f64) -> f64 {
    const STEPS: usize = 4000;
    let (end, middle) = (dimensions.sqrt() + 9.0, (dimensions - 1.0).max(0.0).sqrt());
    let step = end / STEPS as f64;
    // Up to a constant, largest at `middle`.
    let density = |y: f64| {
        let log = |y: f64| if dimensions > 1.0 { (dimensions - 1.0) * y.ln() - y * y / 2.0 } else { -y * y / 2.0 };
        (log(y) - if middle > 0.0 { log(middle) } else { 0.0 }).exp()
    };
    let mut below = vec![0.0; STEPS + 1];
    for i in 0..STEPS {
        below[i + 1] = below[i] + density((i as f64 + 0.5) * step);
    }
    let all = below[STEPS];
    let distribution = |y: f64| {
        let at = y / step;
        let i = (at as usize).min(STEPS - 1);
        (below[i] + (at - i as f64) * (below[i + 1] - below[i])) / all
    };
    let chance = |i: usize| {
        let y = (i as f64 + 0.5) * step;
        density(y) / all * distribution(y / factor).min(1.0).powf(runs)
    };
    (0..STEPS).map(chance).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(actual: f64, expected: f64) {
        assert!((actual / expected - 1.0).abs() < 2e-3, "{actual} is not {expected}");
    }

    #[test]
    fn chances_are_those_of_known_distributions() {
        // One run: a ratio of half-normals is half-Cauchy; of norms in the plane, 1 / (1 + c²).
        for factor in [1.0, 1.5, 2.0, 10.0] {
            near(exceeds(1.0, 1.0, factor), 2.0 / std::f64::consts::PI * (1.0 / factor).atan());
            near(exceeds(2.0, 1.0, factor), 1.0 / (1.0 + factor * factor));
        }
        // The last of n + 1 equal ones is the largest with chance 1 / (n + 1).
        for dimensions in [1.0, 1.5, 7.0, 100.0] {
            near(exceeds(dimensions, 8.0, 1.0), 1.0 / 9.0);
        }
        // Four dimensions, one run: F(4, 4), of which 1 - F = (1 + 3x) / (1 + x)³ at x = c².
        near(exceeds(4.0, 1.0, 2.0), 13.0 / 125.0);
    }

    /// Runs whose errors are `directions` random multiples of fixed vectors.
    fn sampled(directions: usize, runs: usize, elements: usize) -> Sampled {
        let mut rng = crate::verify::generate::Rng::new(7);
        let vectors: Vec<Vec<f64>> = (0..directions).map(|_| (0..elements).map(|_| rng.normal()).collect()).collect();
        let mut sampled = Sampled::default();
        let truth = HostTensor::from_slice(&vec![0.0f64; elements], &[elements]).unwrap();
        for _ in 0..runs {
            let sizes: Vec<f64> = (0..directions).map(|_| rng.normal()).collect();
            let error: Vec<f64> =
                (0..elements).map(|i| sizes.iter().zip(&vectors).map(|(s, v)| s * v[i]).sum()).collect();
            sampled.add("out", &HostTensor::from_slice(&error, &[elements]).unwrap(), &truth).unwrap();
        }
        sampled
    }

    #[test]
    fn independent_errors_are_counted() {
        for (directions, runs, low, high) in [(1, 16, 0.9, 1.5), (4, 16, 2.5, 7.0), (20, 16, 14.0, 30.0)] {
            let found = sampled(directions, runs, 600).independent();
            assert!((low..high).contains(&found), "{directions}: {found}");
        }
        // Copies of one run are one error, whatever the size; without errors the factors are plain.
        let truth = HostTensor::from_slice(&[0.0f64; 3], &[3]).unwrap();
        let (mut copies, mut exact) = (Sampled::default(), Sampled::default());
        for _ in 0..8 {
            copies.add("out", &HostTensor::from_slice(&[1e-3f64, -2e-3, 5e-4], &[3]).unwrap(), &truth).unwrap();
            exact.add("out", &truth, &truth).unwrap();
        }
        near(copies.independent(), 1.0);
        assert_eq!((exact.factors(), exact.max(), exact.rms()), (Factors::PLAIN, 0.0, 0.0));
    }

    #[test]
    fn few_errors_in_few_runs_need_room_and_many_do_not() {
        let factors = |directions, runs| sampled(directions, runs, 600).factors();
        let (few, more) = (factors(1, 8), factors(1, 16));
        assert!((7.0..11.0).contains(&few.rms) && (4.0..6.0).contains(&more.rms), "{few:?} {more:?}");
        assert!((few.max - few.rms).abs() < 1.5, "one error: both are multiples of the same number: {few:?}");
        assert!(factors(4, 16).rms < 3.0);
        assert_eq!(factors(400, 8), Factors::PLAIN);
    }

    #[test]
    fn runs_of_another_size_are_refused() {
        let tensor = |n: usize| HostTensor::from_slice(&vec![0.0f64; n], &[n]).unwrap();
        let mut sampled = Sampled::default();
        sampled.add("out", &tensor(3), &tensor(3)).unwrap();
        for (run, truth) in [(3, 2), (2, 2)] {
            let message = sampled.add("out", &tensor(run), &tensor(truth)).unwrap_err().to_string();
            assert_eq!(message, format!("verify: yardstick of out: expected 3, got {run}"));
        }
    }
}
