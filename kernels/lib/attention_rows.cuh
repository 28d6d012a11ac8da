// A block's tile of `attention`: rows and heads, where their operands lie, which keys they see.
//
// A tile has up to PAIRS (row, query head) pairs: rows of one problem times the heads that share a
// K/V head, so that a key is staged once for all of them. Pair n is row n / heads and head n %
// heads. PER_ROW 1: rows see different keys, and shared memory keeps each row's set; 0: the caller
// cuts tiles so that all rows see the same keys.

// Keys of a block.
constexpr u32 BLOCK = 64;

DEVICE f32 infinity() {
    return __uint_as_float(0x7f800000u);
}

// What shared memory holds when a tile of rows is done.
constexpr u32 NOTHING = 0xffffffffu;
struct Resident {
    // The block of keys, and those of its keys that are there.
    u32 block = NOTHING;
    u64 live = 0;
    // Which of two places for queries is the next tile's, and the first row that was copied to it.
    u32 place = 0, queries = NOTHING;
    // The rows saw no other block; the rows that come now see what those before saw.
    bool alone = false, again = false;
};

// Rows start .. end of a problem (row 0 is row `offset` of entry `entry`), heads from `head` on.
// `inverse`: 2^16 / heads, rounded up.
struct Tile {
    u32 problem, entry, offset, start, end, kv_head, head, heads, panel, chunk, inverse;
};

// The row of a pair, and its head. Exact: both numbers are at most 64.
DEVICE u32 row_of_pair(const Tile& tile, u32 pair) {
    return pair * tile.inverse >> 16;
}
DEVICE u32 head_of_pair(const Tile& tile, u32 pair) {
    return pair - row_of_pair(tile, pair) * tile.heads;
}

// A row of 16-bit or 32-bit elements: `element` counts from `at`.
struct RowAt {
    const void* at;
    u64 element;
    u32 type;
    bool wide;
};

DEVICE u32 take_digit(u32& number, u32 n) {
    const u32 digit = number % n;
    number /= n;
    return digit;
}

// What a block works on, except its rows; `rest` becomes the number of the row tile.
DEVICE Tile heads_of_block(const Call& call, u32& rest) {
    const AttentionParams& p = call.params;
    Tile tile{};
    rest = blockIdx.x;
    tile.panel = take_digit(rest, p.panels);
    tile.chunk = take_digit(rest, p.chunks);
    const u32 head_tile = take_digit(rest, p.head_tiles);
    tile.kv_head = take_digit(rest, p.heads / p.group);
    tile.head = head_tile * p.tile_heads;
    tile.heads = min(p.tile_heads, p.group - tile.head);
    tile.head += tile.kv_head * p.group;
    tile.inverse = (0x10000 + tile.heads - 1) / tile.heads;
    return tile;
}

// The tile of a block; empty where there is none. Dense queries go problem by problem; the tiles of
// ragged problems follow one another.
DEVICE Tile tile_of(const Call& call, u32 rows_per_tile) {
    const AttentionParams& p = call.params;
    u32 rest;
    Tile tile = heads_of_block(call, rest);
    u32 rows = 0;
    if (present(call.operands.q_offsets)) {
        for (u32 b = 0; b < p.batch; b++) {
            const Range own = query_rows(call, b);
            const u32 tiles = (own.end - own.begin + rows_per_tile - 1) / rows_per_tile;
            if (rest < tiles) {
                tile.problem = b;
                tile.offset = own.begin;
                rows = own.end - own.begin;
                break;
            }
            rest -= tiles;
        }
    } else {
        tile.problem = tile.entry = rest / p.row_tiles;
        rest %= p.row_tiles;
        rows = tile.problem < p.batch ? p.q_rows : 0;
    }
    tile.start = min(rest * rows_per_tile, rows);
    tile.end = min(tile.start + rows_per_tile, rows);
    return tile;
}

// The keys that one of the split-K blocks of a row sweeps.
DEVICE Range part_of_range(const Call& call, Range range, u32 chunk) {
    const u64 begin = static_cast<u64>(range.begin) + static_cast<u64>(chunk) * call.params.chunk_keys;
    const u64 end = min(static_cast<u64>(range.end), begin + call.params.chunk_keys);
    return {static_cast<u32>(min(begin, end)), static_cast<u32>(end)};
}

// How many rows from `start` on, before `end`, share its φ. Every warp computes it for itself.
DEVICE u32 run_of(const Call& call, const Tile& tile, u32 start, u32 end) {
    const u32 phi = phi_of(call, tile.entry, tile.offset + start), lane = threadIdx.x % 32;
    for (u32 row = start; row < end; row += 32) {
        const bool differs = row + lane < end && phi_of(call, tile.entry, tile.offset + row + lane) != phi;
        const u32 others = __ballot_sync(ALL_LANES, differs);
        if (others != 0) {
            return row + __ffs(static_cast<i32>(others)) - 1 - start;
        }
    }
    return end - start;
}

DEVICE RowAt q_row(const Call& call, u32 entry, u32 row, u32 head) {
    const AttentionParams& p = call.params;
    const Operand& q = call.operands.q;
    const u64 at = static_cast<u64>(entry) * p.q_stride_b + static_cast<u64>(row) * p.q_stride_r;
    return {q.at, p.q_offset + at + static_cast<u64>(head) * p.q_stride_h, q.type, is_wide(q)};
}

DEVICE u64 out_row(const Call& call, u32 entry, u32 row, u32 head) {
    const AttentionParams& p = call.params;
    const u64 at = static_cast<u64>(entry) * p.out_stride_b + static_cast<u64>(row) * p.out_stride_r;
    return p.out_offset + at + static_cast<u64>(head) * p.out_stride_h;
}

// State of a row over the keys of one chunk: maximum, sum of weights, weighted values.
DEVICE f32* state_at(const Call& call, u32 entry, u32 row, u32 head, u32 chunk) {
    const AttentionParams& p = call.params;
    const u64 n = (static_cast<u64>(entry) * p.q_rows + row) * p.heads + head;
    return data<f32>(call.operands.states) + (n * p.chunks + chunk) * (2 + p.head_dim);
}

DEVICE void store_log_sum_exp(const Call& call, u32 entry, u32 row, u32 head, f32 value) {
    const AttentionParams& p = call.params;
    if (present(call.operands.log_sum_exp)) {
        const u64 at = static_cast<u64>(entry) * p.log_sum_exp_stride_b + static_cast<u64>(row) * p.log_sum_exp_stride_r;
        data<f32>(call.operands.log_sum_exp)[p.log_sum_exp_offset + at + static_cast<u64>(head) * p.log_sum_exp_stride_h] = value;
    }
}

// Key j of K/V head g, in K or in V.
template <bool VALUES> DEVICE RowAt key_row(const Call& call, const Keys& keys, u32 j, u32 g) {
    const AttentionParams& p = call.params;
    const AttentionOperands& o = call.operands;
    if (j >= keys.first.positions) {
        const Operand& operand = VALUES ? o.second_v : o.second_k;
        const u64 row = keys.second.start + (j - keys.first.positions);
        const u64 at = (VALUES ? p.second_v_offset : p.second_k_offset) +
                       static_cast<u64>(keys.second.entry) * (VALUES ? p.second_v_stride_b : p.second_k_stride_b) +
                       row * (VALUES ? p.second_v_stride_r : p.second_k_stride_r) +
                       static_cast<u64>(g) * (VALUES ? p.second_v_stride_h : p.second_k_stride_h);
        return {operand.at, at, operand.type, is_wide(operand)};
    }
    const Operand& operand = VALUES ? o.first_v : o.first_k;
    const u64 row = keys.first.start + j;
    const u64 at = (VALUES ? p.first_v_offset : p.first_k_offset) +
                   static_cast<u64>(keys.first.entry) * (VALUES ? p.first_v_stride_b : p.first_k_stride_b) +
                   row * (VALUES ? p.first_v_stride_r : p.first_k_stride_r) +
                   static_cast<u64>(g) * (VALUES ? p.first_v_stride_h : p.first_k_stride_h);
    return {operand.at, at, operand.type, is_wide(operand)};
}

// What rows see, where they see different keys, in shared memory. `sets`: each row's keys of a
// block, two copies; `any`: their union over 32 rows, two copies; `gets`: what a row gets.
struct RowSets {
    u64* sets;
    u64* any;
    Range* range;
    Range* bounds;
    u32* gets;
};

// What a block works on, the same for all its threads: shared memory costs no registers. `item`:
// the block's next item of a media plan.
struct BlockWork {
    Tile tile;
    Keys keys;
    u32 item;
};

// Each row of a tile has a thread: PAIRS threads, whole warps.
constexpr u32 ROW_WARPS = PAIRS / 32;

// Their bytes: ROW_SETS_BYTES in attention/instance.rs.
DEVICE RowSets row_sets(u32 at) {
    SHARED(u64, row_keys, at, 2 * PAIRS);
    SHARED(u64, any_keys, at + 16 * PAIRS, 2 * ROW_WARPS);
    SHARED(Range, row_range, at + 16 * PAIRS + 16 * ROW_WARPS, PAIRS);
    SHARED(Range, warp_range, at + 24 * PAIRS + 16 * ROW_WARPS, ROW_WARPS);
    SHARED(u32, gets, at + 24 * PAIRS + 24 * ROW_WARPS, PAIRS);
    return {row_keys, any_keys, row_range, warp_range, gets};
}

// Bounds of the keys that some row may see. Sets what mark_keys needs.
DEVICE Range see_rows(const Call& call, const RowSets& shared, const Tile& tile, u32 start, u32 rows, u32 positions) {
    // Kernels without ranges per row serve rules under which all rows of a run see the same keys.
    if (!PER_ROW) {
        return media_range(call, tile.entry, tile.offset + start, positions);
    }
    const u32 r = threadIdx.x;
    __syncthreads();
    if (r < PAIRS) {
        Range range{0xffffffffu, 0};
        if (r < rows) {
            range = key_range(call, tile.problem, tile.entry, tile.offset + start + r, start + r, positions);
            shared.range[r] = range;
            shared.gets[r] = ZERO;
        }
        for (u32 step = 16; step > 0; step /= 2) {
            range.begin = min(range.begin, __shfl_xor_sync(ALL_LANES, range.begin, step));
            range.end = max(range.end, __shfl_xor_sync(ALL_LANES, range.end, step));
        }
        if (r % 32 == 0) {
            shared.bounds[r / 32] = range;
        }
    }
    __syncthreads();
    Range all = shared.bounds[0];
    for (u32 warp = 1; warp < ROW_WARPS; warp++) {
        all = {min(all.begin, shared.bounds[warp].begin), max(all.end, shared.bounds[warp].end)};
    }
    return all;
}

// The keys of block `block` that some row may see, uniform. `stage`: copy of the sets, 0 or 1.
DEVICE u64 mark_keys(const Call& call, const RowSets& shared, const Tile& tile, const Keys& keys, u32 start, u32 rows, u32 mode,
                     Range bounds, u32 block, u32 stage) {
    if (mode != VISIBLE) {
        return within(bounds, block);
    }
    if (!PER_ROW) {
        return existing(call, keys, block) & within(bounds, block);
    }
    const u32 r = threadIdx.x;
    // All threads have read the sets before.
    __syncthreads();
    if (r < PAIRS) {
        u64 seen = 0;
        if (r < rows) {
            seen = visible(call, keys, tile.entry, tile.offset + start + r, shared.range[r], block) & within(bounds, block);
            shared.sets[stage * PAIRS + r] = seen;
            if (seen != 0) {
                shared.gets[r] = VISIBLE;
            }
        }
        u32 low = static_cast<u32>(seen), high = static_cast<u32>(seen >> 32);
        for (u32 step = 16; step > 0; step /= 2) {
            low |= __shfl_xor_sync(ALL_LANES, low, step);
            high |= __shfl_xor_sync(ALL_LANES, high, step);
        }
        if (r % 32 == 0) {
            shared.any[stage * ROW_WARPS + r / 32] = static_cast<u64>(high) << 32 | low;
        }
    }
    __syncthreads();
    u64 all = shared.any[stage * ROW_WARPS];
    for (u32 warp = 1; warp < ROW_WARPS; warp++) {
        all |= shared.any[stage * ROW_WARPS + warp];
    }
    return all;
}

// Counts a visited block, where a test asks.
DEVICE void count_visit(const Call& call) {
    if (threadIdx.x == 0 && present(call.operands.visited)) {
        atomicAdd(data<u32>(call.operands.visited) + call.params.visited_offset, 1u);
    }
}

// Moves `block` to the first block on from which some row sees a key, or to the end of the bounds.
// Returns its keys.
DEVICE u64 next_block(const Call& call, const RowSets& shared, const Tile& tile, const Keys& keys, u32 start, u32 rows, u32 mode,
                      Range bounds, u32& block, u32 stage) {
    for (; block < bounds.end; block += BLOCK) {
        const u64 live = mark_keys(call, shared, tile, keys, start, rows, mode, bounds, block, stage);
        if (live != 0) {
            count_visit(call);
            return live;
        }
    }
    block = bounds.end;
    return 0;
}

// The keys of a block that row r sees.
DEVICE u64 row_set(const RowSets& shared, u32 r, u32 mode, u64 live, u32 stage) {
    return PER_ROW && mode == VISIBLE ? shared.sets[stage * PAIRS + r] : live;
}

DEVICE bool row_gets(const RowSets& shared, u32 r, u32 mode) {
    return !PER_ROW || shared.gets[r] == mode;
}
