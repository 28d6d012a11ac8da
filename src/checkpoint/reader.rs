//! Reads a module's tensors by name, infers sizes, and collects missing and mis-shaped tensors.

use std::cell::RefCell;
use std::collections::HashMap;

use super::TensorSource;
use crate::bridge::{DenseWeights, NormWeights};
use crate::tensor::HostTensor;
use crate::{DType, Error, Result};

/// Reads tensors under a prefix and collects what is wrong with them.
pub struct Reader<'s, 'a> {
    source: &'s dyn TensorSource<'a>,
    prefix: String,
    problems: &'s RefCell<Problems>,
}

/// Problems in order of discovery. A tensor keeps its last one, when most sizes are known.
#[derive(Default)]
struct Problems {
    list: Vec<String>,
    of: HashMap<String, usize>,
}

impl<'s, 'a> Reader<'s, 'a> {
    /// Reads one family's bridge. All tensors that `read` misses or finds mis-shaped are one error.
    ///
    /// # Errors
    /// [`Error::Weights`] with all problems, or the first error of `read`.
    pub fn family<T>(
        family: &str,
        source: &dyn TensorSource<'a>,
        prefix: &str,
        read: impl FnOnce(&Reader<'_, 'a>) -> Result<T>,
    ) -> Result<T> {
        let problems = RefCell::default();
        let result = read(&Reader { source, prefix: prefix.into(), problems: &problems });
        let problems = problems.into_inner().list;
        if problems.is_empty() { result } else { Err(Error::Weights { family: family.into(), problems }) }
    }

    /// The same tensors under a longer prefix.
    pub fn sub(&self, prefix: impl AsRef<str>) -> Reader<'s, 'a> {
        Reader { source: self.source, prefix: format!("{}{}", self.prefix, prefix.as_ref()), problems: self.problems }
    }

    /// Whether a tensor exists, or should: in a missing file, it is reported when it is read.
    pub fn has(&self, name: &str) -> bool {
        self.source.listed(&self.full(name))
    }

    /// Whether any tensor's name begins with `prefix`.
    pub fn any_below(&self, prefix: &str) -> bool {
        self.source.any_below(&self.full(prefix))
    }

    /// Shape of a tensor. If missing or of another rank, that is reported, and extents are 0.
    ///
    /// A configuration's promise counts before the tensor; [`Reader::tensor`] compares them.
    pub fn dims<const RANK: usize>(&self, name: &str) -> [usize; RANK] {
        if let Some(Ok(dims)) = self.source.promised(&self.full(name)).map(TryInto::try_into) {
            return dims;
        }
        match self.source.tensor(&self.full(name)) {
            None => self.report(name, format!("missing, expected {RANK} dimensions")),
            Some(t) => match t.shape().try_into() {
                Ok(dims) => return dims,
                Err(_) => self.report(name, format!("expected {RANK} dimensions, found {:?}", t.shape())),
            },
        }
        [0; RANK]
    }

    /// A tensor of reals of one shape; if missing or different, that is reported, and it is empty.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> HostTensor<'a> {
        match self.real(name, shape) {
            Some(t) if self.agrees(shape, t.shape()) => return t,
            Some(t) => self.report(name, format!("expected {}, found {:?}", self.shown(shape), t.shape())),
            None => {}
        }
        empty()
    }

    /// A tensor whose leading dimensions are 1, as a row or matrix.
    pub fn squeezed(&self, name: &str, shape: &[usize]) -> HostTensor<'a> {
        let Some(t) = self.real(name, shape) else { return empty() };
        let dims = t.shape();
        let leading = dims.len().saturating_sub(shape.len());
        if dims[..leading].iter().any(|&d| d != 1) || !self.agrees(shape, &dims[leading..]) {
            let expected = self.shown(shape);
            self.report(name, format!("expected {expected} behind dimensions of 1, found {dims:?}"));
            return empty();
        }
        t.reshape(shape).unwrap_or_else(|_| empty())
    }

    /// A tensor of reals of any shape; reported if missing.
    fn real(&self, name: &str, shape: &[usize]) -> Option<HostTensor<'a>> {
        match self.source.tensor(&self.full(name)) {
            None => self.report(name, format!("missing, expected {}", self.shown(shape))),
            Some(t) if !t.dtype().is_float() => self.report(name, format!("expected reals, found {}", t.dtype())),
            Some(t) => return Some(t),
        }
        None
    }

    /// Whether something is missing, so that a size of 0 stands for an unknown one.
    fn unsure(&self) -> bool {
        !self.problems.borrow().list.is_empty()
    }

    /// Whether a shape is the expected one, as far as sizes are known.
    fn agrees(&self, expected: &[usize], found: &[usize]) -> bool {
        let unsure = self.unsure();
        expected.len() == found.len() && expected.iter().zip(found).all(|(&e, &f)| e == f || e == 0 && unsure)
    }

    /// An expected shape, with `?` for unknown sizes.
    fn shown(&self, shape: &[usize]) -> String {
        let unsure = self.unsure();
        let one = |&d: &usize| if d == 0 && unsure { "?".to_string() } else { d.to_string() };
        format!("[{}]", shape.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    /// Number of elements of a tensor; 0 when it is not there.
    pub fn source_elements(&self, name: &str) -> usize {
        self.source.tensor(&self.full(name)).map_or(0, |t| t.elements())
    }

    /// `name.weight` and, where there is one, `name.bias`.
    pub fn norm(&self, name: &str, width: usize) -> NormWeights<'a> {
        let bias = format!("{name}.bias");
        let weight = self.tensor(&format!("{name}.weight"), &[width]);
        NormWeights::new(weight, self.has(&bias).then(|| self.tensor(&bias, &[width])))
    }

    /// `name.weight` and `name.bias`, both required.
    pub fn layer_norm(&self, name: &str, width: usize) -> NormWeights<'a> {
        let weight = self.tensor(&format!("{name}.weight"), &[width]);
        NormWeights::new(weight, Some(self.tensor(&format!("{name}.bias"), &[width])))
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

    /// The number of layers `prefix` + `0.`, `1.`, …; gaps are reported.
    pub fn layers(&self, prefix: &str) -> usize {
        let there = self.source.indices(&self.full(prefix));
        let count = (0..).take_while(|i| there.contains(i)).count();
        if let Some(next) = there.iter().find(|&&i| i > count) {
            self.report(&format!("{prefix}{count}."), format!("missing, though {next}. is there"));
        }
        count
    }

    /// Width of a head from the rows of a projection; reported if the heads do not divide them.
    pub fn head_dim(&self, name: &str, rows: usize, heads: usize) -> usize {
        if rows == 0 && self.unsure() {
            return 0;
        }
        if heads == 0 || !rows.is_multiple_of(heads) {
            self.report(name, format!("{rows} rows do not split into {heads} heads"));
            return 0;
        }
        rows / heads
    }

    /// Reports a K projection whose rows do not match its heads; 0 stands for unknown sizes.
    pub(super) fn kv_rows(&self, name: &str, found: usize, expected: usize) {
        if found != expected && found != 0 && expected != 0 {
            self.report(name, format!("expected {expected} rows, found {found}"));
        }
    }

    /// Reports a problem of a tensor, in place of an earlier one of the same tensor.
    pub(super) fn report(&self, name: &str, problem: String) {
        let full = self.full(name);
        let problem = format!("{full}: {problem}");
        let Problems { list, of } = &mut *self.problems.borrow_mut();
        match of.get(&full) {
            Some(&at) => list[at] = problem,
            None => {
                of.insert(full, list.len());
                list.push(problem);
            }
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Stands in for a tensor that was reported; no computation reads it.
fn empty<'a>() -> HostTensor<'a> {
    HostTensor::from_bytes(DType::F32, &[0], Vec::new()).unwrap_or_else(|_| unreachable!("0 elements are 0 bytes"))
}

/// `gate_proj`, `up_proj`, `down_proj` without biases: the gated MLP of every Llama-like module.
pub(super) fn swiglu<'a>(
    r: &Reader<'_, 'a>,
    input: usize,
    hidden: usize,
    output: usize,
) -> crate::bridge::FfnWeights<'a> {
    crate::bridge::FfnWeights {
        gate: Some(r.tensor("gate_proj.weight", &[hidden, input])),
        up: r.plain("up_proj", hidden, input),
        down: r.plain("down_proj", output, hidden),
    }
}
