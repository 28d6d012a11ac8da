// The tile of `attention` on tensor cores: 64 pairs against keys in blocks of 64, elements f16 or bf16 (ELEMENT), four warps of 16 pairs each.
//
// Shared memory: q, and STAGES blocks of K and of V, rows of HEAD_DIM elements (64, 96 or 128; head_dim may be less, the rest is zeros) that
// are 16 bytes further apart, so that the eight rows of a matrix that ldmatrix reads lie in different banks. With two stages, a block is
// copied (cp.async, 16 bytes per thread and step) while the one before is computed; with one, it stays resident for the next tile of rows, whose
// queries are copied meanwhile, to the other of two places.
// Keys that no row sees are not read: zeros stand in their place. Per warp, a block is
//   S = q K^T     HEAD_DIM / 16 steps of 8 mma m16n8k16: 16 pairs x 64 keys in 32 registers per lane
//   softmax       hidden keys weigh 0 by index; the maximum of a row goes round the four lanes that share it, sums stay per lane
//   O += P V      P is rounded to ELEMENT in the registers it was computed in: an mma's result is laid out as the next one's left operand
// Results leave through the warp's own queries: whole rows, 16 bytes per lane.
// Tried (ptxas 13.0, sm_90a; no GPU was at hand): what all threads agree on in registers: 166 and 190 of them in attention_resampler with 64 and
// 128 columns, and spills where four and three blocks must fit; in shared memory: 141 and 163, and none. An address of 64 bits for each 16-byte
// piece, in a loop: 488 instructions of a warp to copy K and V of a block of 64 columns; addresses a multiplication apart, unrolled, a mask only where keys
// are missing, the scale in the exponent: all of a block's work is 462 instead of 977. Results exchanged over shuffles: 20 shuffles and 40 selections.

constexpr u32 LANES = THREADS;
constexpr u32 STRIDE = HEAD_DIM + 8;
constexpr u32 PIECES = HEAD_DIM / 8;
constexpr u32 TILE = BLOCK * STRIDE;

// Rows at equal distances in memory: where the first begins, and the bytes from one to the next. `wide`: can they be copied 16 bytes at a time?
struct alignas(16) Lines {
    const ELEMENT* first;
    u32 bytes, wide;
};

// `lines`: of K and of V in the first segment, then in the second.
struct Shared {
    ELEMENT* q;
    ELEMENT* k;
    ELEMENT* v;
    RowSets rows;
    Agreed* agreed;
    Lines* lines;
};

// Of the two pairs of a lane, lane / 4 and lane / 4 + 8 of its warp: weighted values, largest score, and the sum of this lane's weights.
struct Sums {
    f32 o[HEAD_DIM / 8][4];
    f32 row_max[2];
    f32 row_sum[2];
};

// No values yet.
DEVICE void clear(Sums& sums) {
#pragma unroll
    for (u32 n = 0; n < HEAD_DIM / 8; n++) {
        sums.o[n][0] = sums.o[n][1] = sums.o[n][2] = sums.o[n][3] = 0.0f;
    }
}

// Places for queries.
constexpr u32 PLACES = STAGES == 1 ? 2 : 1;
constexpr u32 Q_BYTES = 2 * TILE * PLACES;
constexpr u32 K_BYTES = 2 * TILE * STAGES;
constexpr u32 LINES_AT = Q_BYTES + 2 * K_BYTES;
constexpr u32 AGREED_AT = LINES_AT + 4 * sizeof(Lines);
constexpr u32 SETS_AT = AGREED_AT + sizeof(Agreed);

DEVICE Shared shared_tiles() {
    SHARED(ELEMENT, tile_q, 0, TILE * PLACES);
    SHARED(ELEMENT, tile_k, Q_BYTES, TILE * STAGES);
    SHARED(ELEMENT, tile_v, Q_BYTES + K_BYTES, TILE * STAGES);
    SHARED(Lines, lines, LINES_AT, 4);
    SHARED(Agreed, agreed, AGREED_AT, 1);
    Shared shared{tile_q, tile_k, tile_v, {}, agreed, lines};
    if (PER_ROW) {
        shared.rows = row_sets(SETS_AT);
    }
    return shared;
}

// Eight elements that do not begin on a multiple of 16 bytes.
DEVICE void store_elements(ELEMENT* to, const Wide& piece) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        to[2 * i].bits = static_cast<u16>(piece.word[i]);
        to[2 * i + 1].bits = static_cast<u16>(piece.word[i] >> 16);
    }
}

// Columns 8 c to 8 c + 7 of a row into shared memory: asynchronously where 16 bytes can be read at once. Zeros where it does not exist.
DEVICE void stage_piece(ELEMENT* to, RowAt row, u32 c, bool exists) {
    const ELEMENT* from = static_cast<const ELEMENT*>(row.at) + (exists ? row.element + 8 * c : 0);
    if (row.wide) {
        copy_async_16(to, from, exists);
        return;
    }
    Wide wide{};
    for (u32 word = 0; exists && word < 4; word++) {
        wide.word[word] = from[2 * word].bits | static_cast<u32>(from[2 * word + 1].bits) << 16;
    }
    wide_store(to, wide);
}

// Rows that are copied at once, a piece per thread (with 12 pieces a row, the last warp rests). From step to step a thread keeps its columns, so that
// addresses are a multiplication apart and all copies of a tile are on their way at once.
constexpr u32 STEP_ROWS = PIECES == 8 ? 16 : 8;
static_assert(STEP_ROWS * PIECES <= LANES && BLOCK % STEP_ROWS == 0 && PAIRS == BLOCK, "a step has a thread for each piece");

// Copies rows of 64, pair n of 2^shift heads from line n >> shift, `bytes` apart, and head n % 2^shift, `head_stride` elements apart. Lines
// `from` on, of which those behind `last` are not there. Bit n of `exists`: is row n read?
DEVICE void stage_lines(ELEMENT* to, const Lines& lines, u32 from, u32 last, u32 columns, u64 exists, u32 shift, u32 head_stride) {
    const u32 thread = thread_again(), row = thread / PIECES, c = thread % PIECES;
    if (row >= STEP_ROWS) {
        return;
    }
    const u64 own = 8 * c < columns ? exists >> row : 0;
    const u32 line = from + (row >> shift), head = row & ((1u << shift) - 1);
    const ELEMENT* column = lines.first + static_cast<u64>(head) * head_stride + (8 * c < columns ? 8 * c : 0);
#pragma unroll
    for (u32 i = 0; i < BLOCK / STEP_ROWS; i++) {
        const u64 down = static_cast<u64>(min(line + i * (STEP_ROWS >> shift), last)) * lines.bytes;
        const bool here = (own >> (i * STEP_ROWS) & 1) != 0;
        copy_async_16(to + (row * STRIDE + 8 * c), reinterpret_cast<const char*>(column) + down, here, 2 * i * STEP_ROWS * STRIDE);
    }
}

// Where rows begin, and whether they can be staged so.
DEVICE Lines lines_from(RowAt row, u32 stride) {
    const bool is_short = stride < 1u << 31;
    return {static_cast<const ELEMENT*>(row.at) + row.element, 2 * stride, row.wide && is_short ? 1u : 0u};
}

// The lines of K and V in both segments, each by a thread of the first four.
DEVICE void agree_on_lines(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys) {
    const AttentionParams& p = call.params;
    const bool second = threadIdx.x >= 2, values = threadIdx.x % 2 == 1;
    const u32 j = second ? keys.first.slots : 0;
    const RowAt row = values ? key_row<true>(call, keys, j, tile.kv_head) : key_row<false>(call, keys, j, tile.kv_head);
    const u32 k_stride = second ? p.second_k_stride_r : p.first_k_stride_r, v_stride = second ? p.second_v_stride_r : p.first_v_stride_r;
    shared.lines[threadIdx.x] = lines_from(row, values ? v_stride : k_stride);
}

// The pairs of a tile of rows, behind one another.
DEVICE void stage_q(const Call& call, ELEMENT* to, const Tile& tile, u32 start, u32 pairs) {
    const AttentionParams& p = call.params;
    const u32 heads = tile.heads;
    const Lines lines = lines_from(q_row(call, tile.entry, tile.offset + start, tile.head), p.q_stride_r);
    // Pairs a step apart are of the same head.
    if (lines.wide != 0 && STEP_ROWS % heads == 0) {
        const u32 shift = __ffs(static_cast<i32>(heads)) - 1;
        stage_lines(to, lines, 0, (pairs >> shift) - 1, p.head_dim, low_bits(pairs), shift, p.q_stride_h);
        return;
    }
#pragma unroll 1
    for (u32 at = threadIdx.x; at < PAIRS * PIECES; at += LANES) {
        const u32 pair = at / PIECES, c = at % PIECES;
        const bool exists = pair < pairs && 8 * c < p.head_dim;
        const u32 n = pair < pairs ? pair : 0;
        const RowAt row = q_row(call, tile.entry, tile.offset + start + row_of_pair(tile, n), tile.head + head_of_pair(tile, n));
        stage_piece(to + pair * STRIDE + 8 * c, row, c, exists);
    }
}

// A block of keys in which both segments meet, or that cannot be read 16 bytes at a time.
template <bool VALUES>
DEVICE void stage_mixed(const Call& call, ELEMENT* to, const Tile& tile, const Keys& keys, u32 block, u64 live) {
#pragma unroll 1
    for (u32 at = threadIdx.x; at < BLOCK * PIECES; at += LANES) {
        const u32 j = at / PIECES, c = at % PIECES;
        const bool exists = (live >> j & 1) != 0 && 8 * c < call.params.head_dim;
        const RowAt row = key_row<VALUES>(call, keys, block + j, tile.kv_head);
        stage_piece(to + j * STRIDE + 8 * c, row, c, exists);
    }
}

DEVICE void stage_keys(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 block, u64 live, u32 stage, u32 mode) {
    const u32 slots = keys.first.slots, columns = call.params.head_dim;
    const bool in_second = block >= slots, in_one = in_second || block + BLOCK <= slots || keys.second.slots == 0;
    const Lines k = shared.lines[in_second ? 2 : 0], v = shared.lines[in_second ? 3 : 1];
    ELEMENT *to_k = shared.k + stage * TILE, *to_v = shared.v + stage * TILE;
    if (in_one && k.wide != 0 && v.wide != 0) {
        const u32 from = in_second ? block - slots : block, last = (in_second ? keys.second.slots : slots) - 1;
        if (mode != UNIFORM) {
            stage_lines(to_k, k, from, last, columns, live, 0, 0);
        }
        stage_lines(to_v, v, from, last, columns, live, 0, 0);
        return;
    }
    if (mode != UNIFORM) {
        stage_mixed<false>(call, to_k, tile, keys, block, live);
    }
    stage_mixed<true>(call, to_v, tile, keys, block, live);
}

// Scores of the warp's 16 pairs: s[n] is the tile of keys 8 n to 8 n + 7.
DEVICE void score(const ELEMENT* q, const ELEMENT* k, f32 (&s)[BLOCK / 8][4]) {
    const u32 lane = threadIdx.x % 32;
    const ELEMENT* q_at = q + (lane % 16) * STRIDE + lane / 16 * 8;
    const ELEMENT* k_at = k + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 n = 0; n < BLOCK / 8; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (u32 step = 0; step < HEAD_DIM; step += 16) {
        u32 a[4];
        ldmatrix_x4(a, q_at + step);
#pragma unroll
        for (u32 n = 0; n < BLOCK / 8; n += 2) {
            u32 r[4];
            ldmatrix_x4(r, k_at + n * 8 * STRIDE + step);
            mma_16816<ELEMENT>(s[n], a, {r[0], r[1]});
            mma_16816<ELEMENT>(s[n + 1], a, {r[2], r[3]});
        }
    }
}

// What a score counts: a positive scale is left to the exponential, where it costs nothing. Another one is multiplied in before: the largest
// score would not be that of the largest product.
DEVICE f32 unit_of(f32 scale) {
    return scale > 0.0f ? scale : 1.0f;
}

// Replaces scores by weights and lets the sums so far, if this is not the `first` block, shrink. `set` holds the keys that each of the lane's pairs
// sees; `full`: every pair of the warp sees all of them.
DEVICE void weigh(const u64 (&set)[2], bool full, bool first, f32 scale, f32 (&s)[BLOCK / 8][4], Sums& sums) {
    if (!(scale > 0.0f)) {
#pragma unroll
        for (u32 n = 0; n < BLOCK / 8; n++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                s[n][e] *= scale;
            }
        }
    }
    if (!full) {
        const u32 column = threadIdx.x % 4 * 2;
        const u64 own[2] = {set[0] >> column, set[1] >> column};
#pragma unroll
        for (u32 n = 0; n < BLOCK / 8; n++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const bool sees = (own[e / 2] >> (8 * n + e % 2) & 1) != 0;
                s[n][e] = sees ? s[n][e] : -infinity();
            }
        }
    }
    const f32 factor = unit_of(scale) * LOG2_E;
    f32 rest[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        f32 largest = sums.row_max[half];
#pragma unroll
        for (u32 n = 0; n < BLOCK / 8; n++) {
            largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        largest = warp_max<4>(largest);
        // A pair that saw nothing yet: all weights are 0.
        const f32 base = largest == -infinity() ? 0.0f : largest;
        rest[half] = -base * factor;
        if (!first) {
            // The difference first: it is exactly 0 where this block has no larger score, and nothing changes.
            const f32 decay = exp2_approx((sums.row_max[half] - base) * factor);
            sums.row_sum[half] *= decay;
#pragma unroll
            for (u32 n = 0; n < HEAD_DIM / 8; n++) {
                sums.o[n][2 * half] *= decay;
                sums.o[n][2 * half + 1] *= decay;
            }
        }
        sums.row_max[half] = largest;
    }
#pragma unroll
    for (u32 n = 0; n < BLOCK / 8; n++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            s[n][e] = exp2_approx(fma(s[n][e], factor, rest[e / 2]));
            sums.row_sum[e / 2] += s[n][e];
        }
    }
}

// Adds the block's weighted values.
DEVICE void accumulate(const ELEMENT* v, const f32 (&s)[BLOCK / 8][4], Sums& sums) {
    const u32 lane = threadIdx.x % 32;
    const ELEMENT* v_at = v + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 j = 0; j < BLOCK; j += 16) {
        const f32 (&left)[4] = s[j / 8];
        const f32 (&right)[4] = s[j / 8 + 1];
        const u32 p[4] = {pack2<ELEMENT>(left[0], left[1]), pack2<ELEMENT>(left[2], left[3]), pack2<ELEMENT>(right[0], right[1]),
                          pack2<ELEMENT>(right[2], right[3])};
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n += 2) {
            u32 r[4];
            ldmatrix_x4_trans(r, v_at + j * STRIDE + n * 8);
            mma_16816<ELEMENT>(sums.o[n], p, {r[0], r[1]});
            mma_16816<ELEMENT>(sums.o[n + 1], p, {r[2], r[3]});
        }
    }
}

// The pair of a lane: 0 or 1.
DEVICE u32 pair_of(u32 half) {
    return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
}

// Softmax and weighted sum over the keys in `bounds` that the rule (or, in the other modes, everybody) may see. Whether there were any.
DEVICE bool sweep(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 start, u32 rows, Range next_rows, u32 mode,
                  Range bounds, Resident& resident, Sums& sums) {
    const u32 pairs = rows * tile.heads, first_pair = threadIdx.x / 32 * 16, place = PLACES == 2 ? resident.place : 0;
    sums.row_max[0] = sums.row_max[1] = -infinity();
    sums.row_sum[0] = sums.row_sum[1] = 0.0f;
    if (mode == ZERO) {
        return false;
    }
    u32 block = bounds.begin, stage = 0;
    bool first = true;
    u64 live = resident.live;
    if (resident.again) {
        count_visit(call);
    } else {
        live = next_block(call, shared.rows, tile, keys, start, rows, mode, bounds, block, stage);
    }
    resident.alone = false;
    if (live == 0) {
        clear(sums);
        return false;
    }
    clear(sums);
    if (PLACES == 1 || resident.queries != start) {
        // Results of rows before may be on their way through the place, or queries of a tile that saw nothing.
        if (PLACES == 2 || mode != VISIBLE) {
            __syncthreads();
        }
        copy_async_wait<0>();
        stage_q(call, shared.q + place * TILE, tile, start, pairs);
    }
    if (STAGES == 2 || resident.block != block || resident.live != live) {
        stage_keys(call, shared, tile, keys, block, live, stage, mode);
    }
    copy_async_commit();
    while (live != 0) {
        u32 next = block + BLOCK;
        u64 next_live = 0;
        if (STAGES == 2) {
            next_live = next_block(call, shared.rows, tile, keys, start, rows, mode, bounds, next, stage ^ 1);
            if (next_live != 0) {
                stage_keys(call, shared, tile, keys, next, next_live, stage ^ 1, mode);
            }
            copy_async_commit();
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        if (PLACES == 2 && next_rows.begin < next_rows.end && resident.queries != next_rows.begin) {
            stage_q(call, shared.q + (place ^ 1) * TILE, tile, next_rows.begin, (next_rows.end - next_rows.begin) * tile.heads);
            copy_async_commit();
            resident.queries = next_rows.begin;
        }
        if (first_pair < pairs) {
            // Pairs that do not exist are staged as zeros and stored nowhere: whatever they see.
            u64 set[2] = {live, live};
            bool full = live == ~0ull;
            if (PER_ROW && mode == VISIBLE) {
                for (u32 half = 0; half < 2; half++) {
                    const u32 pair = pair_of(half);
                    set[half] = pair < pairs ? row_set(shared.rows, row_of_pair(tile, pair), mode, live, stage) : ~0ull;
                }
                full = __all_sync(ALL_LANES, (set[0] & set[1]) == ~0ull);
            }
            f32 s[BLOCK / 8][4] = {};
            if (mode != UNIFORM) {
                score(shared.q + place * TILE + first_pair * STRIDE, shared.k + stage * TILE, s);
            }
            weigh(set, full, first, call.params.scale, s, sums);
            accumulate(shared.v + stage * TILE, s, sums);
        }
        // Everybody is done with q and this stage.
        __syncthreads();
        if (STAGES == 1) {
            resident.block = mode == UNIFORM ? NOTHING : block;
            resident.live = live;
            next_live = next_block(call, shared.rows, tile, keys, start, rows, mode, bounds, next, stage);
            if (next_live != 0) {
                stage_keys(call, shared, tile, keys, next, next_live, stage, mode);
                copy_async_commit();
            }
            resident.alone = first && next_live == 0 && mode == VISIBLE;
        } else {
            stage ^= 1;
        }
        first = false;
        block = next;
        live = next_live;
    }
    sums.row_sum[0] = warp_sum<4>(sums.row_sum[0]);
    sums.row_sum[1] = warp_sum<4>(sums.row_sum[1]);
    return true;
}

// Rows of a warp's results that are written at once, a piece per lane.
constexpr u32 LANE_ROWS = 32 / PIECES;

// Writes the rows that get `mode`: the sums divided by the weights' sum, or zeros. They go through the warp's own queries, which are done with, so that
// the lanes of a row write its pieces side by side.
DEVICE void finish(const Call& call, const Shared& shared, const Tile& tile, u32 start, u32 rows, u32 mode, const Resident& resident,
                   const Sums& sums) {
    const u32 pairs = rows * tile.heads, thread = thread_again(), lane = thread % 32, first_pair = thread / 32 * 16;
    ELEMENT* own = shared.q + (PLACES == 2 ? resident.place : 0) * TILE + first_pair * STRIDE;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 pair = first_pair + lane / 4 + 8 * half;
        if (mode != ZERO) {
            const f32 factor = reciprocal(sums.row_sum[half]);
            ELEMENT* to = own + (lane / 4 + 8 * half) * STRIDE + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < PIECES; n++) {
                *reinterpret_cast<u32*>(to + 8 * n) = pack2<ELEMENT>(sums.o[n][2 * half] * factor, sums.o[n][2 * half + 1] * factor);
            }
        }
        if (present(call.operands.log_sum_exp) && lane % 4 == 0 && pair < pairs && row_gets(shared.rows, row_of_pair(tile, pair), mode)) {
            const f32 value = mode == ZERO ? -infinity() : fma(sums.row_max[half], unit_of(call.params.scale), log_of(sums.row_sum[half]));
            store_log_sum_exp(call, tile.entry, tile.offset + start + row_of_pair(tile, pair), tile.head + head_of_pair(tile, pair), value);
        }
    }
    __syncwarp(ALL_LANES);
    const AttentionParams& p = call.params;
    const u32 r = lane / PIECES, c = lane % PIECES;
    if (r >= LANE_ROWS || 8 * c >= p.head_dim) {
        return;
    }
    ELEMENT* first = data<ELEMENT>(call.operands.out) + out_row(call, tile.entry, tile.offset + start, tile.head) + 8 * c;
    const bool wide = is_wide(call.operands.out);
#pragma unroll
    for (u32 i = 0; i < 16; i += LANE_ROWS) {
        const u32 pair = first_pair + r + i, row = row_of_pair(tile, pair);
        const Wide piece = mode == ZERO ? Wide{} : wide_load(own + (r * STRIDE + 8 * c) + static_cast<i32>(i * STRIDE));
        ELEMENT* to = first + static_cast<u64>(row) * p.out_stride_r + static_cast<u64>(head_of_pair(tile, pair)) * p.out_stride_h;
        if (pair < pairs && row_gets(shared.rows, row, mode)) {
            if (wide) {
                wide_store_global(to, piece);
            } else {
                store_elements(to, piece);
            }
        }
    }
}

// Two neighbours of a state: its size is even.
struct alignas(8) Two {
    f32 x, y;
};

// Leaves weighted values, maximum and sum of each pair for attention_merge.
DEVICE void leave_state(const Call& call, const Shared&, const Tile& tile, u32 start, u32 rows, const Sums& sums) {
    const u32 pairs = rows * tile.heads, quarter = threadIdx.x % 4;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 pair = pair_of(half);
        if (pair < pairs) {
            const u32 row = tile.offset + start + row_of_pair(tile, pair), head = tile.head + head_of_pair(tile, pair);
            f32* state = state_at(call, tile.entry, row, head, tile.chunk);
#pragma unroll
            for (u32 n = 0; n < HEAD_DIM / 8; n++) {
                const u32 column = 8 * n + 2 * quarter;
                if (column < call.params.head_dim) {
                    *reinterpret_cast<Two*>(state + 2 + column) = {sums.o[n][2 * half], sums.o[n][2 * half + 1]};
                }
            }
            if (quarter == 0) {
                state[0] = sums.row_max[half] * unit_of(call.params.scale);
                state[1] = sums.row_sum[half];
            }
        }
    }
}
