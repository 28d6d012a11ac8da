//! `linear`: y = epilogue(x Wᵀ), a matrix product (GEMM) on `gemm/` with an epilogue.
//!
//! **Work.** The rows of all batch entries form one GEMM, whatever their strides. Weights are
//! packed once, when prepared; raw views are packed into the workspace at every call. The epilogue
//! runs on each finished row segment while it is in L1: bias, activation, gate, mask, residual, one
//! rounding, in registers of the device's instruction set. bias and tanh(gate) are widened once per
//! call into the workspace.
//! **Traffic.** Beyond the GEMM's: residual and y once. With a reduction the activated values are
//! kept in the workspace as f32, `[batch · rows, N]`, and read once more.

mod layout;

use std::borrow::Cow;

use layout::{Layout, Parts};

use super::Cpu;
use super::gated_residual::tanh_gates;
use super::gemm::{Epilogue, Gemm, RowAt, Shape, pack, packed_len};
use super::instructions::Detected;
use super::rows::{FlatRows, PAD, Raw, Rows, Widen};
use super::simd::{self, Kernel, Vector, math};
use crate::backend::host::HostBuffer;
use crate::backend::{Implements, expect_real, expect_reals};
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Operands, RowReduce, Source};
use crate::ops::{Weight, WeightSource};
use crate::size::{self, Size};
use crate::tensor::{Bound, HostMemory, HostTensor, Spec};
use crate::{DType, Error, Result};

/// A matrix (or a gate and an up matrix) packed for GEMM.
pub(crate) struct PackedWeight {
    memory: HostBuffer,
    dtype: DType,
}

impl PackedWeight {
    /// Packs stacked matrices, rounded once to `dtype`.
    pub(super) fn pack(cpu: &Cpu, source: &WeightSource<'_>, dtype: DType) -> Result<Self> {
        expect_real("cpu", Linear::NAME, "weight", dtype)?;
        let (n, k, glu) = source.dims()?;
        let gate = Stack::of(&source.parts, dtype)?;
        let up = if glu { Some(Stack::of(&source.up, dtype)?) } else { None };
        let (gate, up) = (|row| gate.row(row), up.as_ref().map(|up| |row| up.row(row)));
        let matrices = [Some(&gate as RowAt<'_>), up.as_ref().map(|up| up as RowAt<'_>)];
        let matrices: Vec<RowAt<'_>> = matrices.into_iter().flatten().collect();
        // The system maps zeroed pages on the first write: by the thread that packs them, which
        // decides their placement.
        let bytes = (packed_len(n, k, glu, dtype) * size_of::<f32>()).or_out_of_memory("cpu", "a weight")?;
        let packed = PackedWeight { memory: HostBuffer::zeroed("cpu", bytes, "a weight")?, dtype };
        // SAFETY: `dims` has checked that the parts make n rows of k reals, which `Stack` holds. The
        // memory is as large as the packed form and no one else has it yet.
        unsafe { pack(&cpu.pool, cpu.set, &matrices, n, k, packed.raw()) };
        Ok(packed)
    }

    fn raw(&self) -> Raw {
        Raw::new(self.memory.memory().address(), self.dtype)
    }
}

/// Matrices that are stacked by rows, in memory.
struct Stack<'a>(Vec<Part<'a>>);

struct Part<'a> {
    /// Rows of the stack before the end of this part, and of this part.
    end: usize,
    rows: usize,
    dtype: DType,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Stack<'a> {
    /// Doubles are rounded here, to `dtype`; others where they are packed, so that a 16-bit file
    /// takes no more memory than it has.
    fn of(parts: &'a [HostTensor<'_>], dtype: DType) -> Result<Self> {
        let mut end = 0;
        let part = |part: &'a HostTensor<'_>| -> Result<Part<'a>> {
            let rows = part.shape()[0];
            end += rows;
            let (dtype, bytes) = match part.dtype() {
                DType::F64 => (dtype, Cow::Owned(part.to_dtype(dtype)?.bytes()?.into_owned())),
                other => (other, part.bytes()?),
            };
            Ok(Part { end, rows, dtype, bytes })
        };
        Ok(Stack(parts.iter().map(part).collect::<Result<_>>()?))
    }

    fn row(&self, row: usize) -> Raw {
        let part = &self.0[self.0.partition_point(|part| part.end <= row)];
        let at = part.bytes.len() / part.rows.max(1) * (row + part.rows - part.end);
        Raw::new(part.bytes[at..].as_ptr().cast_mut(), part.dtype)
    }
}

/// A prepared `linear`; without outputs there is no GEMM.
pub(crate) struct Prepared {
    op: Linear,
    batch: usize,
    rows: usize,
    n: usize,
    k: usize,
    product: Option<(Layout, Gemm)>,
}

impl Implements<Linear> for Cpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &Linear, shapes: &LinearArgs<Spec, Spec>) -> Result<Prepared> {
        expect_reals::<Linear>("cpu", shapes)?;
        let (s, glu) = (shapes.sizes(), op.activation.is_glu());
        let (stored, packs) = match &shapes.weight {
            Matrix::Prepared(weight) => {
                self.own(weight, s.n, s.k, glu)?;
                (weight.dtype(), false)
            }
            Matrix::View(w) | Matrix::Pair(w, _) => (w.dtype(), true),
        };
        let product = match shapes.out.elements() {
            0 => None,
            _ => {
                let m = Size::product(&[s.batch, s.rows]).or_refuse(Linear::NAME, "x", shapes.x)?;
                let shape = Shape { m, n: s.n, k: s.k, glu, x: shapes.x.dtype(), dtype: stored };
                let parts = Parts { shape, packs, reduces: op.reduce != RowReduce::None };
                let gemm = Gemm::plan(&self.pool, self.set, shape, parts.shared());
                let product = parts.layout().zip(gemm);
                Some(product.ok_or_else(|| size::refused(Linear::NAME, "x", shapes.x))?)
            }
        };
        Ok(Prepared { op: *op, batch: s.batch, rows: s.rows, n: s.n, k: s.k, product })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        prepared.product.as_ref().map_or(0, |(_, gemm)| gemm.bytes())
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        _: &mut (),
        args: &<Linear as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        workspace: &HostMemory,
    ) -> Result<()> {
        let Prepared { op, n, k, product, .. } = *prepared;
        let Some((layout, gemm)) = product else {
            if let Matrix::Prepared(weight) = &args.weight {
                self.own(weight, n, k, op.activation.is_glu())?;
            }
            return Ok(());
        };
        let (pool, set) = (&self.pool, self.set);
        let work: *mut f32 = workspace.address().cast();
        let x = FlatRows { rows: Rows::of(&args.x), per_entry: prepared.rows };
        // SAFETY: operands hold their specs and the workspace the planned bytes, by the contract of
        // `Implements::record`. Its parts lie as `layout` says. y is injective, and every output is
        // in exactly one call of the epilogue.
        unsafe {
            let pack_views = |views: &[&Bound<HostMemory>]| {
                let to = Raw::new(work.add(layout.packed).cast(), views[0].spec.dtype());
                let matrices = [0, views.len() - 1].map(|i| FlatRows::matrix(views[i]));
                let [gate, up] = &matrices;
                let (gate, up) = (|row| gate.at(row), |row| up.at(row));
                pack(pool, set, &[&gate as RowAt<'_>, &up][..views.len()], n, k, to);
                to
            };
            let weight = match &args.weight {
                Matrix::Prepared(weight) => self.own(weight, n, k, op.activation.is_glu())?.raw(),
                Matrix::View(w) => pack_views(&[w]),
                Matrix::Pair(gate, up) => pack_views(&[gate, up]),
            };
            let bias = args.bias.as_ref().map(|b| simd::run(set, Widen { from: Raw::of(b), n, to: work }));
            let gate = args.gate.as_ref().map(|g| {
                let gates = g.spec.dim(0);
                tanh_gates(Raw::of(g), gates, work.add(layout.gate));
                Gate { at: work.add(layout.gate), per_channel: gates > 1 }
            });
            let reduces = op.reduce != RowReduce::None;
            let values = Rows::f32s(work.add(layout.values), [prepared.rows * n, n]);
            let finish = Finish {
                set,
                activation: op.activation,
                per_entry: prepared.rows,
                bias,
                gate,
                mask: args.row_mask.as_ref().map(|m| (Raw::of(m), [m.spec.stride(0), m.spec.stride(1)])),
                residual: args.residual.as_ref().map(|r| match r {
                    Source::From(r) => Rows::of(r),
                    Source::InPlace => Rows::of(&args.out),
                }),
                out: if reduces { values } else { Rows::of(&args.out) },
            };
            gemm.run(pool, set, &x, weight, &finish, workspace);
            if reduces {
                let mean = op.reduce == RowReduce::Mean;
                let out = Rows::of(&args.out);
                for b in 0..prepared.batch {
                    simd::run(set, Reduce { values, entry: b, rows: prepared.rows, n, mean, out });
                }
            }
        }
        Ok(())
    }
}

impl Cpu {
    /// The packed form of a weight, if it was prepared for this backend and these sizes.
    fn own<'w>(&self, weight: &'w Weight, n: usize, k: usize, glu: bool) -> Result<&'w PackedWeight> {
        let own = weight.packed::<PackedWeight>().ok_or_else(|| {
            Error::argument(Linear::NAME, "weight", "a matrix prepared for cpu", format!("{weight:?}"))
        })?;
        if (weight.n(), weight.k(), weight.is_glu()) != (n, k, glu) {
            let pair = if glu { "pair" } else { "matrix" };
            let expected = format!("the {pair} [{n}, {k}] that the product was prepared for");
            return Err(Error::argument(Linear::NAME, "weight", expected, format!("{weight:?}")));
        }
        Ok(own)
    }
}

#[derive(Clone, Copy)]
struct Gate {
    at: *const f32,
    per_channel: bool,
}

struct Finish {
    set: Detected,
    activation: Activation,
    per_entry: usize,
    bias: Option<*const f32>,
    gate: Option<Gate>,
    mask: Option<(Raw, [usize; 2])>,
    residual: Option<Rows>,
    out: Rows,
}

// SAFETY: pointers into operands and workspace; segments of y are disjoint, all else is only read.
unsafe impl Sync for Finish {}

impl Epilogue for Finish {
    fn store(&self, row: usize, col: usize, acc: &[f32], up: Option<&[f32]>) {
        for at in (0..acc.len()).step_by(SEGMENT) {
            let end = acc.len().min(at + SEGMENT);
            let segment =
                Segment { finish: self, row, col: col + at, acc: &acc[at..end], up: up.map(|up| &up[at..end]) };
            // SAFETY: the segment lies inside y, and this call is the only one for it.
            unsafe { simd::run(self.set, segment) }
        }
    }
}

/// Columns that the epilogue stages at a time, on the stack.
const SEGMENT: usize = 256;

struct Segment<'a> {
    finish: &'a Finish,
    row: usize,
    col: usize,
    acc: &'a [f32],
    up: Option<&'a [f32]>,
}

impl Kernel for Segment<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Segment { finish: f, row, col, acc, up } = self;
        let n = acc.len();
        let index = [row / f.per_entry, row % f.per_entry, 0];
        let mut stage = [0.0f32; SEGMENT];
        let mut second = [0.0f32; SEGMENT];
        let whole = n / V::LANES * V::LANES;
        // SAFETY: n <= SEGMENT columns from `col` on are inside bias, gate, residual and y; the
        // tail goes through padded copies.
        unsafe {
            let out = f.out.at(index).add(col);
            let residual = f.residual.map(|r| r.at(index).add(col).borrow::<V>(n, second.as_mut_ptr()));
            let masked = f.mask.is_some_and(|(at, s)| at.add(index[0] * s[0] + index[1] * s[1]).u32() == 0);
            if masked {
                out.store::<V>(n, residual.unwrap_or(stage.as_ptr()));
                return;
            }
            let gates =
                |at: usize| f.gate.map(|g| (g.per_channel, if g.per_channel { g.at.add(col + at) } else { g.at }));
            let up = up.map(<[f32]>::as_ptr);
            let mut at = 0;
            while at < whole {
                let inputs = Inputs {
                    acc: acc.as_ptr().add(at),
                    up: up.map(|p| p.add(at)),
                    bias: f.bias.map(|p| p.add(col + at)),
                    gate: gates(at),
                    residual: residual.map(|p| p.add(at)),
                };
                finish::<V>(f.activation, inputs).store(stage.as_mut_ptr().add(at));
                at += V::LANES;
            }
            if at < n {
                let tail = |from: *const f32| {
                    let mut copy = [0.0f32; PAD];
                    std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), n - at);
                    copy
                };
                let sums = tail(acc.as_ptr().add(at));
                let ups = up.map(|p| tail(p.add(at)));
                let biases = f.bias.map(|p| tail(p.add(col + at)));
                let residuals = residual.map(|p| tail(p.add(at)));
                let factors =
                    gates(at).map(|(per_channel, p)| (per_channel, if per_channel { tail(p) } else { [*p; PAD] }));
                let inputs = Inputs {
                    acc: sums.as_ptr(),
                    up: ups.as_ref().map(|a| a.as_ptr()),
                    bias: biases.as_ref().map(|a| a.as_ptr()),
                    gate: factors.as_ref().map(|(per_channel, a)| (*per_channel, a.as_ptr())),
                    residual: residuals.as_ref().map(|a| a.as_ptr()),
                };
                let mut last = [0.0f32; PAD];
                finish::<V>(f.activation, inputs).store(last.as_mut_ptr());
                stage[at..n].copy_from_slice(&last[..n - at]);
            }
            out.store::<V>(n, stage.as_ptr());
        }
    }
}

/// The epilogue's inputs for one register.
struct Inputs {
    acc: *const f32,
    up: Option<*const f32>,
    bias: Option<*const f32>,
    gate: Option<(bool, *const f32)>,
    residual: Option<*const f32>,
}

/// # Safety
/// Every input holds `LANES` f32 (a gate that is not per channel: one); the machine has the
/// instruction set of `V`.
#[inline(always)]
unsafe fn finish<V: Vector>(activation: Activation, inputs: Inputs) -> V {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut y = V::load(inputs.acc);
        if let Some(bias) = inputs.bias {
            y = y.add(V::load(bias));
        }
        let zero = V::splat(0.0);
        // The larger of 0 and x; NaN stays NaN.
        let relu = |x: V| zero.max(x);
        y = match activation {
            Activation::None => y,
            Activation::Gelu => math::gelu(y),
            Activation::Relu => relu(y),
            Activation::SquaredRelu => relu(y).mul(relu(y)),
            Activation::SwiGlu => math::silu(y),
        };
        if let Some(up) = inputs.up {
            y = y.mul(V::load(up));
        }
        let factor = inputs.gate.map(|(per_channel, at)| if per_channel { V::load(at) } else { V::broadcast(at) });
        match (factor, inputs.residual.map(|r| V::load(r))) {
            (None, None) => y,
            (Some(factor), None) => y.mul(factor),
            (None, Some(residual)) => y.add(residual),
            (Some(factor), Some(residual)) => y.mul_add(factor, residual),
        }
    }
}

/// The largest value or the mean of each column over a batch entry's rows, in ascending order.
struct Reduce {
    values: Rows,
    entry: usize,
    rows: usize,
    n: usize,
    mean: bool,
    out: Rows,
}

impl Kernel for Reduce {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let row = |i: usize| self.values.at([self.entry, i, 0]).as_f32().unwrap_or(std::ptr::null_mut());
        let first = row(0);
        // SAFETY: the values hold `rows` rows of `n` f32, and only this call uses this entry's.
        unsafe {
            for i in 1..self.rows {
                let next = row(i);
                for c in 0..self.n {
                    let (a, b) = (*first.add(c), *next.add(c));
                    // NaN on either side stays NaN.
                    *first.add(c) = match self.mean {
                        true => a + b,
                        false if a >= b || a.is_nan() => a,
                        false => b,
                    };
                }
            }
            if self.mean {
                for c in 0..self.n {
                    *first.add(c) /= self.rows as f32;
                }
            }
            self.out.at([self.entry, 0, 0]).store::<V>(self.n, first);
        }
    }
}
