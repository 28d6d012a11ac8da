//! `gated_residual`: out = x + tanh(gate) · y, row by row.
//!
//! **Work**: blocks of rows of about [`BLOCK`] elements, one task each. tanh(gate) is evaluated
//! once per call, in f32, into the shared part of the workspace. **Caches**: the staged segments of
//! x and y ([`SEGMENT`] f32 each) stay in L1. **Traffic**: x, y and out once each. A masked row
//! costs a copy of x, in place nothing.

use super::Cpu;
use super::rows::{Raw, Rows};
use super::simd::{self, Kernel, Vector};
use super::tasks::Tasks;
use crate::Result;
use crate::backend::{Implements, expect_reals};
use crate::ops::{GatedResidual, GatedResidualArgs, Operands};
use crate::size::{self, Size};
use crate::tensor::{Bound, HostMemory, Spec};

/// Elements per task.
const BLOCK: usize = 1 << 15;

/// Elements staged at a time.
const SEGMENT: usize = 512;

pub(crate) struct Prepared {
    tasks: Tasks,
    rows_per_task: usize,
}

impl Implements<GatedResidual> for Cpu {
    type Prepared = Prepared;

    fn prepare(&self, _: &GatedResidual, shapes: &GatedResidualArgs<Spec, Spec>) -> Result<Prepared> {
        expect_reals::<GatedResidual>("cpu", shapes)?;
        let out = &shapes.out;
        let [batch, rows, width] = [0, 1, 2].map(|i| out.dim(i));
        let rows_per_task = (BLOCK / width.max(1)).max(1);
        if out.elements() == 0 {
            return Ok(Prepared { tasks: Tasks::EMPTY, rows_per_task });
        }
        let [gates, segments] = [shapes.gate.dim(0), 2 * SEGMENT].map(Size::of);
        let count = Size::of((batch * rows).div_ceil(rows_per_task));
        let tasks = Tasks::of(&self.pool, gates, segments, out.elements().saturating_mul(4), count)
            .ok_or_else(|| size::refused(GatedResidual::NAME, "out", out))?;
        Ok(Prepared { tasks, rows_per_task })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        prepared.tasks.bytes()
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        _: &mut (),
        args: &<GatedResidual as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        workspace: &HostMemory,
    ) -> Result<()> {
        if prepared.tasks.is_empty() {
            return Ok(());
        }
        let [batch, rows, width] = [0, 1, 2].map(|i| args.out.spec.dim(i));
        let factors: *mut f32 = workspace.address().cast();
        let gate = Raw::of(&args.gate);
        let gates = args.gate.spec.dim(0);
        // SAFETY: the gate holds its spec, the shared part of the workspace as many f32.
        unsafe { tanh_gates(gate, gates, factors) };
        let op = Rescale {
            x: args.x.operand().map(Rows::of),
            y: Rows::of(&args.y),
            mask: args.row_mask.as_ref().map(|m| (Raw::of(m), [m.spec.stride(0), m.spec.stride(1)])),
            out: Rows::of(&args.out),
            factors: Raw::f32s(factors),
            per_channel: gates > 1,
            rows,
            width,
        };
        let all = batch * rows;
        let set = self.set;
        // SAFETY: operands hold their specs and the workspace the planned bytes, by the contract of
        // `Implements::record`. Tasks write disjoint rows, since `out` is injective.
        unsafe {
            prepared.tasks.spread(&self.pool, workspace, usize::MAX, |task, scratch| {
                let start = task * prepared.rows_per_task;
                let range = [start, all.min(start + prepared.rows_per_task)];
                simd::run(set, Task { op: &op, range, scratch });
            });
        }
        Ok(())
    }
}

/// tanh of raw gates, in f32.
///
/// # Safety
/// `gate` holds `n` elements, `to` room for as many f32.
pub(super) unsafe fn tanh_gates(gate: Raw, n: usize, to: *mut f32) {
    for i in 0..n {
        // SAFETY: passed on to the caller.
        unsafe { *to.add(i) = gate.add(i).real().tanh() }
    }
}

struct Rescale {
    x: Option<Rows>,
    y: Rows,
    mask: Option<(Raw, [usize; 2])>,
    out: Rows,
    factors: Raw,
    per_channel: bool,
    rows: usize,
    width: usize,
}

struct Task<'a> {
    op: &'a Rescale,
    range: [usize; 2],
    scratch: *mut f32,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let op = self.op;
        let (stage_x, stage_y) = (self.scratch, self.scratch.wrapping_add(SEGMENT));
        let factors: *const f32 = op.factors.as_f32().unwrap_or(self.scratch);
        for row in self.range[0]..self.range[1] {
            let (b, i) = (row / op.rows, row % op.rows);
            let out = op.out.at([b, i, 0]);
            let x = op.x.as_ref().map_or(out, |x| x.at([b, i, 0]));
            // SAFETY: the operands hold their specs; segments end at `width` and fit the stage.
            unsafe {
                if op.mask.is_some_and(|(mask, [sb, si])| mask.add(b * sb + i * si).u32() == 0) {
                    if op.x.is_some() && x.dtype() == out.dtype() {
                        x.copy_to(out, op.width);
                        continue;
                    } else if op.x.is_none() {
                        continue;
                    }
                    for at in (0..op.width).step_by(SEGMENT) {
                        let n = SEGMENT.min(op.width - at);
                        out.add(at).store::<V>(n, x.add(at).borrow::<V>(n, stage_x));
                    }
                    continue;
                }
                let y = op.y.at([b, i, 0]);
                for at in (0..op.width).step_by(SEGMENT) {
                    let n = SEGMENT.min(op.width - at);
                    let whole = n / V::LANES * V::LANES;
                    let from_x = x.add(at).borrow::<V>(n, stage_x);
                    let from_y = y.add(at).borrow::<V>(n, stage_y);
                    for c in (0..whole).step_by(V::LANES) {
                        let factor = if op.per_channel { V::load(factors.add(at + c)) } else { V::broadcast(factors) };
                        V::load(from_y.add(c)).mul_add(factor, V::load(from_x.add(c))).store(stage_x.add(c));
                    }
                    for c in whole..n {
                        let factor = *factors.add(if op.per_channel { at + c } else { 0 });
                        *stage_x.add(c) = *from_y.add(c) * factor + *from_x.add(c);
                    }
                    out.add(at).store::<V>(n, stage_x);
                }
            }
        }
    }
}
