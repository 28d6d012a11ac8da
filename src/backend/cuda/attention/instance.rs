//! The texts of `attention`'s kernels.

use super::super::compile::{File, KernelText, kernel};
use super::variant::{CudaAttentionVariant, DECODE_HEADS, Form, HOPPER_PAIRS};
use crate::DType;
use crate::backend::gpu::attention::AttentionOperands;
use crate::ops::{Attention, Operands};

const PARAMS: File = kernel!("lib/attention_params.cuh");
const KEYS: File = kernel!("lib/attention_keys.cuh");
const ROWS: File = kernel!("lib/attention_rows.cuh");
const LOGIT: File = kernel!("lib/attention_logit.cuh");
const STATE: File = kernel!("lib/attention_state.cuh");
const STAGE: File = kernel!("lib/attention_stage.cuh");
const MMA: File = kernel!("lib/attention_mma.cuh");
const EPILOGUE: File = kernel!("lib/attention_epilogue.cuh");
const FFMA: File = kernel!("lib/attention_ffma.cuh");
const ATTEND: File = kernel!("lib/attention_attend.cuh");
const WGMMA: File = kernel!("lib/hopper.cuh");
const HOPPER: File = kernel!("lib/attention_hopper.cuh");

pub(super) const THREADS: usize = 128;
/// Keys of a block of keys.
const BLOCK: usize = 64;

/// The sets of keys of each row: `row_sets` in `lib/attention_rows.cuh`.
fn row_sets_bytes(pairs: usize) -> usize {
    28 * pairs + 24 * (pairs / 32)
}

/// `struct BlockWork` there.
const WORK_BYTES: usize = 104;
/// Four `struct Lines` of `lib/attention_stage.cuh`.
const LINES_BYTES: usize = 64;

fn source(entry: String, body: File, pairs: usize, per_row: bool) -> KernelText {
    KernelText::new(Attention::NAME, entry, body, &AttentionOperands::NAMES)
        .threads(THREADS as u32)
        .constant("PAIRS", pairs)
        .constant("PER_ROW", u8::from(per_row))
        .library(PARAMS)
        .library(KEYS)
        .library(ROWS)
        .library(LOGIT)
        .library(STATE)
}

impl Form {
    fn name(self) -> String {
        match self {
            Form::Mma { dtype, columns } => format!("{dtype}_d{columns}"),
            Form::F32 => "f32".into(),
            Form::Any => "any".into(),
        }
    }

    fn element(self) -> &'static str {
        match self {
            Form::Mma { dtype: DType::F16, .. } => "f16",
            Form::Mma { .. } => "bf16",
            Form::F32 | Form::Any => "f32",
        }
    }

    /// The text of a variant whose tiles have that many pairs.
    pub fn source(self, variant: CudaAttentionVariant, pairs: usize) -> KernelText {
        let name = self.name();
        let (word, body) = match variant {
            CudaAttentionVariant::General => ("general", kernel!("attention_general.cu")),
            CudaAttentionVariant::Resampler | CudaAttentionVariant::ResamplerSplit => {
                ("resampler", kernel!("attention_resampler.cu"))
            }
            CudaAttentionVariant::Media => ("media", kernel!("attention_media.cu")),
            CudaAttentionVariant::ResamplerHopper => return self.hopper(pairs),
            CudaAttentionVariant::Decode | CudaAttentionVariant::DecodeSplit => return self.decode(),
        };
        let per_row = variant == CudaAttentionVariant::General;
        let sets = if per_row { row_sets_bytes(pairs) } else { 0 };
        let source = source(format!("attention_{word}_{name}"), body, pairs, per_row);
        match self {
            Form::Mma { columns, .. } => {
                // Keys stay resident for the next tile of rows; its queries are in flight.
                let (places, stages) = if variant == CudaAttentionVariant::Media { (2, 1) } else { (1, 2) };
                let tile = 2 * BLOCK * (columns + 8);
                source
                    .constant("ELEMENT", self.element())
                    .constant("HEAD_DIM", columns)
                    .constant("STAGES", stages)
                    .library(STAGE)
                    .library(MMA)
                    .library(EPILOGUE)
                    .library(ATTEND)
                    .shared_bytes((tile * (places + 2 * stages) + LINES_BYTES + WORK_BYTES + sets) as u32)
                    // 128 and 168 registers per thread hold sums and scores of 16 pairs without
                    // spills. Before Hopper wide heads spill at 168 (scripts/cuda-resources).
                    .min_blocks_by_arch(
                        if columns == 64 && stages == 2 { 4 } else { 3 },
                        match columns {
                            64 if stages == 2 => 4,
                            64 => 3,
                            _ => 2,
                        },
                    )
            }
            Form::F32 | Form::Any => {
                // Staged columns of q and k, scores, states.
                let bytes = 128 * (pairs + BLOCK) + 4 * pairs * BLOCK + 12 * pairs + WORK_BYTES;
                source
                    .constant("ANY", u8::from(self == Form::Any))
                    .library(FFMA)
                    .library(ATTEND)
                    .shared_bytes((bytes + sets) as u32)
                    // 168 registers per thread; plan and runs would spill on sm_80.
                    .min_blocks(if variant == CudaAttentionVariant::Media { 2 } else { 3 })
            }
        }
    }

    fn hopper(self, pairs: usize) -> KernelText {
        let columns = match self {
            Form::Mma { columns, .. } => columns,
            Form::F32 | Form::Any => 128,
        };
        // Blocks per SM, within its 227 KiB, and the stages of K and V that fit then.
        let (blocks, stages) = match (pairs, columns) {
            (64, 64) => (3, 4),
            (64, 96) => (2, 4),
            (128, 64) => (2, 6),
            (256, 64) => (1, 8),
            (256, 128) => (1, 5),
            _ => (1, 6),
        };
        // Tiles of q, K and V; where keys begin, per 8 columns and segment; `Plan`; per stage the
        // live keys and two barriers.
        let tile = 2 * 64 * columns;
        let bytes = tile * (pairs / 64 + 2 * stages) + WORK_BYTES + 2 * 8 * 16 + 16 + 24 * stages;
        source(format!("attention_hopper{pairs}_{}", self.name()), kernel!("attention_hopper.cu"), pairs, false)
            .hopper()
            .threads(2 * pairs as u32)
            .constant("ELEMENT", self.element())
            .constant("HEAD_DIM", columns)
            .constant("STAGES", stages)
            .library(WGMMA)
            .library(HOPPER)
            .shared_bytes(bytes as u32)
            .min_blocks(blocks)
    }

    fn decode(self) -> KernelText {
        let (columns, size) = match self {
            Form::Mma { columns, .. } => (columns, 2),
            Form::F32 | Form::Any => (128, 4),
        };
        // Columns that the lanes of a row hold: a power of two times 16 bytes.
        let group = (columns * size / 16).next_power_of_two();
        let held = group * 16 / size;
        let bytes = 4 * DECODE_HEADS * (held + BLOCK + 3) + 4 * (THREADS / group) * held;
        source(format!("attention_decode_{}", self.name()), kernel!("attention_decode.cu"), 32, false)
            .constant("ELEMENT", self.element())
            .constant("HEAD_DIM", columns)
            .shared_bytes(bytes as u32)
            // 168 registers per thread: keys in flight, and the sums of eight heads.
            .min_blocks(3)
    }
}

pub(super) fn merge() -> KernelText {
    source("attention_merge".into(), kernel!("attention_merge.cu"), 32, false)
}

pub(super) fn visible() -> KernelText {
    source("attention_visible".into(), kernel!("attention_visible.cu"), 32, true)
}

pub(in crate::backend::cuda) fn instances() -> Vec<KernelText> {
    let variants = [
        CudaAttentionVariant::Media,
        CudaAttentionVariant::Resampler,
        CudaAttentionVariant::Decode,
        CudaAttentionVariant::General,
    ];
    let mma = [DType::F16, DType::BF16]
        .into_iter()
        .flat_map(|dtype| [64, 96, 128].map(|columns| Form::Mma { dtype, columns }));
    let mut all: Vec<KernelText> = mma
        .clone()
        .chain([Form::F32])
        .flat_map(|form| variants.map(|variant| form.source(variant, form.pairs())))
        .collect();
    all.extend([Form::Any.source(CudaAttentionVariant::General, Form::Any.pairs()), merge(), visible()]);
    all.extend(
        mma.flat_map(|form| HOPPER_PAIRS.map(|pairs| form.source(CudaAttentionVariant::ResamplerHopper, pairs))),
    );
    all
}
