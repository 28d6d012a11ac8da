//! `norm`: one dispatch of `norm.wgsl`, or of `norm_subgroups.wgsl` (wide rows, upper tier).

use super::launch::{Launch, linear_grid, span};
use super::shader_text::{ShaderText, Text, lib};
use super::{Wgpu, WgpuTier};
use crate::backend::gpu::norm::{NormOperands, norm_params};
use crate::backend::gpu::{Kernels, OneLaunch};
use crate::ops::{Norm, NormArgs, NormKind, Operands};
use crate::tensor::Spec;
use crate::{DType, Result};

#[derive(Clone, Copy)]
struct Instance {
    kind: NormKind,
    team: usize,
    /// Sums by subgroups: only for a team of a whole workgroup.
    subgroups: bool,
    x: Option<DType>,
    gathers: bool,
    add: Option<DType>,
    weight: Option<DType>,
    bias: Option<DType>,
    out: DType,
}

impl Instance {
    fn source(self) -> Result<ShaderText> {
        let kind = match self.kind {
            NormKind::Layer => "LAYER",
            NormKind::Rms => "RMS",
            NormKind::L2 => "L2",
        };
        let source = match self.subgroups {
            true => {
                let text = include_str!("../../../shaders/norm_subgroups.wgsl");
                let source = ShaderText::new(Norm::NAME, "norm_subgroups", text);
                source.subgroups().workgroup_bytes(4 * 64).library(lib::TEAM_SUM_SUBGROUPS)
            }
            false => {
                let source = ShaderText::new(Norm::NAME, "norm", include_str!("../../../shaders/norm.wgsl"));
                source.workgroup_bytes(4 * 256).library(lib::TEAM_SUM)
            }
        };
        let operands = NormOperands {
            x: Text::real(self.x),
            rows: Text::i32(self.gathers),
            add: Text::real(self.add),
            weight: Text::real(self.weight),
            bias: Text::real(self.bias),
            out: Text::write(self.out),
        };
        source
            .constant("KIND", kind)
            .constant("TEAM", format_args!("{}u", self.team))
            .library(lib::GRID)
            .library(lib::NORM_ROWS)
            .operands_of(&NormOperands::NAMES, operands)
    }
}

/// Invocations per row: a power of two, about four words for each, at most a workgroup.
fn team(width: usize) -> usize {
    (width / 8).next_power_of_two().clamp(8, 256)
}

impl OneLaunch<Norm> for Wgpu {
    fn plan(&self, op: &Norm, shapes: &NormArgs<Spec, Spec>) -> Result<Option<Launch>> {
        let (operands, out) = (Norm::operands(shapes), &shapes.out);
        let dtypes = operands.map(|spec| spec.map(Spec::dtype));
        let team = team(out.dim(3));
        let source = Instance {
            kind: op.kind,
            team,
            subgroups: self.tier == WgpuTier::SubgroupsF16 && team == 256,
            x: dtypes.x,
            gathers: shapes.rows.is_some(),
            add: dtypes.add,
            weight: dtypes.weight,
            bias: dtypes.bias,
            out: out.dtype(),
        }
        .source()?;
        if out.elements() == 0 {
            return Ok(None);
        }
        let params = norm_params(op, shapes);
        let rows = out.elements() / out.dim(3);
        let grid = linear_grid(self, Norm::NAME, rows.div_ceil(256 / team) as u64)?;
        Ok(Some(Launch::new(self, &source, &params, &operands.map(span).list(), grid)?))
    }
}

/// Every shader of the op but for mixtures of dtypes, which the accessors do not depend on.
#[cfg(test)]
pub(super) fn instances() -> Vec<ShaderText> {
    use super::tests::{REALS, optional};
    const TEAMS: [(usize, bool); 4] = [(8, false), (64, false), (256, false), (256, true)];
    let mut all = Vec::new();
    for kind in [NormKind::Layer, NormKind::Rms, NormKind::L2] {
        for (team, subgroups) in TEAMS {
            for out in REALS {
                for x in optional(&[out]) {
                    for gathers in [false, true] {
                        for add in optional(&REALS) {
                            for weight in optional(&[DType::F32, out]) {
                                let bias = weight;
                                let instance = Instance { kind, team, subgroups, x, gathers, add, weight, bias, out };
                                all.push(instance.source().unwrap());
                            }
                        }
                    }
                }
            }
        }
    }
    all
}
