// linear, for at most eight rows (decoding): the GEMM of `linear`, bound by reading W once, so that
// W goes straight from memory to registers.
//
// Work: a block of 8 warps computes all rows and 8 columns of y (4 with a gated activation, whose
// two matrices alternate): two groups of four rows of W, and for each four warps that share k. A
// lane loads 16 bytes of k of four rows of W and multiplies them with each row of x: the loads of a
// step are independent, and the loop has no barrier. A lane's chain is K / 128 products long (512
// bytes of k per warp and step). 31 shuffles reduce the 32 results (8 rows, 4 columns) over the
// lanes, so that each lane ends with one; the parts of four warps are added in shared memory. The
// order is fixed.
// Shared memory: 1 KiB, the parts. Traffic: W once, 16 bytes at a time; x is small and comes from
// the caches. Absent rows cost nothing.
// Tried (ptxas 13.0, sm_90a, bf16; scripts/cuda-sass linear_few): one loop for all: 518
// instructions per step with eight rows, 4 loads of W in flight. Separate loops for wide rows: 462
// with eight rows; with one, 106, and 16 loads. Prefetching W of the next step, with eight rows:
// 699, since ptxas unpacks W for each row again to stay within 128 registers; dropped.

constexpr u32 CHUNK = 16 / sizeof(ELEMENT);
constexpr u32 MOST_ROWS = 8, LANE_COLUMNS = 4;
constexpr u32 PARTS = 4, GROUPS = THREADS / 32 / PARTS;
static_assert(MOST_ROWS * LANE_COLUMNS == 32, "one result for each lane");

// CHUNK raw elements of a row from k on; zeros past its end. WIDE: one load; CHUNK divides k_end.
template <bool WIDE, class T> DEVICE Wide words_at(const T* row, u32 k, u32 k_end) {
    if (WIDE) {
        return k < k_end ? wide_load(row + k) : Wide{};
    }
    Wide words{};
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) {
        if (k + j < k_end) {
            if constexpr (sizeof(T) == 2) {
                words.word[j / 2] |= static_cast<u32>(row[k + j].bits) << j % 2 * 16;
            } else {
                words.word[j] = __float_as_uint(row[k + j]);
            }
        }
    }
    return words;
}

template <class T> DEVICE void unpack(const Wide& words, f32 (&value)[CHUNK]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if constexpr (CHUNK == 8) {
            unpack2<T>(words.word[i], value[2 * i], value[2 * i + 1]);
        } else {
            value[i] = __uint_as_float(words.word[i]);
        }
    }
}

// Reduces 32 values over the lanes: value[0] becomes the sum of every lane's value `lane`. In each
// step a lane keeps half of its values and gives the other half to the lane that keeps those.
template <u32 HALF = 16> DEVICE void sums_to_lanes(f32 (&value)[32]) {
    const bool upper = (threadIdx.x & HALF) != 0;
#pragma unroll
    for (u32 i = 0; i < HALF; i++) {
        const f32 given = upper ? value[i] : value[i + HALF];
        const f32 kept = upper ? value[i + HALF] : value[i];
        value[i] = kept + __shfl_xor_sync(ALL_LANES, given, HALF);
    }
    if constexpr (HALF > 1) {
        sums_to_lanes<HALF / 2>(value);
    }
}

struct Rows {
    const ELEMENT* w[LANE_COLUMNS];
    const ELEMENT* x[MOST_ROWS];
};

// Adds this lane's products for ROWS rows of x, with W of AHEAD steps in flight. WIDE: rows are
// read 16 bytes at a time, up to the end of k.
template <u32 ROWS, u32 AHEAD, bool WIDE>
DEVICE void multiply(const LinearParams& params, const Rows& rows, u32 begin, f32 (&sums)[32]) {
    constexpr u32 STEP = PARTS * 32 * CHUNK;
    for (u32 k = begin; k < params.k; k += AHEAD * STEP) {
        Wide words[AHEAD][LANE_COLUMNS];
#pragma unroll
        for (u32 a = 0; a < AHEAD; a++) {
#pragma unroll
            for (u32 c = 0; c < LANE_COLUMNS; c++) {
                words[a][c] = words_at<WIDE>(rows.w[c], k + a * STEP, params.k);
            }
        }
#pragma unroll
        for (u32 a = 0; a < AHEAD; a++) {
            f32 column[LANE_COLUMNS][CHUNK];
#pragma unroll
            for (u32 c = 0; c < LANE_COLUMNS; c++) {
                unpack<ELEMENT>(words[a][c], column[c]);
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                if (r < params.total_rows) {
                    f32 value[CHUNK];
                    unpack<ELEMENT>(words_at<WIDE>(rows.x[r], k + a * STEP, params.k), value);
#pragma unroll
                    for (u32 c = 0; c < LANE_COLUMNS; c++) {
#pragma unroll
                        for (u32 j = 0; j < CHUNK; j++) {
                            sums[r * LANE_COLUMNS + c] = fmaf(value[j], column[c][j], sums[r * LANE_COLUMNS + c]);
                        }
                    }
                }
            }
        }
    }
}

KERNEL(LinearParams, LinearOperands) {
    SHARED(f32, parts, 0, GROUPS * PARTS * 32);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 group = warp / PARTS, part = warp % PARTS;
    const bool glu = present(operands.up);
    // Rows of W alternate: gate and up of one column. Past the end: the last row, never stored.
    const u32 first = (blockIdx.x * GROUPS + group) * (glu ? LANE_COLUMNS / 2 : LANE_COLUMNS);
    Rows rows;
#pragma unroll
    for (u32 c = 0; c < LANE_COLUMNS; c++) {
        const u32 n = params.n_first + min(first + (glu ? c / 2 : c), params.n_count - 1);
        rows.w[c] = glu && c % 2 == 1 ? data<ELEMENT>(operands.up) + params.up_offset + static_cast<u64>(n) * params.up_stride
                                 : data<ELEMENT>(operands.weight) + params.weight_offset + static_cast<u64>(n) * params.weight_stride;
    }
#pragma unroll
    for (u32 r = 0; r < MOST_ROWS; r++) {
        rows.x[r] = data<ELEMENT>(operands.x);
        if (r < params.total_rows) {
            rows.x[r] += row_start(params, r, params.x_offset, params.x_stride_b, params.x_stride_r);
        }
    }
    f32 sums[32] = {};
    const u32 begin = (part * 32 + lane) * CHUNK;
    const bool wide = is_wide(operands.x) && is_wide(operands.weight) && (!glu || is_wide(operands.up)) && params.k % CHUNK == 0;
    if (!wide) {
        multiply<MOST_ROWS, 1, false>(params, rows, begin, sums);
    } else if (params.total_rows == 1) {
        multiply<1, 4, true>(params, rows, begin, sums);
    } else {
        multiply<MOST_ROWS, 1, true>(params, rows, begin, sums);
    }
    sums_to_lanes(sums);
    parts[warp * 32 + lane] = sums[0];
    __syncthreads();
    if (part != 0) {
        return;
    }
    f32 total = parts[warp * 32 + lane];
#pragma unroll
    for (u32 other = 1; other < PARTS; other++) {
        total += parts[(warp + other) * 32 + lane];
    }
    const f32 next = __shfl_down_sync(ALL_LANES, total, 1);
    const u32 row = lane / LANE_COLUMNS, c = lane % LANE_COLUMNS;
    if (row >= params.total_rows || (glu && c % 2 == 1)) {
        return;
    }
    f32 p[1] = {total};
    const f32 up[1] = {next};
    finish<1>(params, operands, columns<1>(params, operands, params.n_first + first + (glu ? c / 2 : c)), row, p, up);
}
