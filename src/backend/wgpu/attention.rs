//! `attention`: one dispatch of the kernel that `variant.rs` chooses, or two for split-K. Before
//! it, one of `attention_visible` if `row_visible` is asked for, and copies of the index operands
//! (`attention_pack`) if they exceed the bindings.
//!
//! **Split-K.** Each chunk of keys leaves a state per row and head in the workspace, and
//! `attention_merge` merges them in ascending order. Chunks are cut by position. Problems whose
//! states together would exceed 64 MiB or a binding run in passes of two dispatches.
//!
//! **Bindings.** q, k, v, out (or states), and in some calls second k and v, log_sum_exp: at most
//! 7. Index operands have bindings of their own while 8 buffers suffice, as for every bridge here;
//! else they are packed into the workspace, which is one binding.
//!
//! The media plan is not read: 32 values of φ per tile say the same. Ragged problems whose offsets
//! descend may overlap: the last problem that has a row writes it, as in the reference.

mod instance;
mod tiling;
mod variant;

pub(super) use instance::{AttentionPackParams, pack_source};
use instance::{Instance, Kernel, index_operands, with_index};
use tiling::Tiling;
use variant::Shape;
pub use variant::WgpuAttentionVariant;

use super::launch::{Launch, Operand, linear_grid, span};
use super::{NAME, Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::backend::gpu::Kernels;
use crate::backend::gpu::attention::{AttentionOperands, AttentionParams, attention_params};
use crate::ops::{Attention, AttentionArgs, Operands};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

#[cfg(test)]
pub(super) use instance::instances;

/// Bytes of the states that one pass may leave in the workspace.
const MOST_STATE_BYTES: usize = 64 << 20;

pub(crate) struct Prepared {
    passes: Vec<Pass>,
    visible: Option<Launch>,
    packs: Vec<Pack>,
    packed_words: Option<usize>,
    /// Bytes of states, for split-K.
    states: Option<usize>,
}

/// The dispatches for some of the problems.
struct Pass {
    main: Launch,
    merge: Option<Launch>,
}

struct Pack {
    /// Its index in `index_operands`.
    operand: usize,
    first: usize,
    launch: Launch,
}

/// Index operands are packed dense: outer extent, rows, words per row.
fn packed_shape(spec: &Spec) -> [usize; 3] {
    match spec.rank() {
        1 => [1, 1, spec.dim(0)],
        2 => [spec.dim(0), 1, spec.dim(1)],
        _ => [spec.dim(0), spec.dim(1), spec.dim(2)],
    }
}

fn pack(backend: &Wgpu, operand: usize, spec: &Spec, first: usize) -> Result<Option<Pack>> {
    let words = spec.elements();
    if words == 0 {
        return Ok(None);
    }
    let [_, rows, width] = packed_shape(spec);
    let params = AttentionPackParams {
        words: words as u32,
        rows: rows as u32,
        width: width as u32,
        stride_b: if spec.rank() == 1 { 0 } else { spec.stride(0) as u32 },
        stride_r: if spec.rank() == 3 { spec.stride(1) as u32 } else { 0 },
        stride_w: spec.stride(spec.rank() - 1) as u32,
        ..Default::default()
    };
    let grid = linear_grid(backend, Attention::NAME, words.div_ceil(256) as u64)?;
    let spans = [span(Some(spec)), Some(4 * words as u64)];
    Ok(Some(Pack { operand, first, launch: Launch::new(backend, &pack_source()?, &params, &spans, grid)? }))
}

impl Prepared {
    /// `named`: the caller's variant. `counted`: tests count visited blocks.
    fn new(
        backend: &Wgpu,
        op: &Attention,
        a: &AttentionArgs<Spec, Spec>,
        named: Option<WgpuAttentionVariant>,
        counted: bool,
    ) -> Result<Self> {
        let sizes = a.sizes();
        let room = usize::try_from(backend.binding_limit()).unwrap_or(usize::MAX).min(MOST_STATE_BYTES);
        let shape = Shape::of(a, room);
        let variant = shape.choose(named).map_err(|what| Error::Unsupported {
            op: Attention::NAME,
            what,
            backend: NAME,
            available: WgpuAttentionVariant::General.name().into(),
        })?;
        let split = variant.chunk_keys().is_some();
        let instance = Instance { counted, ..Instance::of(op, a, split) };
        let mut params = attention_params(op, a);
        let specs = Attention::operands(a);
        let indices = index_operands(&specs);
        let mut spans = specs.map(span);
        spans.visited = counted.then_some(4);
        (spans.row_visible, spans.plan) = (None, None);

        let mut visible = None;
        if let Some(spec) = a.row_visible.as_ref().filter(|spec| spec.elements() > 0 && sizes.batch > 0) {
            let grid = linear_grid(backend, Attention::NAME, spec.elements().div_ceil(256) as u64)?;
            let spans = visible_operands(&specs).map(span).list();
            visible = Some(Launch::new(backend, &instance.source(Kernel::Visible)?, &params, &spans, grid)?);
        }

        let mut prepared =
            Prepared { passes: Vec::new(), visible, packs: Vec::new(), packed_words: None, states: None };
        if a.out.elements() == 0 || sizes.batch == 0 {
            return Ok(prepared);
        }
        if instance.packed {
            let total: u64 = indices.iter().flatten().map(|spec| spec.elements() as u64).sum();
            if total > u64::from(u32::MAX) || isize::try_from(4 * total).is_err() {
                let most = "at most 2^32 - 1 words of index operands together";
                return Err(Error::argument(Attention::NAME, "index operands", most, total));
            }
            let (mut firsts, mut words) = ([0u32; 6], 0);
            for (n, spec) in indices.into_iter().enumerate() {
                let Some(spec) = spec else { continue };
                firsts[n] = words as u32;
                prepared.packs.extend(pack(backend, n, spec, words)?);
                words += spec.elements();
            }
            place_packed(&mut params, firsts, indices);
            spans = with_index(spans, [None; 6]);
            spans.packed = Some(4 * words as u64);
            prepared.packed_words = Some(words);
        }
        let tiling = Tiling::new(&shape, variant, sizes.batch);
        tiling.fill(&mut params);
        let source = instance.source(tiling.kernel)?;
        if !split {
            let grid = linear_grid(backend, Attention::NAME, tiling.workgroups(sizes.batch))?;
            params.turns = tiling.turns(grid, sizes.batch);
            let main = Launch::new(backend, &source, &params, &spans.list(), grid)?;
            prepared.passes.push(Pass { main, merge: None });
            return Ok(prepared);
        }
        // Problems whose states fit share a pass. No result depends on which ones do.
        let per_problem = shape.state_bytes(variant);
        let together = (room / per_problem.max(1)).clamp(1, sizes.batch);
        prepared.states = Some(together * per_problem);
        let mut merged = merged_operands(&spans);
        (spans.out, spans.log_sum_exp) = (None, None);
        for first in (0..sizes.batch).step_by(together) {
            let problems = together.min(sizes.batch - first);
            [params.first_problem, params.problems] = [first as u32, problems as u32];
            let states = Some((problems * per_problem) as u64);
            (spans.states, merged.states) = (states, states);
            let grid = linear_grid(backend, Attention::NAME, tiling.workgroups(problems))?;
            let main = Launch::new(backend, &source, &params, &spans.list(), grid)?;
            let quads = problems * sizes.q_rows * sizes.heads * sizes.head_dim.div_ceil(4);
            let grid = linear_grid(backend, Attention::NAME, quads.div_ceil(256) as u64)?;
            let merge = Launch::new(backend, &instance.source(Kernel::Merge)?, &params, &merged.list(), grid)?;
            prepared.passes.push(Pass { main, merge: Some(merge) });
        }
        Ok(prepared)
    }

    /// Bytes of the workspace before the states.
    fn packed_bytes(&self) -> usize {
        (4 * self.packed_words.unwrap_or(0)).next_multiple_of(16)
    }

    fn record(
        &self,
        backend: &Wgpu,
        recorder: &mut WgpuRecorder<'_>,
        a: &AttentionArgs<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        workspace: &WgpuMemory,
        visited: Option<Operand<'_>>,
    ) -> Result<()> {
        let bound = Attention::operands(a).map(|bound| bound.map(Operand::of));
        if let Some(launch) = &self.visible {
            launch.record(backend, recorder, &visible_operands(&bound).list())?;
        }
        if self.passes.is_empty() {
            return Ok(());
        }
        let mut operands = AttentionOperands { row_visible: None, visited, plan: None, ..bound };
        if self.packed_words.is_some() {
            let packed = Operand::region(workspace, 4);
            let indices = index_operands(&bound);
            for pack in &self.packs {
                pack.launch.record(backend, recorder, &[indices[pack.operand], Some(packed.skip(pack.first))])?;
            }
            operands = with_index(operands, [None; 6]);
            operands.packed = Some(packed);
        }
        let states = self.states.map(|_| Operand::region(workspace, 16).skip(self.packed_bytes() / 16));
        let merged = AttentionOperands { states, ..merged_operands(&operands) };
        if states.is_some() {
            operands = AttentionOperands { out: None, log_sum_exp: None, states, ..operands };
        }
        let (operands, merged) = (operands.list(), merged.list());
        for pass in &self.passes {
            pass.main.record(backend, recorder, &operands)?;
            if let Some(merge) = &pass.merge {
                merge.record(backend, recorder, &merged)?;
            }
        }
        Ok(())
    }
}

fn visible_operands<T: Copy>(o: &AttentionOperands<Option<T>>) -> AttentionOperands<Option<T>> {
    let none = AttentionOperands::default();
    AttentionOperands { row_visible: o.row_visible, ..with_index(none, index_operands(o)) }
}

/// The operands of `attention_merge`, apart from the states.
fn merged_operands<T: Copy>(o: &AttentionOperands<Option<T>>) -> AttentionOperands<Option<T>> {
    AttentionOperands { out: o.out, log_sum_exp: o.log_sum_exp, ..AttentionOperands::default() }
}

/// Sets offsets and strides of packed operands, which are dense.
fn place_packed(params: &mut AttentionParams, firsts: [u32; 6], specs: [Option<&Spec>; 6]) {
    let width = |n: usize| specs[n].map_or(0, |s| if s.rank() == 1 { 1 } else { packed_shape(s)[2] as u32 });
    let p = params;
    p.offsets = with_index(AttentionOperands::default(), firsts).list();
    [p.q_offsets_stride, p.first_mask_stride, p.first_origin_stride] = [width(0), width(1), width(2)];
    [p.second_mask_stride, p.second_origin_stride] = [width(3), width(4)];
    if let Some(spec) = specs[5] {
        // φ has one word per row, a bitset several.
        p.per_row_stride_r = p.per_row_words;
        p.per_row_stride_b = p.per_row_words * spec.dim(1) as u32;
    }
}

impl Implements<Attention> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &Attention, shapes: &AttentionArgs<Spec, Spec>) -> Result<Prepared> {
        Prepared::new(self, op, shapes, self.attention, self.key_block_counter().is_some())
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        match prepared.states {
            Some(bytes) => prepared.packed_bytes() + bytes,
            None => 4 * prepared.packed_words.unwrap_or(0),
        }
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        recorder: &mut WgpuRecorder<'_>,
        args: &<Attention as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        workspace: &WgpuMemory,
    ) -> Result<()> {
        let visited = self.key_block_counter().map(|count| Operand::region(count, 4));
        prepared.record(self, recorder, args, workspace, visited)
    }
}

#[cfg(all(test, feature = "verify"))]
mod tests;
