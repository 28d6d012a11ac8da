//! `gated_residual`, as in the equation of `ops/gated_residual.rs`.

use super::dense::{Dense, Operand, Promise};
use super::real::Real;
use super::{Arithmetic, Reference};
use crate::Result;
use crate::backend::Implements;
use crate::ops::{GatedResidual, GatedResidualArgs, Operands, Source};
use crate::tensor::{HostMemory, Spec};

impl Implements<GatedResidual> for Reference {
    type Prepared = ();

    fn prepare(&self, _: &GatedResidual, _: &<GatedResidual as Operands>::Args<Spec, Spec>) -> Result<()> {
        Ok(())
    }

    fn workspace_bytes(_: &()) -> usize {
        0
    }

    unsafe fn record(
        &self,
        _: &(),
        _: &mut (),
        args: &GatedResidualArgs<Operand, Operand>,
        _: &HostMemory,
    ) -> Result<()> {
        // SAFETY: the contract of `record`, passed on.
        let memory = unsafe { Promise::of_enqueue() };
        match self.arithmetic {
            Arithmetic::F64 => gated_residual::<f64>(&memory, args),
            Arithmetic::F32 { .. } => gated_residual::<f32>(&memory, args),
        }
    }
}

fn gated_residual<R: Real>(memory: &Promise, args: &GatedResidualArgs<Operand, Operand>) -> Result<()> {
    if args.out.spec.elements() == 0 {
        return Ok(());
    }
    let x: Dense<R> = match &args.x {
        Source::From(x) => memory.reals(x)?,
        Source::InPlace => memory.reals(&args.out)?,
    };
    let y: Dense<R> = memory.reals(&args.y)?;
    let gate: Dense<R> = memory.reals(&args.gate)?;
    let row_mask = args.row_mask.as_ref().map(|m| memory.read::<u32>(m)).transpose()?;
    let mut out = Dense::filled(args.out.spec.shape(), R::ZERO)?;
    for b in 0..out.dim(0) {
        for i in 0..out.dim(1) {
            let masked = row_mask.as_ref().is_some_and(|m| *m.at(&[b, i]) == 0);
            for c in 0..out.dim(2) {
                let x = *x.at(&[b, i, c]);
                let branch = || gate.at(&[c.min(gate.dim(0) - 1)]).tanh() * *y.at(&[b, i, c]);
                *out.at_mut(&[b, i, c]) = if masked { x } else { x + branch() };
            }
        }
    }
    memory.write_reals(&args.out, out.map(Some)?)
}
