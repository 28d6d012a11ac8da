//! Who sees what in a case, as device operands and as a count of key blocks.

use serde_json::{Value, json};

use super::call::Input;
use super::visited::{Blocks, Visited, one_hot, spread_media, visited, with_operands};
use crate::ops::{Media, Visibility};
use crate::{Device, HostTensor, Result};

/// The rule of a case. Media stand at equal distances in the text; a single row is a decode step and sees the last medium.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// Everything.
    All,
    /// φ over this many media.
    Media(usize),
    /// One bit per tile of this many media, those of the row's medium set.
    Bits { media: usize, tiles: usize },
    /// Q-Former ITG.
    PrefixCausal(usize),
}

impl Rule {
    fn media_index(self, batch: usize, rows: usize) -> Vec<i32> {
        match self {
            Rule::Media(media) | Rule::Bits { media, .. } if rows == 1 => vec![media as i32; batch],
            Rule::Media(media) | Rule::Bits { media, .. } => spread_media(batch, rows, media),
            Rule::All | Rule::PrefixCausal(_) => Vec::new(),
        }
    }

    pub fn json(self) -> Value {
        match self {
            Rule::All => json!({ "rule": "all" }),
            Rule::Media(media) => json!({ "rule": "same_media", "media": media }),
            Rule::Bits { media, tiles } => json!({ "rule": "media_bits", "media": media, "tiles": tiles }),
            Rule::PrefixCausal(prefix) => json!({ "rule": "prefix_causal", "prefix": prefix }),
        }
    }

    /// Where the media of one row of text stand: 1 for their tokens.
    pub fn locations(self, rows: usize) -> Vec<u32> {
        let phi = self.media_index(1, rows);
        let before = std::iter::once(0).chain(phi.iter().copied());
        phi.iter().zip(before).map(|(&now, before)| u32::from(now > before)).collect()
    }

    /// The bits of all rows and the number of bits per row: each medium's tiles are as visible as it is.
    fn bits(self, batch: usize, rows: usize, media: usize, tiles: usize) -> Vec<u32> {
        let phi = self.media_index(batch, rows);
        if tiles == 1 {
            return one_hot(&phi, media);
        }
        let flags: Vec<u8> = phi
            .iter()
            .flat_map(|&m| (0..media * tiles).map(move |bit| u8::from((bit / tiles) as i32 + 1 == m)))
            .collect();
        // Whole rows: an eighth of the flags.
        crate::pack_bits(&flags, media * tiles).unwrap_or_else(|e| unreachable!("{e}"))
    }

    /// With its operands in host memory, as words.
    fn words(self, batch: usize, rows: usize, keys: usize) -> Visibility<Vec<u32>> {
        match self {
            Rule::All => Visibility::All,
            Rule::PrefixCausal(prefix) => Visibility::PrefixCausal { prefix: prefix as u32, offset: None },
            Rule::Media(media) => Visibility::SameMedia(Media {
                media_index: bytemuck::cast_vec(self.media_index(batch, rows)),
                keys_per_media: (keys / media) as u32,
                plan: None,
            }),
            Rule::Bits { media, tiles } => Visibility::MediaBits {
                bits: self.bits(batch, rows, media, tiles),
                keys_per_block: (keys / media / tiles) as u32,
            },
        }
    }

    /// As an operand of `attention` or of a gated block.
    pub fn visibility(self, device: &Device, batch: usize, rows: usize, keys: usize) -> Result<Visibility<Input>> {
        with_operands(self.words(batch, rows, keys), batch, rows, |dtype, shape, words| {
            Input::new(device, &HostTensor::from_bytes(dtype, shape, bytemuck::cast_slice(words))?, dtype)
        })
    }

    /// Blocks of keys that a kernel visits.
    pub fn visited(self, lengths: Option<&[u32]>, batch: usize, rows: usize, keys: usize) -> Visited {
        self.visited_in(Blocks::STANDARD, lengths, batch, rows, keys)
    }

    /// Keys that no row sees, of all problems: nobody reads their K and V.
    pub fn unread(self, lengths: Option<&[u32]>, batch: usize, rows: usize, keys: usize) -> usize {
        // All rows of a problem are one tile, and each key a block of its own.
        let Visited { visited, total } = self.visited_in(Blocks { rows, keys: 1 }, lengths, batch, rows, keys);
        total - visited
    }

    fn visited_in(self, blocks: Blocks, lengths: Option<&[u32]>, batch: usize, rows: usize, keys: usize) -> Visited {
        visited(&self.words(batch, rows, keys), lengths, batch, rows, keys, blocks)
    }
}
