//! `norm`: one dispatch. `shaders/norm.wgsl`, or for wide rows on the second tier `shaders/norm_subgroups.wgsl`.

use super::launch::{Launch, Operand, linear_grid, span};
use super::source::{Absent, Source, lib};
use super::{Tier, Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::backend::gpu::NormParams;
use crate::ops::{Norm, NormArgs, NormKind, Operands, Source as From};
use crate::tensor::{Bound, Spec};
use crate::{DType, Result};

/// What the text depends on.
#[derive(Clone, Copy)]
struct Instance {
    kind: NormKind,
    team: usize,
    /// Sums by subgroups: only where the team is the workgroup.
    subgroups: bool,
    x: Option<DType>,
    gathers: bool,
    add: Option<DType>,
    weight: Option<DType>,
    bias: Option<DType>,
    out: DType,
}

impl Instance {
    fn source(self) -> Result<Source> {
        let kind = match self.kind {
            NormKind::Layer => "LAYER",
            NormKind::Rms => "RMS",
            NormKind::L2 => "L2",
        };
        let source = match self.subgroups {
            true => {
                let text = include_str!("../../../shaders/norm_subgroups.wgsl");
                let source = Source::new(Norm::NAME, "norm_subgroups", text);
                source.subgroups().workgroup_bytes(4 * 64).library(lib::TEAM_SUM_SUBGROUPS)
            }
            false => {
                let source = Source::new(Norm::NAME, "norm", include_str!("../../../shaders/norm.wgsl"));
                source.workgroup_bytes(4 * 256).library(lib::TEAM_SUM)
            }
        };
        source
            .constant("KIND", kind)
            .constant("TEAM", format_args!("{}u", self.team))
            .library(lib::GRID)
            .library(lib::NORM_ROWS)
            .read("x", self.x, Absent::Real)?
            .read("rows", self.gathers.then_some(DType::I32), Absent::I32)?
            .read("add", self.add, Absent::Real)?
            .read("weight", self.weight, Absent::Real)?
            .read("bias", self.bias, Absent::Real)?
            .write("out", self.out)
    }
}

/// Invocations per row: a power of two such that each has about four words, at most a workgroup.
fn team(width: usize) -> usize {
    (width / 8).next_power_of_two().clamp(8, 256)
}

/// A `norm`, planned. None where there is nothing to do.
pub(crate) struct Prepared(Option<Launch>);

impl Implements<Norm> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &Norm, shapes: &NormArgs<Spec, Spec>) -> Result<Prepared> {
        let out = &shapes.out;
        let x = match &shapes.x {
            From::From(x) => Some(x),
            From::InPlace => None,
        };
        let dtype = |spec: &Option<Spec>| spec.as_ref().map(Spec::dtype);
        let team = team(out.dim(3));
        let source = Instance {
            kind: op.kind,
            team,
            subgroups: self.tier == Tier::SubgroupsF16 && team == 256,
            x: x.map(Spec::dtype),
            gathers: shapes.rows.is_some(),
            add: dtype(&shapes.add),
            weight: dtype(&shapes.weight),
            bias: dtype(&shapes.bias),
            out: out.dtype(),
        }
        .source()?;
        if out.elements() == 0 {
            return Ok(Prepared(None));
        }
        let total = out.elements() / out.dim(3);
        let stride = |spec: Option<&Spec>, d: usize| spec.map_or(0, |s| s.stride(d) as u32);
        let (rows, add) = (shapes.rows.as_ref(), shapes.add.as_ref());
        let params = NormParams {
            total_rows: total as u32,
            dim_b: out.dim(1) as u32,
            dim_c: out.dim(2) as u32,
            width: out.dim(3) as u32,
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
        let spans = [
            x.and_then(span),
            rows.and_then(span),
            add.and_then(span),
            shapes.weight.as_ref().and_then(span),
            shapes.bias.as_ref().and_then(span),
            span(out),
        ];
        let grid = linear_grid(self, Norm::NAME, total.div_ceil(256 / team) as u64)?;
        Ok(Prepared(Some(Launch::new(self, &source, &params, &spans, grid)?)))
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut WgpuRecorder<'_>,
        args: &<Norm as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        let Some(launch) = &prepared.0 else { return Ok(()) };
        let x = match &args.x {
            From::From(x) => Some(Operand::of(x)),
            From::InPlace => None,
        };
        let operands = [
            x,
            args.rows.as_ref().map(Operand::of),
            args.add.as_ref().map(Operand::of),
            args.weight.as_ref().map(Operand::of),
            args.bias.as_ref().map(Operand::of),
            Some(Operand::of(&args.out)),
        ];
        launch.record(self, recorder, &operands)
    }
}

/// Every shader of the op, apart from mixtures of dtypes: each operand's accessors are the same in all of them.
#[cfg(test)]
pub(super) fn instances() -> Vec<Source> {
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
