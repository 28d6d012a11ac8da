// The tile of `attention` on the tensor cores of compute capability 9.0: 64 pairs for each of one,
// two or four warpgroups against 64 keys at a time, elements f16 or bf16 (ELEMENT).
//
// Shared memory: q, and STAGES blocks of K and of V, as tiles of 64 rows of HEAD_DIM elements (64,
// 96 or 128; a smaller head_dim is padded with zeros). A tile is panels of 32 columns, 64 bytes
// from row to row, in wgmma's 64-byte swizzle: HEAD_DIM is two, three or four panels, and eight
// rows of a piece, or a row of eight, have no bank conflict. K is K-major, V N-major: neither is
// transposed. Keys that do not exist are not read: zeros stand in their place.
// All threads copy (cp.async, eight threads a row), AHEAD blocks ahead. A whole block (all 64 keys
// exist, in one segment, rows on multiples of 16 bytes) costs a thread one address per row of K and
// V and no test; other blocks are tested key by key.
// Warpgroups synchronise through two barriers per stage only. `full`: a warp's copies are there, a
// block before they are needed. `empty`: its wgmma have read the stage. So they drift apart by up
// to a block, and one multiplies during the softmax of others. Per warpgroup, a block is
//   S = q K^T     HEAD_DIM / 16 wgmma m64n64k16 from shared memory: 32 of 64 x 64 scores per thread
//   softmax       lib/attention_state.cuh
//   O += P V      4 wgmma m64n(HEAD_DIM)k16, P rounded to ELEMENT in its registers
// and the copies of a later block are issued while the last wgmma runs.
// Not tried: scores of block n + 1 before the softmax of block n. They are 32 registers more; four
// warpgroups have 128 per thread, of which 106 to 128 are used. The drift is to do the same.

constexpr u32 WARPGROUPS = THREADS / 128, WARPS = THREADS / 32;
// Keys of a block, and pairs of a warpgroup: both are the rows of a tile in shared memory.
constexpr u32 TILE = 64 * HEAD_DIM;
constexpr u32 PANEL_COLUMNS = 32, PANEL_BYTES = 64 * 2 * PANEL_COLUMNS, TILE_BYTES = 2 * TILE;
// Key blocks copied ahead. The stage of the block before the last is free by then.
constexpr u32 AHEAD = STAGES - 2;
// Threads that copy a row of up to 128 columns, 16 or 32 bytes each; rows copied at once.
constexpr u32 ROW_THREADS = 8, PASS = THREADS / ROW_THREADS;

constexpr u32 K_AT = WARPGROUPS * TILE_BYTES;
constexpr u32 V_AT = K_AT + STAGES * TILE_BYTES;
constexpr u32 WORK_AT = V_AT + STAGES * TILE_BYTES;
constexpr u32 SEGMENTS_AT = WORK_AT + sizeof(BlockWork);

// Where the keys of a tile begin in a segment, for a thread whose pieces begin at column 8 c.
struct Segment {
    const ELEMENT* k;
    const ELEMENT* v;
};

// `mode`: VISIBLE, or the policy for empty rows. Keys before `end`, and from `second` to
// `second_end`, exist without a gap, in rows on multiples of 16 bytes.
struct KeyRanges {
    u32 mode, end, second, second_end;
};

constexpr u32 KEY_RANGES_AT = SEGMENTS_AT + 2 * ROW_THREADS * sizeof(Segment);
constexpr u32 LIVE_AT = KEY_RANGES_AT + sizeof(KeyRanges);
constexpr u32 FULL_AT = LIVE_AT + 8 * STAGES;
constexpr u32 EMPTY_AT = FULL_AT + 8 * STAGES;

struct Shared {
    ELEMENT* q;
    ELEMENT* k;
    ELEMENT* v;
    BlockWork* work;
    Segment* segments;
    KeyRanges* key_ranges;
    // Per stage: the keys of its block that exist, and its two barriers.
    u64* live;
    u64* full;
    u64* empty;
};

using Sums = FragmentState<HEAD_DIM / 2>;

DEVICE Shared shared_tiles() {
    SHARED(ELEMENT, tile_q, 0, WARPGROUPS * TILE);
    SHARED(ELEMENT, tile_k, K_AT, STAGES * TILE);
    SHARED(ELEMENT, tile_v, V_AT, STAGES * TILE);
    SHARED(BlockWork, work, WORK_AT, 1);
    SHARED(Segment, segments, SEGMENTS_AT, 2 * ROW_THREADS);
    SHARED(KeyRanges, key_ranges, KEY_RANGES_AT, 1);
    SHARED(u64, live, LIVE_AT, STAGES);
    SHARED(u64, full, FULL_AT, STAGES);
    SHARED(u64, empty, EMPTY_AT, STAGES);
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_init(full + stage, WARPS);
            barrier_init(empty + stage, WARPS);
        }
        barrier_init_fence();
    }
    return {tile_q, tile_k, tile_v, work, segments, key_ranges, live, full, empty};
}

// Where piece c (columns 8 c to 8 c + 7) of row r of a tile lies, in elements.
DEVICE u32 piece_at(u32 r, u32 c) {
    return c / 4 * (PANEL_BYTES / 2) + swizzled<64>(64 * r + 16 * (c % 4)) / 2;
}

// Element by element: rows that do not begin on multiples of 16 bytes.
DEVICE Wide gather(const ELEMENT* from) {
    Wide wide;
    for (u32 word = 0; word < 4; word++) {
        wide.word[word] = from[2 * word].bits | static_cast<u32>(from[2 * word + 1].bits) << 16;
    }
    return wide;
}

// This thread's pieces of the row at `row`: columns from 8 c on, and 64 further. Zeros if absent.
DEVICE void stage_row(const Call& call, ELEMENT* to, const ELEMENT* row, bool exists, bool wide) {
    const u32 c = threadIdx.x % ROW_THREADS;
#pragma unroll
    for (u32 column = 0; column < HEAD_DIM; column += 64) {
        if (column + 8 * c < HEAD_DIM) {
            const bool has = exists && column + 8 * c < call.params.head_dim;
            ELEMENT* at = to + column / PANEL_COLUMNS * (PANEL_BYTES / 2);
            const ELEMENT* from = has ? row + column + 8 * c : row;
            if (wide) {
                copy_async_16(at, from, has);
            } else {
                wide_store(at, has ? gather(from) : Wide{});
            }
        }
    }
}

// The block's tile, where its keys begin, and which of them need no test.
DEVICE void publish_tile(const Call& call, const Shared& shared) {
    const AttentionParams& p = call.params;
    const AttentionOperands& o = call.operands;
    const u32 n = threadIdx.x;
    if (n == 0) {
        const Tile tile = tile_of(call, p.tile_rows);
        const Keys keys = tile.start < tile.end ? keys_of(call, tile.problem) : Keys{};
        const u32 first = keys.first.positions;
        const bool whole = p.first_mask_kind != BITS && is_wide(o.first_k) && is_wide(o.first_v);
        const bool second = p.second_mask_kind != BITS && is_wide(o.second_k) && is_wide(o.second_v);
        *shared.work = {tile, keys};
        *shared.key_ranges = {VISIBLE, whole ? keys.first.extent : 0, first, second ? first + keys.second.extent : 0};
    }
    __syncthreads();
    if (n < 2 * ROW_THREADS) {
        const Keys& keys = shared.work->keys;
        const u32 g = shared.work->tile.kv_head, j = n < ROW_THREADS ? 0 : keys.first.positions, c = n % ROW_THREADS;
        const RowAt k = key_row<false>(call, keys, j, g), v = key_row<true>(call, keys, j, g);
        shared.segments[n] = {static_cast<const ELEMENT*>(k.at) + k.element + 8 * c, static_cast<const ELEMENT*>(v.at) + v.element + 8 * c};
    }
    __syncthreads();
}

// Stages the pairs of a tile of rows, one after the other.
DEVICE void stage_q(const Call& call, const Shared& shared) {
    const Tile& tile = shared.work->tile;
    const u32 pairs = (tile.end - tile.start) * tile.heads;
#pragma unroll 1
    for (u32 pair = threadIdx.x / ROW_THREADS; pair < 64 * WARPGROUPS; pair += PASS) {
        const bool exists = pair < pairs && shared.key_ranges->mode != UNIFORM;
        const u32 n = exists ? pair : 0;
        const RowAt row = q_row(call, tile.entry, tile.offset + tile.start + n / tile.heads, tile.head + n % tile.heads);
        ELEMENT* to = shared.q + pair / 64 * TILE + piece_at(pair % 64, threadIdx.x % ROW_THREADS);
        stage_row(call, to, static_cast<const ELEMENT*>(row.at) + row.element, exists, row.wide);
    }
}

// Stages a block of keys of which some may not exist, in K or in V.
template <bool VALUES>
DEVICE void stage_some(const Call& call, const Shared& shared, ELEMENT* to, u32 block, u64 live) {
    const u32 c = threadIdx.x % ROW_THREADS;
#pragma unroll 1
    for (u32 j = threadIdx.x / ROW_THREADS; j < BLOCK; j += PASS) {
        const bool exists = (live >> j & 1) != 0;
        const RowAt row = key_row<VALUES>(call, shared.work->keys, exists ? block + j : block, shared.work->tile.kv_head);
        stage_row(call, to + piece_at(j, c), static_cast<const ELEMENT*>(row.at) + row.element, exists, row.wide);
    }
}

DEVICE void stage_whole(const Call& call, const Shared& shared, u32 block, u32 stage) {
    const AttentionParams& p = call.params;
    const u32 own = threadIdx.x / ROW_THREADS, c = threadIdx.x % ROW_THREADS, at = stage * TILE + piece_at(own, c);
    const bool second = block >= shared.key_ranges->second;
    const Segment segment = shared.segments[second ? ROW_THREADS + c : c];
    const u64 k_stride = second ? p.second_k_stride_r : p.first_k_stride_r, v_stride = second ? p.second_v_stride_r : p.first_v_stride_r;
    const u32 row = block + own - (second ? shared.key_ranges->second : 0);
    const ELEMENT* k = segment.k + row * k_stride;
    const ELEMENT* v = segment.v + row * v_stride;
#pragma unroll
    for (u32 pass = 0; pass < BLOCK; pass += PASS) {
#pragma unroll
        for (u32 column = 0; column < HEAD_DIM; column += 64) {
            if (column + 8 * c < HEAD_DIM) {
                // A row is 64 bytes of a panel; the swizzle repeats every 8; a pass has 16 or more.
                const u32 to = at + pass * PANEL_COLUMNS + column / PANEL_COLUMNS * (PANEL_BYTES / 2);
                const bool has = column + 8 * c < p.head_dim;
                copy_async_16(shared.k + to, k + pass * k_stride + column, has);
                copy_async_16(shared.v + to, v + pass * v_stride + column, has);
            }
        }
    }
}

// Begins the scores of the warpgroup's 64 pairs: s[4 n + 2 half + i] is key 8 n + 2 (lane % 4) + i.
DEVICE void score(MatrixAt q, MatrixAt k, f32 (&s)[32]) {
#pragma unroll
    for (u32 column = 0; column < HEAD_DIM; column += 16) {
        const u32 at = column / PANEL_COLUMNS * PANEL_BYTES + 2 * (column % PANEL_COLUMNS);
        wgmma_shared<ELEMENT, 64, false>(s, further(q, at), further(k, at), column > 0);
    }
}

// Begins to add the block's weighted values.
DEVICE void accumulate(MatrixAt v, const f32 (&s)[32], Sums& sums) {
    u32 p[4][4];
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        p[i / 4][i % 4] = pack2<ELEMENT>(s[2 * i], s[2 * i + 1]);
    }
    wgmma_fence();
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        wgmma_registers<ELEMENT, HEAD_DIM, true>(sums.o, p[j], further(v, 16 * 2 * PANEL_COLUMNS * j), true);
    }
    wgmma_commit();
}

// As next_block, where all rows see the same keys: the next block that has one, and its keys.
DEVICE u64 next_keys(const Call& call, const Shared& shared, u32& block) {
    const Keys& keys = shared.work->keys;
    for (; block < positions_of(keys); block += BLOCK) {
        const u64 live = shared.key_ranges->mode == VISIBLE ? existing(call, keys, block) : low_bits(positions_of(keys) - block);
        if (live != 0) {
            return live;
        }
    }
    return 0;
}

// One arrival for the warp, after the copies and stores of all its lanes.
DEVICE void warp_arrives(u64* barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(barrier);
    }
}

// Softmax and weighted sum over the keys that exist (other modes: all). False if there are none.
DEVICE bool sweep(const Call& call, const Shared& shared, Sums& sums) {
    softmax_start(sums);
    if (shared.key_ranges->mode == ZERO) {
        return false;
    }
    u32 block = 0, found = 0;
    const auto copy_next = [&] {
        const KeyRanges ranges = *shared.key_ranges;
        const bool is_whole = block + BLOCK <= ranges.end || (block >= ranges.second && block + BLOCK <= ranges.second_end);
        const u64 live = is_whole ? ~0ull : next_keys(call, shared, block);
        if (live == 0) {
            return;
        }
        const u32 stage = found % STAGES;
        // In the first round nobody has read it: a new barrier lets parity 1 through.
        barrier_wait(shared.empty + stage, (found / STAGES & 1) ^ 1);
        if (threadIdx.x == 0) {
            shared.live[stage] = live;
        }
        if (is_whole) {
            stage_whole(call, shared, block, stage);
        } else {
            stage_some<false>(call, shared, shared.k + stage * TILE, block, ranges.mode == UNIFORM ? 0 : live);
            stage_some<true>(call, shared, shared.v + stage * TILE, block, live);
        }
        block += BLOCK;
        found++;
    };
    copy_next();
    if (found == 0) {
        return false;
    }
    stage_q(call, shared);
    copy_async_commit();
#pragma unroll 1
    for (u32 n = 1; n < AHEAD; n++) {
        copy_next();
        copy_async_commit();
    }
    copy_async_wait<AHEAD - 1>();
    async_proxy_fence();
    warp_arrives(shared.full);
    const MatrixAt q = rows_of_k<64>(shared.q + __shfl_sync(ALL_LANES, threadIdx.x / 128, 0) * TILE);
    const MatrixAt k = rows_of_k<64>(shared.k), v = rows_of_n<64>(shared.v, PANEL_BYTES);
    u32 n = 0;
#pragma unroll 1
    do {
        const u32 stage = n % STAGES;
        barrier_wait(shared.full + stage, n / STAGES & 1);
        f32 s[32];
        wgmma_fence();
        score(q, further(k, stage * TILE_BYTES), s);
        wgmma_commit();
        if (n + 1 < found) {
            copy_async_wait<AHEAD - 2>();
            async_proxy_fence();
            warp_arrives(shared.full + (n + 1) % STAGES);
        }
        wgmma_wait<0>();
        wgmma_hold(s);
        to_logits(call.params, s);
        const u64 live = shared.live[stage];
        softmax_update<true>(sums, s, {live, live}, live == ~0ull, false, logit_unit(call.params));
        accumulate(further(v, stage * TILE_BYTES), s, sums);
        copy_next();
        copy_async_commit();
        wgmma_wait<0>();
        wgmma_hold(sums.o);
        warp_arrives(shared.empty + stage);
        n++;
    } while (n < found);
    if (threadIdx.x == 0 && present(call.operands.visited)) {
        atomicAdd(data<u32>(call.operands.visited) + call.params.visited_offset, found);
    }
    softmax_finish(sums);
    return true;
}

DEVICE void store_piece(ELEMENT* to, const u32 (&word)[4], bool wide) {
    if (wide) {
        wide_store(to, {{word[0], word[1], word[2], word[3]}});
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        to[2 * i].bits = static_cast<u16>(word[i]);
        to[2 * i + 1].bits = static_cast<u16>(word[i] >> 16);
    }
}

DEVICE void normalise_and_store(const Call& call, const Shared& shared, const Sums& sums) {
    const Tile& tile = shared.work->tile;
    const u32 pairs = (tile.end - tile.start) * tile.heads, quarter = threadIdx.x % 4, mode = shared.key_ranges->mode;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 pair = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
        const bool mine = pair < pairs;
        const u32 n = mine ? pair : 0;
        const u32 row = tile.offset + tile.start + n / tile.heads, head = tile.head + n % tile.heads;
        const f32 factor = mode == ZERO ? 0.0f : 1.0f / sums.row_sum[half];
        ELEMENT* out = data<ELEMENT>(call.operands.out) + out_row(call, tile.entry, row, head);
#pragma unroll
        for (u32 c = 0; c < HEAD_DIM / 8; c += 4) {
            u32 word[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const f32* o = sums.o + 4 * (c + i) + 2 * half;
                word[i] = mode == ZERO ? 0 : pack2<ELEMENT>(o[0] * factor, o[1] * factor);
            }
            exchange(word);
            const u32 piece = c + quarter;
            if (mine && 8 * piece < call.params.head_dim) {
                store_piece(out + 8 * piece, word, is_wide(call.operands.out));
            }
        }
        if (mine && quarter == 0) {
            const f32 value = mode == ZERO ? -infinity() : log_sum_exp_of(sums.row_max[half], sums.row_sum[half], logit_unit(call.params));
            store_log_sum_exp(call, tile.entry, row, head, value);
        }
    }
}

