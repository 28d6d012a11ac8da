//! How many blocks of keys a kernel that follows the visibility rule has to visit: the work that φ
//! leaves.

/// Which keys a row may see, with φ or bits in host memory.
#[derive(Debug, Clone)]
pub enum Seen<'a> {
    /// All.
    All,
    /// φ, one per row of all problems, and keys per medium: those of medium φ.
    SameMedia(&'a [i32], usize),
    /// As above: those of media 1..=φ.
    PrecedingMedia(&'a [i32], usize),
    /// Keys below the prefix, and up to the row's own position.
    PrefixCausal {
        /// Keys that every row sees.
        prefix: usize,
        /// Key position of row 0.
        offset: usize,
    },
    /// Words of bits, one list per row of all problems, and keys per bit.
    MediaBits {
        /// The bits of all rows.
        bits: &'a [u32],
        /// Words per row.
        words: usize,
        /// Keys per bit.
        keys_per_block: usize,
    },
}

/// The tiles of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Query rows that visit keys together.
    pub rows: usize,
    /// Keys in a block.
    pub keys: usize,
}

impl Blocks {
    /// 64 rows by 64 keys: what the CPU and the GPU kernels use where nothing speaks against it.
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

/// Counts the blocks that tiles of a problem list visit. `lengths[b]` keys of problem b exist; all
/// of `keys` where there is none.
pub fn visited(
    seen: &Seen<'_>,
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
                let phi = |list: &[i32]| list.get(at).map_or(0, |&m| usize::try_from(m).unwrap_or(0));
                match *seen {
                    Seen::All => mark(0, keys),
                    Seen::SameMedia(list, per_media) => match phi(list) {
                        0 => {}
                        m => mark((m - 1).saturating_mul(per_media), m.saturating_mul(per_media)),
                    },
                    Seen::PrecedingMedia(list, per_media) => mark(0, phi(list).saturating_mul(per_media)),
                    Seen::PrefixCausal { prefix, offset } => mark(0, prefix.max(row + offset + 1)),
                    Seen::MediaBits { bits, words, keys_per_block } => {
                        for bit in 0..32 * words {
                            let word = bits.get(at * words + bit / 32).copied().unwrap_or(0);
                            if word >> (bit % 32) & 1 == 1 {
                                mark(bit * keys_per_block, (bit + 1) * keys_per_block);
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

/// φ of text whose media stand at equal distances, the first at the first token: `rows` tokens,
/// `media` media, in each of `batch` rows.
pub fn spread_media(batch: usize, rows: usize, media: usize) -> Vec<i32> {
    (0..batch * rows).map(|i| (i % rows.max(1) * media / rows.max(1)) as i32 + i32::from(media > 0)).collect()
}

/// The same as one bit per medium.
pub(super) fn one_hot(media_index: &[i32], bits: usize) -> Vec<u32> {
    let words = crate::bit_words(bits);
    let mut all = vec![0u32; media_index.len() * words];
    for (row, &m) in all.chunks_mut(words.max(1)).zip(media_index) {
        if let Some(bit) = usize::try_from(m - 1).ok().filter(|&bit| bit < bits) {
            row[bit / 32] |= 1 << (bit % 32);
        }
    }
    all
}
