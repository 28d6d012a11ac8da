//! `norm`: `kernels/norm.cu`, one launch.

use super::compile::{File, KernelText, kernel};
use super::launch::Launch;
use super::{Cuda, NAME};
use crate::backend::expect_reals;
use crate::backend::gpu::OneLaunch;
use crate::backend::gpu::norm::{NormOperands, norm_params};
use crate::ops::{Norm, NormArgs, NormKind, Operands};
use crate::tensor::Spec;
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
    /// Blocks per SM that registers leave room for.
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

    fn source(&self, kind: NormKind) -> KernelText {
        let (kind, word) = match kind {
            NormKind::Layer => ("LAYER", "layer"),
            NormKind::Rms => ("RMS", "rms"),
            NormKind::L2 => ("L2", "l2"),
        };
        KernelText::new(Norm::NAME, format!("norm_{word}_{}", self.name), kernel!("norm.cu"), &NormOperands::NAMES)
            .library(COLUMNS)
            .constant("KIND", kind)
            .constant("TEAM", self.threads)
            .constant("HELD", self.held)
            .threads(self.block)
            .min_blocks(self.blocks)
            .shared_bytes(if self.threads > 32 { 4 * self.block / 32 } else { 0 })
    }
}

/// Every index lies within an operand's span: extents are those of `out`, which the check found in
/// all operands, and ids are clamped to the table.
impl OneLaunch<Norm> for Cuda {
    fn plan(&self, op: &Norm, shapes: &NormArgs<Spec, Spec>) -> Result<Option<Launch>> {
        let out = &shapes.out;
        expect_reals::<Norm>(NAME, shapes)?;
        if out.elements() == 0 {
            return Ok(None);
        }
        let width = out.dim(3);
        // Kernels count columns in 32 bits, in steps of 2048.
        if width > u32::MAX as usize - 8192 {
            return Err(Error::argument(Norm::NAME, "out", "a width of at most 2^32 - 8193", out));
        }
        if u32::try_from(out.elements() / width).is_err() {
            return Err(Error::argument(Norm::NAME, "out", "at most 2^32 - 1 rows", out));
        }
        let params = norm_params(op, shapes);
        let team = Team::of(width);
        let grid = [params.total_rows.div_ceil(team.block / team.threads), 1, 1];
        Ok(Some(Launch::new(self, &team.source(op.kind), &params, grid)?))
    }
}

pub(super) fn instances() -> Vec<KernelText> {
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
