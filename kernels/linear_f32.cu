// linear in f32: a matrix product (GEMM), y = epilogue(x W^T), or its reduction over rows, in fused
// multiply-adds. Never TF32, whose 10 bits of mantissa would not give an f32 product.
//
// Work: a block of 256 threads computes 128 rows and 64 columns of y. Thread (r, c) of 16 x 16 has
// rows r + 16 i and columns c + 16 j: a register tile of eight by four. k is summed in blocks of
// 256 that are added in order, as on the CPU.
// Shared memory: STAGES steps of 16 columns of k of x and W, filled by cp.async
// (lib/linear_tile.cuh). A thread reads four k of a row at once. 16 neighbouring threads read
// neighbouring rows of W, which the layout spreads over the banks; rows of x are broadcast. 12
// loads of 16 bytes feed 128 multiply-adds. The bytes then carry the sums. 36864 bytes.
// Traffic: x once per 64 columns, W once per 128 rows; residual and y once, 16 bytes at a time.

constexpr u32 SIDE = 16;
constexpr u32 ROWS = TILE_M / SIDE, LANES = TILE_N / SIDE;
static_assert(THREADS == SIDE * SIDE, "16 x 16 threads");

struct Sums {
    f32 at[ROWS][LANES];
};

DEVICE void four(const f32* at, f32 (&value)[4]) {
    const Wide words = wide_load(at);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        value[k] = __uint_as_float(words.word[k]);
    }
}

DEVICE void multiply_step(Sums& sums, const f32* x, const f32* w) {
    const u32 row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
#pragma unroll
    for (u32 chunk = 0; chunk < 4; chunk++) {
        f32 b[LANES][4];
#pragma unroll
        for (u32 j = 0; j < LANES; j++) {
            four(w + chunk_at(column + SIDE * j, chunk), b[j]);
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            f32 a[4];
            four(x + chunk_at(row + SIDE * i, chunk), a);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
#pragma unroll
                for (u32 j = 0; j < LANES; j++) {
                    sums.at[i][j] = fmaf(a[k], b[j][k], sums.at[i][j]);
                }
            }
        }
    }
}

DEVICE void fold_sums(Sums& total, Sums& part) {
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < LANES; j++) {
            total.at[i][j] += part.at[i][j];
            part.at[i][j] = 0.0f;
        }
    }
}

DEVICE void put_sums(f32* staged, const Sums& sums) {
    const u32 row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < LANES; j++) {
            staged[(i * SIDE + row) * PITCH + column + SIDE * j] = sums.at[i][j];
        }
    }
}

// Leaves the sums of a GEMM tile in shared memory.
DEVICE void make_tile(const LinearParams& params, const LinearOperands& operands, f32* tiles, const Tile& tile) {
    Sums sums, part;
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < LANES; j++) {
            sums.at[i][j] = part.at[i][j] = 0.0f;
        }
    }
    multiply(
        params, operands, tiles, tile, [&](const f32* x, const f32* w) { multiply_step(part, x, w); }, [&] { fold_sums(sums, part); });
    put_sums(tiles, sums);
    __syncthreads();
}

KERNEL(LinearParams, LinearOperands) {
    SHARED(f32, tiles, 0, SHARED_BYTES / 4);
    const Tile tile = tile_of_block(params, operands);
    if constexpr (REDUCE) {
        reduce_rows(params, operands, tiles, tile, [&](const Tile& at) { make_tile(params, operands, tiles, at); });
    } else {
        make_tile(params, operands, tiles, tile);
        finish_tile(params, operands, tiles, tile);
    }
}
