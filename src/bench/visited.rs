//! How many blocks of keys a kernel that follows the visibility rule has to visit: the work that φ
//! leaves.

use crate::ops::Visibility;

/// The tiles of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Query rows that visit keys together.
    pub rows: usize,
    /// Keys in a block.
    pub keys: usize,
}

impl Blocks {
    /// 64 rows by 64 keys: the tile of the CPU and of CUDA's 16-bit kernels.
    pub const STANDARD: Blocks = Blocks { rows: 64, keys: 64 };
}

/// Blocks of keys, summed over all tiles of rows of all problems (one head).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Visited {
    /// Those that some row of the tile may see.
    pub visited: usize,
    /// All.
    pub total: usize,
}

/// Counts the blocks that tiles of a problem list visit. `seen` has its operands in host memory, as
/// words: φ and bits of all rows, an offset per problem. `lengths[b]` keys of problem b exist; all
/// of `keys` where there is none.
pub fn visited<R: AsRef<[u32]>>(
    seen: &Visibility<R>,
    lengths: Option<&[u32]>,
    batch: usize,
    rows: usize,
    keys: usize,
    blocks: Blocks,
) -> Visited {
    let (tile, width) = (blocks.rows.max(1), blocks.keys.max(1));
    let per_tile = keys.div_ceil(width);
    let mut count = Visited::default();
    let mut marked = vec![false; per_tile];
    for b in 0..batch {
        let exist = lengths.and_then(|l| l.get(b)).map_or(keys, |&n| (n as usize).min(keys));
        for start in (0..rows).step_by(tile) {
            marked.fill(false);
            for row in start..rows.min(start + tile) {
                let mut mark = |from: usize, to: usize| {
                    let to = to.min(exist);
                    if from < to {
                        marked[from / width..to.div_ceil(width)].fill(true);
                    }
                };
                let at = b * rows + row;
                let phi =
                    |list: &R| list.as_ref().get(at).map_or(0, |&m| usize::try_from(m.cast_signed()).unwrap_or(0));
                match seen {
                    Visibility::All => mark(0, keys),
                    Visibility::SameMedia(media) => {
                        let (m, per_media) = (phi(&media.media_index), media.keys_per_media as usize);
                        mark(m.saturating_sub(1).saturating_mul(per_media), m.saturating_mul(per_media));
                    }
                    Visibility::PrecedingMedia(media) => {
                        mark(0, phi(&media.media_index).saturating_mul(media.keys_per_media as usize));
                    }
                    Visibility::PrefixCausal { prefix, offset } => {
                        let offset = offset.as_ref().and_then(|list| list.as_ref().get(b)).map_or(0, |&n| n as usize);
                        mark(0, (*prefix as usize).max(row + offset + 1));
                    }
                    Visibility::MediaBits { bits, keys_per_block } => {
                        let (bits, width) = (bits.as_ref(), *keys_per_block as usize);
                        let words = bits.len() / (batch * rows);
                        for bit in 0..32 * words {
                            if bits[at * words + bit / 32] >> (bit % 32) & 1 == 1 {
                                mark(bit * width, (bit + 1) * width);
                            }
                        }
                    }
                }
            }
            count.visited += marked.iter().filter(|&&m| m).count();
            count.total += per_tile;
        }
    }
    count
}

/// Rules of tests, over media of 64 keys.
#[cfg(all(test, any(feature = "wgpu", feature = "cuda")))]
pub(crate) mod rules {
    use crate::ops::{Each, Media, Visibility};
    use crate::{DType, Result};

    fn media(phi: &[i32]) -> Media<&[u32]> {
        Media { media_index: bytemuck::cast_slice(phi), keys_per_media: 64, plan: None }
    }

    pub fn same_media(phi: &[i32]) -> Visibility<&[u32]> {
        Visibility::SameMedia(media(phi))
    }

    pub fn preceding_media(phi: &[i32]) -> Visibility<&[u32]> {
        Visibility::PrecedingMedia(media(phi))
    }

    pub fn prefix_causal(prefix: u32, offset: &[u32]) -> Visibility<&[u32]> {
        Visibility::PrefixCausal { prefix, offset: Some(offset) }
    }

    /// The rule with operands that `make` makes of element type, shape and words.
    pub fn with_operands<R: AsRef<[u32]>, S>(
        seen: Visibility<R>,
        batch: usize,
        rows: usize,
        mut make: impl FnMut(DType, &[usize], &[u32]) -> Result<S>,
    ) -> Result<Visibility<S>> {
        seen.try_map(&mut Each(|name: &'static str, words: R| {
            let words = words.as_ref();
            match name {
                "media_index" => make(DType::I32, &[batch, rows], words),
                "causal_offset" => make(DType::U32, &[batch], words),
                _ => make(DType::U32, &[batch, rows, words.len() / (batch * rows)], words),
            }
        }))
    }
}
