//! From named tensors to bridges: one file per family of checkpoints, with the names that its public library saves.
//!
//! A family's functions read names relative to a prefix, infer sizes from the tensors, check every shape and report all that is missing
//! or mis-shaped in one error. The tensors may come from a file, from an engine or from a test: see [`TensorSource`].

pub mod blip2;
#[cfg(feature = "checkpoint")]
mod config;
#[cfg(feature = "checkpoint")]
mod detect;
#[cfg(feature = "checkpoint")]
mod files;
#[cfg(feature = "checkpoint")]
mod find;
pub mod flamingo;
pub mod idefics;
pub mod idefics2;
pub mod mllama;
#[cfg(feature = "checkpoint")]
mod open;
pub mod open_flamingo;
mod presets;
mod qformer_names;

#[cfg(feature = "checkpoint")]
pub use config::ModelConfig;
#[cfg(feature = "checkpoint")]
pub use detect::Family;
#[cfg(feature = "checkpoint")]
pub use files::{Files, TensorInfo};
#[cfg(feature = "checkpoint")]
pub use open::{Bridges, Checkpoint, GatedBlockAt, Overrides};

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::bridge::{DenseWeights, NormWeights};
use crate::tensor::HostTensor;
use crate::{DType, Error, Result};

/// Where named tensors come from.
pub trait TensorSource<'a> {
    /// The tensor of that name.
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>>;

    /// The numbers that follow `prefix` in the names of tensors: 0, 1, 3 for `layers.0.q`, `layers.1.q`, `layers.3.q` and `layers.`.
    fn indices(&self, prefix: &str) -> BTreeSet<usize>;

    /// The shape that a configuration promises for a tensor. Where there is none, sizes are those of the tensors that are there.
    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        let _ = name;
        None
    }
}

impl<'a> TensorSource<'a> for BTreeMap<String, HostTensor<'a>> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        self.get(name).cloned()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        self.keys().filter_map(|name| index_behind(prefix, name)).collect()
    }
}

impl<'a> TensorSource<'a> for HashMap<String, HostTensor<'a>> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        self.get(name).cloned()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        self.keys().filter_map(|name| index_behind(prefix, name)).collect()
    }
}

/// The number between `prefix` and the next dot.
fn index_behind(prefix: &str, name: &str) -> Option<usize> {
    let digits = name.strip_prefix(prefix)?.split_once('.')?.0;
    // `parse` also takes a sign, which no library writes.
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// How the rows of a projection split into heads: what no tensor's shape tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// K/V heads.
    pub kv_heads: usize,
}

impl Heads {
    /// As many K/V heads as query heads.
    pub const fn equal(heads: usize) -> Self {
        Heads { heads, kv_heads: heads }
    }
}

/// Reads tensors under a prefix and collects what is wrong with them.
pub struct Reader<'s, 'a> {
    source: &'s dyn TensorSource<'a>,
    prefix: String,
    problems: &'s RefCell<Vec<String>>,
}

impl<'s, 'a> Reader<'s, 'a> {
    /// Reads one family's bridge: whatever `read` misses or finds mis-shaped is one error.
    ///
    /// # Errors
    /// [`Error::Weights`] with all problems, or the first error of `read`.
    pub fn family<T>(
        family: &str,
        source: &dyn TensorSource<'a>,
        prefix: &str,
        read: impl FnOnce(&Reader<'_, 'a>) -> Result<T>,
    ) -> Result<T> {
        let problems = RefCell::new(Vec::new());
        let result = read(&Reader { source, prefix: prefix.into(), problems: &problems });
        let problems = problems.into_inner();
        if problems.is_empty() { result } else { Err(Error::Weights { family: family.into(), problems }) }
    }

    /// The same tensors under a longer prefix.
    pub fn sub(&self, prefix: impl AsRef<str>) -> Reader<'s, 'a> {
        Reader { source: self.source, prefix: format!("{}{}", self.prefix, prefix.as_ref()), problems: self.problems }
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.source.tensor(&self.full(name)).is_some()
    }

    /// Shape of a tensor; reported when it is missing or has another rank, and zeros then.
    ///
    /// What a configuration promises counts more than what is there: [`Reader::tensor`] then reports the difference.
    pub fn dims<const RANK: usize>(&self, name: &str) -> [usize; RANK] {
        if let Some(Ok(dims)) = self.source.promised(&self.full(name)).map(TryInto::try_into) {
            return dims;
        }
        match self.source.tensor(&self.full(name)) {
            None => self.problem(format!("{}: missing, expected {RANK} dimensions", self.full(name))),
            Some(t) => match t.shape().try_into() {
                Ok(dims) => return dims,
                Err(_) => {
                    self.problem(format!("{}: expected {RANK} dimensions, found {:?}", self.full(name), t.shape()))
                }
            },
        }
        [0; RANK]
    }

    /// A tensor of reals of one shape. Reported when it is not there or otherwise; an empty one then.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> HostTensor<'a> {
        let full = self.full(name);
        match self.source.tensor(&full) {
            None => self.problem(format!("{full}: missing, expected {shape:?}")),
            Some(t) if !t.dtype().is_float() => self.problem(format!("{full}: expected reals, found {}", t.dtype())),
            Some(t) if t.shape() != shape => {
                self.problem(format!("{full}: expected {shape:?}, found {:?}", t.shape()));
            }
            Some(t) => return t,
        }
        empty()
    }

    /// A tensor whose leading dimensions are 1, as a row or matrix.
    pub fn squeezed(&self, name: &str, shape: &[usize]) -> HostTensor<'a> {
        let full = self.full(name);
        let Some(t) = self.source.tensor(&full) else {
            self.problem(format!("{full}: missing, expected {shape:?}"));
            return empty();
        };
        let dims = t.shape();
        let leading = dims.len().saturating_sub(shape.len());
        if dims.len() < shape.len() || dims[..leading].iter().any(|&d| d != 1) || &dims[leading..] != shape {
            self.problem(format!("{full}: expected {shape:?} behind dimensions of 1, found {dims:?}"));
            return empty();
        }
        t.reshape(shape).unwrap_or_else(|_| empty())
    }

    /// Number of elements of a tensor; 0 when it is not there.
    pub fn source_elements(&self, name: &str) -> usize {
        self.source.tensor(&self.full(name)).map_or(0, |t| t.elements())
    }

    /// `name.weight` and, where there is one, `name.bias`.
    pub fn norm(&self, name: &str, width: usize) -> NormWeights<'a> {
        let bias = format!("{name}.bias");
        NormWeights {
            weight: self.tensor(&format!("{name}.weight"), &[width]),
            bias: self.has(&bias).then(|| self.tensor(&bias, &[width])),
        }
    }

    /// `name.weight` and `name.bias`, both required.
    pub fn layer_norm(&self, name: &str, width: usize) -> NormWeights<'a> {
        NormWeights {
            weight: self.tensor(&format!("{name}.weight"), &[width]),
            bias: Some(self.tensor(&format!("{name}.bias"), &[width])),
        }
    }

    /// `name.weight` without a bias.
    pub fn plain(&self, name: &str, n: usize, k: usize) -> DenseWeights<'a> {
        DenseWeights::plain(vec![self.tensor(&format!("{name}.weight"), &[n, k])])
    }

    /// `name.weight` and `name.bias`.
    pub fn biased(&self, name: &str, n: usize, k: usize) -> DenseWeights<'a> {
        DenseWeights::biased(
            self.tensor(&format!("{name}.weight"), &[n, k]),
            self.tensor(&format!("{name}.bias"), &[n]),
        )
    }

    /// How many layers `prefix` + `0.`, `1.`, … there are; holes are reported.
    pub fn layers(&self, prefix: &str) -> usize {
        let there = self.source.indices(&self.full(prefix));
        let count = (0..).take_while(|i| there.contains(i)).count();
        if let Some(next) = there.iter().find(|&&i| i > count) {
            self.problem(format!("{}{count}.: missing, though {next}. is there", self.full(prefix)));
        }
        count
    }

    /// Width of a head from the rows of a projection; reported when the heads do not divide them.
    pub fn head_dim(&self, name: &str, rows: usize, heads: usize) -> usize {
        if heads == 0 || !rows.is_multiple_of(heads) {
            self.problem(format!("{}: {rows} rows do not split into {heads} heads", self.full(name)));
            return 0;
        }
        rows / heads
    }

    /// Reports a problem.
    pub fn problem(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Stands in for a tensor that was reported as missing; nobody computes with it.
fn empty<'a>() -> HostTensor<'a> {
    HostTensor::from_bytes(DType::F32, &[0], Vec::new()).unwrap_or_else(|_| unreachable!("0 elements are 0 bytes"))
}

/// `gate_proj`, `up_proj`, `down_proj` without biases: the gated MLP of every Llama-like module.
fn swiglu<'a>(r: &Reader<'_, 'a>, input: usize, hidden: usize, output: usize) -> crate::bridge::FfnWeights<'a> {
    crate::bridge::FfnWeights {
        gate: Some(r.tensor("gate_proj.weight", &[hidden, input])),
        up: r.plain("up_proj", hidden, input),
        down: r.plain("down_proj", output, hidden),
    }
}
