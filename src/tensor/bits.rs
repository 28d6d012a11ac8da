//! Bitsets: the keys that exist, the media that a row may see.

use super::room;
use crate::Result;

/// Number of `u32` words that hold `bits` bits: the last dimension of every bitset operand.
pub const fn bit_words(bits: usize) -> usize {
    bits.div_ceil(32)
}

/// Packs rows of flags (nonzero = set) into `u32` words, least significant bit first; every row
/// starts a new word.
///
/// `flags` holds rows of `per_row` flags; the result has as many rows of [`bit_words`]`(per_row)`
/// words. An incomplete last row is padded with zeros.
///
/// ```
/// assert_eq!(xattn::pack_bits(&[1, 0, 1, 0, 0, 1], 3)?, [0b101, 0b100]);
/// # Ok::<(), xattn::Error>(())
/// ```
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory): rows that exceed memory.
pub fn pack_bits(flags: &[u8], per_row: usize) -> Result<Vec<u32>> {
    if per_row == 0 {
        return Ok(Vec::new());
    }
    let words = bit_words(per_row);
    let mut packed = room("host", flags.len().div_ceil(per_row).saturating_mul(words), "a bitset")?;
    for row in flags.chunks(per_row) {
        let start = packed.len();
        packed.resize(start + words, 0u32);
        for (i, &flag) in row.iter().enumerate() {
            packed[start + i / 32] |= u32::from(flag != 0) << (i % 32);
        }
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn every_flag_that_is_not_zero_is_one_bit() {
        assert_eq!(pack_bits(&[2, 0, 255, 0, 4, 0, 128], 4).unwrap(), [0b0101, 0b101]);
    }

    #[test]
    fn rows_longer_than_memory_are_an_error() {
        for (per_row, bytes) in [(usize::MAX, usize::MAX / 8 + 1), (10usize.pow(15), 125_000_000_000_000)] {
            assert_eq!(
                pack_bits(&[1], per_row),
                Err(Error::OutOfMemory { backend: "host", purpose: "a bitset", bytes })
            );
        }
    }
}
