// A kernel with everything that the emulator must watch, and, with PLANT set, one bug of a class.
// C = A B^T for f16 A [64 blocks, k] and B [32, k], then out[row] = the sum of the row of C, and
// row_of_block[block] = the largest such sum.
//
// Work: 4 warps of 16 rows by 32 columns. Shared memory: two stages of 64 + 32 rows of 32 halves,
// rows padded to 40; 64 row sums. Copies run one stage ahead.

#define STAGE_ROWS 96
#define ROW 40
#define STEP 32

struct ProductParams {
    u32 k;
    u32 rows;
};
struct ProductOperands {
    Operand a, b, out, largest;
};

DEVICE void fetch(u16* stage, const ProductOperands& operands, u32 k, u32 first_row, u32 column) {
    // 96 rows of four 16-byte pieces, three for each thread.
    for (u32 piece = threadIdx.x; piece < STAGE_ROWS * 4; piece += THREADS) {
        const u32 row = piece / 4, part = piece % 4 * 8;
        const u16* source = row < 64 ? data<u16>(operands.a) + static_cast<u64>(first_row + row) * k
                                     : data<u16>(operands.b) + static_cast<u64>(row - 64) * k;
#if PLANT == SHARED_BOUNDS
        // One padded row too far, for the last row only.
        u16* target = stage + (row == STAGE_ROWS - 1 ? row + 1 + STAGE_ROWS : row) * ROW + part;
#else
        u16* target = stage + row * ROW + part;
#endif
#if PLANT == STORE_SHARED_BOUNDS
        // Past both stages.
        if (row == STAGE_ROWS - 1 && column == STEP) {
            stage[STAGE_ROWS * ROW + 4] = 1;
        }
#endif
        copy_async_16(target, source + column + part, true);
    }
    copy_async_commit();
}

KERNEL(ProductParams, ProductOperands) {
    SHARED(u16, stages, 0, 2 * STAGE_ROWS * ROW);
#if PLANT == OVERLAPPING_TILES
    SHARED(f32, sums, 2 * STAGE_ROWS * ROW * 2 - 16, 64);
#else
    SHARED(f32, sums, 2 * STAGE_ROWS * ROW * 2, 64);
#endif
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 first_row = blockIdx.x * 64;
    f32 d[4][4] = {};
    fetch(stages, operands, params.k, first_row, 0);
    const u32 steps = params.k / STEP;
    for (u32 step = 0; step < steps; step++) {
        u16* here = stages + step % 2 * STAGE_ROWS * ROW;
        if (step + 1 < steps) {
            fetch(stages + (step + 1) % 2 * STAGE_ROWS * ROW, operands, params.k, first_row, (step + 1) * STEP);
        } else {
            copy_async_commit();
        }
#if PLANT != MISSING_WAIT
        copy_async_wait<1>();
#endif
#if PLANT != MISSING_BARRIER_BEFORE_READ
        __syncthreads();
#endif
        for (u32 k = 0; k < STEP; k += 16) {
            u32 a[4], b[4];
            ldmatrix_x4(a, here + (warp * 16 + lane % 16) * ROW + k + lane / 16 * 8);
            for (u32 column = 0; column < 4; column += 2) {
                // Two 8-column tiles of B: lanes 0-7 and 8-15 the two halves of k of the first,
                // 16-31 of the second.
                ldmatrix_x4(b, here + (64 + column * 8 + lane / 16 * 8 + lane % 8) * ROW + k + lane / 8 % 2 * 8);
                const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                mma_16816<f16>(d[column], a, first);
                mma_16816<f16>(d[column + 1], a, second);
            }
        }
#if PLANT == DIVERGENT_BARRIER
        if (warp == 0 && step + 1 == steps) {
            __syncthreads();
        } else {
            __syncthreads();
        }
#elif PLANT == BARRIER_COUNT
        if (warp != 3 || step + 1 < steps) {
            __syncthreads();
        }
#elif PLANT != MISSING_BARRIER_BEFORE_OVERWRITE
        __syncthreads();
#endif
    }
    f32 upper = 0.0f, lower = 0.0f;
    for (u32 column = 0; column < 4; column++) {
        upper += d[column][0] + d[column][1];
        lower += d[column][2] + d[column][3];
    }
#if PLANT == MISSING_LANE
    // Lane 31 leaves the others alone, who name it.
    if (lane != 31) {
        upper = warp_sum<4>(upper);
    }
    lower = warp_sum<4>(lower);
#elif PLANT == WRONG_MASK
    upper += __shfl_xor_sync(0x7fffffffu, upper, 1);
    upper += __shfl_xor_sync(0x7fffffffu, upper, 2);
    lower = warp_sum<4>(lower);
#else
    upper = warp_sum<4>(upper);
    lower = warp_sum<4>(lower);
#endif
    if (lane % 4 == 0) {
        sums[warp * 16 + lane / 4] = upper;
#if PLANT == UNINITIALISED
        // Right where shared memory happens to hold zeros.
        sums[warp * 16 + lane / 4 + 8] += lower;
#else
        sums[warp * 16 + lane / 4 + 8] = lower;
#endif
    }
#if PLANT == MISSING_SYNCWARP
    // Lanes of one warp read what others of it wrote.
    if (lane < 16) {
        data<f32>(operands.out)[first_row + warp * 16 + lane] = sums[warp * 16 + lane];
    }
    __syncthreads();
#else
    __syncthreads();
    if (threadIdx.x < 64) {
        u32 row = first_row + threadIdx.x;
#if PLANT == GLOBAL_WRITE_BOUNDS
        row += row == params.rows - 1 ? 1 : 0;
#endif
        data<f32>(operands.out)[row] = sums[threadIdx.x];
    }
#endif
    if (threadIdx.x == 0) {
        f32 largest = sums[0];
        for (u32 row = 1; row < 64; row++) {
            largest = fmaxf(largest, sums[row]);
        }
        data<f32>(operands.largest)[blockIdx.x] = largest;
#if PLANT == GLOBAL_READ_BOUNDS
        // Behind the last row of B; what is read changes nothing.
        const u16* beyond = data<u16>(operands.b) + 32 * params.k;
        data<f32>(operands.largest)[blockIdx.x] = largest + (beyond[0] == 0x1234 ? 1.0f : 0.0f);
#elif PLANT == SIGNED_OVERFLOW
        i32 big = 0x7fffffff;
        big += static_cast<i32>(params.rows);
        data<f32>(operands.largest)[blockIdx.x] = largest + (big == 5 ? 1.0f : 0.0f);
#elif PLANT == MISALIGNED
        wide_store(sums, wide_load(sums + 2));
#elif PLANT == BLOCK_RACE
        // Every block writes it.
        data<f32>(operands.largest)[0] = largest;
#endif
    }
}
