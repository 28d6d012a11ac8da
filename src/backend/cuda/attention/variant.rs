//! Which kernel serves which call of `attention`.

use std::fmt;
use std::str::FromStr;

use super::super::runtime::NAME;
use super::super::runtime::arch::Arch;
use crate::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Operands, Visibility};
use crate::tensor::Spec;
use crate::{DType, Error, Result};

/// A kernel of `attention` on CUDA, for tests and profilers to name in
/// [`CudaOptions`](super::super::CudaOptions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CudaAttentionVariant {
    /// A tile of (row, head) pairs visits the key blocks that some row may see. Serves everything.
    General,
    /// All rows of a problem see the same keys. Serves [`Visibility::All`].
    Resampler,
    /// `Resampler` with split-K in chunks of 512 keys and a merge launch. Serves dense queries.
    ResamplerSplit,
    /// `Resampler` on the tensor cores of compute capability 9.0, up to 256 pairs per block. Serves
    /// 16-bit elements there.
    ResamplerHopper,
    /// Tiles are cut at the runs of φ and stream past the keys of their medium. Serves
    /// [`Visibility::SameMedia`].
    Media,
    /// A row and up to 8 heads that share a K/V head. Serves every rule.
    Decode,
    /// `Decode` with split-K: chunks of 256 keys, merged by a second launch. Serves dense queries.
    DecodeSplit,
}

/// Largest number of pairs for which single rows are faster than a tile of them.
const FEW_PAIRS: usize = 8;
/// Keys from which on split-K is worth a second launch and states in memory.
const LONG: usize = 1024;
/// Tiles of a problem from which on a whole GPU has work without split-K.
const MANY_TILES: usize = 64;
/// Pairs of a block of `attention_hopper`: one, two or four warpgroups of 64.
pub(super) const HOPPER_PAIRS: [usize; 3] = [64, 128, 256];
/// Query heads of a block of `attention_decode`.
pub(super) const DECODE_HEADS: usize = 8;

impl CudaAttentionVariant {
    const ALL: [CudaAttentionVariant; 7] = [
        CudaAttentionVariant::General,
        CudaAttentionVariant::Resampler,
        CudaAttentionVariant::ResamplerSplit,
        CudaAttentionVariant::ResamplerHopper,
        CudaAttentionVariant::Media,
        CudaAttentionVariant::Decode,
        CudaAttentionVariant::DecodeSplit,
    ];

    /// The name used in messages and in the environment.
    pub const fn name(self) -> &'static str {
        match self {
            CudaAttentionVariant::General => "general",
            CudaAttentionVariant::Resampler => "resampler",
            CudaAttentionVariant::ResamplerSplit => "resampler-split",
            CudaAttentionVariant::ResamplerHopper => "resampler-hopper",
            CudaAttentionVariant::Media => "media",
            CudaAttentionVariant::Decode => "decode",
            CudaAttentionVariant::DecodeSplit => "decode-split",
        }
    }

    pub(super) fn is_decode(self) -> bool {
        matches!(self, CudaAttentionVariant::Decode | CudaAttentionVariant::DecodeSplit)
    }

    /// Keys of a split-K chunk.
    pub(super) fn chunk_keys(self) -> Option<usize> {
        match self {
            // States then have a quarter of the traffic of K and V: 64 rows, 96 columns, 2368 keys.
            CudaAttentionVariant::ResamplerSplit => Some(512),
            // States are small: one row.
            CudaAttentionVariant::DecodeSplit => Some(256),
            CudaAttentionVariant::General
            | CudaAttentionVariant::Resampler
            | CudaAttentionVariant::ResamplerHopper
            | CudaAttentionVariant::Media
            | CudaAttentionVariant::Decode => None,
        }
    }
}

impl fmt::Display for CudaAttentionVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for CudaAttentionVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = CudaAttentionVariant::ALL.map(CudaAttentionVariant::name).join(", ");
        let named = CudaAttentionVariant::ALL.into_iter().find(|v| v.name() == text);
        named.ok_or_else(|| Error::argument("device", "attention variant", names, text))
    }
}

/// How a kernel computes: what its operands' types and head_dim leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Tensor cores: 16-bit operands of one type, whose tiles have that many columns.
    Mma { dtype: DType, columns: usize },
    /// f32, up to 128 columns.
    F32,
    /// Mixed types, and other heads: element by element. Only `attention_general` has it.
    Any,
}

impl Form {
    pub fn of(a: &AttentionArgs<Spec, Spec>) -> Self {
        let (head_dim, dtype) = (a.q.dim(3), a.q.dtype());
        let second = a.second.iter().flat_map(|s| [&s.k, &s.v]);
        let same = [&a.first.k, &a.first.v, &a.out].into_iter().chain(second).all(|s| s.dtype() == dtype);
        match (same, dtype) {
            (true, DType::F16 | DType::BF16) if head_dim.is_multiple_of(8) && head_dim <= 128 => {
                let columns = [64, 96].into_iter().find(|&columns| head_dim <= columns).unwrap_or(128);
                Form::Mma { dtype, columns }
            }
            (true, DType::F32) if head_dim <= 128 => Form::F32,
            _ => Form::Any,
        }
    }

    /// (row, head) pairs of a tile.
    pub fn pairs(self) -> usize {
        match self {
            Form::Mma { .. } => 64,
            Form::F32 | Form::Any => 32,
        }
    }
}

/// What the choice depends on: shapes of one problem, never the number of
/// problems, so that neighbours change no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub form: Form,
    pub ragged_q: bool,
    pub ragged_keys: bool,
    /// Every row of a problem may see every key.
    pub all: bool,
    /// Keys per medium under `SameMedia`.
    pub same_media: Option<usize>,
    /// Rows without a key get zeros, whatever the reason.
    pub zeros: bool,
    pub q_rows: usize,
    /// Heads that share a K/V head.
    pub group: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Key positions of both segments.
    pub positions: usize,
}

impl Shape {
    pub fn of(empty_rows: &EmptyRows, a: &AttentionArgs<Spec, Spec>) -> Self {
        let sizes = a.sizes();
        Shape {
            form: Form::of(a),
            ragged_q: a.q_offsets.is_some(),
            ragged_keys: a.first.offsets.is_some() || a.second.as_ref().is_some_and(|s| s.offsets.is_some()),
            all: matches!(a.visibility, Visibility::All),
            same_media: match &a.visibility {
                Visibility::SameMedia(m) => Some(m.keys_per_media as usize),
                _ => None,
            },
            zeros: *empty_rows == EmptyRows::all(EmptyRow::Zero),
            q_rows: sizes.q_rows,
            group: sizes.heads / sizes.kv_heads.max(1),
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            positions: sizes.first_keys.saturating_add(sizes.second_keys),
        }
    }

    /// Keys that a row may see, at most.
    pub fn reach(&self) -> usize {
        self.same_media.map_or(self.positions, |keys| keys.min(self.positions))
    }

    /// (row, head) pairs of a tile.
    pub fn pairs(&self, variant: CudaAttentionVariant) -> usize {
        match variant {
            // Those of ragged problems are not known.
            CudaAttentionVariant::ResamplerHopper if self.ragged_q => HOPPER_PAIRS[0],
            CudaAttentionVariant::ResamplerHopper => {
                let all = self.q_rows.saturating_mul(self.group);
                HOPPER_PAIRS.into_iter().find(|&pairs| all <= pairs).unwrap_or(HOPPER_PAIRS[2])
            }
            _ => self.form.pairs(),
        }
    }

    /// Heads of a tile, and its rows.
    pub fn tile(&self, variant: CudaAttentionVariant) -> (usize, usize) {
        let group = self.group.max(1);
        if variant.is_decode() {
            return (group.min(DECODE_HEADS), 1);
        }
        let pairs = self.pairs(variant);
        let heads = group.min(pairs);
        (heads, (pairs / heads).min(self.q_rows).max(1))
    }

    /// Blocks of a problem in the kernels that work in tiles, one tile each.
    fn tiles(&self) -> usize {
        let (heads, rows) = self.tile(CudaAttentionVariant::General);
        [self.group.div_ceil(heads), self.kv_heads].into_iter().fold(self.q_rows.div_ceil(rows), usize::saturating_mul)
    }

    /// Why a variant cannot serve the call.
    fn lacks(&self, variant: CudaAttentionVariant) -> Option<&'static str> {
        if self.form == Form::Any && variant != CudaAttentionVariant::General {
            return Some("mixed dtypes, or such heads");
        }
        if variant.chunk_keys().is_some() && self.ragged_q {
            return Some("ragged queries");
        }
        if variant.chunk_keys().is_some() && !self.zeros {
            return Some("empty rows that are not zeros");
        }
        match variant {
            CudaAttentionVariant::Media if self.same_media.is_none() => Some("another rule than same_media"),
            CudaAttentionVariant::Resampler
            | CudaAttentionVariant::ResamplerSplit
            | CudaAttentionVariant::ResamplerHopper
                if !self.all =>
            {
                Some("another rule than all")
            }
            CudaAttentionVariant::ResamplerHopper if self.form == Form::F32 => Some("f32"),
            _ => None,
        }
    }

    /// The first row of this table that fits, top to bottom.
    ///
    /// | variant | serves | because |
    /// |---|---|---|
    /// | `general` | mixed dtypes, heads wider than 128, 16-bit heads that are no multiple of 8 | rare; elements are read one by one, which one kernel does for every rule |
    /// | `decode-split` | few rows, 1024 keys or more that a row may see | one block per row and K/V head leaves a GPU idle; reading the keys is all the work |
    /// | `decode` | few rows | of a tile's 64 pairs most would idle |
    /// | `media` | `SameMedia` | the keys of a medium stay in shared memory while its rows stream past |
    /// | `resampler-split` | `All`, 1024 keys or more, fewer than 64 tiles | a resampler of 64 latents has 8 to 16 tiles, an H100 132 multiprocessors |
    /// | `resampler` | `All` | what exists is the same for all rows: no sets of keys per row |
    /// | `general` | the rest | a tile visits the blocks that some row of it may see |
    ///
    /// Few rows: 8 (row, head) pairs per K/V head at most. Not for ragged operands: their extents
    /// are those of all problems together, so that neighbours would choose the kernel. Callers
    /// whose problems have a row each say so with dense queries.
    ///
    /// `resampler-hopper` is not in the table before a GPU has measured it: callers name it.
    fn by_table(&self) -> CudaAttentionVariant {
        use CudaAttentionVariant::{Decode, DecodeSplit, General, Media, Resampler, ResamplerSplit};
        let serves = |variant| self.lacks(variant).is_none();
        let few = !self.ragged_q && self.q_rows.saturating_mul(self.group) <= FEW_PAIRS;
        let long = !self.ragged_keys && self.reach() >= LONG;
        if self.form == Form::Any {
            General
        } else if few && long && serves(DecodeSplit) {
            DecodeSplit
        } else if few {
            Decode
        } else if self.same_media.is_some() {
            Media
        } else if self.all && long && self.tiles() < MANY_TILES && serves(ResamplerSplit) {
            ResamplerSplit
        } else if self.all {
            Resampler
        } else {
            General
        }
    }

    /// The variant that the caller names, where it serves the call; or the table's.
    pub fn choose(&self, named: Option<CudaAttentionVariant>, arch: Arch) -> Result<CudaAttentionVariant> {
        let Some(named) = named else { return Ok(self.by_table()) };
        let refuse = |what, available: &str| {
            Err(Error::Unsupported { op: Attention::NAME, what, backend: NAME, available: available.into() })
        };
        let Arch { major, minor } = arch;
        if named == CudaAttentionVariant::ResamplerHopper && (major, minor) != (9, 0) {
            let what = format!("the variant {named} on compute capability {major}.{minor}");
            return refuse(what, "compute capability 9.0 only");
        }
        match self.lacks(named) {
            None => Ok(named),
            Some(why) => refuse(format!("{why} by the variant {named}"), CudaAttentionVariant::General.name()),
        }
    }
}
