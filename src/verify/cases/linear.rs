//! Cases of `linear`.

use std::sync::Arc;

use super::bounds::{ACTIVATION_SLOPE, FUNCTION, U, gamma, rounded};
use super::call::{Call, OperandId, Operands};
use super::declare::{BOUNDARY, Layout, Parameters, Real, Side, parameters, words};
use super::{CaseOp, Judgement, flags};
use crate::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce, Source};
use crate::verify::generate::{Fill, Rng, reals};
use crate::{DType, Device, HostTensor, Result, Weight, WeightSource};

words! {
    /// The nonlinearity.
    Act {
        /// The identity.
        None = "none",
        /// x · Φ(x).
        Gelu = "gelu",
        /// max(x, 0).
        Relu = "relu",
        /// max(x, 0)².
        SquaredRelu = "squared_relu",
        /// silu(a) · b.
        SwiGlu = "swiglu",
    }
}

words! {
    /// What happens over rows.
    Reduce {
        /// Nothing.
        None = "none",
        /// The largest.
        Max = "max",
        /// The mean.
        Mean = "mean",
    }
}

words! {
    /// How the matrix is given.
    Given {
        /// As it lies.
        View = "view",
        /// Prepared for the device.
        Prepared = "prepared",
        /// Prepared from two parts that are stacked by rows.
        Stacked = "stacked",
    }
}

words! {
    /// What the result is added to.
    Residual {
        /// Nothing.
        None = "none",
        /// An operand.
        From = "from",
        /// What `out` holds.
        InPlace = "in_place",
    }
}

words! {
    /// The gate.
    Gate {
        /// None.
        None = "none",
        /// One for all columns.
        Scalar = "scalar",
        /// One per column.
        Channel = "channel",
        /// Zero.
        Zero = "zero",
    }
}

words! {
    /// The form of operands.
    Values {
        /// Standard normal inputs, matrices of standard deviation K^-1/2.
        Normal = "normal",
        /// Sparse small integers: products and sums are exact.
        Sparse = "sparse",
        /// Inputs of standard deviation 30.
        Large = "large",
        /// Normal, with a few NaN and infinities.
        NonFinite = "non_finite",
    }
    beyond {
        /// Uniform: matrices of variance 1/K, biases around 0, gates around 0.7.
        Uniform = "uniform",
    }
}

parameters! {
    /// Parameters of a case of `linear`.
    LinearCase("linear") {
        /// Batch entries.
        batch: usize = &[1, 2, 3],
        /// Rows of each.
        rows: usize = BOUNDARY,
        /// Columns of the result.
        n: usize = &[0, 1, 2, 33, 63, 64, 65, 96, 127, 128, 129, 255, 257],
        /// Columns of the input.
        k: usize = &[0, 1, 2, 33, 63, 64, 65, 96, 127, 128, 129, 255, 257, 1024],
        /// How the matrix is given.
        matrix: Given = Given::COVERED,
        /// The nonlinearity.
        activation: Act = Act::COVERED,
        /// Whether there is a bias.
        bias: bool = &[false, true],
        /// What the result is added to.
        residual: Residual = Residual::COVERED,
        /// The gate.
        gate: Gate = Gate::COVERED,
        /// Whether there is a row mask.
        mask: bool = &[false, true],
        /// What happens over rows.
        reduce: Reduce = Reduce::COVERED,
        /// Form of operands.
        values: Values = Values::COVERED,
        /// How operands lie in memory.
        layout: Layout = Layout::COVERED,
        /// Activations and matrices.
        dtype: Real = Real::COVERED,
        /// Residual and result.
        stream: Side = Side::COVERED,
        /// Bias and gate.
        parameters: Side = Side::COVERED,
    }
}

/// The most multiply-adds of a case: it runs up to ten times, once in f64.
const WORK: usize = 2_000_000;

impl Parameters for LinearCase {
    const OP: &'static str = "linear";
    const RANDOM: usize = 600;

    fn extents() -> Vec<usize> {
        Self::extents_of()
    }

    fn choose(choice: &[usize], seed: u64) -> Self {
        Self::choose_from(choice, seed)
    }

    fn legal(&self) -> bool {
        let plain = self.residual == Residual::None && self.gate == Gate::None && !self.mask;
        (self.activation != Act::SwiGlu || (!self.bias && self.matrix != Given::Stacked))
            && (self.reduce == Reduce::None || (plain && self.rows > 0))
            && (self.matrix != Given::Stacked || self.n >= 2)
            // A squared ReLU of large values leaves the range of f16.
            && (self.values != Values::Large || self.activation != Act::SquaredRelu || self.dtype != Real::F16)
            && self.batch * self.rows * self.n * self.k <= WORK
            && self.n * self.k <= 150_000
    }

    fn vary(&mut self, rng: &mut Rng) {
        self.rows = rng.below(80);
        self.n = rng.below(200);
        self.k = rng.below(400);
    }
}

impl LinearCase {
    /// Of inputs and of matrices.
    fn scale(&self) -> (Fill, Fill) {
        let deviation = (self.k.max(1) as f64).powf(-0.5);
        match self.values {
            Values::Normal => (Fill::Normal(1.0), Fill::Normal(deviation)),
            Values::Sparse => (Fill::Sparse, Fill::Sparse),
            Values::Large => (Fill::Normal(30.0), Fill::Normal(deviation)),
            // The result of these for -∞ is not promised.
            Values::NonFinite if matches!(self.activation, Act::Gelu | Act::SwiGlu) => {
                (Fill::NotANumber(1.0), Fill::NotANumber(deviation))
            }
            Values::NonFinite => (Fill::NonFinite(1.0), Fill::NonFinite(deviation)),
            Values::Uniform => (Fill::Uniform(0.0, 1.0), Fill::Uniform(0.0, deviation as f32)),
        }
    }

    /// Whether every operation is exact: for sparse integers, and for a gate of 0.
    fn is_exact(&self) -> bool {
        let integers = matches!(self.activation, Act::None | Act::Relu | Act::SquaredRelu);
        let gate = matches!(self.gate, Gate::None | Gate::Zero);
        self.gate == Gate::Zero || (self.values == Values::Sparse && integers && gate && self.reduce != Reduce::Mean)
    }
}

impl CaseOp for LinearCase {
    type Op = Linear;

    fn dtype(&self) -> Real {
        self.dtype
    }

    fn with_dtype(self, dtype: Real) -> Self {
        Self { dtype, ..self }
    }

    fn call(&self) -> Result<Call<Linear>> {
        let (x_fill, w_fill) = self.scale();
        let dtype = self.dtype.dtype();
        let (stream, parameters) = (self.stream.dtype(self.dtype), self.parameters.dtype(self.dtype));
        let rng = |name| Rng::named(self.seed, name);
        let side = match self.values {
            Values::Sparse => Fill::Sparse,
            Values::NonFinite => Fill::NonFinite(1.0),
            Values::Normal | Values::Large => Fill::Normal(1.0),
            Values::Uniform => Fill::Uniform(0.0, 1.0),
        };
        let mut operands = Operands::new(self.layout, self.seed);
        let x = operands.read("x", reals(&mut rng("x"), x_fill, dtype, &[self.batch, self.rows, self.k])?);
        let mut matrix = |name| -> Result<OperandId> {
            Ok(operands.read(name, reals(&mut rng(name), w_fill, dtype, &[self.n, self.k])?))
        };
        let weight = match self.activation {
            Act::SwiGlu => Matrix::Pair(matrix("weight")?, matrix("weight_up")?),
            _ => Matrix::View(matrix("weight")?),
        };
        let inner = match self.values {
            Values::NonFinite => x_fill,
            Values::Uniform => Fill::Uniform(0.0, 0.1),
            Values::Normal | Values::Sparse | Values::Large => side,
        };
        let bias = match self.bias {
            true => Some(operands.read("bias", reals(&mut rng("bias"), inner, parameters, &[self.n])?)),
            false => None,
        };
        let result = [self.batch, if self.reduce == Reduce::None { self.rows } else { 1 }, self.n];
        let residual = || reals(&mut rng("residual"), side, stream, &result);
        let (residual, out) = match self.residual {
            Residual::None => (None, operands.write("out", stream, &result)),
            Residual::From => {
                let r = operands.read("residual", residual()?);
                (Some(Source::From(r)), operands.write("out", stream, &result))
            }
            Residual::InPlace => (Some(Source::InPlace), operands.write_over("out", residual()?)),
        };
        let gates = if self.values == Values::Uniform { Fill::Uniform(0.7, 0.1) } else { Fill::Normal(1.0) };
        let gate = match self.gate {
            Gate::None => None,
            Gate::Scalar => Some((1, gates)),
            Gate::Channel if self.values == Values::NonFinite => Some((self.n, side)),
            Gate::Channel => Some((self.n, gates)),
            Gate::Zero => Some((1, Fill::Constant(0.0))),
        };
        let gate = gate
            .map(|(n, fill)| {
                Ok::<_, crate::Error>(operands.read("gate", reals(&mut rng("gate"), fill, parameters, &[n])?))
            })
            .transpose()?;
        let row_mask = match self.mask {
            true => {
                let mask = flags(&mut rng("row_mask"), self.batch * self.rows);
                Some(operands.read("row_mask", HostTensor::from_slice(&mask, &[self.batch, self.rows])?))
            }
            false => None,
        };
        let op = Linear {
            activation: match self.activation {
                Act::None => Activation::None,
                Act::Gelu => Activation::Gelu,
                Act::Relu => Activation::Relu,
                Act::SquaredRelu => Activation::SquaredRelu,
                Act::SwiGlu => Activation::SwiGlu,
            },
            reduce: match self.reduce {
                Reduce::None => RowReduce::None,
                Reduce::Max => RowReduce::Max,
                Reduce::Mean => RowReduce::Mean,
            },
        };
        Ok(Call { op, args: LinearArgs { x, weight, bias, residual, gate, row_mask, out }, operands })
    }

    fn lower(
        &self,
        call: &Call<Linear>,
        mut args: LinearArgs<OperandId, OperandId>,
        device: &Device,
        truth: bool,
    ) -> Result<LinearArgs<OperandId, OperandId>> {
        if self.matrix == Given::View {
            return Ok(args);
        }
        let dtype = if truth { DType::F64 } else { self.dtype.dtype() };
        let tensor = |id| call.operands.tensor(id).cloned();
        let source = match args.weight {
            Matrix::View(w) if self.matrix == Given::Stacked => {
                let all = call.operands.tensor(w)?;
                let (upper, row) = (self.n / 2, self.k * all.dtype().size());
                let all_bytes = all.bytes()?;
                let (a, b) = all_bytes.split_at(upper * row);
                WeightSource::stacked(vec![
                    HostTensor::from_bytes(all.dtype(), &[upper, self.k], a.to_vec())?,
                    HostTensor::from_bytes(all.dtype(), &[self.n - upper, self.k], b.to_vec())?,
                ])
            }
            Matrix::View(w) => WeightSource::stacked(vec![tensor(w)?]),
            Matrix::Pair(gate, up) => WeightSource::glu(tensor(gate)?, tensor(up)?),
            Matrix::Prepared(_) => return Ok(args),
        };
        args.weight = Matrix::Prepared(Arc::new(Weight::prepare(device, &source, dtype)?));
        Ok(args)
    }

    fn judge(&self, call: &Call<Linear>, truth: &[(&'static str, HostTensor<'static>)]) -> Result<Vec<Judgement>> {
        if self.is_exact() {
            return Ok(vec![Judgement::Exact]);
        }
        if !super::is_small(&truth[0].1) {
            return Ok(vec![Judgement::Statistic]);
        }
        Ok(vec![Judgement::Bound(self.bounds(call, &truth[0].1.to_f64()?)?)])
    }
}

impl LinearCase {
    /// The componentwise bounds of `docs/numerics.md`, for few outputs.
    fn bounds(&self, call: &Call<Linear>, result: &[f64]) -> Result<Vec<f64>> {
        let (operands, args) = (&call.operands, &call.args);
        let optional = |id: Option<OperandId>| id.map(|s| operands.values(s)).transpose();
        let x = operands.values(args.x)?;
        let (w, up) = match args.weight {
            Matrix::Pair(w, up) => (operands.values(w)?, Some(operands.values(up)?)),
            Matrix::View(w) => (operands.values(w)?, None),
            Matrix::Prepared(_) => return Ok(Vec::new()),
        };
        let (bias, gate) = (optional(args.bias)?, optional(args.gate)?);
        let residual = match args.residual {
            None => None,
            Some(Source::From(r)) => Some(operands.values(r)?),
            Some(Source::InPlace) => Some(operands.initial(args.out)?),
        };
        let k = self.k;
        // A GEMM element and its error: γ per product, sum and bias, times the magnitudes.
        let product = |w: &[f64], row: usize, c: usize| -> (f64, f64) {
            let (x, w) = (&x[row * k..(row + 1) * k], &w[c * k..(c + 1) * k]);
            let b = bias.as_ref().map_or(0.0, |b| b[c]);
            let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            let magnitude: f64 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
            (sum + b, gamma(k + 2) * (magnitude + b.abs()))
        };
        let activated = |row: usize, c: usize| -> (f64, f64) {
            let (p, e) = product(&w, row, c);
            match self.activation {
                Act::None => (p, e),
                Act::Relu => (p.max(0.0), e),
                Act::SquaredRelu => (p.max(0.0).powi(2), 2.0 * p.abs() * e + e * e + U * p * p),
                // |x·Φ(x)| ≤ |x| is magnitude enough.
                Act::Gelu => (p, ACTIVATION_SLOPE * e + (FUNCTION + 3.0 * U) * p.abs()),
                Act::SwiGlu => {
                    let (q, f) = up.as_ref().map_or((0.0, 0.0), |up| product(up, row, c));
                    let silu = p / (1.0 + (-p).exp());
                    // exp of an argument rounded in f32, the sum, the division: relative to |p|.
                    let e = ACTIVATION_SLOPE * e + (2.0 * FUNCTION + 3.0 * U) * p.abs();
                    (silu * q, e * q.abs() + silu.abs() * f + e * f + U * (silu * q).abs())
                }
            }
        };
        let dtype = self.stream.dtype(self.dtype);
        let mut bounds = Vec::with_capacity(result.len());
        for (i, &value) in result.iter().enumerate() {
            let (row, c) = (i / self.n, i % self.n);
            let error = match self.reduce {
                Reduce::None => {
                    let (a, e) = activated(row, c);
                    let gate = gate.as_ref().map(|g| g[if g.len() == 1 { 0 } else { c }].tanh().abs());
                    // tanh and the product with it.
                    let e = gate.map_or(e, |g| g * (e + (a.abs() + e) * (FUNCTION + U)));
                    let branch = gate.unwrap_or(1.0) * a.abs();
                    residual.as_ref().map_or(e, |r| e + U * (r[i].abs() + branch + e))
                }
                Reduce::Max => (0..self.rows).map(|r| activated(row * self.rows + r, c).1).fold(0.0, f64::max),
                Reduce::Mean => {
                    let all = (0..self.rows).map(|r| activated(row * self.rows + r, c));
                    let (sum, e) = all.fold((0.0, 0.0), |s, (a, e)| (s.0 + a.abs() + e, s.1 + e));
                    (e + gamma(self.rows + 1) * sum) / self.rows as f64
                }
            };
            bounds.push(rounded(error, value, dtype));
        }
        Ok(bounds)
    }
}
