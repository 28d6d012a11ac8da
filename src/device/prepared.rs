//! Prepare, then enqueue: the typed path from an op to a backend.

use super::description::Description;
use super::kinds::{Cuda, Listed, Wgpu, on_device};
use super::{Bound, Device, Memory, Recorder, Shapes, View, ViewMut, Workspace};
use crate::backend::{Cpu, Implements, Reference};
use crate::ops::{self, Cost, Each, GemmShape, Op, for_each_op, visit};
use crate::tensor::{self, Spec};
use crate::{Error, Result};

/// An op that every backend implements; one that a backend lacks does not compile.
pub trait Dispatch: Op + Shapes {
    /// Checks the shapes; the device then chooses a variant and compiles it.
    ///
    /// # Errors
    /// Shapes outside the op's contract, or outside the device's limits.
    fn prepare(&self, device: &Device, shapes: Self::Args<Spec, Spec>) -> Result<Prepared<Self>>;

    /// Prepares, allocates a workspace, runs and waits: for tests and single calls.
    ///
    /// # Errors
    /// As [`Dispatch::prepare`] and [`Prepared::enqueue`].
    fn run(&self, device: &Device, args: Self::Args<View<'_>, ViewMut<'_>>) -> Result<()> {
        let prepared = self.prepare(device, Self::shapes(&args)?)?;
        let mut workspace = Workspace::new(device, prepared.workspace_bytes())?;
        let mut recorder = device.recorder()?;
        prepared.enqueue(&mut recorder, args, &mut workspace)?;
        device.finish(recorder)
    }
}

/// A prepared op of any backend.
trait PreparedOn<O: Op>: Send + Sync {
    fn workspace_bytes(&self) -> usize;
    /// SAFETY: as [`Implements::record`].
    unsafe fn record(
        &self,
        recorder: &mut Recorder<'_>,
        args: &O::Args<Bound, Bound>,
        workspace: &Memory,
    ) -> Result<()>;
}

struct OnBackend<B: Implements<O>, O: Op> {
    backend: std::sync::Arc<B>,
    prepared: B::Prepared,
}

impl<B: Implements<O> + Listed, O: Op> PreparedOn<O> for OnBackend<B, O> {
    fn workspace_bytes(&self) -> usize {
        B::workspace_bytes(&self.prepared)
    }

    unsafe fn record(
        &self,
        recorder: &mut Recorder<'_>,
        args: &O::Args<Bound, Bound>,
        workspace: &Memory,
    ) -> Result<()> {
        let own = |name: &'static str, memory: &Memory| match B::own_memory(memory) {
            Some(own) if self.backend.owns(own) => Ok(own.clone()),
            Some(_) => {
                let actual = format!("memory of another {} device", B::NAME);
                Err(Error::argument(O::NAME, name, "memory of this device", actual))
            }
            None => Err(Error::argument(O::NAME, name, format!("memory of {}", B::NAME), memory.place())),
        };
        let args = O::map(
            O::as_ref(args),
            &mut Each(|name, bound: &Bound| Ok(tensor::Bound { spec: bound.spec, memory: own(name, &bound.memory)? })),
        )?;
        let workspace = own("workspace", workspace)?;
        B::with_recorder(recorder, |r| {
            if !self.backend.accepts(r) {
                let actual = format!("one of another {} device or context", B::NAME);
                return Err(Error::argument(O::NAME, "recorder", "one of this device", actual));
            }
            // SAFETY: passed on to the caller.
            unsafe { self.backend.record(&self.prepared, r, &args, &workspace) }
        })
        .unwrap_or_else(|place| Err(Error::argument(O::NAME, "recorder", format!("one of {}", B::NAME), place)))
    }
}

impl<O> Dispatch for O
where
    O: Op,
    O::Args<Spec, Spec>: Send + Sync,
    Reference: Implements<O>,
    Cpu: Implements<O>,
    Wgpu: Implements<O>,
    Cuda: Implements<O>,
{
    fn prepare(&self, device: &Device, shapes: Self::Args<Spec, Spec>) -> Result<Prepared<Self>> {
        fn on<B: Implements<O> + Listed, O: Op>(
            backend: &std::sync::Arc<B>,
            op: &O,
            shapes: &O::Args<Spec, Spec>,
        ) -> Result<Box<dyn PreparedOn<O>>> {
            Ok(Box::new(OnBackend::<B, O> { prepared: backend.prepare(op, shapes)?, backend: backend.clone() }))
        }
        self.check(&shapes)?;
        let on = on_device!(device, b => on(b, self, &shapes)?);
        Ok(Prepared { on, cost: self.cost(&shapes), gemm: self.gemm(&shapes), description: Description::new(shapes)? })
    }
}

macro_rules! shared_between_threads {
    ($($word:ident $op:ident $case:ident),* $(,)?) => {
        /// The documentation of [`Prepared`] promises this.
        const _: () = {
            const fn shared<T: Send + Sync>() {}
            $(shared::<Prepared<ops::$op>>();)*
        };
    };
}
for_each_op!(shared_between_threads);

/// An op, ready to run on one device for one set of shapes. `Send + Sync`: any thread may enqueue
/// it, each with a workspace of its own.
pub struct Prepared<O: Op> {
    on: Box<dyn PreparedOn<O>>,
    description: Description<O>,
    cost: Cost,
    gemm: Option<GemmShape>,
}

impl<O: Op> Prepared<O> {
    /// Scratch memory that [`Prepared::enqueue`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.on.workspace_bytes()
    }

    /// Bytes and operations of one call.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The GEMM that the call amounts to, if any.
    pub fn gemm(&self) -> Option<GemmShape> {
        self.gemm
    }

    /// Bytes of the largest operand.
    pub fn largest_tensor_bytes(&self) -> usize {
        self.description.largest_operand()
    }

    /// Layouts that the operands must have, and the parameters among them.
    pub fn shapes(&self) -> &O::Args<Spec, Spec> {
        self.description.shapes()
    }

    /// Records the op. Does not allocate, compile, load or synchronise.
    ///
    /// Calls may differ in data: addresses and the values behind them, and which prepared
    /// [`crate::Weight`] of equal shape and dtype is read. Everything else is compared with what
    /// was prepared: layouts, which operands are present, and the parameters among them.
    ///
    /// # Errors
    /// Operands or parameters other than those prepared for, operands in other memory, written
    /// operands that share memory with others against the op's contract, a workspace that is too
    /// small or in use on another stream, a recorder of another device, a device fault. Nothing is
    /// recorded then.
    pub fn enqueue(
        &self,
        recorder: &mut Recorder<'_>,
        args: O::Args<View<'_>, ViewMut<'_>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        workspace.expect(O::NAME, self.workspace_bytes(), recorder)?;
        let args =
            O::map(args, &mut visit(|_, r: View<'_>| Ok(r.into_bound()), |_, w: ViewMut<'_>| Ok(w.into_bound())))?;
        self.description.expect(&args)?;
        // SAFETY: the views' constructors checked or were promised the memory; the borrows outlive
        // the recording on the host, and on devices the views' contract (`View::from_raw`) or the
        // tensors' owners keep the memory alive until the queue is past it. The description,
        // parameters included, was compared.
        let done = unsafe { self.on.record(recorder, &args, &workspace.memory()) };
        // A refused call recorded nothing; before a device fault, launches of the op may have been.
        if !matches!(done, Err(Error::Argument { .. } | Error::Unavailable { .. })) {
            workspace.remember(recorder);
        }
        done
    }

    /// SAFETY: as [`Implements::record`]; the description is the prepared one.
    pub(crate) unsafe fn record(
        &self,
        recorder: &mut Recorder<'_>,
        args: &O::Args<Bound, Bound>,
        workspace: &Memory,
    ) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.on.record(recorder, args, workspace) }
    }
}
