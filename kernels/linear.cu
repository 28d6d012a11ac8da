// linear in f16 and bf16 on tensor cores: a matrix product (GEMM), y = epilogue(x W^T), or its
// reduction over rows. x and W have one type, everything else any.
//
// Work: a block computes TILE_M x TILE_N of y, a warp WARP_M x WARP_N, by mma m16n8k16 with f32
// sums. The rows of all batch entries are one axis, whatever their strides; blocks walk down 8 row
// tiles before the next column tile. With a reduction (REDUCE) a block walks over all rows of one
// batch entry, and each thread keeps one value for eight columns.
// Tiles: 128 x 128 with warps of 64 x 32 for large GEMMs; 64 x 64 with warps of 32 x 32 where those
// would not fill the device.
// BLOCK_SUMS: k in blocks of 256 that are added in f32. Tensor cores round sums towards zero, so
// one chain over thousands of k drifts: it shows in f32 results, not in 16-bit ones. It doubles the
// registers of the sums, so the large tile has it only for f32 results.
// Shared memory: STAGES steps of 32 columns of k of x and W (layout: lib/linear_tile.cuh), filled
// by cp.async two or more steps ahead, one barrier per step. The sums then pass through the same
// bytes as f32, so that each thread finishes eight neighbouring columns: residual and y 16 bytes at
// a time. 69632 bytes for 128 x 128, 32768 for 64 x 64, 65536 with eight stages (linear_*_64_deep).
// Traffic: x once per TILE_N columns, W once per TILE_M rows, mostly from L2; residual and y once.

constexpr u32 FRAGMENTS_M = WARP_M / 16, FRAGMENTS_N = WARP_N / 8;
constexpr u32 WARPS_N = TILE_N / WARP_N;
static_assert(THREADS == 32 * WARPS_N * (TILE_M / WARP_M), "one warp for each of its tiles");

struct Sums {
    f32 at[FRAGMENTS_M][FRAGMENTS_N][4];
};

// One step of 32 columns: two k16 slices, each of whose fragments are all loaded before they are
// multiplied. With both slices unrolled, tiles of 128 spill two registers per step (nvrtc 13.0, 128
// registers).
DEVICE void multiply_step(Sums& sums, const ELEMENT* x, const ELEMENT* w) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_row = warp / WARPS_N * WARP_M, warp_column = warp % WARPS_N * WARP_N;
#pragma unroll 1
    for (u32 slice = 0; slice < 2; slice++) {
        u32 a[FRAGMENTS_M][4], b[FRAGMENTS_N][2];
#pragma unroll
        for (u32 i = 0; i < FRAGMENTS_M; i++) {
            ldmatrix_x4(a[i], x + chunk_at(warp_row + i * 16 + lane % 16, 2 * slice + lane / 16));
        }
        // Two fragments of W at a time: rows 0-7 at both chunks, rows 8-15 at both.
#pragma unroll
        for (u32 j = 0; j < FRAGMENTS_N; j += 2) {
            u32 both[4];
            ldmatrix_x4(both, w + chunk_at(warp_column + j * 8 + lane / 16 * 8 + lane % 8, 2 * slice + lane / 8 % 2));
            b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
        }
#pragma unroll
        for (u32 i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
            for (u32 j = 0; j < FRAGMENTS_N; j++) {
                mma_16816<ELEMENT>(sums.at[i][j], a[i], b[j]);
            }
        }
    }
}

DEVICE void clear(Sums& sums) {
#pragma unroll
    for (u32 i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
        for (u32 j = 0; j < FRAGMENTS_N; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                sums.at[i][j][e] = 0.0f;
            }
        }
    }
}

DEVICE void fold_sums(Sums& total, Sums& part) {
#pragma unroll
    for (u32 i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
        for (u32 j = 0; j < FRAGMENTS_N; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                total.at[i][j][e] += part.at[i][j][e];
                part.at[i][j][e] = 0.0f;
            }
        }
    }
}

DEVICE void put_sums(f32* staged, const Sums& sums) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (u32 i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
        for (u32 j = 0; j < FRAGMENTS_N; j++) {
            const u32 row = warp / WARPS_N * WARP_M + i * 16 + lane / 4;
            f32* at = staged + row * PITCH + warp % WARPS_N * WARP_N + j * 8 + lane % 4 * 2;
            at[0] = sums.at[i][j][0];
            at[1] = sums.at[i][j][1];
            at[8 * PITCH] = sums.at[i][j][2];
            at[8 * PITCH + 1] = sums.at[i][j][3];
        }
    }
}

// Leaves the sums of a GEMM tile in shared memory.
DEVICE void make_tile(const LinearParams& params, const LinearOperands& operands, ELEMENT* tiles, const Tile& tile) {
    Sums sums;
    clear(sums);
    if constexpr (BLOCK_SUMS) {
        Sums part;
        clear(part);
        multiply(
            params, operands, tiles, tile, [&](const ELEMENT* x, const ELEMENT* w) { multiply_step(part, x, w); }, [&] { fold_sums(sums, part); });
    } else {
        multiply(
            params, operands, tiles, tile, [&](const ELEMENT* x, const ELEMENT* w) { multiply_step(sums, x, w); }, [] {});
    }
    put_sums(reinterpret_cast<f32*>(tiles), sums);
    __syncthreads();
}

KERNEL(LinearParams, LinearOperands) {
    SHARED(ELEMENT, tiles, 0, SHARED_BYTES / sizeof(ELEMENT));
    f32* staged = reinterpret_cast<f32*>(tiles);
    const Tile tile = tile_of_block(params, operands);
    if constexpr (REDUCE) {
        reduce_rows(params, operands, staged, tile, [&](const Tile& at) { make_tile(params, operands, tiles, at); });
    } else {
        make_tile(params, operands, tiles, tile);
        finish_tile(params, operands, staged, tile);
    }
}
