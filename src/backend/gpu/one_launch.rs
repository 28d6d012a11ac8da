//! Ops that one launch computes: what is the same for both GPU backends.

use super::{Kernels, MOST_OPERANDS};
use crate::Result;
use crate::backend::{Backend, Implements};
use crate::tensor::{Bound, Spec};

/// A GPU backend, as far as launches of kernels go.
pub trait Launches: Backend {
    /// A launch, planned.
    type Launch: Send + Sync;
    /// An operand as a launch takes it.
    type Operand<'a>: Copy;

    /// A whole operand.
    #[allow(private_interfaces)]
    fn operand(bound: &Bound<Self::Memory>) -> Self::Operand<'_>;

    /// Records a launch. Allocates nothing that it has not allocated for the same operands before.
    ///
    /// # Errors
    /// Operands that do not fit; a device fault.
    ///
    /// # Safety
    /// As [`Implements::record`], for the operands in the kernel's order.
    unsafe fn launch(
        &self,
        launch: &Self::Launch,
        recorder: &mut Self::Recorder<'_>,
        operands: &[Option<Self::Operand<'_>>],
    ) -> Result<()>;
}

/// An op that one launch computes. Where the launch is planned stands why every index lies within
/// an operand's span.
pub trait OneLaunch<O: Kernels>: Launches {
    /// Plans the launch; none where there is nothing to do.
    ///
    /// # Errors
    /// As [`Implements::prepare`].
    fn plan(&self, op: &O, shapes: &O::Args<Spec, Spec>) -> Result<Option<Self::Launch>>;
}

impl<B: OneLaunch<O>, O: Kernels> Implements<O> for B {
    type Prepared = Option<B::Launch>;

    fn prepare(&self, op: &O, shapes: &O::Args<Spec, Spec>) -> Result<Option<B::Launch>> {
        self.plan(op, shapes)
    }

    fn workspace_bytes(_: &Option<B::Launch>) -> usize {
        0
    }

    #[allow(private_interfaces)]
    unsafe fn record(
        &self,
        prepared: &Option<B::Launch>,
        recorder: &mut B::Recorder<'_>,
        args: &O::Args<Bound<B::Memory>, Bound<B::Memory>>,
        _: &B::Memory,
    ) -> Result<()> {
        let Some(launch) = prepared else { return Ok(()) };
        let (mut operands, mut count) = ([None; MOST_OPERANDS], 0);
        for (place, bound) in operands.iter_mut().zip(O::operands(args)) {
            *place = bound.map(B::operand);
            count += 1;
        }
        // SAFETY: passed on to the caller: these are the operands in the kernel's order.
        unsafe { self.launch(launch, recorder, &operands[..count]) }
    }
}
