//! What the text of `attention`'s shaders depends on.

use super::super::source::{Absent, Slot, Source, lib};
use crate::backend::gpu::{exists, per_row, place};
use crate::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Operands, Segment, Visibility};
use crate::tensor::Spec;
use crate::{DType, Result};

/// The kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    General,
    Media,
    /// Heads of a workgroup: a power of two.
    Decode {
        heads: u32,
    },
    /// Results from the states of chunks.
    Merge,
    /// `row_visible` alone.
    Visible,
}

/// A K/V segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentInstance {
    pub k: DType,
    pub v: DType,
    /// As in `lib/attention_keys.wgsl`: 0 all, 1 lengths, 2 bits.
    pub keys: u32,
    /// 0 the problem's number, 1 slots, 2 offsets.
    pub place: u32,
}

impl SegmentInstance {
    fn of(segment: &Segment<Spec>) -> Self {
        let keys = match &segment.keys {
            Keys::All => 0,
            Keys::Lengths(_) => 1,
            Keys::Bits(_) => 2,
        };
        let place = match (&segment.slots, &segment.offsets) {
            (_, Some(_)) => 2,
            (Some(_), None) => 1,
            (None, None) => 0,
        };
        SegmentInstance { k: segment.k.dtype(), v: segment.v.dtype(), keys, place }
    }
}

/// One text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instance {
    pub head_dim: usize,
    pub q: DType,
    pub out: DType,
    pub first: SegmentInstance,
    pub second: Option<SegmentInstance>,
    /// As in `lib/attention_keys.wgsl`: 0 all, 1 same media, 2 preceding media, 3 prefix, 4 bits.
    pub rule: u32,
    /// Whether the rule reads an operand: φ, bits, or causal offsets.
    pub per_row: bool,
    pub empty_rows: EmptyRows,
    pub ragged_q: bool,
    pub log_sum_exp: bool,
    /// Index operands come in one binding.
    pub packed: bool,
    /// Keys come in chunks whose states `attention_merge` merges.
    pub split: bool,
    /// Visited blocks are counted: for tests.
    pub counted: bool,
}

/// Storage buffers that WebGPU's default limits allow.
const BINDINGS: usize = 8;

impl Instance {
    pub fn of(op: &Attention, a: &AttentionArgs<Spec, Spec>, split: bool) -> Self {
        let rule = match &a.visibility {
            Visibility::All => 0,
            Visibility::SameMedia(_) => 1,
            Visibility::PrecedingMedia(_) => 2,
            Visibility::PrefixCausal { .. } => 3,
            Visibility::MediaBits { .. } => 4,
        };
        // States take the place of the results.
        let results = 1 + usize::from(a.log_sum_exp.is_some() && !split);
        let reals = 3 + 2 * usize::from(a.second.is_some()) + results;
        Instance {
            head_dim: a.q.dim(3),
            q: a.q.dtype(),
            out: a.out.dtype(),
            first: SegmentInstance::of(&a.first),
            second: a.second.as_ref().map(SegmentInstance::of),
            rule,
            per_row: per_row(&a.visibility).is_some(),
            empty_rows: op.empty_rows,
            ragged_q: a.q_offsets.is_some(),
            log_sum_exp: a.log_sum_exp.is_some(),
            packed: reals + index_operands(a).into_iter().flatten().count() > BINDINGS,
            split,
            counted: false,
        }
    }

    pub fn source(&self, kernel: Kernel) -> Result<Source> {
        let (entry, body) = match kernel {
            Kernel::General => ("attention_general", include_str!("../../../../shaders/attention_general.wgsl")),
            Kernel::Media => ("attention_media", include_str!("../../../../shaders/attention_media.wgsl")),
            Kernel::Decode { .. } => ("attention_decode", include_str!("../../../../shaders/attention_decode.wgsl")),
            Kernel::Merge => ("attention_merge", include_str!("../../../../shaders/attention_merge.wgsl")),
            Kernel::Visible => ("attention_visible", include_str!("../../../../shaders/attention_visible.wgsl")),
        };
        // Who reads keys, and who writes results.
        let sweeps = !matches!(kernel, Kernel::Visible | Kernel::Merge);
        let finishes = kernel == Kernel::Merge || (sweeps && !self.split);
        let empty = &self.empty_rows;
        let policy = |p| format!("{}u", policy(p));
        let second = self.second;
        let (keys2, place2) = second.map_or((0, 0), |s| (s.keys, s.place));
        let packed = self.packed && sweeps;
        let index = |present: bool| (present && kernel != Kernel::Merge, packed);
        let mut source = Source::new(Attention::NAME, entry, body)
            .library(lib::GRID)
            .library(lib::ATTENTION_PARAMS)
            .library(lib::ATTENTION_KEYS)
            .constant("RULE", format!("{}u", self.rule))
            .fragment("first", lib::ATTENTION_SEGMENT)
            .constant("first_keys_kind", format!("{}u", self.first.keys))
            .constant("first_place_kind", format!("{}u", self.first.place))
            .fragment("second", lib::ATTENTION_SEGMENT)
            .constant("second_keys_kind", format!("{keys2}u"))
            .constant("second_place_kind", format!("{place2}u"))
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
            Kernel::General => source.library(lib::ATTENTION_TILE).workgroup_bytes(TILE_BYTES),
            Kernel::Media => source.library(lib::ATTENTION_TILE).workgroup_bytes(TILE_BYTES + 2 * 16),
            Kernel::Decode { heads } => source
                .constant("PAIRS", format!("{heads}u"))
                .workgroup_bytes(decode_bytes(heads, self.head_dim.div_ceil(4) as u32)),
            Kernel::Merge | Kernel::Visible => source,
        };
        let real = |dtype: DType| sweeps.then_some(dtype);
        source = source.read("q", real(self.q), Absent::Real)?;
        source = read_index(source, "q_offsets", index(self.ragged_q));
        source = source.read("first_k", real(self.first.k), Absent::Real)?;
        source = source.read("first_v", real(self.first.v), Absent::Real)?;
        source = read_index(source, "first_keys", index(self.first.keys > 0));
        source = read_index(source, "first_place", index(self.first.place > 0));
        source = source.read("second_k", second.and_then(|s| real(s.k)), Absent::Real)?;
        source = source.read("second_v", second.and_then(|s| real(s.v)), Absent::Real)?;
        source = read_index(source, "second_keys", index(keys2 > 0));
        source = read_index(source, "second_place", index(place2 > 0));
        source = read_index(source, "per_row", index(self.per_row));
        source = read_index(source, "packed", (packed, false));
        source = match finishes {
            true => source.write("out", self.out)?,
            false => source.operand("out", lib::WRITE_ABSENT, Slot::Absent, ""),
        };
        source = store(source, "log_sum_exp", self.log_sum_exp && finishes);
        source = store(source, "row_visible", kernel == Kernel::Visible);
        source = match self.counted && sweeps {
            true => source.operand("visited", lib::COUNT, Slot::Shared, ""),
            false => source.operand("visited", lib::COUNT_ABSENT, Slot::Absent, ""),
        };
        Ok(match self.split && kernel != Kernel::Visible {
            true => source.operand("states", lib::STATES, Slot::Shared, ""),
            false => source.operand("states", lib::STATES_ABSENT, Slot::Absent, ""),
        })
    }
}

/// Workgroup memory of a tile: stage, scores, three states and partial results, key sets and ranges, what rows get, tile and bounds.
const TILE_BYTES: u32 = 16 * 384 + 16 * 512 + 3 * 128 + 512 + 2 * 256 + 128 + 48 + 16;

/// Workgroup memory of `attention_decode`: q, scores, sums, partial results, three states, the block's keys, a flag, job and reach.
fn decode_bytes(heads: u32, quads: u32) -> u32 {
    16 * heads * quads + 1024 * heads + 2048 + 1024 + (12 * heads).next_multiple_of(16) + 16 + 16 + 48 + 16
}

/// The copy of one index operand.
pub(in crate::backend::wgpu) fn pack_source() -> Source {
    let text = include_str!("../../../../shaders/attention_pack.wgsl");
    let source = Source::new(Attention::NAME, "attention_pack", text).library(lib::GRID);
    store(read_index(source, "index", (true, false)), "packed", true)
}

/// φ is read as words too: its bits are what `u32` and `i32` share.
fn read_index(source: Source, name: &'static str, (present, packed): (bool, bool)) -> Source {
    match (present, packed) {
        (false, _) => source.operand(name, lib::ABSENT_U32, Slot::Absent, ""),
        (true, true) => source.operand(name, lib::READ_PACKED, Slot::Absent, ""),
        (true, false) => source.operand(name, lib::READ_U32, Slot::Shared, ""),
    }
}

fn store(source: Source, name: &'static str, present: bool) -> Source {
    match present {
        true => source.operand(name, lib::STORE_U32, Slot::Shared, ""),
        false => source.operand(name, lib::STORE_ABSENT, Slot::Absent, ""),
    }
}

fn policy(policy: EmptyRow) -> u32 {
    match policy {
        EmptyRow::Zero => 0,
        EmptyRow::Uniform => 1,
        EmptyRow::AttendAll => 2,
    }
}

/// q_offsets, first keys and place, second keys and place, what the rule reads: in the order of the shaders' operands.
pub(super) fn index_operands<R, W>(a: &AttentionArgs<R, W>) -> [Option<&R>; 6] {
    let second = a.second.as_ref();
    [
        a.q_offsets.as_ref(),
        exists(&a.first.keys),
        place(&a.first),
        second.and_then(|s| exists(&s.keys)),
        second.and_then(place),
        per_row(&a.visibility),
    ]
}

/// Every kernel with every rule, operand and dtype, not all of them crossed: accessors do not depend on each other.
#[cfg(test)]
pub(in crate::backend::wgpu) fn instances() -> Vec<Source> {
    use super::super::tests::REALS;
    let mut all = Vec::new();
    let segment = |n: usize| SegmentInstance {
        k: REALS[n % 3],
        v: REALS[n / 3 % 3],
        keys: n as u32 % 3,
        place: n as u32 / 3 % 3,
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
                        let plain = SegmentInstance { keys: 0, place: 0, ..segment(at) };
                        let direct = Instance { packed: false, first: plain, counted: n % 2 == 0, ..instance };
                        all.push(direct.source(Kernel::General).unwrap());
                    }
                }
            }
        }
    }
    all
}
