//! Prepare, then enqueue: the typed path from an op to a backend.

use super::{Backend, Cpu, Cuda, Device, Implements, Recorder, Reference, Wgpu, Workspace};
use crate::ops::{Cost, Op, Operands, Product};
use crate::tensor::{Bound, Memory, Spec, View, ViewMut};
use crate::{Error, Result};

/// An op that every backend implements. A blanket implementation: an op that a backend lacks does not compile.
pub trait Dispatch: Op {
    /// Checks the shapes, then lets the device choose a variant, compile and plan.
    ///
    /// # Errors
    /// Shapes outside the op's contract, or outside the device's limits.
    fn prepare(&self, device: &Device, shapes: Self::Args<Spec, Spec>) -> Result<Prepared<Self>>;

    /// Prepares, allocates a workspace, runs and waits: the form for tests and single calls.
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

/// What the backends hold of a prepared op.
trait Enqueue<O: Op>: Send + Sync {
    fn workspace_bytes(&self) -> usize;
    /// SAFETY: as [`Implements::enqueue`].
    unsafe fn enqueue(
        &self,
        recorder: &mut Recorder<'_>,
        args: &O::Args<Bound, Bound>,
        workspace: &Memory,
    ) -> Result<()>;
}

/// A variant of one backend, with the backend it runs on.
struct On<B: Implements<O>, O: Op> {
    backend: std::sync::Arc<B>,
    prepared: B::Prepared,
}

impl<B: Implements<O> + RecordsTo, O: Op> Enqueue<O> for On<B, O> {
    fn workspace_bytes(&self) -> usize {
        B::workspace_bytes(&self.prepared)
    }

    unsafe fn enqueue(
        &self,
        recorder: &mut Recorder<'_>,
        args: &O::Args<Bound, Bound>,
        workspace: &Memory,
    ) -> Result<()> {
        // Only for messages: describing a device takes longer than a small op.
        let kind = || self.backend.info().kind;
        let own = |name: &'static str, bound: &Bound| match B::unwrap_memory(&bound.memory) {
            Some(memory) => Ok(Bound { spec: bound.spec, memory: memory.clone() }),
            None => Err(Error::argument(O::NAME, name, format!("memory of {}", kind()), bound.memory.place())),
        };
        let args = O::map(O::as_ref(args), &mut |n, r: &Bound| own(n, r), &mut |n, w: &Bound| own(n, w))?;
        let Some(workspace) = B::unwrap_memory(workspace) else {
            return Err(Error::argument(O::NAME, "workspace", format!("memory of {}", kind()), workspace.place()));
        };
        // SAFETY: passed on to the caller.
        B::with_recorder(recorder, |r| unsafe { self.backend.enqueue(&self.prepared, r, &args, workspace) })
            .unwrap_or_else(|place| Err(Error::argument(O::NAME, "recorder", format!("one of {}", kind()), place)))
    }
}

/// Finds a backend's own recorder in the enum.
pub(crate) trait RecordsTo: Backend {
    fn with_recorder<T>(
        recorder: &mut Recorder<'_>,
        f: impl FnOnce(&mut Self::Recorder<'_>) -> T,
    ) -> std::result::Result<T, &'static str>;
}

macro_rules! records_to_host {
    ($($backend:ty),*) => { $(impl RecordsTo for $backend {
        fn with_recorder<T>(r: &mut Recorder<'_>, f: impl FnOnce(&mut ()) -> T) -> std::result::Result<T, &'static str> {
            match r {
                Recorder::Host => Ok(f(&mut ())),
                other => Err(other.place()),
            }
        }
    })* };
}
records_to_host!(Reference, Cpu);

impl RecordsTo for super::Absent {
    fn with_recorder<T>(
        r: &mut Recorder<'_>,
        _: impl FnOnce(&mut super::Absent) -> T,
    ) -> std::result::Result<T, &'static str> {
        Err(r.place())
    }
}

#[cfg(feature = "wgpu")]
impl RecordsTo for Wgpu {
    fn with_recorder<T>(
        r: &mut Recorder<'_>,
        f: impl FnOnce(&mut Self::Recorder<'_>) -> T,
    ) -> std::result::Result<T, &'static str> {
        match r {
            Recorder::Wgpu(own) => Ok(f(own)),
            other => Err(other.place()),
        }
    }
}

#[cfg(feature = "cuda")]
impl RecordsTo for Cuda {
    fn with_recorder<T>(
        r: &mut Recorder<'_>,
        f: impl FnOnce(&mut Self::Recorder<'_>) -> T,
    ) -> std::result::Result<T, &'static str> {
        match r {
            Recorder::Cuda(own) => Ok(f(own)),
            other => Err(other.place()),
        }
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
        fn on<B: Implements<O> + RecordsTo, O: Op>(
            backend: &std::sync::Arc<B>,
            op: &O,
            shapes: &O::Args<Spec, Spec>,
        ) -> Result<Box<dyn Enqueue<O>>> {
            Ok(Box::new(On::<B, O> { prepared: backend.prepare(op, shapes)?, backend: backend.clone() }))
        }
        self.check(&shapes)?;
        let on = match device {
            Device::Reference(b) => on(b, self, &shapes)?,
            Device::Cpu(b) => on(b, self, &shapes)?,
            Device::Wgpu(b) => on(b, self, &shapes)?,
            Device::Cuda(b) => on(b, self, &shapes)?,
        };
        Ok(Prepared { on, cost: self.cost(&shapes), product: self.product(&shapes), shapes })
    }
}

/// An op, ready to run on one device for one set of shapes. `Send + Sync`: any thread may enqueue it, each
/// with a workspace of its own.
pub struct Prepared<O: Op> {
    on: Box<dyn Enqueue<O>>,
    shapes: O::Args<Spec, Spec>,
    cost: Cost,
    product: Option<Product>,
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

    /// The product that the call is, if it is one.
    pub fn product(&self) -> Option<Product> {
        self.product
    }

    /// Bytes of the largest operand.
    pub fn largest_tensor_bytes(&self) -> usize {
        largest_operand::<O>(&self.shapes)
    }

    /// Layouts that the operands must have.
    pub fn shapes(&self) -> &O::Args<Spec, Spec> {
        &self.shapes
    }

    /// Records the op: allocates, compiles, loads and synchronises nothing.
    ///
    /// # Errors
    /// Operands whose layout differs from the prepared one or that live elsewhere, a workspace that is too small, a device fault.
    /// Nothing is recorded then.
    pub fn enqueue(
        &self,
        recorder: &mut Recorder<'_>,
        args: O::Args<View<'_>, ViewMut<'_>>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        workspace.expect(O::NAME, self.workspace_bytes())?;
        let given = std::cell::RefCell::new(Vec::new());
        let args = O::map(
            args,
            &mut |name, r: View<'_>| {
                given.borrow_mut().push((name, r.spec()));
                Ok(r.into_bound())
            },
            &mut |name, w: ViewMut<'_>| {
                given.borrow_mut().push((name, w.spec()));
                Ok(w.into_bound())
            },
        )?;
        expect_operands::<O>(&self.shapes, given.into_inner().into_iter())?;
        // SAFETY: the views' constructors checked or were promised the memory; the borrows outlive the recording on the host, and
        // on devices the views' contract (`View::from_raw`) or the tensors' owners keep the memory alive until the queue is past it.
        unsafe { self.on.enqueue(recorder, &args, &workspace.memory()) }
    }

    /// SAFETY: as [`Implements::enqueue`]; the layouts are the prepared ones.
    pub(crate) unsafe fn enqueue_bound(
        &self,
        recorder: &mut Recorder<'_>,
        args: &O::Args<Bound, Bound>,
        workspace: &Memory,
    ) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.on.enqueue(recorder, args, workspace) }
    }
}

/// Refuses operands that are not those prepared for, or not laid out as prepared.
pub(crate) fn expect_operands<C: Operands>(
    shapes: &C::Args<Spec, Spec>,
    given: impl ExactSizeIterator<Item = (&'static str, Spec)>,
) -> Result<()> {
    let list = std::cell::RefCell::new(Vec::new());
    let _ = C::map::<_, _, (), ()>(
        C::as_ref(shapes),
        &mut |name, r: &Spec| {
            list.borrow_mut().push((name, *r));
            Ok(())
        },
        &mut |name, w: &Spec| {
            list.borrow_mut().push((name, *w));
            Ok(())
        },
    )?;
    let prepared = list.into_inner();
    if prepared.len() != given.len() {
        return Err(Error::argument(C::NAME, "operands", format!("{} as prepared", prepared.len()), given.len()));
    }
    for (want, have) in prepared.into_iter().zip(given) {
        if want != have {
            return Err(Error::argument(C::NAME, have.0, format!("{} {} as prepared", want.0, want.1), have.1));
        }
    }
    Ok(())
}

/// Bytes of the largest operand of a call.
pub(crate) fn largest_operand<C: Operands>(shapes: &C::Args<Spec, Spec>) -> usize {
    let largest = std::cell::Cell::new(0);
    let note = |spec: &Spec| {
        largest.set(largest.get().max(spec.span_bytes()));
        Ok(())
    };
    let _ = C::map::<_, _, (), ()>(C::as_ref(shapes), &mut |_, r: &Spec| note(r), &mut |_, w: &Spec| note(w));
    largest.get()
}
