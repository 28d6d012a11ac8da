//! Which GEMMs cuBLASLt computes exactly as the op says, and in its terms.
//!
//! It computes D = alpha · op(A) op(B) + beta · C + bias in f32 and rounds once, in column-major
//! order. A row-major matrix is the transpose of a column-major one: y [rows, N] is D with N rows,
//! the matrix [N, K] is A transposed, x [rows, K] is B, the residual is C.

use crate::DType;
use crate::backend::cuda::weight::RowLayout;
use crate::backend::gpu::Kernels;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce, Source as From};
use crate::tensor::Spec;

/// Where the rows of an operand lie, in elements: by row, and by batch entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::backend::cuda) struct Rows {
    pub stride: usize,
    pub batch_stride: usize,
}

/// tanh(gate) as alpha.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::backend::cuda) enum Gate {
    /// Alpha is 1.
    None,
    /// One number in device memory.
    Scalar,
    /// One for each row of D, which is a column of y.
    Channel,
}

/// Everything that a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::backend::cuda) struct Gemm {
    /// Of x and the matrix.
    pub operands: DType,
    /// Of y, the residual and the bias.
    pub result: DType,
    pub batch: usize,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    pub matrix_stride: usize,
    pub x: Rows,
    pub residual: Option<Rows>,
    pub out: Rows,
    pub gate: Gate,
    pub bias: bool,
}

/// Alignment of all addresses and rows, in bytes: cuBLASLt's fastest kernels need the promise.
pub(in crate::backend::cuda) const ALIGNMENT: usize = 16;

impl Gemm {
    /// The GEMM, or why cuBLASLt cannot compute it exactly. `prepared`: the layout of its matrix.
    pub fn of(op: &Linear, a: &LinearArgs<Spec, Spec>, prepared: Option<RowLayout>) -> Result<Gemm, &'static str> {
        let s = a.sizes();
        let (matrix, matrix_stride) = match (&a.weight, prepared) {
            // The stride of a single row means nothing.
            (Matrix::View(w), _) if s.n == 1 => (w.dtype(), whole_pieces(w.dim(1), w.dtype())),
            (Matrix::View(w), _) => (w.dtype(), w.stride(0)),
            (Matrix::Prepared(_), Some(rows)) => (rows.dtype, rows.stride()),
            _ => return Err("a pair of matrices is two GEMMs"),
        };
        let (operands, result) = (a.x.dtype(), a.out.dtype());
        if op.activation == Activation::Gelu {
            return Err("its GELU is the tanh form");
        }
        if op.activation != Activation::None {
            return Err("an activation of ours follows");
        }
        if op.reduce != RowReduce::None {
            return Err("rows are reduced");
        }
        if a.row_mask.is_some() {
            return Err("rows are masked");
        }
        if operands != matrix {
            return Err("x and the matrix differ in type");
        }
        if result != operands && result != DType::F32 {
            return Err("no result of this type");
        }
        let in_place = a.residual == Some(From::InPlace);
        let residual = if in_place { Some(&a.out) } else { Linear::operands(a).residual };
        if residual.is_some_and(|r| r.dtype() != result) {
            return Err("residual and result differ in type");
        }
        let gate = match &a.gate {
            None => Gate::None,
            Some(g) if g.dim(0) == 1 => Gate::Scalar,
            Some(_) => Gate::Channel,
        };
        if gate != Gate::None && a.bias.is_some() {
            return Err("the bias is added behind the gate");
        }
        if gate != Gate::None && residual.is_none() {
            return Err("a gate without a residual");
        }
        if a.bias.as_ref().is_some_and(|b| b.dtype() != result) {
            return Err("bias and result differ in type");
        }
        if [s.batch, s.rows, s.n, s.k].contains(&0) {
            return Err("nothing to multiply");
        }
        let (batch, rows, [x, residual_rows, out]) = rows_of([Some(&a.x), residual, Some(&a.out)]);
        let missing = "an operand without rows";
        let (x, out) = (x.ok_or(missing)?, out.ok_or(missing)?);
        let gemm = Gemm {
            operands,
            result,
            batch,
            rows,
            n: s.n,
            k: s.k,
            matrix_stride,
            x,
            residual: residual_rows,
            out,
            gate,
            bias: a.bias.is_some(),
        };
        gemm.fits()?;
        Ok(gemm)
    }

    /// Rows must not overlap, and must lie as promised.
    fn fits(&self) -> Result<(), &'static str> {
        let Gemm { n, k, batch, .. } = *self;
        let matrix = Rows { stride: self.matrix_stride, batch_stride: 0 };
        let lie = [
            (Some(matrix), k, self.operands),
            (Some(self.x), k, self.operands),
            (self.residual, n, self.result),
            (Some(self.out), n, self.result),
        ];
        for (rows, width, dtype) in lie {
            let Some(rows) = rows else { continue };
            if rows.stride < width {
                return Err("rows that overlap");
            }
            let aligned = |elements: usize| (elements * dtype.size()).is_multiple_of(ALIGNMENT);
            if !aligned(rows.stride) || (batch > 1 && !aligned(rows.batch_stride)) {
                return Err("rows that do not begin on multiples of 16 bytes");
            }
        }
        // Some of its extents are signed 32-bit numbers.
        if [self.rows, n, k, batch].into_iter().any(|extent| i32::try_from(extent).is_err()) {
            return Err("an extent beyond 2^31");
        }
        Ok(())
    }
}

/// The smallest stride of aligned rows.
fn whole_pieces(width: usize, dtype: DType) -> usize {
    width.next_multiple_of(ALIGNMENT / dtype.size())
}

/// Batch and rows of operands `[batch, rows, width]`; one axis of rows where all of them allow it.
fn rows_of(operands: [Option<&Spec>; 3]) -> (usize, usize, [Option<Rows>; 3]) {
    let all = || operands.into_iter().flatten();
    let Some(first) = operands[0] else { return (0, 0, [None; 3]) };
    let (batch, rows) = (first.dim(0), first.dim(1));
    let of = |pick: &dyn Fn(&Spec) -> Rows| operands.map(|o| o.map(pick));
    let single = |stride: usize| Rows { stride, batch_stride: 0 };
    if batch * rows == 1 {
        // Strides of a single row mean nothing.
        return (1, 1, of(&|s| single(whole_pieces(s.dim(2), s.dtype()))));
    }
    if rows == 1 {
        return (1, batch, of(&|s| single(s.stride(0))));
    }
    if batch == 1 || all().all(|s| s.stride(0) == rows * s.stride(1)) {
        return (1, batch * rows, of(&|s| single(s.stride(1))));
    }
    (batch, rows, of(&|s| Rows { stride: s.stride(1), batch_stride: s.stride(0) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BF16: DType = DType::BF16;

    fn spec(dtype: DType, shape: &[usize]) -> Spec {
        Spec::contiguous(dtype, shape).unwrap()
    }

    fn args(dtype: DType) -> LinearArgs<Spec, Spec> {
        LinearArgs::new(spec(dtype, &[2, 5, 64]), Matrix::View(spec(dtype, &[32, 64])), spec(dtype, &[2, 5, 32]))
    }

    fn of(op: Linear, a: &LinearArgs<Spec, Spec>) -> Result<Gemm, &'static str> {
        Gemm::of(&op, a, None)
    }

    #[test]
    fn rows_of_all_batches_are_one_axis_where_they_can_be() {
        let p = of(Linear::default(), &args(BF16)).unwrap();
        let rows = |stride| Rows { stride, batch_stride: 0 };
        assert_eq!((p.batch, p.rows, p.n, p.k), (1, 10, 32, 64));
        assert_eq!((p.x, p.out, p.residual), (rows(64), rows(32), None));

        let mut a = args(BF16);
        a.x = Spec::strided(BF16, &[2, 5, 64], &[1024, 64, 1]).unwrap();
        let p = of(Linear::default(), &a).unwrap();
        assert_eq!((p.batch, p.rows), (2, 5));
        assert_eq!(p.x, Rows { stride: 64, batch_stride: 1024 });
        assert_eq!(p.out, Rows { stride: 32, batch_stride: 160 });

        // One row in each batch entry: the batch is the axis.
        let mut a = args(BF16);
        a.x = Spec::strided(BF16, &[2, 1, 64], &[1024, 3, 1]).unwrap();
        a.out = spec(BF16, &[2, 1, 32]);
        let p = of(Linear::default(), &a).unwrap();
        assert_eq!((p.batch, p.rows, p.x, p.out), (1, 2, rows(1024), rows(32)));
    }

    #[test]
    fn gates_residual_and_bias_in_its_terms() {
        let mut a = args(BF16);
        a.residual = Some(From::InPlace);
        a.gate = Some(spec(DType::F32, &[1]));
        let p = of(Linear::default(), &a).unwrap();
        assert_eq!((p.gate, p.residual), (Gate::Scalar, Some(p.out)));
        a.residual = Some(From::From(Spec::strided(BF16, &[2, 5, 32], &[400, 80, 1]).unwrap()));
        a.gate = Some(spec(BF16, &[32]));
        let p = of(Linear::default(), &a).unwrap();
        assert_eq!((p.gate, p.residual), (Gate::Channel, Some(Rows { stride: 80, batch_stride: 0 })));
        a.gate = None;
        a.bias = Some(spec(BF16, &[32]));
        assert!(of(Linear::default(), &a).unwrap().bias);
    }

    /// Everything that it would compute differently from the op.
    #[test]
    fn what_is_not_exact_is_ours() {
        let plain = Linear::default();
        let with = |change: &dyn Fn(&mut LinearArgs<Spec, Spec>)| {
            let mut a = args(BF16);
            change(&mut a);
            of(plain, &a)
        };
        let activated = |activation| of(Linear { activation, ..plain }, &args(BF16));
        assert_eq!(activated(Activation::Gelu), Err("its GELU is the tanh form"));
        assert_eq!(activated(Activation::Relu), Err("an activation of ours follows"));
        let mean = Linear { reduce: RowReduce::Mean, ..plain };
        assert_eq!(of(mean, &args(BF16)), Err("rows are reduced"));
        assert_eq!(with(&|a| a.row_mask = Some(spec(DType::U32, &[2, 5]))), Err("rows are masked"));
        let f32_matrix = Matrix::View(spec(DType::F32, &[32, 64]));
        assert_eq!(with(&|a| a.weight = f32_matrix.clone()), Err("x and the matrix differ in type"));
        assert_eq!(with(&|a| a.out = a.out.with_dtype(DType::F16).unwrap()), Err("no result of this type"));
        let residual = |dtype| Some(From::From(spec(dtype, &[2, 5, 32])));
        assert_eq!(with(&|a| a.residual = residual(DType::F32)), Err("residual and result differ in type"));
        assert_eq!(with(&|a| a.bias = Some(spec(DType::F32, &[32]))), Err("bias and result differ in type"));
        let gate = Some(spec(BF16, &[1]));
        assert_eq!(with(&|a| a.gate = gate), Err("a gate without a residual"));
        let both = with(&|a| {
            (a.gate, a.residual, a.bias) = (gate, residual(BF16), Some(spec(BF16, &[32])));
        });
        assert_eq!(both, Err("the bias is added behind the gate"));
        let pair = || Matrix::Pair(spec(BF16, &[32, 64]), spec(BF16, &[32, 64]));
        assert_eq!(with(&|a| a.weight = pair()), Err("a pair of matrices is two GEMMs"));
    }

    #[test]
    fn what_does_not_lie_right_is_ours() {
        let odd = Spec::strided(BF16, &[2, 5, 64], &[325, 65, 1]).unwrap();
        let mut a = args(BF16);
        a.x = odd;
        assert_eq!(of(Linear::default(), &a), Err("rows that do not begin on multiples of 16 bytes"));
        a.x = Spec::strided(BF16, &[2, 5, 64], &[0, 0, 1]).unwrap();
        assert_eq!(of(Linear::default(), &a), Err("rows that overlap"));
        // The stride of a single row, whatever it is, is none.
        let any = Spec::strided(BF16, &[1, 64], &[1 << 63, 1]).unwrap();
        let single = LinearArgs::new(spec(BF16, &[2, 5, 64]), Matrix::View(any), spec(BF16, &[2, 5, 1]));
        assert_eq!(
            of(Linear::default(), &single),
            Err("rows that do not begin on multiples of 16 bytes"),
            "those of out"
        );
        let out = Spec::strided(BF16, &[2, 5, 1], &[40, 8, 1]).unwrap();
        assert_eq!(of(Linear::default(), &LinearArgs { out, ..single }).unwrap().matrix_stride, 64);
        a = args(BF16);
        (a.x, a.out) = (spec(BF16, &[0, 5, 64]), spec(BF16, &[0, 5, 32]));
        assert_eq!(of(Linear::default(), &a), Err("nothing to multiply"));
    }
}
