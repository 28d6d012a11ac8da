//! The choice of a kernel for a call of `attention`.

use std::fmt;
use std::str::FromStr;

use crate::ops::{AttentionArgs, Visibility};
use crate::tensor::Spec;
use crate::{Error, Result};

/// A kernel of `attention` on wgpu. Tests and benchmarks name one in
/// [`WgpuOptions`](super::super::WgpuOptions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WgpuAttentionVariant {
    /// Tiles of 32 (row, head) pairs. Serves everything.
    General,
    /// `General` with split-K: chunks of 512 keys, merged in a second dispatch. For dense queries.
    GeneralSplit,
    /// Tiles cut at the runs of φ. Serves [`Visibility::SameMedia`].
    Media,
    /// A row and up to 8 heads that share a K/V head. Serves heads of up to 3008 columns.
    Decode,
    /// `Decode` with split-K: chunks of 256 keys, merged in a second dispatch. For dense queries.
    DecodeSplit,
}

/// (row, head) pairs of a tile of `attention_general` and `attention_media`.
pub(super) const PAIRS: usize = 32;
/// Columns of the result that one workgroup keeps in registers.
pub(super) const PANEL: usize = 128;
/// Largest number of rows that are faster one by one than as a tile (measured:
/// `shaders/attention_decode.wgsl`).
const FEW_ROWS: usize = 2;
/// Heads of a row that fit one workgroup; more fill a tile.
const FEW_HEADS: usize = 8;
/// Keys from which on split-K is worth a second dispatch and states in memory.
const LONG: usize = 1024;
/// Tiles per problem that occupy a whole GPU without split-K.
const MANY_TILES: usize = 64;

impl WgpuAttentionVariant {
    const ALL: [WgpuAttentionVariant; 5] = [
        WgpuAttentionVariant::General,
        WgpuAttentionVariant::GeneralSplit,
        WgpuAttentionVariant::Media,
        WgpuAttentionVariant::Decode,
        WgpuAttentionVariant::DecodeSplit,
    ];

    /// The name used in messages and in the environment.
    pub const fn name(self) -> &'static str {
        match self {
            WgpuAttentionVariant::General => "general",
            WgpuAttentionVariant::GeneralSplit => "general-split",
            WgpuAttentionVariant::Media => "media",
            WgpuAttentionVariant::Decode => "decode",
            WgpuAttentionVariant::DecodeSplit => "decode-split",
        }
    }

    /// Whether the kernel computes one row at a time.
    pub(super) fn is_decode(self) -> bool {
        matches!(self, WgpuAttentionVariant::Decode | WgpuAttentionVariant::DecodeSplit)
    }

    pub(super) fn chunk_keys(self) -> Option<usize> {
        match self {
            // States, written and read again, are then a seventh of K and V in f32: 64 rows of 64
            // columns against 2368 keys.
            WgpuAttentionVariant::GeneralSplit => Some(512),
            // Two blocks. States are small: one row.
            WgpuAttentionVariant::DecodeSplit => Some(256),
            WgpuAttentionVariant::General | WgpuAttentionVariant::Media | WgpuAttentionVariant::Decode => None,
        }
    }
}

impl fmt::Display for WgpuAttentionVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WgpuAttentionVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = WgpuAttentionVariant::ALL.map(WgpuAttentionVariant::name).join(", ");
        let named = WgpuAttentionVariant::ALL.into_iter().find(|v| v.name() == text);
        named.ok_or_else(|| Error::argument("device", "attention variant", names, text))
    }
}

/// What the choice depends on: the shape of one problem, never the number of problems, so that
/// other problems change no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub ragged_q: bool,
    pub ragged_keys: bool,
    /// Keys per medium under `SameMedia`.
    pub same_media: Option<usize>,
    pub q_rows: usize,
    /// Heads that share a K/V head.
    pub group: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Key positions of both segments.
    pub positions: usize,
    /// Bytes that the states of one problem may take.
    pub room: usize,
}

impl Shape {
    pub fn of(a: &AttentionArgs<Spec, Spec>, room: usize) -> Self {
        let sizes = a.sizes();
        let ragged = a.first.offsets.is_some() || a.second.as_ref().is_some_and(|s| s.offsets.is_some());
        Shape {
            ragged_q: a.q_offsets.is_some(),
            ragged_keys: ragged,
            same_media: match &a.visibility {
                Visibility::SameMedia(m) => Some(m.keys_per_media as usize),
                _ => None,
            },
            q_rows: sizes.q_rows,
            group: sizes.heads / sizes.kv_heads.max(1),
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            positions: sizes.first_keys + sizes.second_keys,
            room,
        }
    }

    fn quads(&self) -> usize {
        self.head_dim.div_ceil(4)
    }

    /// Tiles of a problem in `attention_general`.
    fn tiles(&self) -> usize {
        let heads = self.group.clamp(1, PAIRS);
        let rows = self.q_rows.div_ceil(PAIRS / heads);
        rows * self.group.div_ceil(heads) * self.kv_heads * self.head_dim.div_ceil(PANEL)
    }

    /// Heads per workgroup of `attention_decode`: its 16 KiB hold q (16 bytes per vec4) and scores
    /// (1 KiB) of each, beside 3.2 KiB.
    pub fn decode_heads(&self) -> usize {
        let fits = (16384 - 3328) / (16 * self.quads() + 1024);
        let most = self.group.next_power_of_two().min(8);
        if fits == 0 { 0 } else { most.min(1 << fits.ilog2()) }
    }

    pub fn chunks(&self, variant: WgpuAttentionVariant) -> usize {
        variant.chunk_keys().map_or(1, |keys| self.positions.div_ceil(keys).max(1))
    }

    /// Bytes of the states of one problem: `shaders/lib/attention_state.wgsl`.
    pub fn state_bytes(&self, variant: WgpuAttentionVariant) -> usize {
        let rows = self.q_rows * self.group * self.kv_heads;
        rows.saturating_mul(16 * (1 + self.quads())).saturating_mul(self.chunks(variant))
    }

    /// Why the variant cannot serve the call.
    fn lacks(&self, variant: WgpuAttentionVariant) -> Option<&'static str> {
        let splits = variant.chunk_keys().is_some();
        if splits && self.ragged_q {
            return Some("ragged queries");
        }
        if splits && self.state_bytes(variant) > self.room {
            return Some("states beyond a binding");
        }
        match variant {
            WgpuAttentionVariant::Media if self.same_media.is_none() => Some("another rule than same_media"),
            _ if variant.is_decode() && self.decode_heads() == 0 => Some("heads as wide"),
            _ => None,
        }
    }

    /// The first row that fits, top to bottom.
    ///
    /// | variant | serves | because |
    /// |---|---|---|
    /// | `decode-split` | few rows, 1024 keys or more that a row may see | one workgroup per row and K/V head leaves a GPU idle; reading the keys is all the work |
    /// | `decode` | few rows | of a tile's 32 pairs most would idle |
    /// | `media` | `SameMedia` | tiles are cut at the runs of φ: rows meet the keys of their own medium only |
    /// | `general-split` | 1024 keys or more, fewer than 64 tiles | a Perceiver of 64 latents has 16 to 32 tiles |
    /// | `general` | the rest | a tile visits the blocks that some row of it may see |
    ///
    /// Few rows: 1 or 2, and at most 8 heads per K/V head. Ragged queries are never few, and ragged
    /// keys never long: their extents are those of all problems, which would then choose each
    /// other's kernel. Callers whose problems have one row each pass dense queries.
    fn by_table(&self) -> WgpuAttentionVariant {
        let few = !self.ragged_q && self.q_rows <= FEW_ROWS && self.group <= FEW_HEADS;
        let reach = self.same_media.map_or(self.positions, |keys| keys.min(self.positions));
        let long = !self.ragged_keys && reach >= LONG;
        let serves = |variant| self.lacks(variant).is_none();
        if few && long && serves(WgpuAttentionVariant::DecodeSplit) {
            WgpuAttentionVariant::DecodeSplit
        } else if few && serves(WgpuAttentionVariant::Decode) {
            WgpuAttentionVariant::Decode
        } else if self.same_media.is_some() {
            WgpuAttentionVariant::Media
        } else if long && self.tiles() < MANY_TILES && serves(WgpuAttentionVariant::GeneralSplit) {
            WgpuAttentionVariant::GeneralSplit
        } else {
            WgpuAttentionVariant::General
        }
    }

    /// The named variant, or the table's. The error says what a named one cannot serve.
    pub fn choose(&self, named: Option<WgpuAttentionVariant>) -> Result<WgpuAttentionVariant, String> {
        let Some(named) = named else { return Ok(self.by_table()) };
        match self.lacks(named) {
            None => Ok(named),
            Some(why) => Err(format!("{why} by the variant {named}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        ragged_q: false,
        ragged_keys: false,
        same_media: None,
        q_rows: 64,
        group: 1,
        kv_heads: 16,
        head_dim: 96,
        positions: 2368,
        room: 64 << 20,
    };

    #[test]
    fn the_table_chooses_by_the_shape_of_one_problem() {
        use WgpuAttentionVariant::{Decode, DecodeSplit, General, GeneralSplit, Media};
        let media = |keys| Some(keys);
        let cases = [
            (Shape { ..SHAPE }, GeneralSplit, "a Perceiver of 64 latents"),
            (Shape { positions: 1023, ..SHAPE }, General, "few keys"),
            (Shape { q_rows: 32 * 4, ..SHAPE }, General, "64 tiles"),
            (Shape { q_rows: 32 * 3, ..SHAPE }, GeneralSplit, "48 tiles"),
            (Shape { ragged_keys: true, ..SHAPE }, General, "keys of all problems together"),
            (Shape { ragged_q: true, q_rows: 1, ..SHAPE }, General, "rows of all problems together"),
            (Shape { room: 1 << 20, ..SHAPE }, General, "states of 2 MB"),
            (Shape { q_rows: 1, group: 4, kv_heads: 8, positions: 6404, ..SHAPE }, DecodeSplit, "Llama-3.2"),
            (Shape { q_rows: 1, group: 9, kv_heads: 8, positions: 900, ..SHAPE }, General, "nine heads"),
            (Shape { q_rows: 1, ragged_keys: true, ..SHAPE }, Decode, "a row with ragged keys"),
            (Shape { q_rows: 2, positions: 640, ..SHAPE }, Decode, "two rows"),
            (Shape { q_rows: 3, positions: 640, ..SHAPE }, General, "three rows"),
            (Shape { q_rows: 1, same_media: media(64), ..SHAPE }, Decode, "OpenFlamingo: 64 keys, however many media"),
            (Shape { q_rows: 1, same_media: media(1601), ..SHAPE }, DecodeSplit, "long media"),
            (Shape { q_rows: 512, same_media: media(64), ..SHAPE }, Media, "a prefill"),
            (Shape { q_rows: 1, head_dim: 4000, positions: 900, ..SHAPE }, General, "q does not fit"),
        ];
        for (shape, variant, what) in cases {
            assert_eq!(shape.choose(None).unwrap(), variant, "{what}");
        }
        assert_eq!(SHAPE.state_bytes(GeneralSplit), 64 * 16 * 5 * 16 * 25);
    }

    #[test]
    fn heads_of_a_workgroup_fit_its_memory() {
        let heads = |group, head_dim| Shape { group, head_dim, ..SHAPE }.decode_heads();
        assert_eq!([heads(1, 128), heads(3, 128), heads(8, 128), heads(32, 128)], [1, 4, 8, 8]);
        assert_eq!([heads(8, 152), heads(8, 160), heads(8, 3008), heads(8, 3016)], [8, 4, 1, 0]);
    }

    #[test]
    fn names_are_read_back() {
        for variant in WgpuAttentionVariant::ALL {
            assert_eq!(variant.name().parse::<WgpuAttentionVariant>().unwrap(), variant);
        }
        assert_eq!(
            "fast".parse::<WgpuAttentionVariant>().unwrap_err().to_string(),
            "device: attention variant: expected general, general-split, media, decode, decode-split, got fast"
        );
    }
}
