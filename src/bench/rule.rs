//! Who sees what in a case, as device operands and as a count of key blocks.

use serde_json::{Value, json};

use super::call::Input;
use super::visited::{Blocks, Visited, one_hot, spread_media, visited, with_operands};
use crate::ops::{Each, Media, Visibility};
use crate::{Device, HostTensor, Result};

/// The rule of a case: how many media there are stands in place of φ and of bits. Media stand at
/// equal distances in the text; a single row is a decode step and sees the last medium. Of bits,
/// those of the row's medium are set.
pub(super) type Rule = Visibility<usize>;

/// φ over so many media.
pub(super) const fn same_media(media: usize, keys_per_media: usize) -> Rule {
    Visibility::SameMedia(Media { media_index: media, keys_per_media: keys_per_media as u32, plan: None })
}

/// Bits over so many media, each of which is a block or several.
pub(super) const fn media_bits(media: usize, keys_per_block: usize) -> Rule {
    Visibility::MediaBits { bits: media, keys_per_block: keys_per_block as u32 }
}

fn phi(media: usize, batch: usize, rows: usize) -> Vec<i32> {
    if rows == 1 { vec![media as i32; batch] } else { spread_media(batch, rows, media) }
}

/// Where the media of one row of text stand: 1 for their tokens.
pub(super) fn locations(media: usize, rows: usize) -> Vec<u32> {
    let phi = phi(media, 1, rows);
    let before = std::iter::once(0).chain(phi.iter().copied());
    phi.iter().zip(before).map(|(&now, before)| u32::from(now > before)).collect()
}

impl Rule {
    pub(super) fn json(&self) -> Value {
        let mut json = json!({ "rule": self.name() });
        match self {
            Rule::All => {}
            Rule::SameMedia(m) | Rule::PrecedingMedia(m) => {
                json["media"] = m.media_index.into();
                json["keys_per_media"] = m.keys_per_media.into();
            }
            Rule::PrefixCausal { prefix, .. } => json["prefix"] = (*prefix).into(),
            Rule::MediaBits { bits, keys_per_block } => {
                json["media"] = (*bits).into();
                json["keys_per_block"] = (*keys_per_block).into();
            }
        }
        json
    }

    /// With its operands in host memory, as words. Each medium's blocks are as visible as it is.
    fn words(&self, batch: usize, rows: usize, keys: usize) -> Result<Visibility<Vec<u32>>> {
        let blocks = match self {
            Rule::MediaBits { bits: media, keys_per_block } => keys / *keys_per_block as usize / media,
            _ => 1,
        };
        self.clone().try_map(&mut Each(|name: &'static str, media: usize| {
            let phi = phi(media, batch, rows);
            match name {
                "media_bits" if blocks == 1 => Ok(one_hot(&phi, media)),
                "media_bits" => {
                    let seen = |m: i32| (0..media * blocks).map(move |bit| u8::from((bit / blocks) as i32 + 1 == m));
                    crate::pack_bits(&phi.into_iter().flat_map(seen).collect::<Vec<u8>>(), media * blocks)
                }
                _ => Ok(bytemuck::cast_vec(phi)),
            }
        }))
    }

    /// As an operand of `attention` or of a gated block.
    pub(super) fn visibility(
        &self,
        device: &Device,
        batch: usize,
        rows: usize,
        keys: usize,
    ) -> Result<Visibility<Input>> {
        with_operands(self.words(batch, rows, keys)?, batch, rows, |dtype, shape, words| {
            Input::new(device, &HostTensor::from_bytes(dtype, shape, bytemuck::cast_slice(words))?, dtype)
        })
    }

    /// Blocks of keys that a kernel visits.
    pub(super) fn visited(&self, lengths: Option<&[u32]>, batch: usize, rows: usize, keys: usize) -> Visited {
        self.visited_in(Blocks::STANDARD, lengths, batch, rows, keys)
    }

    /// Keys that no row sees, of all problems: nobody reads their K and V.
    pub(super) fn unread(&self, lengths: Option<&[u32]>, batch: usize, rows: usize, keys: usize) -> usize {
        // All rows of a problem are one tile, and each key a block of its own.
        let Visited { visited, total } = self.visited_in(Blocks { rows, keys: 1 }, lengths, batch, rows, keys);
        total - visited
    }

    fn visited_in(&self, blocks: Blocks, lengths: Option<&[u32]>, batch: usize, rows: usize, keys: usize) -> Visited {
        // Whole rows of bits can always be packed.
        let words = self.words(batch, rows, keys).unwrap_or_else(|e| unreachable!("{e}"));
        visited(&words, lengths, batch, rows, keys, blocks)
    }
}
