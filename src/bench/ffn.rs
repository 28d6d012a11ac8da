//! A gated feed-forward network as two products, launched together:
//! `out = residual + tanh(gate) · gelu(x Wᵤᵀ) W_dᵀ`.

use std::sync::Arc;

use super::call::{Copying, Input, Runnable};
use super::ops::check_linear;
use super::steps::Step;
use super::weights::RandomWeights;
use crate::device::UNTOUCHED;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Operands, Source, visit};
use crate::verify::compare::Outcome;
use crate::{
    DType, Device, Dispatch, HostTensor, Prepared, Recorder, Result, Spec, Tensor, Weight, WeightSource, Workspace,
};

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FfnCase {
    pub rows: usize,
    pub width: usize,
    pub hidden: usize,
}

/// One of the products.
struct Half {
    op: Linear,
    prepared: Prepared<Linear>,
    weight: Arc<Weight>,
    /// As it was before packing.
    matrix: HostTensor<'static>,
}

impl Half {
    fn new(
        device: &Device,
        activation: Activation,
        matrix: HostTensor<'static>,
        dtype: DType,
        shapes: impl FnOnce(&Arc<Weight>) -> LinearArgs<Spec, Spec>,
    ) -> Result<Self> {
        let source = WeightSource::stacked(vec![matrix.clone()]);
        let weight = Arc::new(Weight::prepare(device, &source, dtype)?);
        let op = Linear { activation, ..Linear::default() };
        Ok(Half { op, prepared: op.prepare(device, shapes(&weight))?, weight, matrix })
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

fn args<R, W>(x: R, weight: &Arc<Weight>, gated: Option<(R, R)>, out: W) -> LinearArgs<R, W> {
    let (residual, gate) = gated.map_or((None, None), |(residual, gate)| (Some(Source::From(residual)), Some(gate)));
    LinearArgs { residual, gate, ..LinearArgs::new(x, Matrix::Prepared(weight.clone()), out) }
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
        let up = Half::new(device, Activation::Gelu, up, dtype, |weight| args(x_spec, weight, None, between.spec()))?;
        let down = Half::new(device, Activation::None, down, dtype, |weight| {
            args(between.spec(), weight, Some((residual_spec, gate_spec)), out.spec())
        })?;
        let bytes = up.prepared.workspace_bytes().max(down.prepared.workspace_bytes());
        let workspace = Workspace::new(device, bytes)?;
        Ok(Ffn { device: device.clone(), up, down, x, residual, gate, hidden: between, out, workspace })
    }
}

impl Ffn {
    /// Judges both products by the reference: the second one on what the first one made. How many
    /// rows of the second were compared.
    pub fn check(&self, outputs: &[HostTensor<'static>], dtype: DType) -> Result<(usize, Vec<Outcome>)> {
        let spec = |_: &'static str, out: Spec| Ok(out);
        let up = |copy: &mut Copying<'_>| {
            let args = args(self.x.view()?, &self.up.weight, None, self.hidden.spec());
            Linear::map(args, &mut visit(copy, spec))
        };
        let down = |copy: &mut Copying<'_>| {
            let gated = Some((self.residual.view()?, self.gate.view()?));
            Linear::map(args(self.hidden.view(), &self.down.weight, gated, self.out.spec()), &mut visit(copy, spec))
        };
        let hidden = self.hidden.download(&self.device)?;
        let Half { op, matrix, .. } = &self.up;
        let (_, mut outcomes) = check_linear(&self.device, op, &up, std::slice::from_ref(matrix), &hidden, dtype)?;
        let Half { op, matrix, .. } = &self.down;
        let (rows, more) = check_linear(&self.device, op, &down, std::slice::from_ref(matrix), &outputs[0], dtype)?;
        outcomes.extend(more);
        Ok((rows, outcomes))
    }
}

impl Runnable for Ffn {
    fn device(&self) -> &Device {
        &self.device
    }

    fn enqueue(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        let up = args(self.x.view()?, &self.up.weight, None, self.hidden.view_mut());
        self.up.prepared.enqueue(recorder, up, &mut self.workspace)?;
        let gated = Some((self.residual.view()?, self.gate.view()?));
        let down = args(self.hidden.view(), &self.down.weight, gated, self.out.view_mut());
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
