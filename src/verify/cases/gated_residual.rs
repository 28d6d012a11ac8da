//! Cases of `gated_residual`.

use super::bounds::{FUNCTION, U, rounded};
use super::call::{Call, OperandId, Operands};
use super::declare::{BOUNDARY, Layout, Parameters, Real, Side, parameters, words};
use super::{CaseOp, Judgement, flags};
use crate::ops::{GatedResidual, GatedResidualArgs, Source};
use crate::verify::generate::{Fill, Rng, reals};
use crate::{HostTensor, Result};

words! {
    /// Which gate.
    Gate {
        /// One for all channels.
        Scalar = "scalar",
        /// One per channel.
        Channel = "channel",
        /// Zero: the result is the residual, exactly.
        Zero = "zero",
    }
}

words! {
    /// The form of operands.
    Values {
        /// Standard normal.
        Normal = "normal",
        /// Normal, with a few NaN and infinities.
        NonFinite = "non_finite",
    }
    beyond {
        /// Uniform; gates around 0.7.
        Uniform = "uniform",
    }
}

parameters! {
    /// Parameters of a case of `gated_residual`.
    GatedResidualCase("gated_residual") {
        /// Batch entries.
        batch: usize = &[1, 3],
        /// Rows of each.
        rows: usize = BOUNDARY,
        /// Channels.
        width: usize = BOUNDARY,
        /// The gate.
        gate: Gate = Gate::COVERED,
        /// Whether x already lies in `out`.
        in_place: bool = &[false, true],
        /// Whether there is a row mask.
        mask: bool = &[false, true],
        /// Form of operands.
        values: Values = Values::COVERED,
        /// How operands lie in memory.
        layout: Layout = Layout::COVERED,
        /// Activations.
        dtype: Real = Real::COVERED,
        /// The residual stream and its result.
        stream: Side = Side::COVERED,
        /// The gate's dtype.
        gate_dtype: Side = Side::COVERED,
    }
}

impl Parameters for GatedResidualCase {
    const OP: &'static str = "gated_residual";
    const RANDOM: usize = 100;

    fn extents() -> Vec<usize> {
        Self::extents_of()
    }

    fn choose(choice: &[usize], seed: u64) -> Self {
        Self::choose_from(choice, seed)
    }

    fn legal(&self) -> bool {
        true
    }

    fn vary(&mut self, rng: &mut Rng) {
        self.rows = rng.below(300);
        self.width = rng.below(300);
    }
}

impl CaseOp for GatedResidualCase {
    type Op = GatedResidual;

    fn dtype(&self) -> Real {
        self.dtype
    }

    fn with_dtype(self, dtype: Real) -> Self {
        Self { dtype, ..self }
    }

    fn call(&self) -> Result<Call<GatedResidual>> {
        let shape = [self.batch, self.rows, self.width];
        let mut operands = Operands::new(self.layout, self.seed);
        let rng = |name| Rng::named(self.seed, name);
        let (stream, gate_dtype) = (self.stream.dtype(self.dtype), self.gate_dtype.dtype(self.dtype));
        let values = match self.values {
            Values::Normal => Fill::Normal(1.0),
            Values::NonFinite => Fill::NonFinite(1.0),
            Values::Uniform => Fill::Uniform(0.0, 1.0),
        };
        let x = reals(&mut rng("x"), values, stream, &shape)?;
        let y = reals(&mut rng("y"), values, self.dtype.dtype(), &shape)?;
        let gates = if self.gate == Gate::Channel { self.width } else { 1 };
        let fill = match (self.gate, self.values) {
            (Gate::Zero, _) => Fill::Constant(0.0),
            (_, Values::Uniform) => Fill::Uniform(0.7, 0.1),
            _ => values,
        };
        let gate = reals(&mut rng("gate"), fill, gate_dtype, &[gates])?;
        let (x, out) = if self.in_place {
            (Source::InPlace, operands.write_over("out", x))
        } else {
            (Source::From(operands.read("x", x)), operands.write("out", stream, &shape))
        };
        let (y, gate) = (operands.read("y", y), operands.read("gate", gate));
        let row_mask = match self.mask {
            true => {
                let mask = flags(&mut rng("row_mask"), self.batch * self.rows);
                Some(operands.read("row_mask", HostTensor::from_slice(&mask, &shape[..2])?))
            }
            false => None,
        };
        let args = GatedResidualArgs { x, y, gate, row_mask, out };
        Ok(Call { op: GatedResidual, args, operands })
    }

    fn judge(
        &self,
        call: &Call<GatedResidual>,
        truth: &[(&'static str, HostTensor<'static>)],
    ) -> Result<Vec<Judgement>> {
        if self.gate == Gate::Zero {
            return Ok(vec![Judgement::Exact]);
        }
        if !super::is_small(&truth[0].1) {
            return Ok(vec![Judgement::Statistic]);
        }
        let (operands, args) = (&call.operands, &call.args);
        let result = truth[0].1.to_f64()?;
        let x = match args.x {
            Source::From(x) => operands.values(x)?,
            Source::InPlace => operands.initial(args.out)?,
        };
        let (y, gate): (_, OperandId) = (operands.values(args.y)?, args.gate);
        let gate = operands.values(gate)?;
        let bound = (0..result.len()).map(|i| {
            let branch = gate[if gate.len() == 1 { 0 } else { i % self.width }].tanh().abs() * y[i].abs();
            // tanh, the product, the sum.
            let error = branch * (FUNCTION + U) + U * (x[i].abs() + branch);
            rounded(error, result[i], self.stream.dtype(self.dtype))
        });
        Ok(vec![Judgement::Bound(bound.collect())])
    }
}
