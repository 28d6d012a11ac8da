//! `norm`: `kernels/norm.cu`, one launch.

use super::compile::{File, Source, kernel};
use super::launch::{Launch, Operand};
use super::{Cuda, CudaMemory, CudaRecorder, NAME};
use crate::backend::gpu::NormParams;
use crate::backend::{Implements, expect_reals};
use crate::ops::{Norm, NormArgs, NormKind, Operands, Source as From};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

const COLUMNS: File = kernel!("lib/columns.cuh");

/// The threads of a row.
struct Team {
    name: &'static str,
    threads: u32,
    /// Groups of eight columns that a thread keeps in registers.
    held: u32,
    /// Threads of a block.
    block: u32,
    /// Blocks per multiprocessor that registers leave room for.
    blocks: u32,
}

/// The first one whose registers hold a row, or the last.
const TEAMS: [Team; 3] = [
    Team { name: "head", threads: 8, held: 2, block: 128, blocks: 8 },
    Team { name: "warp", threads: 32, held: 4, block: 128, blocks: 5 },
    Team { name: "block", threads: 256, held: 4, block: 256, blocks: 3 },
];

impl Team {
    fn of(width: usize) -> &'static Team {
        let [head, warp, block] = &TEAMS;
        match width {
            0..=128 => head,
            129..=1024 => warp,
            _ => block,
        }
    }

    fn source(&self, kind: NormKind) -> Source {
        const OPERANDS: &[&str] = &["x", "rows", "add", "weight", "bias", "out"];
        let (kind, word) = match kind {
            NormKind::Layer => ("LAYER", "layer"),
            NormKind::Rms => ("RMS", "rms"),
            NormKind::L2 => ("L2", "l2"),
        };
        Source::new(Norm::NAME, format!("norm_{word}_{}", self.name), kernel!("norm.cu"), OPERANDS)
            .library(COLUMNS)
            .constant("KIND", kind)
            .constant("TEAM", self.threads)
            .constant("HELD", self.held)
            .threads(self.block)
            .min_blocks(self.blocks)
            .shared_bytes(if self.threads > 32 { 4 * self.block / 32 } else { 0 })
    }
}

/// A `norm`, planned. None where there is nothing to do.
pub(crate) struct Prepared(Option<Launch>);

impl Implements<Norm> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, op: &Norm, shapes: &NormArgs<Spec, Spec>) -> Result<Prepared> {
        let out = &shapes.out;
        let x = match &shapes.x {
            From::From(x) => Some(x),
            From::InPlace => None,
        };
        let (rows, add) = (shapes.rows.as_ref(), shapes.add.as_ref());
        expect_reals::<Norm>(NAME, shapes)?;
        if out.elements() == 0 {
            return Ok(Prepared(None));
        }
        let width = out.dim(3);
        // Kernels count columns in 32 bits, in steps of 2048.
        if width > u32::MAX as usize - 8192 {
            return Err(Error::argument(Norm::NAME, "out", "a width of at most 2^32 - 8193", out));
        }
        let Ok(total_rows) = u32::try_from(out.elements() / width) else {
            return Err(Error::argument(Norm::NAME, "out", "at most 2^32 - 1 rows", out));
        };
        let stride = |spec: Option<&Spec>, d: usize| spec.map_or(0, |s| s.stride(d) as u32);
        let params = NormParams {
            total_rows,
            dim_b: out.dim(1) as u32,
            dim_c: out.dim(2) as u32,
            width: width as u32,
            x_stride_a: stride(x, 0),
            x_stride_b: stride(x, 1),
            x_stride_c: stride(x, 2),
            rows_stride_a: stride(rows, 0),
            rows_stride_b: stride(rows, 1),
            last_row: x.map_or(0, |x| x.dim(1).saturating_sub(1) as u32),
            add_stride_a: stride(add, 0),
            add_stride_b: stride(add, 1),
            add_stride_c: stride(add, 2),
            out_stride_a: stride(Some(out), 0),
            out_stride_b: stride(Some(out), 1),
            out_stride_c: stride(Some(out), 2),
            eps: op.eps,
            ..Default::default()
        };
        let team = Team::of(width);
        let grid = [total_rows.div_ceil(team.block / team.threads), 1, 1];
        Ok(Prepared(Some(Launch::new(self, &team.source(op.kind), &params, grid)?)))
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut CudaRecorder<'_>,
        args: &<Norm as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        _: &CudaMemory,
    ) -> Result<()> {
        let Some(launch) = &prepared.0 else { return Ok(()) };
        let x = match &args.x {
            From::From(x) => Operand::of(x),
            From::InPlace => Operand::absent(),
        };
        let operands = [
            x,
            Operand::maybe(args.rows.as_ref()),
            Operand::maybe(args.add.as_ref()),
            Operand::maybe(args.weight.as_ref()),
            Operand::maybe(args.bias.as_ref()),
            Operand::of(&args.out),
        ];
        // SAFETY: the caller's promise, for the operands in the kernel's order; every index lies within an operand's span: extents are
        // those of `out`, which the check found in all of them, and ids are clamped to the table.
        unsafe { launch.record(self, recorder, &operands) }
    }
}

/// Every kernel of the op.
pub(super) fn instances() -> Vec<Source> {
    let kinds = [NormKind::Layer, NormKind::Rms, NormKind::L2];
    TEAMS.iter().flat_map(|team| kinds.map(|kind| team.source(kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::{TEAMS, Team};

    #[test]
    fn a_row_has_the_smallest_team_whose_registers_hold_it() {
        for (width, name) in [
            (1, "head"),
            (128, "head"),
            (129, "warp"),
            (1024, "warp"),
            (1025, "block"),
            (8192, "block"),
            (9000, "block"),
        ] {
            assert_eq!(Team::of(width).name, name, "width {width}");
        }
        let held = TEAMS.map(|team| 8 * team.threads * team.held);
        assert_eq!(held, [128, 1024, 8192]);
    }
}
