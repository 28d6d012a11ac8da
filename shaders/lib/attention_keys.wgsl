// The keys of a problem of `attention`, and which of them a row sees: everything that depends on
// values in memory. They are hostile, and clamped here, once. Key sets are words: bit i of a word
// for key j stands for key j + i of the joint axis (the first segment's key positions, then the
// second one's).

// Visibility rules.
const ALL = 0u;
const SAME_MEDIA = 1u;
const PRECEDING_MEDIA = 2u;
const PREFIX_CAUSAL = 3u;
const MEDIA_BITS = 4u;

// Which keys of a segment exist, and where a problem finds them.
const LENGTHS = 1u;
const BITS = 2u;
const SLOTS = 1u;
const OFFSETS = 2u;

const ZERO = 0u;
const UNIFORM = 1u;
const ATTEND_ALL = 2u;
const VISIBLE = 3u;

// One problem's part of a segment. `positions`: of keys, padded ones included. `extent`: end of
// the last key that may exist. `bits`: where the bitset begins.
struct Part {
    entry: u32,
    start: u32,
    positions: u32,
    extent: u32,
    bits: u32,
}

struct Keys {
    first: Part,
    second: Part,
}

// Bits 0 to n - 1, at most 32.
fn low_bits(n: u32) -> u32 {
    return select((1u << (n & 31u)) - 1u, 0xffffffffu, n >= 32u);
}

// First row and number of rows between two offsets, whatever they are.
fn rows_between(from_offset: u32, to_offset: u32, total: u32) -> vec2<u32> {
    let start = min(from_offset, total);
    return vec2<u32>(start, min(max(to_offset, start), total) - start);
}

fn keys_of(b: u32) -> Keys {
    return Keys(first_part(b), second_part(b));
}

fn positions_of(keys: Keys) -> u32 {
    return keys.first.positions + keys.second.positions;
}

// The keys from j on that exist.
fn existing(keys: Keys, j: u32) -> u32 {
    var mask = first_existing(keys.first, j);
    if j >= keys.first.positions {
        mask |= second_existing(keys.second, j - keys.first.positions);
    } else if keys.first.positions - j < 32u {
        mask |= second_existing(keys.second, 0u) << (keys.first.positions - j);
    }
    return mask;
}

// The keys from j on that lie in a range.
fn within(range: vec2<u32>, j: u32) -> u32 {
    if range.y <= j {
        return 0u;
    }
    let end = low_bits(range.y - j);
    if range.x <= j {
        return end;
    }
    return end & ~low_bits(range.x - j);
}

// Media with at least one key position that may exist. keys_per_block is below 2^31.
fn media_present(keys: Keys) -> u32 {
    var extent = keys.first.extent;
    if keys.second.extent > 0u {
        extent = keys.first.positions + keys.second.extent;
    }
    return (extent + params.keys_per_block - 1u) / params.keys_per_block;
}

fn place_of_row(entry: u32, row: u32) -> u32 {
    return params.per_row_offset + entry * params.per_row_stride_b + row * params.per_row_stride_r;
}

// φ of a row, 0 where there is no medium.
fn phi_of(entry: u32, row: u32) -> u32 {
    return u32(max(bitcast<i32>(per_row_at(place_of_row(entry, row))), 0i));
}

// The range of keys outside of which row i of problem b (row `row` of the operands) sees none.
fn key_range(b: u32, entry: u32, row: u32, i: u32, positions: u32) -> vec2<u32> {
    if RULE == PREFIX_CAUSAL {
        // per_row holds each problem's offset (absent: 0). Both terms of the sum are below 2^31.
        let offset = min(per_row_at(place_of_row(b, 0u)), 0x7fffffffu);
        return vec2<u32>(0u, min(positions, max(params.prefix, i + offset + 1u)));
    }
    if RULE == SAME_MEDIA || RULE == PRECEDING_MEDIA {
        // Only media that begin within the key positions are multiplied: no overflow below.
        let phi = phi_of(entry, row);
        let whole = positions / params.keys_per_block;
        var end = positions;
        if phi <= whole {
            end = phi * params.keys_per_block;
        }
        var start = 0u;
        if RULE == SAME_MEDIA {
            start = positions;
            if phi == 0u {
                start = 0u;
            } else if phi - 1u <= whole {
                start = (phi - 1u) * params.keys_per_block;
            }
        }
        return vec2<u32>(start, end);
    }
    return vec2<u32>(0u, positions);
}

// The keys from j on whose block is set for a row.
fn shown(entry: u32, row: u32, j: u32) -> u32 {
    if RULE != MEDIA_BITS {
        return 0xffffffffu;
    }
    let at = place_of_row(entry, row);
    var mask = 0u;
    var i = 0u;
    for (var step = 0u; step < 32u && i < 32u; step++) {
        let block = (j + i) / params.keys_per_block;
        let n = min(32u - i, params.keys_per_block - (j + i) % params.keys_per_block);
        if block / 32u < params.per_row_words && ((per_row_at(at + block / 32u) >> (block % 32u)) & 1u) == 1u {
            mask |= low_bits(n) << i;
        }
        i += n;
    }
    return mask;
}

// The keys from j on that a row sees.
fn visible(keys: Keys, entry: u32, row: u32, range: vec2<u32>, j: u32) -> u32 {
    let mask = existing(keys, j) & within(range, j);
    if mask == 0u {
        return 0u;
    }
    return mask & shown(entry, row, j);
}

// The policy for a row that sees no key.
fn empty_policy(keys: Keys, entry: u32, row: u32) -> u32 {
    if positions_of(keys) == 0u {
        return ZERO;
    }
    if RULE == SAME_MEDIA || RULE == PRECEDING_MEDIA {
        let phi = phi_of(entry, row);
        if phi == 0u {
            return NO_MEDIA;
        }
        if RULE == SAME_MEDIA && phi > media_present(keys) {
            return BEYOND_MEDIA;
        }
    }
    return MASKED;
}
