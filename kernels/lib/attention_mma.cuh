// The tile of `attention` on tensor cores: 64 pairs against keys in blocks of 64, elements f16 or
// bf16 (ELEMENT), four warps of 16 pairs each.
//
// Memory: lib/attention_stage.cuh. With two stages, a block of keys is copied while the one before
// is computed (double buffering); with one, it stays for the next tile of rows, whose queries are
// copied meanwhile. Per warp, a block is
//   S = q K^T   HEAD_DIM / 16 steps of 8 mma m16n8k16: 16 pairs x 64 keys in 32 registers per lane
//   softmax     lib/attention_state.cuh
//   O += P V    P stays in registers: the accumulator layout of one mma is the A layout of the next
// Results leave through lib/attention_epilogue.cuh. What was tried: docs/cuda.md.

using Sums = FragmentState<HEAD_DIM / 2>;

// Adds the scores of the warp's 16 pairs: s[4 n] on is the tile of keys 8 n to 8 n + 7.
DEVICE void score(const ELEMENT* q, const ELEMENT* k, f32 (&s)[BLOCK / 2]) {
    const u32 lane = threadIdx.x % 32;
    const ELEMENT* q_at = q + (lane % 16) * STRIDE + lane / 16 * 8;
    const ELEMENT* k_at = k + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 step = 0; step < HEAD_DIM; step += 16) {
        u32 a[4];
        ldmatrix_x4(a, q_at + step);
#pragma unroll
        for (u32 n = 0; n < BLOCK / 8; n += 2) {
            u32 r[4];
            ldmatrix_x4(r, k_at + n * 8 * STRIDE + step);
            mma_16816<ELEMENT>(s + 4 * n, a, {r[0], r[1]});
            mma_16816<ELEMENT>(s + 4 * n + 4, a, {r[2], r[3]});
        }
    }
}

// Adds the block's weighted values.
DEVICE void accumulate(const ELEMENT* v, const f32 (&s)[BLOCK / 2], Sums& sums) {
    const u32 lane = threadIdx.x % 32;
    const ELEMENT* v_at = v + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 j = 0; j < BLOCK; j += 16) {
        u32 p[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            p[i] = pack2<ELEMENT>(s[j / 2 + 2 * i], s[j / 2 + 2 * i + 1]);
        }
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n += 2) {
            u32 r[4];
            ldmatrix_x4_trans(r, v_at + j * STRIDE + n * 8);
            mma_16816<ELEMENT>(sums.o + 4 * n, p, {r[0], r[1]});
            mma_16816<ELEMENT>(sums.o + 4 * n + 4, p, {r[2], r[3]});
        }
    }
}

// The pair of the lane's row `half`, 0 or 1.
DEVICE u32 pair_of(u32 half) {
    return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
}

// Softmax and weighted sum over the visible keys in `bounds` (other modes: all). False without any.
DEVICE bool sweep(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 start, u32 rows, Range next_rows, u32 mode,
                  Range bounds, Resident& resident, Sums& sums) {
    const u32 pairs = rows * tile.heads, first_pair = threadIdx.x / 32 * 16, place = PLACES == 2 ? resident.place : 0;
    softmax_start(sums);
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
        return false;
    }
    if (PLACES == 1 || resident.queries != start) {
        // The place may hold results on their way out, or queries of a tile that saw nothing.
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
            // Absent pairs are staged as zeros and never stored, whatever they see.
            u64 set[2] = {live, live};
            bool full = live == ~0ull;
            if (PER_ROW && mode == VISIBLE) {
                for (u32 half = 0; half < 2; half++) {
                    const u32 pair = pair_of(half);
                    set[half] = pair < pairs ? row_set(shared.rows, row_of_pair(tile, pair), mode, live, stage) : ~0ull;
                }
                full = __all_sync(ALL_LANES, (set[0] & set[1]) == ~0ull);
            }
            f32 s[BLOCK / 2] = {};
            if (mode != UNIFORM) {
                score(shared.q + place * TILE + first_pair * STRIDE, shared.k + stage * TILE, s);
            }
            to_logits(call.params, s);
            softmax_update<false>(sums, s, set, full, first, logit_unit(call.params));
            accumulate(shared.v + stage * TILE, s, sums);
        }
        // All threads are done with q and this stage.
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
    softmax_finish(sums);
    return true;
}
