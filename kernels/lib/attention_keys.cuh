// Which keys a problem of `attention` has, and which of them a row may see: everything that depends
// on values in memory. They are untrusted, and clamped here, once. A set of keys is a word of 64
// bits: bit i of a set "from j" is key j + i of the joint axis (positions of the first segment,
// then the second's). The same rules as shaders/lib/attention_keys.wgsl.

constexpr u32 SAME_MEDIA = 1, PRECEDING_MEDIA = 2, PREFIX_CAUSAL = 3, MEDIA_BITS = 4;
// Key masks (0: all exist); where a problem's keys begin (0: in the entry of its number).
constexpr u32 LENGTHS = 1, BITS = 2;
constexpr u32 SLOTS = 1, OFFSETS = 2;
// What a row gets.
constexpr u32 ZERO = 0, UNIFORM = 1, ATTEND_ALL = 2, VISIBLE = 3;

struct Call {
    const AttentionParams& params;
    const AttentionOperands& operands;
};

// One problem's part of a segment. `positions`: of keys, padding included. `extent`: end of the
// keys that may exist. `bits`: where the bitset begins.
struct Part {
    u32 entry, start, positions, extent;
    u64 bits;
};

struct Keys {
    Part first, second;
};

struct Range {
    u32 begin, end;
};

DEVICE u32 word_at(const Operand& operand, u64 index) {
    return data<const u32>(operand)[index];
}

// Bits 0 to n - 1, at most 64.
DEVICE u64 low_bits(u32 n) {
    return n >= 64 ? ~0ull : (1ull << n) - 1;
}

// The rows between two offsets, clamped.
DEVICE Range rows_between(u32 from, u32 to, u32 total) {
    const u32 begin = min(from, total);
    return {begin, min(max(to, begin), total)};
}

DEVICE Range query_rows(const Call& call, u32 b) {
    const u64 at = call.params.q_offsets_offset + static_cast<u64>(b) * call.params.q_offsets_stride;
    const Operand& offsets = call.operands.q_offsets;
    return rows_between(word_at(offsets, at), word_at(offsets, at + call.params.q_offsets_stride), call.params.q_rows);
}

DEVICE Part part_of(u32 b, u32 entries, u32 rows, u32 origin_kind, const Operand& origin, u64 origin_at, u32 origin_stride, u32 mask_kind,
                    const Operand& mask, u64 mask_at) {
    Part part{b, 0, rows, rows, mask_at};
    if (origin_kind == SLOTS) {
        part.entry = min(word_at(origin, origin_at), max(entries, 1u) - 1);
    } else if (origin_kind == OFFSETS) {
        const Range own = rows_between(word_at(origin, origin_at), word_at(origin, origin_at + origin_stride), rows);
        part = {0, own.begin, own.end - own.begin, own.end - own.begin, mask_at};
    }
    if (mask_kind == LENGTHS) {
        part.extent = min(word_at(mask, mask_at), part.positions);
    }
    return part;
}

DEVICE Keys keys_of(const Call& call, u32 b) {
    const AttentionParams& p = call.params;
    const AttentionOperands& o = call.operands;
    const u64 n = b;
    return {
        part_of(b, p.first_entries, p.first_rows, p.first_origin_kind, o.first_origin, p.first_origin_offset + n * p.first_origin_stride,
                p.first_origin_stride, p.first_mask_kind, o.first_mask, p.first_mask_offset + n * p.first_mask_stride),
        part_of(b, p.second_entries, p.second_rows, p.second_origin_kind, o.second_origin, p.second_origin_offset + n * p.second_origin_stride,
                p.second_origin_stride, p.second_mask_kind, o.second_mask, p.second_mask_offset + n * p.second_mask_stride),
    };
}

DEVICE u32 positions_of(const Keys& keys) {
    return keys.first.positions + keys.second.positions;
}

// The keys of one segment from its key j on that exist.
DEVICE u64 part_existing(const Part& part, u32 mask_kind, const Operand& mask, u32 j) {
    if (j >= part.extent) {
        return 0;
    }
    u64 visible = low_bits(part.extent - j);
    if (mask_kind == BITS) {
        const u32 words = (part.positions + 31) / 32, at = j / 32, shift = j % 32;
        u64 set = word_at(mask, part.bits + at);
        if (at + 1 < words) {
            set |= static_cast<u64>(word_at(mask, part.bits + at + 1)) << 32;
        }
        set >>= shift;
        if (shift > 0 && at + 2 < words) {
            set |= static_cast<u64>(word_at(mask, part.bits + at + 2)) << (64 - shift);
        }
        visible &= set;
    }
    return visible;
}

// The keys from j on that exist.
DEVICE u64 existing(const Call& call, const Keys& keys, u32 j) {
    const u32 first = keys.first.positions;
    u64 mask = part_existing(keys.first, call.params.first_mask_kind, call.operands.first_mask, j);
    if (j >= first) {
        mask |= part_existing(keys.second, call.params.second_mask_kind, call.operands.second_mask, j - first);
    } else if (first - j < 64) {
        mask |= part_existing(keys.second, call.params.second_mask_kind, call.operands.second_mask, 0) << (first - j);
    }
    return mask;
}

// The keys from j on that lie in a range.
DEVICE u64 within(Range range, u32 j) {
    if (range.end <= j) {
        return 0;
    }
    const u64 end = low_bits(range.end - j);
    return range.begin <= j ? end : end & ~low_bits(range.begin - j);
}

// Media with at least one position that may exist. keys_per_block is below 2^31.
DEVICE u32 media_present(const Call& call, const Keys& keys) {
    const u32 extent = keys.second.extent > 0 ? keys.first.positions + keys.second.extent : keys.first.extent;
    return (extent + call.params.keys_per_block - 1) / call.params.keys_per_block;
}

// Where a row's φ or bitset is.
DEVICE u64 place_of_row(const Call& call, u32 entry, u32 row) {
    const AttentionParams& p = call.params;
    return p.per_row_offset + static_cast<u64>(entry) * p.per_row_stride_b + static_cast<u64>(row) * p.per_row_stride_r;
}

// φ of a row, 0 where there is no medium.
DEVICE u32 phi_of(const Call& call, u32 entry, u32 row) {
    return max(static_cast<i32>(word_at(call.operands.per_row, place_of_row(call, entry, row))), 0);
}

// Bounds of the keys that a row may see by its medium; all keys where the rule has no media.
DEVICE Range media_range(const Call& call, u32 entry, u32 row, u32 positions) {
    const AttentionParams& p = call.params;
    if (p.rule == SAME_MEDIA || p.rule == PRECEDING_MEDIA) {
        // `whole` bounds φ: the products below cannot overflow.
        const u32 phi = phi_of(call, entry, row), whole = positions / p.keys_per_block;
        const u32 end = phi <= whole ? phi * p.keys_per_block : positions;
        if (p.rule == PRECEDING_MEDIA || phi == 0) {
            return {0, end};
        }
        return {phi - 1 <= whole ? (phi - 1) * p.keys_per_block : positions, end};
    }
    return {0, positions};
}

// Bounds of the keys that row i of problem b (row `row` of the operands) may see.
DEVICE Range key_range(const Call& call, u32 b, u32 entry, u32 row, u32 i, u32 positions) {
    const AttentionParams& p = call.params;
    if (p.rule == PREFIX_CAUSAL) {
        // per_row is an offset per problem, if any. Both terms of the sum are below 2^31.
        const u32 offset = p.per_row_words == 0 ? 0 : min(word_at(call.operands.per_row, place_of_row(call, b, 0)), 0x7fffffffu);
        return {0, min(positions, max(p.prefix, i + offset + 1))};
    }
    return media_range(call, entry, row, positions);
}

// The keys from j on whose block is set for a row.
DEVICE u64 shown(const Call& call, u32 entry, u32 row, u32 j) {
    const AttentionParams& p = call.params;
    if (p.rule != MEDIA_BITS) {
        return ~0ull;
    }
    const u64 at = place_of_row(call, entry, row);
    u64 mask = 0;
    for (u32 i = 0; i < 64;) {
        const u32 block = (j + i) / p.keys_per_block;
        const u32 n = min(64 - i, p.keys_per_block - (j + i) % p.keys_per_block);
        if (block / 32 < p.per_row_words && (word_at(call.operands.per_row, at + block / 32) >> (block % 32) & 1) == 1) {
            mask |= low_bits(n) << i;
        }
        i += n;
    }
    return mask;
}

// The keys from j on that a row sees.
DEVICE u64 visible(const Call& call, const Keys& keys, u32 entry, u32 row, Range range, u32 j) {
    const u64 mask = existing(call, keys, j) & within(range, j);
    return mask == 0 ? 0 : mask & shown(call, entry, row, j);
}

// What a row without a visible key gets.
DEVICE u32 empty_policy(const Call& call, const Keys& keys, u32 entry, u32 row) {
    const AttentionParams& p = call.params;
    if (positions_of(keys) == 0) {
        return ZERO;
    }
    if (p.rule == SAME_MEDIA || p.rule == PRECEDING_MEDIA) {
        const u32 phi = phi_of(call, entry, row);
        if (phi == 0) {
            return p.no_media;
        }
        if (p.rule == SAME_MEDIA && phi > media_present(call, keys)) {
            return p.beyond_media;
        }
    }
    return p.masked;
}
