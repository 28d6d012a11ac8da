// From the state of a tensor core tile to the output: whole rows, 16 bytes per lane, staged in the
// place of the warp's own queries, which are no longer needed.

// Eight elements that do not begin on a multiple of 16 bytes.
DEVICE void store_elements(ELEMENT* to, const Wide& piece) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        to[2 * i].bits = static_cast<u16>(piece.word[i]);
        to[2 * i + 1].bits = static_cast<u16>(piece.word[i] >> 16);
    }
}

// Rows of a warp's results that are written at once, a piece per lane.
constexpr u32 LANE_ROWS = 32 / PIECES;

// Writes the rows that get `mode`: the sums divided by the weights' sum, or zeros.
DEVICE void normalise_and_store(const Call& call, const Shared& shared, const Tile& tile, u32 start, u32 rows, u32 mode, const Resident& resident,
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
                const f32* o = sums.o + 4 * n + 2 * half;
                *reinterpret_cast<u32*>(to + 8 * n) = pack2<ELEMENT>(o[0] * factor, o[1] * factor);
            }
        }
        if (present(call.operands.log_sum_exp) && lane % 4 == 0 && pair < pairs && row_gets(shared.rows, row_of_pair(tile, pair), mode)) {
            const f32 value = mode == ZERO ? -infinity() : log_sum_exp_of(sums.row_max[half], sums.row_sum[half], logit_unit(call.params));
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

// Two neighbouring words of a state, whose size is even.
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
                    *reinterpret_cast<Two*>(state + 2 + column) = {sums.o[4 * n + 2 * half], sums.o[4 * n + 2 * half + 1]};
                }
            }
            if (quarter == 0) {
                state[0] = sums.row_max[half] * logit_unit(call.params);
                state[1] = sums.row_sum[half];
            }
        }
    }
}
