// attention_decode: one or few query rows per problem against cached keys, by any rule: bound by reading K and V once.
//
// Work: one block per (problem, row, K/V head, up to HEADS of the query heads that share it, chunk). Which keys the row sees is φ's word (or
// the bits'), read on the device. A block takes its keys 64 at a time: groups of GROUP lanes, 16 bytes each, read a key and multiply it with all heads'
// queries; a warp per head turns the scores into weights; then each thread adds up its 16 bytes of every 128 / GROUP-th key's values. K
// and V go from memory to registers, 16 bytes per lane, each key once for all heads. Rows never meet: NaN that one row may see stays there.
// Long caches are split over blocks of `chunk_keys` keys, whose states attention_merge puts together; that depends on the shapes of one problem only.
// Shared memory: queries, scores, and the partial sums of the threads at the end. Traffic: K and V of the visible keys once per row and head tile.
// Tried: nothing else yet; no GPU was at hand.

// Query heads of a block, at most.
constexpr u32 HEADS = 8;
// Elements of 16 bytes; lanes that read one row, a power of two; rows that a warp or the block reads at once.
constexpr u32 WIDE = 16 / sizeof(ELEMENT);
constexpr u32 GROUP = HEAD_DIM / WIDE <= 8 ? 8 : HEAD_DIM / WIDE <= 16 ? 16 : 32;
constexpr u32 ROWS = THREADS / GROUP;

struct State {
    f32 row_max, row_sum, decay;
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

// This lane's elements of a row, as f32; zeros behind its end and where it does not exist.
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

// Scores of the block's keys for each head; head h, key j at 64 h + j.
DEVICE void score(const Call& call, const Keys& keys, const Tile& tile, const f32* q, f32* scores, u32 block, u64 live) {
    const u32 column = threadIdx.x % GROUP * WIDE;
#pragma unroll 2
    for (u32 j = threadIdx.x / GROUP; j < BLOCK; j += ROWS) {
        const bool exists = (live >> j & 1) != 0;
        f32 k[WIDE];
        read_columns(call, key_row<false>(call, keys, block + j, tile.kv_head), exists, k);
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            if (h < tile.heads) {
                f32 sum = 0.0f;
#pragma unroll
                for (u32 i = 0; i < WIDE; i++) {
                    sum = fma(q[h * GROUP * WIDE + column + i], k[i], sum);
                }
                sum = warp_sum<GROUP>(sum);
                if (threadIdx.x % GROUP == 0) {
                    scores[h * BLOCK + j] = call.params.scale * sum;
                }
            }
        }
    }
}

// Replaces scores by weights; hidden keys weigh 0 by index. A warp takes every fourth head.
DEVICE void weigh(const Tile& tile, f32* scores, State* states, u64 live) {
    const u32 lane = threadIdx.x % 32;
    for (u32 h = threadIdx.x / 32; h < tile.heads; h += THREADS / 32) {
        f32* own = scores + h * BLOCK;
        const bool sees[2] = {(live >> lane & 1) != 0, (live >> (lane + 32) & 1) != 0};
        const f32 s[2] = {sees[0] ? own[lane] : -infinity(), sees[1] ? own[lane + 32] : -infinity()};
        const f32 before = states[h].row_max, largest = fmaxf(before, warp_max(fmaxf(s[0], s[1])));
        const f32 base = largest == -infinity() ? 0.0f : largest;
        const f32 weight[2] = {sees[0] ? exp_of(s[0] - base) : 0.0f, sees[1] ? exp_of(s[1] - base) : 0.0f};
        own[lane] = weight[0];
        own[lane + 32] = weight[1];
        const f32 sum = warp_sum(weight[0] + weight[1]), decay = exp_of(before - base);
        __syncwarp(ALL_LANES);
        if (lane == 0) {
            states[h] = {largest, fma(states[h].row_sum, decay, sum), decay};
        }
    }
}

KERNEL(AttentionParams, AttentionOperands) {
    SHARED(f32, q, 0, HEADS * GROUP * WIDE);
    SHARED(f32, scores, 4 * HEADS * GROUP * WIDE, HEADS * BLOCK);
    SHARED(State, states, 4 * HEADS * (GROUP * WIDE + BLOCK), HEADS);
    SHARED(f32, partial, 4 * HEADS * (GROUP * WIDE + BLOCK + 3), ROWS * GROUP * WIDE);
    const Call call{params, operands};
    const Tile tile = tile_of(call, 1);
    if (tile.start >= tile.end) {
        return;
    }
    const Keys keys = keys_of(call, tile.problem);
    const u32 row = tile.offset + tile.start, slots = slots_of(keys), column = threadIdx.x % GROUP * WIDE;
    Range range = key_range(call, tile.entry, row, tile.start, slots);
    const bool is_part = params.chunks > 1;
    Range bounds = is_part ? part_of_range(call, range, tile.chunk) : range;
    for (u32 h = threadIdx.x / GROUP; h < tile.heads; h += ROWS) {
        f32 x[WIDE];
        read_columns(call, q_row(call, tile.entry, row, tile.head + h), true, x);
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) {
            q[h * GROUP * WIDE + column + i] = x[i];
        }
    }
    u32 mode = VISIBLE;
    bool saw = false;
    f32 o[HEADS][WIDE] = {};
    // A second round only for a row that saw nothing and whose policy wants keys.
    for (;;) {
        if (threadIdx.x < HEADS) {
            states[threadIdx.x] = {-infinity(), 0.0f, 0.0f};
        }
        for (u32 block = bounds.begin; block < bounds.end; block += BLOCK) {
            const u64 live = (mode == VISIBLE ? visible(call, keys, tile.entry, row, range, block) : ~0ull) & within(bounds, block);
            if (live == 0) {
                continue;
            }
            saw = true;
            if (threadIdx.x == 0 && present(operands.visited)) {
                atomicAdd(data<u32>(operands.visited) + params.visited_offset, 1u);
            }
            // Everybody is done with the weights of the block before, and q is there.
            __syncthreads();
            if (mode == UNIFORM) {
                for (u32 at = threadIdx.x; at < HEADS * BLOCK; at += THREADS) {
                    scores[at] = 0.0f;
                }
            } else {
                score(call, keys, tile, q, scores, block, live);
            }
            __syncthreads();
            weigh(tile, scores, states, live);
            __syncthreads();
#pragma unroll
            for (u32 h = 0; h < HEADS; h++) {
                const f32 decay = h < tile.heads ? states[h].decay : 0.0f;
                for (u32 i = 0; i < WIDE; i++) {
                    o[h][i] *= decay;
                }
            }
#pragma unroll 2
            for (u32 j = threadIdx.x / GROUP; j < BLOCK; j += ROWS) {
                f32 v[WIDE];
                read_columns(call, key_row<true>(call, keys, block + j, tile.kv_head), (live >> j & 1) != 0, v);
#pragma unroll
                for (u32 h = 0; h < HEADS; h++) {
                    if (h < tile.heads) {
                        const f32 weight = scores[h * BLOCK + j];
                        for (u32 i = 0; i < WIDE; i++) {
                            o[h][i] = fma(weight, v[i], o[h][i]);
                        }
                    }
                }
            }
        }
        if (saw || is_part || mode != VISIBLE) {
            break;
        }
        mode = empty_policy(call, keys, tile.entry, row);
        if (mode == ZERO) {
            break;
        }
        range = bounds = {0, slots};
        __syncthreads();
    }
    // The threads of a column, one after the other; then a warp's worth of columns per head.
    for (u32 h = 0; h < tile.heads; h++) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) {
            f32 own = 0.0f;
#pragma unroll
            for (u32 n = 0; n < HEADS; n++) {
                own = n == h ? o[n][i] : own;
            }
            partial[threadIdx.x / GROUP * GROUP * WIDE + column + i] = own;
        }
        __syncthreads();
        const State state = states[h];
        const u64 out = out_row(call, tile.entry, row, tile.head + h);
        for (u32 at = threadIdx.x; at < params.head_dim; at += THREADS) {
            f32 sum = 0.0f;
            for (u32 n = 0; n < ROWS; n++) {
                sum += partial[n * GROUP * WIDE + at];
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
                store_log_sum_exp(call, tile.entry, row, tile.head + h, saw ? state.row_max + log_of(state.row_sum) : -infinity());
            }
        }
    }
}
