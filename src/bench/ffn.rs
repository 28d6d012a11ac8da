//! A gated feed-forward network as two GEMMs, launched together:
//! `out = residual + tanh(gate) · gelu(x Wᵤᵀ) W_dᵀ`.

use std::sync::Arc;

use super::call::{Copying, Input, Runnable};
use super::ops::{judge_windows, real};
use super::steps::Step;
use super::weights::RandomWeights;
use crate::device::UNTOUCHED;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Operands, Source, visit};
use crate::verify::cases::LinearCase;
use crate::verify::cases::declare::Parameters;
use crate::verify::compare::Outcome;
use crate::{
    DType, Device, Dispatch, HostTensor, Prepared, Recorder, Result, Spec, Tensor, View, Weight, WeightSource,
    Workspace,
};

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FfnCase {
    pub rows: usize,
    pub width: usize,
    pub hidden: usize,
}

/// One of the GEMMs.
struct Half {
    /// Its sizes, from which follows what the reference recomputes.
    case: LinearCase,
    op: Linear,
    prepared: Prepared<Linear>,
    weight: Arc<Weight>,
    /// As it was before packing.
    matrix: HostTensor<'static>,
}

impl Half {
    fn new(
        device: &Device,
        [rows, n, k]: [usize; 3],
        activation: Activation,
        matrix: HostTensor<'static>,
        dtype: DType,
        shapes: impl FnOnce(Matrix<Spec>) -> LinearArgs<Spec, Spec>,
    ) -> Result<Self> {
        let case = LinearCase { rows, n, k, dtype: real(dtype)?, ..LinearCase::choose(&[], 0) };
        let source = WeightSource::stacked(vec![matrix.clone()]);
        let weight = Arc::new(Weight::prepare(device, &source, dtype)?);
        let op = Linear { activation, ..Linear::default() };
        let prepared = op.prepare(device, shapes(Matrix::Prepared(weight.clone())))?;
        Ok(Half { case, op, prepared, weight, matrix })
    }

    fn weight<R>(&self) -> Matrix<R> {
        Matrix::Prepared(self.weight.clone())
    }

    /// Judges the result by the reference, which reads the matrix as it was. How many rows were
    /// compared.
    fn check(
        &self,
        device: &Device,
        x: View<'_>,
        gated: Option<(View<'_>, View<'_>)>,
        out: HostTensor<'static>,
    ) -> Result<(usize, Vec<Outcome>)> {
        let gather = |copy: &mut Copying<'_>| {
            let args = args(x.clone(), Matrix::View(self.matrix.view()?), gated.clone(), ());
            let host = Device::reference();
            let read = |name, view| copy(name, if name == "weight" { &host } else { device }, view);
            Linear::map(args, &mut visit(read, |_, ()| Ok(())))
        };
        judge_windows(&self.case, &self.op, &gather, &[out])
    }
}

/// The network with its operands on a device.
pub(super) struct Ffn {
    device: Device,
    up: Half,
    down: Half,
    x: Input,
    residual: Input,
    gate: Input,
    hidden: Tensor,
    out: Tensor,
    workspace: Workspace,
}

fn args<R, W>(x: R, weight: Matrix<R>, gated: Option<(R, R)>, out: W) -> LinearArgs<R, W> {
    let (residual, gate) = gated.map_or((None, None), |(residual, gate)| (Some(Source::From(residual)), Some(gate)));
    LinearArgs { residual, gate, ..LinearArgs::new(x, weight, out) }
}

impl FfnCase {
    pub fn build(self, device: &Device, dtype: DType) -> Result<Ffn> {
        let FfnCase { rows, width, hidden } = self;
        let mut random = RandomWeights::new(4).with_matrices(dtype);
        let [narrow, wide] = [width, hidden].map(|n| [1, rows, n]);
        let mut real = |mean, deviation, shape: &[usize], dtype| {
            Input::new(device, &random.rounded(mean, deviation, shape, dtype)?, dtype)
        };
        let x = real(0.0, 1.0, &narrow, dtype)?;
        let residual = real(0.0, 1.0, &narrow, dtype)?;
        let gate = real(0.7, 0.1, &[1], DType::F32)?;
        let (up, down) = (random.matrix(hidden, width)?, random.matrix(width, hidden)?);
        let between = Tensor::zeros(device, dtype, &wide)?;
        let out = Tensor::zeros(device, dtype, &narrow)?;
        let [x_spec, residual_spec, gate_spec] = [x.view()?.spec(), residual.view()?.spec(), gate.view()?.spec()];
        let up = Half::new(device, [rows, hidden, width], Activation::Gelu, up, dtype, |weight| {
            args(x_spec, weight, None, between.spec())
        })?;
        let down = Half::new(device, [rows, width, hidden], Activation::None, down, dtype, |weight| {
            args(between.spec(), weight, Some((residual_spec, gate_spec)), out.spec())
        })?;
        let bytes = up.prepared.workspace_bytes().max(down.prepared.workspace_bytes());
        let workspace = Workspace::new(device, bytes)?;
        Ok(Ffn { device: device.clone(), up, down, x, residual, gate, hidden: between, out, workspace })
    }
}

impl Ffn {
    /// Judges both GEMMs by the reference: the second one on what the first one made. How many rows
    /// of the second were compared.
    pub fn check(&self, outputs: &[HostTensor<'static>]) -> Result<(usize, Vec<Outcome>)> {
        let hidden = self.hidden.download(&self.device)?;
        let (_, mut outcomes) = self.up.check(&self.device, self.x.view()?, None, hidden)?;
        let gated = Some((self.residual.view()?, self.gate.view()?));
        let (rows, more) = self.down.check(&self.device, self.hidden.view(), gated, outputs[0].clone())?;
        outcomes.extend(more);
        Ok((rows, outcomes))
    }
}

impl Runnable for Ffn {
    fn device(&self) -> &Device {
        &self.device
    }

    fn enqueue(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        let up = args(self.x.view()?, self.up.weight(), None, self.hidden.view_mut());
        self.up.prepared.enqueue(recorder, up, &mut self.workspace)?;
        let gated = Some((self.residual.view()?, self.gate.view()?));
        let down = args(self.hidden.view(), self.down.weight(), gated, self.out.view_mut());
        self.down.prepared.enqueue(recorder, down, &mut self.workspace)
    }

    fn steps(&self) -> Vec<Step> {
        [&self.up, &self.down].into_iter().flat_map(|half| Step::of_op(&half.prepared)).collect()
    }

    fn poison(&mut self) -> Result<()> {
        self.hidden.fill(&self.device, UNTOUCHED)?;
        self.out.fill(&self.device, UNTOUCHED)
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    fn largest_tensor_bytes(&self) -> usize {
        self.up.prepared.largest_tensor_bytes().max(self.down.prepared.largest_tensor_bytes())
    }

    fn outputs(&self) -> Result<Vec<HostTensor<'static>>> {
        Ok(vec![self.out.download(&self.device)?])
    }
}
