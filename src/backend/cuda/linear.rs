//! `linear`: one launch of the kernel that [`Kernel::choose`] names, or cuBLASLt where
//! [`CudaCublasLt::takes`] says so.

mod choice;
mod hopper;
mod kernel;

pub use choice::CudaLinear;
use choice::Gemm;
use hopper::HopperGemm;
use kernel::Kernel;

use std::sync::Arc;

use super::compile::KernelText;
use super::cublaslt::{Addresses, Gemm as LibraryGemm, Plan};
use super::launch::{Launch, Operand};
use super::weight::{PreparedWeight, RowLayout};
use super::{Cuda, CudaMemory, CudaRecorder, NAME};
use crate::backend::gpu::Kernels;
use crate::backend::gpu::linear::{LinearParams, linear_params};
use crate::backend::{Implements, expect_reals};
use crate::ops::Weight;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Operands, RowReduce, Source as From};
use crate::size::{Size, Word};
use crate::tensor::{Bound, Spec};
use crate::{DType, Error, Result};

/// A `linear`, planned. No launch where there is nothing to write.
pub(crate) struct Prepared {
    /// Also beside a cuBLASLt plan: the alignment of addresses is known at record time only.
    launch: Option<Launch>,
    library: Option<ByLibrary>,
    /// The kernel of compute capability 9.0 that the caller named.
    hopper: Option<HopperGemm>,
    /// Of a prepared matrix.
    rows: Option<RowLayout>,
}

/// A matrix product (GEMM) by cuBLASLt.
struct ByLibrary {
    plan: Arc<Plan>,
    /// `linear_factors.cu`, where there is a gate.
    factors: Option<Launch>,
    /// `linear_activation.cu`, where a pass of its own follows.
    activation: Option<Launch>,
    /// Both parts, from the first multiple of [`PART`] on: a workspace may begin on one of 64.
    workspace_bytes: usize,
}

/// Alignment of the two parts of the workspace: cuBLASLt's, then alpha and beta.
const PART: usize = 256;

impl ByLibrary {
    /// Bytes of a workspace for both parts: the factors lie behind the library's.
    fn sum_of_parts<W: Word>(library: usize, factors: usize) -> Size<W> {
        match (library, factors) {
            (0, 0) => Size::of(0),
            _ => Size::of(library).next_multiple_of(PART) + Size::of(factors) * 4 + (PART - 64),
        }
    }

    /// The library's part of a workspace, and the factors. Refuses another device's memory.
    fn parts(&self, backend: &Cuda, workspace: &CudaMemory) -> Result<(CudaMemory, CudaMemory)> {
        backend.context.expect_own(Linear::NAME, "workspace", workspace)?;
        let bytes = self.workspace_bytes;
        if workspace.bytes() < bytes as u64 {
            let expected = format!("at least {bytes} bytes");
            return Err(Error::argument(Linear::NAME, "workspace", expected, workspace.bytes()));
        }
        let own = workspace.skip((workspace.address().wrapping_neg() % PART as u64) as usize);
        Ok((own, own.skip(self.plan.workspace_bytes().next_multiple_of(PART))))
    }
}

impl Implements<Linear> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, op: &Linear, shapes: &LinearArgs<Spec, Spec>) -> Result<Prepared> {
        expect_reals::<Linear>(NAME, shapes)?;
        let (view, up, rows) = match &shapes.weight {
            Matrix::View(w) => (Some(w), None, None),
            Matrix::Pair(gate, up) => (Some(gate), Some(up), None),
            Matrix::Prepared(w) => (None, None, Some(own(w)?.layout())),
        };
        let s = shapes.sizes();
        let total = s.batch.checked_mul(s.rows).filter(|&m| u32::try_from(m).is_ok());
        let total = total.ok_or_else(|| Error::argument(Linear::NAME, "x", "at most 2^32 - 1 rows", shapes.x))?;
        if shapes.out.elements() == 0 {
            return Ok(Prepared { launch: None, library: None, hopper: None, rows });
        }
        let pair = op.activation.is_glu();
        let reduced = op.reduce != RowReduce::None;
        let gemm = Gemm {
            x: shapes.x.dtype(),
            weight: rows.map_or(view.map_or(shapes.x.dtype(), Spec::dtype), |r| r.dtype),
            out: shapes.out.dtype(),
            rows: if reduced { s.rows } else { total },
            columns: s.n * (1 + usize::from(pair)),
            reduce: op.reduce,
        };
        let mixed = up.is_some_and(|up| up.dtype() != gemm.weight);
        let kernel = if mixed { Kernel::Any } else { Kernel::choose(&gemm, self.linear) };
        let mut params = linear_params(op, shapes);
        if let Some(rows) = &rows {
            (params.weight_stride, params.up_stride) = (rows.stride() as u32, rows.stride() as u32);
        }
        if let Some(From::InPlace) = shapes.residual {
            (params.residual_stride_b, params.residual_stride_r) = (params.out_stride_b, params.out_stride_r);
        }
        let (tile_rows, tile_columns) = kernel.tile(pair);
        let row_tiles = if reduced { s.batch } else { total.div_ceil(tile_rows) };
        let tiles = row_tiles.checked_mul(s.n.div_ceil(tile_columns)).and_then(|n| u32::try_from(n).ok());
        let grid = [tiles.unwrap_or(u32::MAX), 1, 1];
        let launch = Some(Launch::new(self, &kernel.source(), &params, grid)?);
        let hopper = if mixed { None } else { HopperGemm::new(self, &gemm, &params, pair)? };
        Ok(Prepared { launch, library: self.by_library(op, shapes, rows, &params)?, hopper, rows })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        prepared.library.as_ref().map_or(0, |library| library.workspace_bytes)
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        recorder: &mut CudaRecorder<'_>,
        args: &<Linear as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        workspace: &CudaMemory,
    ) -> Result<()> {
        let mut operands = Linear::operands(args).map(|bound| bound.map(Operand::of));
        if let Matrix::Prepared(w) = &args.weight {
            let own = expect_weight(prepared, w)?;
            let layout = own.layout();
            let all = Operand::region(&own.memory(), layout.dtype, layout.halves * layout.half());
            operands.weight = Some(all);
            operands.up = (layout.halves == 2).then(|| all.skip(layout.half()));
        }
        let Some(launch) = &prepared.launch else { return Ok(()) };
        if let Some(From::InPlace) = &args.residual {
            operands.residual = operands.out;
        }
        if let Some(library) = &prepared.library {
            let address = operands.map(|operand| operand.map_or(0, |operand| operand.address()));
            let (scratch, factors) = library.parts(self, workspace)?;
            let at = Addresses {
                matrix: address.weight,
                x: address.x,
                residual: if address.residual == 0 { address.out } else { address.residual },
                out: address.out,
                bias: address.bias,
                factors: factors.address(),
                workspace: scratch.address(),
            };
            if library.plan.fits(&at) {
                launch.check(self, &operands.list())?;
                let factors = Operand::region(&factors, DType::F32, library.plan.factors());
                // SAFETY: the caller's promise; the operands were checked, and the workspace is
                // this device's and holds both parts.
                return unsafe { self.record_library(library, recorder, operands.gate, factors, operands.out, &at) };
            }
        }
        if let Some(hopper) = &prepared.hopper
            && let Some(mut maps) = hopper.maps(&operands)?
        {
            // SAFETY: as below; the maps are of x and W, with their extents.
            return unsafe { hopper.launch.record_with_maps(self, recorder, &operands.list(), &mut maps) };
        }
        // SAFETY: the caller's promise, for the operands in the kernel's order; every index lies
        // within an operand's span: the extents that the check found bound columns, rows and k.
        unsafe { launch.record(self, recorder, &operands.list()) }
    }
}

impl Cuda {
    /// The plan of cuBLASLt, where it serves this GEMM and the table wants it.
    fn by_library(
        &self,
        op: &Linear,
        shapes: &LinearArgs<Spec, Spec>,
        rows: Option<RowLayout>,
        params: &LinearParams,
    ) -> Result<Option<ByLibrary>> {
        let s = shapes.sizes();
        // Nothing may follow the activation, whose pieces are counted in 32 bits.
        let pieces = (s.batch * s.rows).checked_mul(s.n.div_ceil(kernel::PIECE)).and_then(|n| u32::try_from(n).ok());
        let pieces = pieces.filter(|_| {
            self.cublaslt.takes_activation(op.activation) && shapes.residual.is_none() && shapes.gate.is_none()
        });
        let gemm = match pieces {
            Some(_) => LibraryGemm::of(&Linear { activation: Activation::None, ..*op }, shapes, rows),
            None => LibraryGemm::of(op, shapes, rows),
        };
        let Ok(gemm) = gemm else { return Ok(None) };
        if self.linear != CudaLinear::Auto || !self.cublaslt.takes(&gemm) {
            return Ok(None);
        }
        let Some(plan) = self.library.plan(&gemm) else { return Ok(None) };
        let factors = match &shapes.gate {
            None => None,
            Some(gate) => {
                let grid = [(gate.dim(0) as u32).div_ceil(kernel::FACTORS_THREADS), 1, 1];
                Some(Launch::new(self, &kernel::factors(), params, grid)?)
            }
        };
        let activation = match pieces {
            None => None,
            Some(pieces) => {
                let grid = [pieces.div_ceil(kernel::ACTIVATION_PIECES), 1, 1];
                Some(Launch::new(self, &kernel::activation(), params, grid)?)
            }
        };
        let bytes = ByLibrary::sum_of_parts::<usize>(plan.workspace_bytes(), plan.factors());
        let workspace_bytes = bytes.or_refuse(Linear::NAME, "x", shapes.x)?;
        Ok(Some(ByLibrary { plan, factors, activation, workspace_bytes }))
    }

    /// # Safety
    /// As [`Implements::record`]; the operands at these addresses were checked.
    unsafe fn record_library(
        &self,
        library: &ByLibrary,
        recorder: &mut CudaRecorder<'_>,
        gate: Option<Operand>,
        factors: Operand,
        out: Option<Operand>,
        at: &Addresses,
    ) -> Result<()> {
        if let Some(launch) = &library.factors {
            // SAFETY: the workspace holds the factors; the gate is the caller's promise.
            unsafe { launch.record(self, recorder, &[gate, Some(factors)])? };
        }
        {
            let _entered = self.context.enter_for(Linear::NAME)?;
            // SAFETY: the context is current, the stream is its own; the caller promises the rest.
            unsafe { library.plan.record(&self.library, recorder.stream(), at) }
                .map_err(|said| Error::argument(Linear::NAME, "cublaslt", "a GEMM that cuBLASLt runs", said))?;
        }
        recorder.count();
        self.after_launch(Linear::NAME, recorder)?;
        match &library.activation {
            // SAFETY: the caller's promise, for the result.
            Some(activation) => unsafe { activation.record(self, recorder, &[out]) },
            None => Ok(()),
        }
    }
}

/// The rows of a weight, if it was prepared for this backend.
fn own(weight: &Weight) -> Result<&PreparedWeight> {
    weight
        .packed::<PreparedWeight>()
        .ok_or_else(|| Error::argument(Linear::NAME, "weight", "a matrix prepared for cuda", format!("{weight:?}")))
}

fn expect_weight<'w>(prepared: &Prepared, weight: &'w Weight) -> Result<&'w PreparedWeight> {
    let own = own(weight)?;
    if Some(own.layout()) == prepared.rows {
        return Ok(own);
    }
    let expected = match &prepared.rows {
        Some(r) => format!(
            "{} of {}[{}, {}] as prepared",
            if r.halves == 2 { "a pair" } else { "a matrix" },
            r.dtype,
            r.n,
            r.k
        ),
        None => "a view, as prepared".into(),
    };
    Err(Error::argument(Linear::NAME, "weight", expected, format!("{weight:?}")))
}

pub(super) fn instances() -> Vec<KernelText> {
    Kernel::all()
        .into_iter()
        .map(Kernel::source)
        .chain([kernel::factors(), kernel::activation()])
        .chain(hopper::instances())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_of_the_workspace_are_counted_or_refused() {
        let bytes = |library, factors| ByLibrary::sum_of_parts::<u32>(library, factors).get();
        assert_eq!(bytes(0, 0), Some(0));
        assert_eq!(bytes(1, 0), Some(256 + 192));
        assert_eq!(bytes(257, 3), Some(512 + 12 + 192));
        assert_eq!(bytes(0, 1 << 29), None);
        assert_eq!(bytes(u32::MAX as usize, 0), None);
    }
}
