// attention_decode: one or few query rows per problem against cached keys, under any rule. Bound by
// reading K and V once.
//
// Work: one block per (problem, row, K/V head, up to HEADS of the query heads that share it,
// chunk). Which keys the row sees is read from φ or the bitset, on the device. A block takes 64
// keys at a time. Groups of GROUP lanes, 16 bytes each, read a key and multiply it with the queries
// of all heads; a warp per head turns logits into weights; each thread then sums its 16 bytes of
// the values of every 128 / GROUP-th key. K and V go from memory to registers, each key once for
// all heads. Rows never mix: a NaN that only one row may see stays there.
// Split-K: long caches are split over blocks of `chunk_keys` keys, whose states attention_merge
// merges. The split depends on the shapes of one problem only.
// Shared memory: queries, scores, and the threads' partial sums at the end. Traffic: K and V of the
// visible keys once per row and head tile.
// Tried (ptxas 13.0, sm_90a, 128 columns): two keys at a time, each with its own address. A lane
// then has 2 loads of 16 bytes in flight instead of 16 (K and V of the block), and 156 registers
// instead of 168. In f32: 118 registers instead of 168, and 4 blocks per SM instead of 3.

// WIDE: elements in 16 bytes. GROUP: lanes per row, a power of two. ROWS: rows per block step.
constexpr u32 WIDE = 16 / sizeof(ELEMENT);
constexpr u32 GROUP = HEAD_DIM / WIDE <= 8 ? 8 : HEAD_DIM / WIDE <= 16 ? 16 : 32;
constexpr u32 ROWS = THREADS / GROUP;
constexpr u32 COLUMNS = GROUP * WIDE;
// AHEAD: keys that a lane has in flight at once. ROUNDS: how often, per key block.
constexpr u32 AHEAD = BLOCK / ROWS < 8 ? BLOCK / ROWS : 8;
constexpr u32 ROUNDS = BLOCK / ROWS / AHEAD;
constexpr u32 MOST_HEADS = 8;

struct Tiles {
    f32* q;
    f32* scores;
    RowState* states;
    f32* partial;
};

template <class T> DEVICE void unpack(Wide wide, f32* x) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        unpack2<T>(wide.word[i], x[2 * i], x[2 * i + 1]);
    }
}
template <> DEVICE void unpack<f32>(Wide wide, f32* x) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[i] = __uint_as_float(wide.word[i]);
    }
}

// This lane's elements of a row, as f32; zeros past its end and where the row does not exist.
DEVICE void read_columns(const Call& call, RowAt row, bool exists, f32 (&x)[WIDE]) {
    const u32 column = threadIdx.x % GROUP * WIDE, columns = call.params.head_dim;
    const ELEMENT* from = static_cast<const ELEMENT*>(row.at) + row.element + column;
    if (exists && row.wide && column + WIDE <= columns) {
        unpack<ELEMENT>(wide_load(from), x);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < WIDE; i++) {
        x[i] = exists && column + i < columns ? to_f32(from[i]) : 0.0f;
    }
}

// Whether the keys of the block lie at one stride and can be read 16 bytes at a time.
DEVICE bool is_even(const Call& call, const Keys& keys, u32 block) {
    const u32 positions = keys.first.positions;
    const bool second = block >= positions;
    const AttentionOperands& o = call.operands;
    const bool wide = second ? is_wide(o.second_k) && is_wide(o.second_v) : is_wide(o.first_k) && is_wide(o.first_v);
    return wide && call.params.head_dim % WIDE == 0 && (second || block + BLOCK <= positions || keys.second.positions == 0);
}

// Issues the loads of AHEAD keys of an even block: this lane's elements of keys first, first +
// ROWS, ...
template <bool VALUES>
DEVICE void issue_loads(const Call& call, const Keys& keys, const Tile& tile, u32 block, u32 first, u64 live, Wide (&piece)[AHEAD]) {
    const AttentionParams& p = call.params;
    const u32 column = threadIdx.x % GROUP * WIDE;
    const u64 own = column < p.head_dim ? live >> first : 0;
    const RowAt row = key_row<VALUES>(call, keys, block + first, tile.kv_head);
    const u32 stride = block >= keys.first.positions ? (VALUES ? p.second_v_stride_r : p.second_k_stride_r)
                                                 : (VALUES ? p.first_v_stride_r : p.first_k_stride_r);
    const ELEMENT* from = static_cast<const ELEMENT*>(row.at) + row.element + column;
    const u64 down = static_cast<u64>(stride) * ROWS;
#pragma unroll
    for (u32 n = 0; n < AHEAD; n++) {
        piece[n] = (own >> (n * ROWS) & 1) != 0 ? wide_load(from + n * down) : Wide{};
    }
}

// Logits of keys that have arrived, for each head; head h, key j at 64 h + j.
template <u32 HEADS>
DEVICE void score(const Call& call, const Tile& tile, const Tiles& tiles, u32 first, const Wide (&piece)[AHEAD]) {
    const u32 column = threadIdx.x % GROUP * WIDE;
#pragma unroll
    for (u32 h = 0; h < HEADS; h++) {
        if (h < tile.heads) {
            f32 q[WIDE];
#pragma unroll
            for (u32 i = 0; i < WIDE; i++) {
                q[i] = tiles.q[h * COLUMNS + column + i];
            }
#pragma unroll
            for (u32 n = 0; n < AHEAD; n++) {
                f32 k[WIDE], sum = 0.0f;
                unpack<ELEMENT>(piece[n], k);
#pragma unroll
                for (u32 i = 0; i < WIDE; i++) {
                    sum = fma(q[i], k[i], sum);
                }
                sum = warp_sum<GROUP>(sum);
                if (threadIdx.x % GROUP == 0) {
                    tiles.scores[h * BLOCK + first + n * ROWS] = logit_of(call.params, sum);
                }
            }
        }
    }
}

// Adds the weighted values of keys that have arrived.
template <u32 HEADS>
DEVICE void accumulate(const Tile& tile, const Tiles& tiles, u32 first, const Wide (&piece)[AHEAD], f32 (&o)[HEADS][WIDE]) {
#pragma unroll
    for (u32 h = 0; h < HEADS; h++) {
        if (h < tile.heads) {
#pragma unroll
            for (u32 n = 0; n < AHEAD; n++) {
                const f32 weight = tiles.scores[h * BLOCK + first + n * ROWS];
                f32 v[WIDE];
                unpack<ELEMENT>(piece[n], v);
#pragma unroll
                for (u32 i = 0; i < WIDE; i++) {
                    o[h][i] = fma(weight, v[i], o[h][i]);
                }
            }
        }
    }
}

// The same key by key, for blocks that are not even.
template <u32 HEADS>
DEVICE void score_each(const Call& call, const Keys& keys, const Tile& tile, const Tiles& tiles, u32 block, u64 live) {
    const u32 column = threadIdx.x % GROUP * WIDE;
#pragma unroll 1
    for (u32 j = threadIdx.x / GROUP; j < BLOCK; j += ROWS) {
        f32 k[WIDE];
        read_columns(call, key_row<false>(call, keys, block + j, tile.kv_head), (live >> j & 1) != 0, k);
#pragma unroll 1
        for (u32 h = 0; h < tile.heads; h++) {
            f32 sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < WIDE; i++) {
                sum = fma(tiles.q[h * COLUMNS + column + i], k[i], sum);
            }
            sum = warp_sum<GROUP>(sum);
            if (threadIdx.x % GROUP == 0) {
                tiles.scores[h * BLOCK + j] = logit_of(call.params, sum);
            }
        }
    }
}

template <u32 HEADS>
DEVICE void accumulate_each(const Call& call, const Keys& keys, const Tile& tile, const Tiles& tiles, u32 block, u64 live,
                            f32 (&o)[HEADS][WIDE]) {
#pragma unroll 1
    for (u32 j = threadIdx.x / GROUP; j < BLOCK; j += ROWS) {
        f32 v[WIDE];
        read_columns(call, key_row<true>(call, keys, block + j, tile.kv_head), (live >> j & 1) != 0, v);
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            if (h < tile.heads) {
                const f32 weight = tiles.scores[h * BLOCK + j];
#pragma unroll
                for (u32 i = 0; i < WIDE; i++) {
                    o[h][i] = fma(weight, v[i], o[h][i]);
                }
            }
        }
    }
}

// Computes the tile's row, for up to HEADS heads.
template <u32 HEADS> DEVICE void decode(const Call& call, const Tile& tile, const Tiles& tiles) {
    const AttentionParams& params = call.params;
    const AttentionOperands& operands = call.operands;
    const Keys keys = keys_of(call, tile.problem);
    const u32 row = tile.offset + tile.start, positions = positions_of(keys), column = threadIdx.x % GROUP * WIDE, first = threadIdx.x / GROUP;
    const u32 lane = threadIdx.x % 32;
    Range range = key_range(call, tile.problem, tile.entry, row, tile.start, positions);
    const bool is_part = params.chunks > 1;
    Range bounds = is_part ? part_of_range(call, range, tile.chunk) : range;
    for (u32 h = first; h < tile.heads; h += ROWS) {
        f32 x[WIDE];
        read_columns(call, q_row(call, tile.entry, row, tile.head + h), true, x);
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) {
            tiles.q[h * COLUMNS + column + i] = x[i];
        }
    }
    u32 mode = VISIBLE;
    bool saw = false;
    f32 o[HEADS][WIDE] = {};
    // A second round only for a row that saw nothing and whose policy wants keys.
#pragma unroll 1
    for (;;) {
        if (threadIdx.x < HEADS) {
            tiles.states[threadIdx.x] = softmax_start();
        }
#pragma unroll 1
        for (u32 block = bounds.begin; block < bounds.end; block += BLOCK) {
            const u64 live = (mode == VISIBLE ? visible(call, keys, tile.entry, row, range, block) : ~0ull) & within(bounds, block);
            if (live == 0) {
                continue;
            }
            const bool even = is_even(call, keys, block);
            Wide k[AHEAD], v[AHEAD];
            // V is in flight during the softmax. One head has registers for both.
            if (even) {
                issue_loads<false>(call, keys, tile, block, first, live, k);
                if (HEADS == 1) {
                    issue_loads<true>(call, keys, tile, block, first, live, v);
                }
            }
            if (threadIdx.x == 0 && present(operands.visited)) {
                atomicAdd(data<u32>(operands.visited) + params.visited_offset, 1u);
            }
            // All threads are done with the weights of the block before, and q is staged.
            __syncthreads();
            if (mode == UNIFORM) {
                for (u32 at = threadIdx.x; at < HEADS * BLOCK; at += THREADS) {
                    tiles.scores[at] = 0.0f;
                }
            } else if (even) {
                score<HEADS>(call, tile, tiles, first, k);
#pragma unroll
                for (u32 round = 1; round < ROUNDS; round++) {
                    const u32 next = first + round * AHEAD * ROWS;
                    issue_loads<false>(call, keys, tile, block, next, live, k);
                    score<HEADS>(call, tile, tiles, next, k);
                }
            } else {
                score_each<HEADS>(call, keys, tile, tiles, block, live);
            }
            if (even && HEADS > 1) {
                issue_loads<true>(call, keys, tile, block, first, live, v);
            }
            __syncthreads();
            // A warp takes every fourth head.
            for (u32 h = threadIdx.x / 32; h < tile.heads; h += THREADS / 32) {
                softmax_update<32, 2, 32>(tiles.states[h], tiles.scores + h * BLOCK + lane, live >> lane);
            }
            __syncthreads();
            if (saw) {
#pragma unroll
                for (u32 h = 0; h < HEADS; h++) {
                    const f32 decay = h < tile.heads ? tiles.states[h].decay : 0.0f;
#pragma unroll
                    for (u32 i = 0; i < WIDE; i++) {
                        o[h][i] *= decay;
                    }
                }
            }
            saw = true;
            if (even) {
                accumulate<HEADS>(tile, tiles, first, v, o);
#pragma unroll
                for (u32 round = 1; round < ROUNDS; round++) {
                    const u32 next = first + round * AHEAD * ROWS;
                    issue_loads<true>(call, keys, tile, block, next, live, v);
                    accumulate<HEADS>(tile, tiles, next, v, o);
                }
            } else {
                accumulate_each<HEADS>(call, keys, tile, tiles, block, live, o);
            }
        }
        if (saw || is_part || mode != VISIBLE) {
            break;
        }
        mode = empty_policy(call, keys, tile.entry, row);
        if (mode == ZERO) {
            break;
        }
        range = bounds = {0, positions};
        __syncthreads();
    }
    // Per head: the partial sums of the ROWS threads that share a column are added in order.
    for (u32 h = 0; h < tile.heads; h++) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) {
            f32 own = 0.0f;
#pragma unroll
            for (u32 n = 0; n < HEADS; n++) {
                own = n == h ? o[n][i] : own;
            }
            tiles.partial[first * COLUMNS + column + i] = own;
        }
        __syncthreads();
        const RowState state = tiles.states[h];
        const u64 out = out_row(call, tile.entry, row, tile.head + h);
        for (u32 at = threadIdx.x; at < params.head_dim; at += THREADS) {
            f32 sum = 0.0f;
#pragma unroll
            for (u32 n = 0; n < ROWS; n++) {
                sum += tiles.partial[n * COLUMNS + at];
            }
            if (is_part) {
                state_at(call, tile.entry, row, tile.head + h, tile.chunk)[2 + at] = sum;
            } else {
                data<ELEMENT>(operands.out)[out + at] = from_f32<ELEMENT>(saw ? sum / state.row_sum : 0.0f);
            }
        }
        if (threadIdx.x == 0) {
            if (is_part) {
                f32* to = state_at(call, tile.entry, row, tile.head + h, tile.chunk);
                to[0] = state.row_max;
                to[1] = state.row_sum;
            } else {
                store_log_sum_exp(call, tile.entry, row, tile.head + h, saw ? log_sum_exp_of(state.row_max, state.row_sum) : -infinity());
            }
        }
    }
}

KERNEL(AttentionParams, AttentionOperands) {
    SHARED(f32, q, 0, MOST_HEADS * COLUMNS);
    SHARED(f32, scores, 4 * MOST_HEADS * COLUMNS, MOST_HEADS * BLOCK);
    SHARED(RowState, states, 4 * MOST_HEADS * (COLUMNS + BLOCK), MOST_HEADS);
    SHARED(f32, partial, 4 * MOST_HEADS * (COLUMNS + BLOCK + 3), ROWS * COLUMNS);
    const Call call{params, operands};
    const Tiles tiles{q, scores, states, partial};
    const Tile tile = tile_of(call, 1);
    if (tile.start >= tile.end) {
        return;
    }
    if (tile.heads == 1) {
        decode<1>(call, tile, tiles);
    } else {
        decode<MOST_HEADS>(call, tile, tiles);
    }
}
