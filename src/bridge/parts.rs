//! Parts of bridges (norms, dense layers, feed-forward networks): weights, prepared parts, ops.

use std::sync::Arc;

use super::Precision;
use super::program::{Builder, Register};
use crate::device::Device;
use crate::device::Tensor;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Norm, NormArgs, NormKind, RowReduce, Source};
use crate::ops::{Weight, WeightSource};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Which norm, and its eps.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct NormConfig {
    /// Which norm.
    pub kind: NormKind,
    /// See [`Norm`].
    pub eps: f32,
}

impl NormConfig {
    /// LayerNorm.
    pub const fn layer(eps: f32) -> Self {
        NormConfig { kind: NormKind::Layer, eps }
    }

    /// RMSNorm.
    pub const fn rms(eps: f32) -> Self {
        NormConfig { kind: NormKind::Rms, eps }
    }
}

/// LayerNorm with torch.nn.LayerNorm's own eps of 1e-5: the norm of every Flamingo-like model,
/// since the paper gives none.
impl Default for NormConfig {
    fn default() -> Self {
        NormConfig::layer(1e-5)
    }
}

/// Weights of a norm.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NormWeights<'a> {
    /// `[width]`.
    pub weight: HostTensor<'a>,
    /// `[width]`; LayerNorm only.
    pub bias: Option<HostTensor<'a>>,
}

impl<'a> NormWeights<'a> {
    /// With a bias for LayerNorm, without one for RMSNorm.
    pub fn new(weight: HostTensor<'a>, bias: Option<HostTensor<'a>>) -> Self {
        NormWeights { weight, bias }
    }
}

/// A dense layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DenseWeights<'a> {
    /// Matrices `[n_i, K]`, stacked by rows.
    pub weight: Vec<HostTensor<'a>>,
    /// Vectors `[n_i]`, stacked likewise; empty without a bias.
    pub bias: Vec<HostTensor<'a>>,
}

impl<'a> DenseWeights<'a> {
    /// Without a bias.
    pub fn plain(weight: Vec<HostTensor<'a>>) -> Self {
        DenseWeights { weight, bias: Vec::new() }
    }

    /// One matrix and its bias.
    pub fn biased(weight: HostTensor<'a>, bias: HostTensor<'a>) -> Self {
        DenseWeights { weight: vec![weight], bias: vec![bias] }
    }
}

/// A feed-forward network: `down(activation(up(x)))`, or `down(act(gate(x)) · up(x))`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FfnWeights<'a> {
    /// `[hidden, width]`, for gated activations.
    pub gate: Option<HostTensor<'a>>,
    /// `[hidden, width]`; beside a gate without a bias.
    pub up: DenseWeights<'a>,
    /// `[width, hidden]`.
    pub down: DenseWeights<'a>,
}

impl<'a> FfnWeights<'a> {
    /// Without a gate.
    pub fn new(up: DenseWeights<'a>, down: DenseWeights<'a>) -> Self {
        FfnWeights { gate: None, up, down }
    }
}

/// Uploads weights for one device and precision.
pub(super) struct Loader<'d> {
    pub device: &'d Device,
    pub precision: Precision,
    pub bridge: &'static str,
}

impl Loader<'_> {
    /// A vector, or a table of embeddings.
    pub fn vector(&self, tensor: &HostTensor<'_>) -> Result<Arc<Tensor>> {
        Ok(Arc::new(Tensor::upload(self.device, tensor, self.precision.vectors())?))
    }

    /// A vector whose length the config says.
    pub fn sized(&self, name: &'static str, tensor: &HostTensor<'_>, shape: &[usize]) -> Result<Arc<Tensor>> {
        if tensor.shape() != shape {
            return Err(Error::argument(
                self.bridge,
                name,
                format!("shape {shape:?}"),
                format!("{:?}", tensor.shape()),
            ));
        }
        self.vector(tensor)
    }

    pub fn norm(
        &self,
        name: &'static str,
        config: NormConfig,
        weights: &NormWeights<'_>,
        width: usize,
    ) -> Result<NormPart> {
        Ok(NormPart {
            op: Norm { kind: config.kind, eps: config.eps },
            weight: self.sized(name, &weights.weight, &[width])?,
            bias: weights.bias.as_ref().map(|b| self.sized(name, b, &[width])).transpose()?,
        })
    }

    pub fn dense(&self, name: &'static str, weights: &DenseWeights<'_>, n: usize, k: usize) -> Result<DensePart> {
        let source = WeightSource::stacked(weights.weight.clone());
        self.expect_dims(name, &source, n, k)?;
        let bias = match weights.bias.as_slice() {
            [] => None,
            parts => {
                let mut stacked = Vec::new();
                for part in parts {
                    stacked.extend(part.to_f64()?);
                }
                let stacked = HostTensor::from_slice(&stacked, &[stacked.len()])?;
                Some(self.sized(name, &stacked, &[n])?)
            }
        };
        Ok(DensePart { weight: Arc::new(Weight::prepare(self.device, &source, self.precision.weights)?), bias })
    }

    pub fn ffn(
        &self,
        name: &'static str,
        activation: Activation,
        weights: &FfnWeights<'_>,
        dims: FfnDims,
    ) -> Result<FfnPart> {
        let up = match (&weights.gate, activation.is_glu()) {
            (Some(gate), true) => {
                let [up] = weights.up.weight.as_slice() else {
                    return Err(Error::argument(self.bridge, name, "one matrix `up`", weights.up.weight.len()));
                };
                if !weights.up.bias.is_empty() {
                    let expected = format!("no bias of `up` with {}", activation.name());
                    return Err(Error::argument(self.bridge, name, expected, "one"));
                }
                let source = WeightSource::glu(gate.clone(), up.clone());
                self.expect_dims(name, &source, dims.hidden, dims.input)?;
                DensePart {
                    weight: Arc::new(Weight::prepare(self.device, &source, self.precision.weights)?),
                    bias: None,
                }
            }
            (None, false) => self.dense(name, &weights.up, dims.hidden, dims.input)?,
            (gate, _) => {
                let actual = if gate.is_some() { "a gate matrix" } else { "none" };
                let expected = if gate.is_some() { "none" } else { "a gate matrix" };
                return Err(Error::argument(
                    self.bridge,
                    name,
                    format!("{expected} with {}", activation.name()),
                    actual,
                ));
            }
        };
        Ok(FfnPart {
            up,
            activation,
            hidden: dims.hidden,
            down: self.dense(name, &weights.down, dims.output, dims.hidden)?,
        })
    }

    fn expect_dims(&self, name: &'static str, source: &WeightSource<'_>, n: usize, k: usize) -> Result<()> {
        let (have_n, have_k, _) = source.dims()?;
        if (have_n, have_k) == (n, k) {
            return Ok(());
        }
        Err(Error::argument(self.bridge, name, format!("shape [{n}, {k}]"), format!("[{have_n}, {have_k}]")))
    }
}

/// Widths of a feed-forward network.
#[derive(Clone, Copy)]
pub(super) struct FfnDims {
    pub input: usize,
    pub hidden: usize,
    pub output: usize,
}

impl FfnDims {
    pub fn square(width: usize, hidden: usize) -> Self {
        FfnDims { input: width, hidden, output: width }
    }
}

/// A norm on a device.
pub(super) struct NormPart {
    op: Norm,
    weight: Arc<Tensor>,
    bias: Option<Arc<Tensor>>,
}

impl NormPart {
    /// Appends `out = norm(x + add)`. Operands `[batch, rows, width]`, or with one dimension more.
    pub fn push(
        &self,
        b: &mut Builder,
        label: &str,
        x: Source<Register>,
        add: Option<Register>,
        out: Register,
    ) -> Result<()> {
        self.push_gather(b, label, x, None, add, out)
    }

    /// Appends `out = norm(x[rows] + add)`.
    pub fn push_gather(
        &self,
        b: &mut Builder,
        label: &str,
        x: Source<Register>,
        rows: Option<Register>,
        add: Option<Register>,
        out: Register,
    ) -> Result<()> {
        let x = match x {
            Source::From(x) => Source::From(four_dims(x)?),
            Source::InPlace => Source::InPlace,
        };
        let args = NormArgs {
            x,
            rows,
            add: add.map(four_dims).transpose()?,
            weight: Some(b.constant(&self.weight)),
            bias: self.bias.as_ref().map(|t| b.constant(t)),
            out: four_dims(out)?,
        };
        b.push(label, &self.op, args)
    }
}

/// `[batch, rows, width]` as `[batch, rows, 1, width]`.
pub(super) fn four_dims(register: Register) -> Result<Register> {
    if register.spec().rank() == 3 { register.repeat(2, 1) } else { Ok(register) }
}

/// A dense layer on a device.
pub(super) struct DensePart {
    pub weight: Arc<Weight>,
    pub bias: Option<Arc<Tensor>>,
}

/// What a product's epilogue adds.
#[derive(Clone, Copy, Default)]
pub(super) struct Epilogue {
    pub activation: Activation,
    pub residual: Option<Source<Register>>,
    pub gate: Option<Register>,
    pub row_mask: Option<Register>,
    pub reduce: RowReduce,
}

impl DensePart {
    /// Appends `out = epilogue(x Wᵀ + bias)`.
    pub fn push(&self, b: &mut Builder, label: &str, x: Register, epilogue: Epilogue, out: Register) -> Result<()> {
        let args = LinearArgs {
            x,
            weight: Matrix::Prepared(self.weight.clone()),
            bias: self.bias.as_ref().map(|t| b.constant(t)),
            residual: epilogue.residual,
            gate: epilogue.gate,
            row_mask: epilogue.row_mask,
            out,
        };
        b.push(label, &Linear { activation: epilogue.activation, reduce: epilogue.reduce }, args)
    }
}

/// A feed-forward network on a device.
pub(super) struct FfnPart {
    up: DensePart,
    activation: Activation,
    hidden: usize,
    down: DensePart,
}

impl FfnPart {
    /// Appends `out = residual + tanh(gate) · row_mask · ffn(x)`; `x` is `[batch, rows, width]`.
    pub fn push(&self, b: &mut Builder, label: &str, x: Register, epilogue: Epilogue, out: Register) -> Result<()> {
        let hidden = b.scratch(out.spec().dtype(), &[x.spec().dim(0), x.spec().dim(1), self.hidden])?;
        let activate = Epilogue { activation: self.activation, ..Epilogue::default() };
        self.up.push(b, &format!("{label}.up"), x, activate, hidden)?;
        self.down.push(b, &format!("{label}.down"), hidden, epilogue, out)
    }
}

/// Splits `[batch, rows, heads · head_dim]` into heads.
pub(super) fn heads(register: Register, heads: usize, head_dim: usize) -> Result<Register> {
    register.split(2, heads, head_dim)
}

/// Columns `start..start + len` of the last dimension.
pub(super) fn columns(register: Register, start: usize, len: usize) -> Result<Register> {
    register.narrow(register.spec().rank() - 1, start, len)
}
