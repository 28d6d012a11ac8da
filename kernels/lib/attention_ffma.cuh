// The tile of `attention` in f32: 128 threads compute 32 pairs against 64 keys at a time. Elements
// are f32, or of any type (ANY 1), then read and written one by one.
//
// Scores: a thread computes 4 pairs x 4 keys from columns staged 32 at a time. Softmax: 4 lanes per
// pair. Sums: a thread owns 4 pairs x 8 of the 128 columns of a panel. A wider head_dim takes a
// block per panel, which computes the scores again. Products and exponentials are exact f32, as
// wgpu and the CPU compute them: never TF32.
// Tried: one chain of additions per score and per column: 1.04 times the RMS bound of
// docs/numerics.md in one of 466 cases, 1.08 times the maximum in one fixture; with sums per 32
// columns and per 16 keys, 0.35 and 0.46.
// Shared memory: 8 KiB scores, 12 KiB staged q and k, then v, 0.4 KiB states; PER_ROW: row sets.

constexpr u32 LANES = THREADS;
// Columns staged at a time, and columns of a panel, in fours.
constexpr u32 STEP = 8;
constexpr u32 PANEL = 32;
// Keys of V staged at a time.
constexpr u32 V_KEYS = 16;

struct alignas(16) Quad {
    f32 x, y, z, w;
};

struct Shared {
    Quad* stage;
    Quad* scores;
    RowState* states;
    RowSets rows;
    BlockWork* work;
};

// Weighted values of a thread's pairs: columns 4 c to 4 c + 3 of the panel and those 64 further.
struct Sums {
    Quad o[2][4];
};

constexpr u32 SCORES_AT = 16 * (PAIRS + BLOCK) * STEP;
constexpr u32 STATES_AT = SCORES_AT + 4 * PAIRS * BLOCK;
constexpr u32 WORK_AT = STATES_AT + 12 * PAIRS;
constexpr u32 SETS_AT = WORK_AT + sizeof(BlockWork);

DEVICE Shared shared_tiles() {
    SHARED(Quad, stage, 0, (PAIRS + BLOCK) * STEP);
    SHARED(Quad, scores, SCORES_AT, PAIRS * BLOCK / 4);
    SHARED(RowState, states, STATES_AT, PAIRS);
    SHARED(BlockWork, work, WORK_AT, 1);
    Shared shared{stage, scores, states, {}, work};
    if (PER_ROW) {
        shared.rows = row_sets(SETS_AT);
    }
    return shared;
}

// Each key's address is computed where it is read.
DEVICE void publish_lines(const Call&, const Shared&, const Tile&, const Keys&) {}

// Columns 4 c to 4 c + 3 of a row; zeros past its end, and where it does not exist.
DEVICE Quad quad_at(const Call& call, RowAt row, u32 c, bool exists) {
    Quad quad{};
    const u32 columns = call.params.head_dim;
    if (!exists || 4 * c >= columns) {
        return quad;
    }
    const u64 at = row.element + 4 * c;
    if (ANY) {
        const Operand operand{const_cast<void*>(row.at), row.type, 0};
        f32* part[4] = {&quad.x, &quad.y, &quad.z, &quad.w};
        for (u32 i = 0; i < 4 && 4 * c + i < columns; i++) {
            *part[i] = real_at(operand, at + i);
        }
        return quad;
    }
    const f32* from = static_cast<const f32*>(row.at) + at;
    if (row.wide && 4 * c + 4 <= columns) {
        const Wide wide = wide_load(from);
        return {__uint_as_float(wide.word[0]), __uint_as_float(wide.word[1]), __uint_as_float(wide.word[2]), __uint_as_float(wide.word[3])};
    }
    quad.x = from[0];
    quad.y = 4 * c + 1 < columns ? from[1] : 0.0f;
    quad.z = 4 * c + 2 < columns ? from[2] : 0.0f;
    quad.w = 4 * c + 3 < columns ? from[3] : 0.0f;
    return quad;
}

// Where columns 4 c to 4 c + 3 of pair or key n are staged: eight rows have no bank conflict.
DEVICE u32 staged(u32 n, u32 c) {
    return n * STEP + (c ^ n % STEP);
}

DEVICE f32 dot(f32 sum, const Quad& a, const Quad& b) {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

DEVICE void add(Quad& sum, f32 weight, const Quad& v) {
    sum = {fma(weight, v.x, sum.x), fma(weight, v.y, sum.y), fma(weight, v.z, sum.z), fma(weight, v.w, sum.w)};
}

DEVICE Quad times(f32 factor, const Quad& a) {
    return {factor * a.x, factor * a.y, factor * a.z, factor * a.w};
}

// Logits of the block's keys: pair m, key j at 64 m + j.
DEVICE void score(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 start, u32 pairs, u32 block, u64 live,
                  u32 mode) {
    const u32 lane = threadIdx.x, pair = lane / 16 * 4, key = lane % 16;
    Quad* stage_k = shared.stage + PAIRS * STEP;
    f32 s[4][4] = {};
    for (u32 c = 0; mode != UNIFORM && 4 * c < call.params.head_dim; c += STEP) {
        const u32 column = lane % STEP;
#pragma unroll 1
        for (u32 n = lane / STEP; n < PAIRS; n += LANES / STEP) {
            const u32 m = n < pairs ? n : 0;
            const RowAt row = q_row(call, tile.entry, tile.offset + start + row_of_pair(tile, m), tile.head + head_of_pair(tile, m));
            shared.stage[staged(n, column)] = quad_at(call, row, c + column, n < pairs);
        }
#pragma unroll 2
        for (u32 j = lane / STEP; j < BLOCK; j += LANES / STEP) {
            const bool exists = (live >> j & 1) != 0;
            // Key j is staged as row 16 (j mod 4) + j / 4: neighbours then read neighbouring rows.
            const RowAt row = key_row<false>(call, keys, block + j, tile.kv_head);
            stage_k[staged(j % 4 * 16 + j / 4, column)] = quad_at(call, row, c + column, exists);
        }
        __syncthreads();
        if (pair < pairs) {
            // A sum of its own for each step: shorter chains of additions lose less.
            f32 part[4][4] = {};
#pragma unroll 2
            for (u32 n = 0; n < STEP; n++) {
                Quad k[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    k[i] = stage_k[staged(16 * i + key, n)];
                }
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
                    const Quad q = shared.stage[staged(pair + m, n)];
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        part[m][i] = dot(part[m][i], q, k[i]);
                    }
                }
            }
#pragma unroll
            for (u32 m = 0; m < 4; m++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    s[m][i] += part[m][i];
                }
            }
        }
        __syncthreads();
    }
    if (pair < pairs) {
#pragma unroll
        for (u32 m = 0; m < 4; m++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                s[m][i] = logit_of(call.params, s[m][i]);
            }
            shared.scores[(pair + m) * 16 + key] = {s[m][0], s[m][1], s[m][2], s[m][3]};
        }
    }
    __syncthreads();
}

// Adds the block's weighted values to the sums.
DEVICE void accumulate(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 pairs, u32 block, u64 live,
                       Sums& sums) {
    const u32 lane = threadIdx.x, pair = lane / 16 * 4, column = lane % 16;
    if (pair < pairs) {
#pragma unroll
        for (u32 m = 0; m < 4; m++) {
            const f32 decay = shared.states[pair + m].decay;
            sums.o[0][m] = times(decay, sums.o[0][m]);
            sums.o[1][m] = times(decay, sums.o[1][m]);
        }
    }
    for (u32 k = 0; k < BLOCK; k += V_KEYS) {
        // V_KEYS keys that no row sees have zero weights: they are not staged.
        if ((live >> k & low_bits(V_KEYS)) == 0) {
            continue;
        }
#pragma unroll 2
        for (u32 at = lane; at < V_KEYS * PANEL; at += LANES) {
            const u32 j = k + at / PANEL;
            const RowAt row = key_row<true>(call, keys, block + j, tile.kv_head);
            shared.stage[at] = quad_at(call, row, tile.panel * PANEL + at % PANEL, (live >> j & 1) != 0);
        }
        __syncthreads();
        if (pair < pairs) {
            // Sums of their own for these keys, as in score.
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                Quad part[4] = {};
                const Quad* v = shared.stage + column + 16 * half;
#pragma unroll 1
                for (u32 n = 0; n < V_KEYS; n += 4) {
#pragma unroll
                    for (u32 m = 0; m < 4; m++) {
                        const Quad weights = shared.scores[(pair + m) * 16 + (k + n) / 4];
                        add(part[m], weights.x, v[n * PANEL]);
                        add(part[m], weights.y, v[(n + 1) * PANEL]);
                        add(part[m], weights.z, v[(n + 2) * PANEL]);
                        add(part[m], weights.w, v[(n + 3) * PANEL]);
                    }
                }
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
                    add(sums.o[half][m], 1.0f, part[m]);
                }
            }
        }
        __syncthreads();
    }
}

// As in attention_mma.cuh.
DEVICE bool sweep(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 start, u32 rows, Range, u32 mode, Range bounds,
                  Resident&, Sums& sums) {
    const u32 pairs = rows * tile.heads, pair = threadIdx.x / 4;
    sums = {};
    // All threads have read the last sweep's states.
    __syncthreads();
    if (threadIdx.x < PAIRS) {
        shared.states[threadIdx.x] = softmax_start();
    }
    __syncthreads();
    bool saw = false;
    for (u32 block = bounds.begin; mode != ZERO && block < bounds.end; block += BLOCK) {
        const u64 live = next_block(call, shared.rows, tile, keys, start, rows, mode, bounds, block, 0);
        if (live == 0) {
            break;
        }
        saw = true;
        score(call, shared, tile, keys, start, pairs, block, live, mode);
        const u64 set = pair < pairs ? row_set(shared.rows, row_of_pair(tile, pair), mode, live, 0) : 0;
        const u32 part = threadIdx.x % 4 * 16;
        softmax_update<4, 16, 1>(shared.states[pair], reinterpret_cast<f32*>(shared.scores) + pair * BLOCK + part, set >> part);
        __syncthreads();
        accumulate(call, shared, tile, keys, pairs, block, live, sums);
    }
    return saw;
}

DEVICE void store_quad(const Call& call, u64 row, u32 c, const Quad& x) {
    const u32 columns = call.params.head_dim;
    const Operand& out = call.operands.out;
    const u64 at = row + 4 * c;
    if (!ANY && is_wide(out) && 4 * c + 4 <= columns) {
        wide_store(data<f32>(out) + at, {{__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w)}});
        return;
    }
    const f32 part[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (4 * c + i < columns) {
            real_store(out, at + i, part[i]);
        }
    }
}

// Writes the rows that get `mode`: the sums divided by the weights' sum, or zeros.
DEVICE void normalise_and_store(const Call& call, const Shared& shared, const Tile& tile, u32 start, u32 rows, u32 mode, const Resident&,
                   const Sums& sums) {
    const u32 pairs = rows * tile.heads, column = tile.panel * PANEL + threadIdx.x % 16;
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        const u32 pair = threadIdx.x / 16 * 4 + m;
        if (pair >= pairs || !row_gets(shared.rows, row_of_pair(tile, pair), mode)) {
            continue;
        }
        const u32 row = tile.offset + start + row_of_pair(tile, pair), head = tile.head + head_of_pair(tile, pair);
        const f32 sum = mode == ZERO ? 1.0f : shared.states[pair].row_sum;
        const u64 at = out_row(call, tile.entry, row, head);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const Quad& o = sums.o[half][m];
            store_quad(call, at, column + 16 * half, {o.x / sum, o.y / sum, o.z / sum, o.w / sum});
        }
        if (column == 0) {
            store_log_sum_exp(call, tile.entry, row, head, mode == ZERO ? -infinity() : log_sum_exp_of(shared.states[pair].row_max, sum));
        }
    }
}

// Leaves weighted values, maximum and sum of each pair for attention_merge.
DEVICE void leave_state(const Call& call, const Shared& shared, const Tile& tile, u32 start, u32 rows, const Sums& sums) {
    const u32 pairs = rows * tile.heads, columns = call.params.head_dim;
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        const u32 pair = threadIdx.x / 16 * 4 + m;
        if (pair >= pairs) {
            continue;
        }
        f32* state = state_at(call, tile.entry, tile.offset + start + row_of_pair(tile, pair), tile.head + head_of_pair(tile, pair), tile.chunk);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 c = tile.panel * PANEL + threadIdx.x % 16 + 16 * half;
            const f32 part[4] = {sums.o[half][m].x, sums.o[half][m].y, sums.o[half][m].z, sums.o[half][m].w};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (4 * c + i < columns) {
                    state[2 + 4 * c + i] = part[i];
                }
            }
        }
        if (tile.panel == 0 && threadIdx.x % 16 == 0) {
            state[0] = shared.states[pair].row_max;
            state[1] = shared.states[pair].row_sum;
        }
    }
}
