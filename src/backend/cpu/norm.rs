//! `norm`: LayerNorm, RMSNorm or L2 normalisation of rows.
//!
//! **Work**: blocks of rows of about [`BLOCK`] elements, one task each. A row x (+ add) is staged
//! once as f32. Three passes over it give the mean, the mean square (of the differences, for
//! LayerNorm), and the result. Sums run in [`CHAINS`] registers, that is 32 or 64 partial sums,
//! added pairwise at the end: the error grows with width / 32 instead of width. **Caches**: the
//! staged row (width f32, 16 KiB for width 4096) stays in L1 or L2. **Traffic**: x, add and out
//! once each. Weight and bias stay in L1 or L2, converted once per call into the shared part of the
//! workspace if they are not f32.

use super::Cpu;
use super::rows::{PAD, Raw, Rows, Widen, padded};
use super::simd::{self, Kernel, Vector};
use super::tasks::Tasks;
use crate::Result;
use crate::backend::{Implements, expect_reals};
use crate::ops::{Norm, NormArgs, NormKind, Operands};
use crate::size::{self, Size};
use crate::tensor::{Bound, HostMemory, Spec};

/// Elements per task.
const BLOCK: usize = 1 << 15;

/// Independent sums, which hide the latency of an addition.
const CHAINS: usize = 4;

pub(crate) struct Prepared {
    op: Norm,
    tasks: Tasks,
    rows_per_task: usize,
}

impl Implements<Norm> for Cpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &Norm, shapes: &NormArgs<Spec, Spec>) -> Result<Prepared> {
        expect_reals::<Norm>("cpu", shapes)?;
        let (out, width) = (&shapes.out, shapes.out.dim(3));
        let rows_per_task = (BLOCK / width.max(1)).max(1);
        if out.elements() == 0 {
            return Ok(Prepared { op: *op, tasks: Tasks::EMPTY, rows_per_task });
        }
        let count = out.shape()[..3].iter().product::<usize>().div_ceil(rows_per_task);
        let two_rows = Size::of(width).next_multiple_of(PAD) * 2;
        let tasks = Tasks::of(&self.pool, two_rows, two_rows, out.elements().saturating_mul(4), Size::of(count))
            .ok_or_else(|| size::refused(Norm::NAME, "out", out))?;
        Ok(Prepared { op: *op, tasks, rows_per_task })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        prepared.tasks.bytes()
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        _: &mut (),
        args: &<Norm as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        workspace: &HostMemory,
    ) -> Result<()> {
        if prepared.tasks.is_empty() {
            return Ok(());
        }
        let shape = &args.out.spec;
        let width = shape.dim(3);
        let set = self.set;
        let shared: *mut f32 = workspace.address().cast();
        let constant = |operand: &Option<Bound<HostMemory>>, room: *mut f32| {
            operand.as_ref().map(|o| {
                // SAFETY: the operand holds `width` reals, the shared workspace two such rows.
                Raw::f32s(unsafe { simd::run(set, Widen { from: Raw::of(o), n: width, to: room }) }.cast_mut())
            })
        };
        let rows = NormRows {
            op: prepared.op,
            x: args.x.operand().map(Rows::of),
            gather: args.rows.as_ref().map(|rows| Gather {
                rows: Raw::of(rows),
                strides: [rows.spec.stride(0), rows.spec.stride(1)],
                last: args.x.operand().map_or(0, |table| table.spec.dim(1).saturating_sub(1)),
            }),
            add: args.add.as_ref().map(Rows::of),
            weight: constant(&args.weight, shared),
            bias: constant(&args.bias, shared.wrapping_add(padded(width))),
            out: Rows::of(&args.out),
            shape: [shape.dim(0), shape.dim(1), shape.dim(2)],
            width,
        };
        let all = rows.shape.iter().product::<usize>();
        // SAFETY: operands hold their specs and the workspace the planned bytes, by the contract of
        // `Implements::record`. Tasks write disjoint rows, since `out` is injective.
        unsafe {
            prepared.tasks.spread(&self.pool, workspace, usize::MAX, |task, scratch| {
                let start = task * prepared.rows_per_task;
                let range = [start, all.min(start + prepared.rows_per_task)];
                simd::run(set, Task { rows: &rows, range, scratch });
            });
        }
        Ok(())
    }
}

struct Gather {
    rows: Raw,
    strides: [usize; 2],
    last: usize,
}

struct NormRows {
    op: Norm,
    x: Option<Rows>,
    gather: Option<Gather>,
    add: Option<Rows>,
    weight: Option<Raw>,
    bias: Option<Raw>,
    out: Rows,
    shape: [usize; 3],
    width: usize,
}

struct Task<'a> {
    rows: &'a NormRows,
    range: [usize; 2],
    scratch: *mut f32,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let rows = self.rows;
        let [_, rows_b, rows_c] = rows.shape;
        for row in self.range[0]..self.range[1] {
            let index = [row / (rows_b * rows_c), row / rows_c % rows_b, row % rows_c];
            // SAFETY: the index is inside the shape; scratch holds two padded rows.
            unsafe { rows.row::<V>(index, self.scratch, self.scratch.add(padded(rows.width))) }
        }
    }
}

impl NormRows {
    /// # Safety
    /// The operands hold their specs, no one else accesses the row of `out`, both stages hold
    /// `width` f32, the machine has the instruction set of `V`.
    #[inline(always)]
    unsafe fn row<V: Vector>(&self, index: [usize; 3], stage: *mut f32, second: *mut f32) {
        let (n, out) = (self.width, self.out.at(index));
        let whole = n / V::LANES * V::LANES;
        // SAFETY: `index` lies inside the shape, gathered rows are clamped, rows have `n` elements.
        unsafe {
            let source = match (&self.x, &self.gather) {
                (None, _) => out,
                (Some(x), None) => x.at(index),
                (Some(table), Some(gather)) => {
                    let at = gather.rows.add(index[0] * gather.strides[0] + index[1] * gather.strides[1]);
                    table.at([0, (at.i32().max(0) as usize).min(gather.last), 0])
                }
            };
            let mut x = source.borrow::<V>(n, stage);
            if let Some(add) = &self.add {
                let add = add.at(index).borrow::<V>(n, second);
                for i in (0..whole).step_by(V::LANES) {
                    V::load(x.add(i)).add(V::load(add.add(i))).store(stage.add(i));
                }
                for i in whole..n {
                    *stage.add(i) = *x.add(i) + *add.add(i);
                }
                x = stage;
            }
            let mean = match self.op.kind {
                NormKind::Layer => sum::<V, false>(x, n, 0.0) / n as f32,
                NormKind::Rms | NormKind::L2 => 0.0,
            };
            let squares = sum::<V, true>(x, n, mean);
            let factor = match self.op.kind {
                NormKind::Layer | NormKind::Rms => 1.0 / (squares / n as f32 + self.op.eps).sqrt(),
                NormKind::L2 => {
                    let norm = squares.sqrt();
                    // A NaN norm stays one.
                    1.0 / if norm < self.op.eps { self.op.eps } else { norm }
                }
            };
            let weight = self.weight.and_then(Raw::as_f32);
            let bias = self.bias.and_then(Raw::as_f32);
            for i in (0..whole).step_by(V::LANES) {
                let mut y = V::load(x.add(i)).sub(V::splat(mean)).mul(V::splat(factor));
                if let Some(weight) = weight {
                    y = y.mul(V::load(weight.add(i)));
                }
                if let Some(bias) = bias {
                    y = y.add(V::load(bias.add(i)));
                }
                y.store(stage.add(i));
            }
            for i in whole..n {
                let mut y = (*x.add(i) - mean) * factor;
                if let Some(weight) = weight {
                    y *= *weight.add(i);
                }
                if let Some(bias) = bias {
                    y += *bias.add(i);
                }
                *stage.add(i) = y;
            }
            out.store::<V>(n, stage);
        }
    }
}

/// Σ x, or Σ (x − mean)².
///
/// # Safety
/// `x` holds `n` f32; the machine has the instruction set of `V`.
#[inline(always)]
unsafe fn sum<V: Vector, const SQUARES: bool>(x: *const f32, n: usize, mean: f32) -> f32 {
    // SAFETY: `i + LANES <= n` for every register, `i < n` for every element.
    unsafe {
        let mut chains = [V::splat(0.0); CHAINS];
        let mut i = 0;
        while i + CHAINS * V::LANES <= n {
            for (c, chain) in chains.iter_mut().enumerate() {
                let d = V::load(x.add(i + c * V::LANES)).sub(V::splat(mean));
                *chain = if SQUARES { d.mul_add(d, *chain) } else { chain.add(d) };
            }
            i += CHAINS * V::LANES;
        }
        while i + V::LANES <= n {
            let d = V::load(x.add(i)).sub(V::splat(mean));
            chains[0] = if SQUARES { d.mul_add(d, chains[0]) } else { chains[0].add(d) };
            i += V::LANES;
        }
        let mut lanes = [0.0f32; PAD];
        chains[0].add(chains[1]).add(chains[2].add(chains[3])).store(lanes.as_mut_ptr());
        let mut width = V::LANES;
        while width > 1 {
            width /= 2;
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
        }
        let mut rest = 0.0;
        while i < n {
            let d = *x.add(i) - mean;
            rest += if SQUARES { d * d } else { d };
            i += 1;
        }
        lanes[0] + rest
    }
}
