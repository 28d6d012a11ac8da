//! Bitsets: which keys exist, which media a row may see.

/// Number of `u32` words that hold `bits` bits: the last dimension of every bitset operand.
pub const fn bit_words(bits: usize) -> usize {
    bits.div_ceil(32)
}

/// Packs rows of flags (nonzero = set) into `u32` words, least significant bit first; every row starts a new word.
///
/// `flags` holds rows of `per_row` flags; the result holds as many rows of [`bit_words`]`(per_row)` words. A trailing
/// incomplete row is packed as if padded with zeros.
///
/// ```
/// assert_eq!(xattn::pack_bits(&[1, 0, 1, 0, 0, 1], 3), [0b101, 0b100]);
/// ```
pub fn pack_bits(flags: &[u8], per_row: usize) -> Vec<u32> {
    if per_row == 0 {
        return Vec::new();
    }
    let words = bit_words(per_row);
    let mut packed = Vec::with_capacity(flags.len().div_ceil(per_row) * words);
    for row in flags.chunks(per_row) {
        let start = packed.len();
        packed.resize(start + words, 0u32);
        for (i, &flag) in row.iter().enumerate() {
            packed[start + i / 32] |= u32::from(flag != 0) << (i % 32);
        }
    }
    packed
}
