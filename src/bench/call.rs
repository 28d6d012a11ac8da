//! A prepared op or bridge with operands of its own, ready to run again and again.

use std::sync::Arc;

use super::steps::{self, Step};
use crate::device::UNTOUCHED;
use crate::ops::{Cost, Op, Operands, visit};
use crate::threads::Pool;
use crate::verify::cases::call::OperandId;
use crate::verify::cases::{self, CaseOp};
use crate::verify::compare::{Judge, Outcome, PERMUTATIONS, compare};
use crate::{
    DType, Device, Dispatch, Error, HostTensor, Prepared, PreparedBridge, Recorder, Result, Spec, Tensor, View,
    ViewMut, Workspace,
};

/// Copies the wanted part of a named operand to the host.
pub(super) type Copying<'a> = dyn FnMut(&'static str, &Device, View<'_>) -> Result<HostTensor<'static>> + 'a;

/// A read operand: a tensor, or a part of one.
#[derive(Debug, Clone)]
pub(super) struct Input {
    tensor: Arc<Tensor>,
    id: Option<OperandId>,
}

impl Input {
    pub fn new(device: &Device, host: &HostTensor<'_>, dtype: DType) -> Result<Self> {
        Ok(Input { tensor: Arc::new(Tensor::upload(device, host, dtype)?), id: None })
    }

    pub fn view(&self) -> Result<View<'_>> {
        self.id.map_or(Ok(self.tensor.view()), |id| id.part_of(self.tensor.view()))
    }
}

/// What ops and bridges share once they are prepared.
trait Plan<C: Operands> {
    fn workspace_bytes(&self) -> usize;
    fn largest_tensor_bytes(&self) -> usize;
    fn steps(&self) -> Vec<Step>;
    fn enqueue(&self, r: &mut Recorder<'_>, args: C::Args<View<'_>, ViewMut<'_>>, w: &mut Workspace) -> Result<()>;
}

macro_rules! plan {
    ($type:ident, $bound:ident, $steps:path) => {
        impl<C: $bound> Plan<C> for $type<C> {
            fn workspace_bytes(&self) -> usize {
                $type::workspace_bytes(self)
            }
            fn largest_tensor_bytes(&self) -> usize {
                $type::largest_tensor_bytes(self)
            }
            fn steps(&self) -> Vec<Step> {
                $steps(self)
            }
            fn enqueue(
                &self,
                r: &mut Recorder<'_>,
                args: C::Args<View<'_>, ViewMut<'_>>,
                w: &mut Workspace,
            ) -> Result<()> {
                $type::enqueue(self, r, args, w)
            }
        }
    };
}
plan!(Prepared, Op, Step::of_op);
plan!(PreparedBridge, Operands, Step::of_bridge);

/// A call that can be run, whatever its op or bridge is.
pub trait Runnable {
    /// Where it runs.
    fn device(&self) -> &Device;
    /// Records a run; on the host, runs.
    ///
    /// # Errors
    /// A device fault.
    fn enqueue(&mut self, recorder: &mut Recorder<'_>) -> Result<()>;
    /// Runs and waits.
    ///
    /// # Errors
    /// A device fault.
    fn run(&mut self) -> Result<()> {
        let mut recorder = self.device().recorder()?;
        self.enqueue(&mut recorder)?;
        self.device().finish(recorder)
    }
    /// Bytes and operations of one run. K and V that no row sees are not among the bytes.
    fn cost(&self) -> Cost {
        self.steps().iter().fold(Cost::default(), |sum, step| sum.plus(step.cost))
    }
    /// The ops of one run, in order.
    fn steps(&self) -> Vec<Step>;
    /// Overwrites every output with NaN (integers: with ones in every bit), so that what a run
    /// leaves out is seen.
    ///
    /// # Errors
    /// A device that stopped answering.
    fn poison(&mut self) -> Result<()>;
    /// Memory beyond weights, inputs and outputs: the workspace.
    fn workspace_bytes(&self) -> usize;
    /// The largest activation: input, output or intermediate.
    fn largest_tensor_bytes(&self) -> usize;
    /// The outputs of the last run.
    ///
    /// # Errors
    /// A device that stopped answering.
    fn outputs(&self) -> Result<Vec<HostTensor<'static>>>;
}

/// A call with operands of its own.
pub(super) struct Call<C: Operands> {
    device: Device,
    plan: Box<dyn Plan<C>>,
    args: C::Args<Input, Spec>,
    outputs: Vec<Tensor>,
    workspace: Workspace,
    /// Bytes of K and V that no row sees.
    unread: u64,
}

impl<C: Operands> Call<C> {
    /// A case's call. Its operands move from `source` to the device, each into the tensor of its
    /// index. Those that the device has in another form stay: matrices of a prepared weight.
    pub fn of_case<K: CaseOp<Op = C>>(
        device: &Device,
        case: &K,
        source: &mut cases::call::Call<C>,
    ) -> Result<(Self, Vec<Option<Arc<Tensor>>>)>
    where
        C: Dispatch,
    {
        let ids = case.lower(source, source.ids()?, device, false)?;
        let (written, operands) = (source.operands.write_specs()?, &mut source.operands);
        let mut tensors: Vec<Option<Arc<Tensor>>> = Vec::new();
        let read = |_: &'static str, id: OperandId| -> Result<Input> {
            tensors.resize(tensors.len().max(id.index + 1), None);
            let tensor = match tensors[id.index].take() {
                Some(tensor) => tensor,
                None => {
                    let host = operands.take(id)?;
                    Arc::new(Tensor::upload(device, &host, host.dtype())?)
                }
            };
            tensors[id.index] = Some(tensor.clone());
            Ok(Input { tensor, id: Some(id) })
        };
        let args = C::map(ids, &mut visit(read, |_, id: OperandId| Ok(written[id.index])))?;
        Ok((Self::op(device, &source.op, args)?, tensors))
    }

    pub fn op(device: &Device, op: &C, args: C::Args<Input, Spec>) -> Result<Self>
    where
        C: Dispatch,
    {
        Self::new(device, args, |shapes| op.prepare(device, shapes))
    }

    pub fn bridge(
        device: &Device,
        args: C::Args<Input, Spec>,
        prepare: impl FnOnce(C::Args<Spec, Spec>) -> Result<PreparedBridge<C>>,
    ) -> Result<Self> {
        Self::new(device, args, prepare)
    }

    fn new<P: Plan<C> + 'static>(
        device: &Device,
        args: C::Args<Input, Spec>,
        prepare: impl FnOnce(C::Args<Spec, Spec>) -> Result<P>,
    ) -> Result<Self> {
        let mut outputs = Vec::new();
        let output = |_: &'static str, w: &Spec| {
            outputs.push(Tensor::zeros(device, w.dtype(), w.shape())?);
            Ok(*w)
        };
        let shapes = C::map(C::as_ref(&args), &mut visit(|_, r: &Input| Ok(r.view()?.spec()), output))?;
        let plan = prepare(shapes)?;
        let workspace = Workspace::new(device, plan.workspace_bytes())?;
        Ok(Call { device: device.clone(), plan: Box::new(plan), args, outputs, workspace, unread: 0 })
    }

    /// The same, of whose K and V so many bytes are seen by no row: what φ, bits and lengths leave
    /// out, which the shapes do not tell.
    pub fn leaving(self, unread: usize) -> Self {
        Call { unread: unread as u64, ..self }
    }
}

impl<C: Operands> Runnable for Call<C> {
    fn device(&self) -> &Device {
        &self.device
    }

    fn enqueue(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        let mut outputs = self.outputs.iter_mut();
        let missing = || Error::argument(C::NAME, "outputs", "one per written operand", "fewer");
        let output = |_: &'static str, _: &Spec| outputs.next().map(Tensor::view_mut).ok_or_else(missing);
        let args = C::map(C::as_ref(&self.args), &mut visit(|_, r: &Input| r.view(), output))?;
        self.plan.enqueue(recorder, args, &mut self.workspace)
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = self.plan.steps();
        steps::without(&mut steps, self.unread);
        steps
    }

    fn poison(&mut self) -> Result<()> {
        self.outputs.iter_mut().try_for_each(|tensor| tensor.fill(&self.device, UNTOUCHED))
    }

    fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    fn largest_tensor_bytes(&self) -> usize {
        self.plan.largest_tensor_bytes()
    }

    fn outputs(&self) -> Result<Vec<HostTensor<'static>>> {
        self.outputs.iter().map(|t| t.download(&self.device)).collect()
    }
}

/// Judges outputs of an op by the reference on the same operands, and by what they cost a naive
/// computation in `dtype` (`verify::compare`).
pub(super) fn against_reference<O: Dispatch>(
    op: &O,
    args: &O::Args<HostTensor<'static>, Spec>,
    actual: &[HostTensor<'static>],
    dtype: DType,
) -> Result<Vec<Outcome>>
where
    O::Args<HostTensor<'static>, Spec>: Sync,
{
    let run = |device: &Device, reals: DType| -> Result<Vec<HostTensor<'static>>> {
        let args = O::map(
            O::as_ref(args),
            &mut visit(
                |_, r: &HostTensor<'static>| Input::new(device, r, r.dtype()),
                |_, w: &Spec| Spec::contiguous(if w.dtype().is_float() { reals } else { w.dtype() }, w.shape()),
            ),
        )?;
        let mut call = Call::op(device, op, args)?;
        call.run()?;
        call.outputs()
    };
    judge(|| run(&Device::reference(), DType::F64), actual, |permutation| run(&Device::yardstick(permutation), dtype))
}

/// Judges outputs by the truth and the yardstick's runs, which are computed at the same time.
pub(super) fn judge(
    truth: impl Fn() -> Result<Vec<HostTensor<'static>>> + Sync,
    actual: &[HostTensor<'static>],
    yardstick: impl Fn(u64) -> Result<Vec<HostTensor<'static>>> + Sync,
) -> Result<Vec<Outcome>> {
    let run = |i: u64| i.checked_sub(1).map_or_else(&truth, &yardstick);
    let runs = Pool::callers().map(PERMUTATIONS as usize + 1, |i| run(i as u64));
    let runs: Vec<Vec<HostTensor<'static>>> = runs.into_iter().collect::<Result<_>>()?;
    let outputs = actual.iter().zip(&runs[0]).enumerate();
    outputs
        .map(|(i, (actual, truth))| {
            let runs: Vec<HostTensor<'static>> = runs[1..].iter().map(|outputs| outputs[i].clone()).collect();
            compare("out", actual, truth, &Judge::Yardstick(&runs))
        })
        .collect()
}
