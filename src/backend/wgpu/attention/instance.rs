//! The texts of `attention`'s shaders.

use super::super::shader_text::{Binding, ShaderText, Text, lib};
use super::variant::PAIRS;
use crate::backend::gpu::attention::{AttentionOperands, mask_kind, origin_kind, policy, rule};
use crate::backend::gpu::{Kernels, operands, params};
use crate::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Operands, Segment};
use crate::tensor::Spec;
use crate::{DType, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    General,
    Media,
    /// Heads per workgroup: a power of two.
    Decode {
        heads: u32,
    },
    /// Split-K: results from the states of the chunks.
    Merge,
    Visible,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentInstance {
    pub k: DType,
    pub v: DType,
    /// As in `lib/attention_keys.wgsl`: 0 all, 1 lengths, 2 bits.
    pub mask: u32,
    /// 0 the problem's number, 1 cache entries, 2 offsets.
    pub origin: u32,
}

impl SegmentInstance {
    fn of(segment: &Segment<Spec>) -> Self {
        let (mask, origin) = (mask_kind(&segment.keys), origin_kind(segment));
        SegmentInstance { k: segment.k.dtype(), v: segment.v.dtype(), mask, origin }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Instance {
    pub head_dim: usize,
    pub q: DType,
    pub out: DType,
    pub first: SegmentInstance,
    pub second: Option<SegmentInstance>,
    /// As in `lib/attention_keys.wgsl`: 0 all, 1 same media, 2 preceding media, 3 prefix, 4 bits.
    pub rule: u32,
    /// Whether the rule has an operand: φ, bits, or causal offsets.
    pub per_row: bool,
    pub empty_rows: EmptyRows,
    pub ragged_q: bool,
    pub log_sum_exp: bool,
    /// Index operands share one binding.
    pub packed: bool,
    /// Split-K: `attention_merge` merges the states of chunks.
    pub split: bool,
    /// Tests count visited blocks.
    pub counted: bool,
}

/// Storage buffers that WebGPU's default limits allow.
const BINDINGS: usize = 8;

impl Instance {
    pub fn of(op: &Attention, a: &AttentionArgs<Spec, Spec>, split: bool) -> Self {
        let operands = Attention::operands(a);
        // States replace the results.
        let results = 1 + usize::from(a.log_sum_exp.is_some() && !split);
        let reals = 3 + 2 * usize::from(a.second.is_some()) + results;
        Instance {
            head_dim: a.q.dim(3),
            q: a.q.dtype(),
            out: a.out.dtype(),
            first: SegmentInstance::of(&a.first),
            second: a.second.as_ref().map(SegmentInstance::of),
            rule: rule(&a.visibility),
            per_row: operands.per_row.is_some(),
            empty_rows: op.empty_rows,
            ragged_q: a.q_offsets.is_some(),
            log_sum_exp: a.log_sum_exp.is_some(),
            packed: reals + index_operands(&operands).into_iter().flatten().count() > BINDINGS,
            split,
            counted: false,
        }
    }

    pub fn source(&self, kernel: Kernel) -> Result<ShaderText> {
        let (entry, body) = match kernel {
            Kernel::General => ("attention_general", include_str!("../../../../shaders/attention_general.wgsl")),
            Kernel::Media => ("attention_media", include_str!("../../../../shaders/attention_media.wgsl")),
            Kernel::Decode { .. } => ("attention_decode", include_str!("../../../../shaders/attention_decode.wgsl")),
            Kernel::Merge => ("attention_merge", include_str!("../../../../shaders/attention_merge.wgsl")),
            Kernel::Visible => ("attention_visible", include_str!("../../../../shaders/attention_visible.wgsl")),
        };
        // `sweeps`: kernels that read K and V. `finishes`: kernels that write the output.
        let sweeps = !matches!(kernel, Kernel::Visible | Kernel::Merge);
        let finishes = kernel == Kernel::Merge || (sweeps && !self.split);
        let empty = &self.empty_rows;
        let policy = |p| format!("{}u", policy(p));
        let second = self.second;
        let (mask2, origin2) = second.map_or((0, 0), |s| (s.mask, s.origin));
        let packed = self.packed && sweeps;
        // φ is read as words too; `u32` and `i32` share its bits.
        let index = |present: bool| match present && kernel != Kernel::Merge {
            true if packed => Text::template(lib::READ_PACKED, Binding::Absent),
            present => Text::u32(present),
        };
        let mut source = ShaderText::new(Attention::NAME, entry, body)
            .library(lib::GRID)
            .library(lib::ATTENTION_PARAMS)
            .library(lib::ATTENTION_KEYS)
            .constant("RULE", format!("{}u", self.rule))
            .fragment("first", lib::ATTENTION_SEGMENT)
            .constant("first_mask_kind", format!("{}u", self.first.mask))
            .constant("first_origin_kind", format!("{}u", self.first.origin))
            .fragment("second", lib::ATTENTION_SEGMENT)
            .constant("second_mask_kind", format!("{mask2}u"))
            .constant("second_origin_kind", format!("{origin2}u"))
            .constant("NO_MEDIA", policy(empty.no_media))
            .constant("BEYOND_MEDIA", policy(empty.beyond_media))
            .constant("MASKED", policy(empty.masked));
        if kernel != Kernel::Visible {
            let compat = [empty.no_media, empty.beyond_media, empty.masked].iter().any(|&p| p != EmptyRow::Zero);
            source = source
                .constant("HEAD_DIM", format!("{}u", self.head_dim))
                .constant("COMPAT", compat)
                .constant("SPLIT", self.split)
                .library(lib::MATH)
                .library(lib::LOG)
                .library(lib::ATTENTION_ROWS)
                .library(lib::ATTENTION_LOGIT)
                .library(lib::ATTENTION_STATE);
        }
        source = match kernel {
            Kernel::General | Kernel::Media => source
                .constant("PAIRS", format!("{PAIRS}u"))
                .library(lib::ATTENTION_TILE)
                .workgroup_bytes(TILE_BYTES + if kernel == Kernel::Media { 2 * 16 } else { 0 }),
            Kernel::Decode { heads } => source
                .constant("PAIRS", format!("{heads}u"))
                .workgroup_bytes(decode_bytes(heads, self.head_dim.div_ceil(4) as u32)),
            Kernel::Merge | Kernel::Visible => source,
        };
        let real = |dtype: Option<DType>| Text::real(dtype.filter(|_| sweeps));
        let when = |present: bool, text, absent| match present {
            true => Text::template(text, Binding::Shared),
            false => Text::template(absent, Binding::Absent),
        };
        let operands = AttentionOperands {
            q: real(Some(self.q)),
            q_offsets: index(self.ragged_q),
            first_k: real(Some(self.first.k)),
            first_v: real(Some(self.first.v)),
            first_mask: index(self.first.mask > 0),
            first_origin: index(self.first.origin > 0),
            second_k: real(second.map(|s| s.k)),
            second_v: real(second.map(|s| s.v)),
            second_mask: index(mask2 > 0),
            second_origin: index(origin2 > 0),
            per_row: index(self.per_row),
            packed: Text::u32(packed),
            out: if finishes { Text::write(self.out) } else { Text::template(lib::WRITE_ABSENT, Binding::Absent) },
            log_sum_exp: Text::store(self.log_sum_exp && finishes),
            row_visible: Text::store(kernel == Kernel::Visible),
            visited: when(self.counted && sweeps, lib::COUNT, lib::COUNT_ABSENT),
            plan: Text::unnamed(),
            states: when(self.split && kernel != Kernel::Visible, lib::STATES, lib::STATES_ABSENT),
        };
        source.operands_of(&AttentionOperands::NAMES, operands)
    }
}

/// Workgroup memory of a tile: stage, scores, three states and partial results, key sets and
/// ranges, what rows get, tile and bounds.
const TILE_BYTES: u32 = {
    let pairs = PAIRS as u32;
    let (stage, scores, states) = (16 * 4 * (pairs + 64), 16 * 16 * pairs, 3 * 4 * pairs);
    let (partial, keys_and_ranges, gets) = (4 * 4 * pairs, 2 * 8 * pairs, 4 * pairs);
    stage + scores + states + partial + keys_and_ranges + gets + 48 + 16
};

/// Workgroup memory of `attention_decode`: q, scores, sums, partial results, three states, the
/// block's keys, a flag, job and reach.
fn decode_bytes(heads: u32, quads: u32) -> u32 {
    16 * heads * quads + 1024 * heads + 2048 + 1024 + (12 * heads).next_multiple_of(16) + 16 + 16 + 48 + 16
}

operands! {
    /// See `shaders/attention_pack.wgsl`.
    AttentionPackOperands { index, packed }
}

params! {
    /// See `shaders/attention_pack.wgsl`.
    AttentionPackParams of AttentionPackOperands {
        words: u32,
        rows: u32,
        width: u32,
        stride_b: u32,
        stride_r: u32,
        stride_w: u32,
    }
}

pub(in crate::backend::wgpu) fn pack_source() -> Result<ShaderText> {
    let text = include_str!("../../../../shaders/attention_pack.wgsl");
    let operands = AttentionPackOperands { index: Text::u32(true), packed: Text::store(true) };
    let source = ShaderText::new(Attention::NAME, "attention_pack", text).library(lib::GRID);
    source.operands_of(&AttentionPackOperands::NAMES, operands)
}

/// The operands that may be packed, in the order of the list.
pub(super) fn index_operands<T: Copy>(o: &AttentionOperands<T>) -> [T; 6] {
    [o.q_offsets, o.first_mask, o.first_origin, o.second_mask, o.second_origin, o.per_row]
}

pub(super) fn with_index<T>(o: AttentionOperands<T>, index: [T; 6]) -> AttentionOperands<T> {
    let [q_offsets, first_mask, first_origin, second_mask, second_origin, per_row] = index;
    AttentionOperands { q_offsets, first_mask, first_origin, second_mask, second_origin, per_row, ..o }
}

/// Every kernel with every rule, operand and dtype, not all crossed: accessors are independent.
#[cfg(test)]
pub(in crate::backend::wgpu) fn instances() -> Vec<ShaderText> {
    use super::super::tests::REALS;
    let mut all = Vec::new();
    let segment = |n: usize| SegmentInstance {
        k: REALS[n % 3],
        v: REALS[n / 3 % 3],
        mask: n as u32 % 3,
        origin: n as u32 / 3 % 3,
    };
    for (n, head_dim) in [1, 7, 8, 24, 40, 64, 80, 96, 128, 200].into_iter().enumerate() {
        for rule in 0..5u32 {
            for with_second in [false, true] {
                for empty in [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll] {
                    let at = n + rule as usize;
                    let instance = Instance {
                        head_dim,
                        q: REALS[at % 3],
                        out: REALS[(n + at) % 3],
                        first: segment(at),
                        second: with_second.then(|| segment(2 * at + 1)),
                        rule,
                        per_row: rule != 0 && (rule != 3 || n % 2 == 0),
                        empty_rows: EmptyRows::all(empty),
                        ragged_q: at % 2 == 1,
                        log_sum_exp: n % 2 == 1,
                        packed: true,
                        split: false,
                        counted: false,
                    };
                    let heads = 1 << (at % 4);
                    all.push(instance.source(Kernel::General).unwrap());
                    all.push(
                        instance
                            .source(Kernel::Decode { heads: heads.min(if head_dim > 128 { 4 } else { 8 }) })
                            .unwrap(),
                    );
                    all.push(instance.source(Kernel::Visible).unwrap());
                    if rule == 1 {
                        all.push(instance.source(Kernel::Media).unwrap());
                    }
                    let split = Instance { split: true, ragged_q: false, ..instance };
                    all.push(split.source(Kernel::General).unwrap());
                    all.push(split.source(Kernel::Decode { heads: 1 }).unwrap());
                    all.push(split.source(Kernel::Merge).unwrap());
                    if !with_second {
                        let plain = SegmentInstance { mask: 0, origin: 0, ..segment(at) };
                        let direct = Instance { packed: false, first: plain, counted: n % 2 == 0, ..instance };
                        all.push(direct.source(Kernel::General).unwrap());
                    }
                }
            }
        }
    }
    all
}
