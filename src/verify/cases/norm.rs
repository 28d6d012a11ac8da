//! Cases of `norm`.

use super::bounds::{FUNCTION, U, gamma, rounded};
use super::call::{Call, Operands};
use super::declare::{BOUNDARY, Layout, Parameters, Real, Side, parameters, words};
use super::{CaseOp, Judgement};
use crate::ops::{Norm, NormArgs, NormKind, Source};
use crate::verify::generate::{Fill, Rng, reals};
use crate::{HostTensor, Result};

words! {
    /// Which norm.
    Kind {
        /// LayerNorm.
        Layer = "layer",
        /// RMSNorm.
        Rms = "rms",
        /// Division by the Euclidean norm.
        L2 = "l2",
    }
}

words! {
    /// Where the input comes from.
    Input {
        /// An operand of its own.
        Plain = "plain",
        /// Already in `out`.
        InPlace = "in_place",
        /// Rows of a table, hostile indices among them.
        Gather = "gather",
    }
}

words! {
    /// What is added first.
    Add {
        /// Nothing.
        None = "none",
        /// As many elements as the input.
        Full = "full",
        /// One row, repeated with strides 0.
        Repeated = "repeated",
    }
}

words! {
    /// What the input looks like.
    Values {
        /// Standard normal.
        Normal = "normal",
        /// Small: shows a wrong eps.
        Small = "small",
        /// Mean 8 times the deviation: shows a one-pass variance.
        Shifted = "shifted",
        /// All zeros: only eps keeps the result finite.
        Zero = "zero",
        /// Normal, but for a NaN or an infinity here and there.
        NonFinite = "non_finite",
    }
    beyond {
        /// Uniform around 0.5; factor and offset are uniform too.
        Uniform = "uniform",
    }
}

words! {
    /// The eps of the systems.
    Eps {
        /// 1e-5.
        E5 = "1e-5",
        /// 1e-6.
        E6 = "1e-6",
        /// 1e-12.
        E12 = "1e-12",
    }
}

parameters! {
    /// Parameters of a case of `norm`.
    NormCase("norm") {
        /// Outermost extent.
        batch: usize = &[1, 2],
        /// Rows.
        rows: usize = BOUNDARY,
        /// Heads, for norms per head.
        heads: usize = &[1, 3],
        /// Width of what is normalised.
        width: usize = &[1, 2, 8, 33, 63, 64, 65, 96, 127, 128, 129, 255, 257, 1024],
        /// Which norm.
        kind: Kind = Kind::COVERED,
        /// Its eps.
        eps: Eps = Eps::COVERED,
        /// Where the input comes from.
        input: Input = Input::COVERED,
        /// What is added first.
        add: Add = Add::COVERED,
        /// Whether there is a factor.
        weight: bool = &[true, false],
        /// Whether there is an offset.
        bias: bool = &[false, true],
        /// What the input looks like.
        values: Values = Values::COVERED,
        /// How operands lie in memory.
        layout: Layout = Layout::COVERED,
        /// Activations.
        dtype: Real = Real::COVERED,
        /// Factor and offset.
        parameters: Side = Side::COVERED,
    }
}

impl Parameters for NormCase {
    const OP: &'static str = "norm";
    const RANDOM: usize = 400;

    fn extents() -> Vec<usize> {
        Self::extents_of()
    }

    fn choose(choice: &[usize], seed: u64) -> Self {
        Self::choose_from(choice, seed)
    }

    fn legal(&self) -> bool {
        (!self.bias || self.kind == Kind::Layer)
            && (self.input != Input::Gather || self.heads == 1)
            && self.batch * self.rows * self.heads * self.width <= 150_000
    }

    fn vary(&mut self, rng: &mut Rng) {
        self.rows = rng.below(100);
        self.width = 1 + rng.below(700);
    }
}

impl NormCase {
    fn eps(&self) -> f32 {
        match self.eps {
            Eps::E5 => 1e-5,
            Eps::E6 => 1e-6,
            Eps::E12 => 1e-12,
        }
    }

    fn kind(&self) -> NormKind {
        match self.kind {
            Kind::Layer => NormKind::Layer,
            Kind::Rms => NormKind::Rms,
            Kind::L2 => NormKind::L2,
        }
    }

    /// The input after the gather, and what is added to it, element by element.
    fn inputs(&self, call: &Call<Norm>) -> Result<(Vec<f64>, Vec<f64>)> {
        let (operands, args) = (&call.operands, &call.args);
        let elements = self.batch * self.rows * self.heads * self.width;
        let mut x = match args.x {
            Source::From(x) => operands.values(x)?,
            Source::InPlace => operands.initial(args.out)?,
        };
        if let Some(rows) = args.rows {
            let table = x;
            let last = table.len() / self.width - 1;
            let indices = operands.tensor(rows)?.to_vec::<i32>()?;
            let row = |i: &i32| usize::try_from(*i).unwrap_or(0).min(last) * self.width;
            x = indices.iter().flat_map(|i| table[row(i)..row(i) + self.width].to_vec()).collect();
        }
        let add = match args.add {
            None => vec![0.0; elements],
            Some(add) => {
                let values = operands.values(add)?;
                (0..elements).map(|i| values[i % values.len()]).collect()
            }
        };
        Ok((x, add))
    }
}

impl CaseOp for NormCase {
    type Op = Norm;

    fn dtype(&self) -> Real {
        self.dtype
    }

    fn with_dtype(self, dtype: Real) -> Self {
        Self { dtype, ..self }
    }

    fn call(&self) -> Result<Call<Norm>> {
        let shape = [self.batch, self.rows, self.heads, self.width];
        let dtype = self.dtype.dtype();
        let mut operands = Operands::new(self.layout, self.seed);
        let rng = |name| Rng::named(self.seed, name);
        let fill = match self.values {
            Values::Normal => Fill::Normal(1.0),
            Values::Small => Fill::Normal(0.003),
            Values::Shifted => Fill::Shifted(8.0, 1.0),
            Values::Zero => Fill::Constant(0.0),
            Values::NonFinite => Fill::NonFinite(1.0),
            Values::Uniform => Fill::Uniform(0.5, 1.0),
        };
        let (weight_fill, bias_fill) = match self.values {
            Values::Uniform => (Fill::Uniform(1.0, 0.1), Fill::Uniform(0.0, 0.1)),
            _ => (Fill::Shifted(1.0, 0.3), Fill::Normal(0.5)),
        };
        const TABLE: usize = 11;
        let mut rows = None;
        let (x, out) = match self.input {
            Input::Plain => {
                let x = operands.read("x", reals(&mut rng("x"), fill, dtype, &shape)?);
                (Source::From(x), operands.write("out", dtype, &shape))
            }
            Input::InPlace => (Source::InPlace, operands.write_over("out", reals(&mut rng("x"), fill, dtype, &shape)?)),
            Input::Gather => {
                let table = operands.read("x", reals(&mut rng("x"), fill, dtype, &[1, TABLE, 1, self.width])?);
                let mut r = rng("rows");
                let pick = |r: &mut Rng| match r.below(8) {
                    0 => [i32::MIN, -1, TABLE as i32, i32::MAX][r.below(4)],
                    _ => r.below(TABLE) as i32,
                };
                let indices: Vec<i32> = (0..self.batch * self.rows).map(|_| pick(&mut r)).collect();
                rows = Some(operands.read("rows", HostTensor::from_slice(&indices, &shape[..2])?));
                (Source::From(table), operands.write("out", dtype, &shape))
            }
        };
        let add_fill = match self.values {
            Values::Zero => Fill::Constant(0.0),
            Values::NonFinite => Fill::NonFinite(0.5),
            Values::Normal | Values::Small | Values::Shifted => Fill::Normal(0.5),
            Values::Uniform => Fill::Uniform(0.0, 0.5),
        };
        let add = match self.add {
            Add::None => None,
            Add::Full => Some(operands.read("add", reals(&mut rng("add"), add_fill, dtype, &shape)?)),
            Add::Repeated => {
                let row = reals(&mut rng("add"), add_fill, dtype, &[self.width])?;
                Some(operands.read_repeated("add", row, &[(0, self.heads), (0, self.rows), (0, self.batch)]))
            }
        };
        let parameters = self.parameters.dtype(self.dtype);
        let weight = match self.weight {
            true => Some(operands.read("weight", reals(&mut rng("weight"), weight_fill, parameters, &[self.width])?)),
            false => None,
        };
        let bias = match self.bias {
            true => Some(operands.read("bias", reals(&mut rng("bias"), bias_fill, parameters, &[self.width])?)),
            false => None,
        };
        let args = NormArgs { x, rows, add, weight, bias, out };
        Ok(Call { op: Norm { kind: self.kind(), eps: self.eps() }, args, operands })
    }

    fn judge(&self, call: &Call<Norm>, truth: &[(&'static str, HostTensor<'static>)]) -> Result<Vec<Judgement>> {
        if !super::is_small(&truth[0].1) {
            return Ok(vec![Judgement::Statistic]);
        }
        let (operands, args) = (&call.operands, &call.args);
        let (x, add) = self.inputs(call)?;
        let per_channel = |id: Option<_>, default: f64| -> Result<Vec<f64>> {
            id.map_or_else(|| Ok(vec![default; self.width]), |s| operands.values(s))
        };
        let (weight, bias) = (per_channel(args.weight, 1.0)?, per_channel(args.bias, 0.0)?);
        let result = truth[0].1.to_f64()?;
        let mut bounds = Vec::with_capacity(result.len());
        for (row, (x, add)) in x.chunks(self.width).zip(add.chunks(self.width)).enumerate() {
            let (scale, scale_error, centred, centre_error) = self.row_errors(x, add);
            for c in 0..self.width {
                let normalised = (weight[c] * centred[c] * scale).abs();
                let error = weight[c].abs() * scale * (1.0 + scale_error) * centre_error[c]
                    + normalised * (scale_error + 2.0 * U)
                    + U * (normalised + bias[c].abs());
                bounds.push(rounded(error, result[row * self.width + c], self.dtype.dtype()));
            }
        }
        Ok(vec![Judgement::Bound(bounds)])
    }
}

impl NormCase {
    /// 1/√(mean square + eps) (or 1/norm), its relative error, its factors and their errors.
    fn row_errors(&self, x: &[f64], add: &[f64]) -> (f64, f64, Vec<f64>, Vec<f64>) {
        let n = self.width as f64;
        let sum: Vec<f64> = x.iter().zip(add).map(|(x, a)| x + a).collect();
        // x + add is one rounding where there is something to add.
        let sum_error: Vec<f64> = sum.iter().map(|s| if self.add == Add::None { 0.0 } else { U * s.abs() }).collect();
        let (mean, mean_error) = match self.kind {
            Kind::Layer => {
                let magnitude = sum.iter().map(|s| s.abs()).sum::<f64>() / n;
                (sum.iter().sum::<f64>() / n, gamma(self.width + 2) * magnitude)
            }
            Kind::Rms | Kind::L2 => (0.0, 0.0),
        };
        let centred: Vec<f64> = sum.iter().map(|s| s - mean).collect();
        let rounding = if self.kind == Kind::Layer { U } else { 0.0 };
        let error: Vec<f64> =
            centred.iter().zip(&sum_error).map(|(c, e)| e + mean_error + rounding * c.abs()).collect();
        let square = centred.iter().map(|c| c * c).sum::<f64>();
        // Σ (c + e)² − Σ c² and the roundings of squares and sums.
        let square_error = centred.iter().zip(&error).map(|(c, e)| 2.0 * c.abs() * e + e * e).sum::<f64>();
        let square_error = square_error + gamma(self.width + 2) * (square + square_error);
        let eps = f64::from(self.eps());
        let (radicand, radicand_error) = match self.kind {
            Kind::L2 => (square.max(eps * eps), square_error),
            Kind::Layer | Kind::Rms => (square / n + eps, square_error / n),
        };
        // 1/√(r + Δ) differs from 1/√r by at most |Δ|/2r to first order, and by no more than 1/√(1
        // − |Δ|/r) − 1.
        let relative = (radicand_error / radicand + U).min(0.99);
        let scale_error = 1.0 / (1.0 - relative).sqrt() - 1.0 + 2.0 * FUNCTION;
        (1.0 / radicand.sqrt(), scale_error, centred, error)
    }
}
