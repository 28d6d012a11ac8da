//! Cases: seeded calls of ops, each with its reproduction string.
//!
//! One file per op declares the op's parameters once: values for covering selections, text,
//! operands, and how results are judged. `limits.rs` has the cases that a covering selection cannot
//! reach.

pub mod attention;
mod attention_bounds;
mod attention_long;
pub mod bounds;
pub mod call;
#[cfg(test)]
mod crossings;
pub mod declare;
pub mod gated_residual;
mod limits;
pub mod linear;
pub mod media_index;
pub mod norm;
pub mod pairwise;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use call::{Call, OperandId};
use declare::{Parameters, Real};

use super::compare::{Judge, Outcome, PERMUTATIONS, STATISTICAL, compare};
use super::generate::Rng;
use super::guarded::guarded;
use crate::ops::{Cost, Op, Operands, for_each_op};
use crate::{DType, Device, Dispatch, Error, HostTensor, Prepared, Result};

/// The rule for one output of a case.
#[derive(Debug, Clone)]
pub enum Judgement {
    /// It must equal the truth, rounded once.
    Exact,
    /// A derived bound per element.
    Bound(Vec<f64>),
    /// The yardstick.
    Statistic,
}

/// A case's op and operands.
pub trait CaseOp: Parameters {
    /// The op.
    type Op: Dispatch;

    /// The dtype of activations.
    fn dtype(&self) -> Real;

    /// The case with activations of another dtype.
    #[must_use]
    fn with_dtype(self, dtype: Real) -> Self;

    /// Whether `--dtype` has an effect.
    fn has_reals(&self) -> bool {
        true
    }

    /// Op and operands. The same case gives the same values, always.
    ///
    /// # Errors
    /// Parameters that no tensor can have.
    fn call(&self) -> Result<Call<Self::Op>>;

    /// Replaces operands by those prepared for a device.
    ///
    /// # Errors
    /// Whatever the device refuses.
    fn lower(
        &self,
        _call: &Call<Self::Op>,
        args: <Self::Op as Operands>::Args<OperandId, OperandId>,
        _device: &Device,
        _truth: bool,
    ) -> Result<<Self::Op as Operands>::Args<OperandId, OperandId>> {
        Ok(args)
    }

    /// How each output is judged, in the order of the call's outputs.
    ///
    /// # Errors
    /// Operands of another kind than the case's own.
    fn judge(&self, call: &Call<Self::Op>, truth: &[(&'static str, HostTensor<'static>)]) -> Result<Vec<Judgement>>;
}

/// A case, whatever its op.
trait AnyCase: fmt::Display {
    fn op(&self) -> &'static str;
    fn dtype(&self) -> Option<DType>;
    fn cost(&self) -> Result<Cost>;
    #[cfg(feature = "wgpu")]
    fn place(&self, device: &Device) -> Result<Vec<Placed>>;
    fn verify(&self, devices: &[Device]) -> Vec<Verdict>;
    fn share(&self, device: &Device, threads: usize, calls: usize) -> Result<()>;
}

impl<C: CaseOp> AnyCase for C
where
    Prepared<C::Op>: Sync,
{
    fn op(&self) -> &'static str {
        C::OP
    }

    fn dtype(&self) -> Option<DType> {
        self.has_reals().then(|| CaseOp::dtype(self).dtype())
    }

    fn cost(&self) -> Result<Cost> {
        let call = self.call()?;
        let shapes = call.shapes(call.ids()?)?;
        call.op.check(&shapes)?;
        Ok(call.op.cost(&shapes))
    }

    #[cfg(feature = "wgpu")]
    fn place(&self, device: &Device) -> Result<Vec<Placed>> {
        place(self, device)
    }

    fn verify(&self, devices: &[Device]) -> Vec<Verdict> {
        verify(self, devices)
    }

    fn share(&self, device: &Device, threads: usize, calls: usize) -> Result<()> {
        shared::run(self, device, threads, calls)
    }
}

macro_rules! case_of_any_op {
    ($($word:ident $op:ident $case:ident),* $(,)?) => {
        $(pub use $word::$case;)*

        /// A case of any op.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Case {
            $(#[doc = concat!("Of `", stringify!($word), "`.")] $op($case)),*
        }

        impl Case {
            fn any(&self) -> &dyn AnyCase {
                match self {
                    $(Case::$op(case) => case),*
                }
            }
        }

        impl FromStr for Case {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Case::read(text, false)
            }
        }

        impl Case {
            /// The case of a reproduction string. An abridged one may leave parameters out: each is
            /// then the first of its values.
            pub(crate) fn read(text: &str, abridged: bool) -> Result<Self> {
                match text.split(':').next().unwrap_or("") {
                    $($case::OP => $case::read(text, abridged).map(Case::$op),)*
                    other => Err(Error::argument("verify", "case", "the name of an op and a colon", other)),
                }
            }
        }

        #[cfg(test)]
        const OPS: &[&str] = &[$($case::OP),*];

        /// Covering selections of every op.
        fn covering() -> Vec<Case> {
            let mut cases = Vec::new();
            $(cases.extend(pairwise::covering().into_iter().map(Case::$op));)*
            cases
        }

        /// Random configurations: more for ops with more combinations.
        pub fn random() -> Vec<Case> {
            let mut cases = Vec::new();
            $(cases.extend(pairwise::random($case::RANDOM).into_iter().map(Case::$op));)*
            cases
        }
    };
}
for_each_op!(case_of_any_op);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.any().fmt(f)
    }
}

/// The result of a case on one device.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Its outputs were compared.
    Compared(Vec<Outcome>),
    /// It could not run at all.
    Failed(String),
    /// The device does not offer it.
    Skipped(String),
}

impl Case {
    /// The op's word.
    pub fn op(&self) -> &'static str {
        self.any().op()
    }

    /// The dtype of activations; none for ops on integers alone.
    pub fn dtype(&self) -> Option<DType> {
        self.any().dtype()
    }

    /// Bytes and operations of one call.
    ///
    /// # Errors
    /// A call that the op's contract refuses.
    pub fn cost(&self) -> Result<Cost> {
        self.any().cost()
    }

    /// Runs the case on a device, and says where its outputs lie and what they should be.
    #[cfg(feature = "wgpu")]
    pub(crate) fn place(&self, device: &Device) -> Result<Vec<Placed>> {
        self.any().place(device)
    }

    /// Runs the case on every device and judges the results.
    pub fn verify(&self, devices: &[Device]) -> Vec<Verdict> {
        self.any().verify(devices)
    }

    /// Runs the case `calls` times on each of `threads` concurrent threads, which share the device
    /// and a prepared op; every fourth thread prepares its own. Results must be bit-identical to a
    /// single-threaded call.
    ///
    /// # Errors
    /// An output that differs, by name, thread and call; whatever the device refuses.
    pub fn share(&self, device: &Device, threads: usize, calls: usize) -> Result<()> {
        self.any().share(device, threads, calls)
    }
}

/// The truth, how to judge by it, and the yardsticks where they are needed.
struct Expected {
    truth: Vec<(&'static str, HostTensor<'static>)>,
    judgements: Vec<Judgement>,
    yardsticks: Vec<Vec<HostTensor<'static>>>,
}

impl Expected {
    /// The judge of output `i`.
    fn judge(&self, i: usize) -> Judge<'_> {
        match &self.judgements[i] {
            Judgement::Exact => Judge::Exact,
            Judgement::Bound(bounds) => Judge::Componentwise(bounds),
            Judgement::Statistic => Judge::Yardstick(&self.yardsticks[i]),
        }
    }
}

fn expected<C: CaseOp>(case: &C, call: &Call<C::Op>) -> Result<Expected> {
    let run = |device: &Device, truth| call.execute(device, truth, |args| case.lower(call, args, device, truth));
    let truth = run(&Device::reference(), true)?.outputs;
    let judgements = case.judge(call, &truth)?;
    let mut yardsticks = vec![Vec::new(); truth.len()];
    if judgements.iter().any(|j| matches!(j, Judgement::Statistic)) {
        for permutation in 0..PERMUTATIONS {
            let outputs = run(&Device::yardstick(permutation), false)?.outputs;
            for (runs, (_, output)) in yardsticks.iter_mut().zip(outputs) {
                runs.push(output);
            }
        }
    }
    Ok(Expected { truth, judgements, yardsticks })
}

/// An output of a case on a device.
#[cfg(feature = "wgpu")]
pub(crate) struct Placed {
    pub name: &'static str,
    pub memory: crate::Memory,
    pub dtype: DType,
    /// For each element of the memory, the output element there; none in gaps.
    pub places: Vec<Option<usize>>,
    pub allowed: super::compare::Allowed,
}

#[cfg(feature = "wgpu")]
fn place<C: CaseOp>(case: &C, device: &Device) -> Result<Vec<Placed>> {
    let call = case.call()?;
    let run = call.execute(device, false, |args| case.lower(&call, args, device, false))?;
    let expected = expected(case, &call)?;
    let outputs = run.outputs.iter().zip(run.places).enumerate().map(|(i, ((name, output), memory))| {
        let dtype = output.dtype();
        let allowed = super::compare::allowed(name, &expected.truth[i].1, dtype, &expected.judge(i))?;
        Ok(Placed { name, memory, dtype, places: call.operands.written_places(i), allowed })
    });
    outputs.collect()
}

fn verify<C: CaseOp>(case: &C, devices: &[Device]) -> Vec<Verdict> {
    let all = |verdict: Verdict| vec![verdict; devices.len()];
    let call = match case.call() {
        Ok(call) => call,
        Err(e) => return all(Verdict::Failed(e.to_string())),
    };
    let expected = match guarded(|| expected(case, &call)) {
        Ok(expected) => expected,
        Err(e) => return all(Verdict::Failed(format!("reference: {e}"))),
    };
    devices.iter().map(|device| verdict(case, &call, &expected, device)).collect()
}

fn verdict<C: CaseOp>(case: &C, call: &Call<C::Op>, expected: &Expected, device: &Device) -> Verdict {
    let run = guarded(|| call.execute(device, false, |args| case.lower(call, args, device, false)));
    let run = match run {
        Ok(run) => run,
        Err(e @ Error::Unsupported { .. }) => return Verdict::Skipped(e.to_string()),
        Err(e) => return Verdict::Failed(e.to_string()),
    };
    let mut outcomes = Vec::with_capacity(run.outputs.len());
    for (i, (name, output)) in run.outputs.iter().enumerate() {
        match compare(name, output, &expected.truth[i].1, &expected.judge(i)) {
            Ok(outcome) => outcomes.push(outcome),
            Err(e) => return Verdict::Failed(e.to_string()),
        }
    }
    match run.stray {
        Some(stray) => Verdict::Failed(stray),
        None => Verdict::Compared(outcomes),
    }
}

/// Whether an output has too few elements for the yardstick.
pub(crate) fn is_small(output: &HostTensor<'_>) -> bool {
    output.elements() < STATISTICAL
}

/// Flags of which about a third are 0; the others any nonzero number.
fn flags(rng: &mut Rng, n: usize) -> Vec<u32> {
    (0..n).map(|_| if rng.one_in(3) { 0 } else { (rng.bits() as u32).max(1) }).collect()
}

/// Cases of `attention` against long keys.
pub(crate) fn long() -> Vec<Case> {
    attention_long::LONG.iter().filter_map(|case| Case::read(case, true).ok()).collect()
}

/// The covering selection and what it cannot afford, in a fixed order.
pub fn selection() -> Vec<Case> {
    let mut cases = covering();
    cases.extend(long());
    cases.extend(limits::cases());
    cases
}

/// Software adapters of wgpu get every 16th case of an op: compiling a shader takes a second.
pub const REDUCED: usize = 16;

/// Indices of the cases that software adapters run.
pub(super) fn reduced(cases: &[Case]) -> BTreeSet<usize> {
    let mut seen = BTreeMap::new();
    let chosen = cases.iter().enumerate().filter(|(_, case)| {
        let count: &mut usize = seen.entry(case.op()).or_default();
        *count += 1;
        *count % REDUCED == 1
    });
    chosen.map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduced_cases_are_one_in_sixteen_of_each_op() {
        let cases = selection();
        let chosen = reduced(&cases);
        let count =
            |op: &str, of: &dyn Fn(usize) -> bool| (0..cases.len()).filter(|&i| cases[i].op() == op && of(i)).count();
        for op in OPS {
            let (all, few) = (count(op, &|_| true), count(op, &|i| chosen.contains(&i)));
            assert_eq!(few, all.div_ceil(REDUCED), "{op}: {few} of {all}");
            assert!(few > 0, "{op}");
        }
    }
}
