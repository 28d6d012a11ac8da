// linear, for everything that no other kernel takes: a matrix product (GEMM) whose x and W differ
// in type, or whose types are known at run time only.
//
// Work: a block of 256 threads computes 16 x 16 of y, one result per thread, in f32 and in blocks
// of 256 columns of k that are added in order. The rows of all batch entries are one axis. With a
// reduction, a block walks over all row tiles of one batch entry, and each thread keeps one value.
// Shared memory: 32 columns of k of 16 rows of x, of W, and of the second matrix of a gated
// activation, as f32. Rows are 33 apart, so that 16 of them at one k lie in 16 banks: 6336 bytes.
// The reduction puts one value per thread there at its end.
// Traffic: x once per 16 columns, W once per 16 rows, element by element: four to eight times what
// the tiled kernels read. The epilogue's operands and y once.

constexpr u32 TILE = 16;
constexpr u32 DEPTH = 32;
constexpr u32 PITCH = DEPTH + 1;

// Stages DEPTH columns from k0 on of 16 rows that begin at `start(row)`; 0 where there are none.
template <class Start> DEVICE void stage(f32* tile, const Operand& operand, u32 k0, u32 k_end, Start start) {
    const u32 k = k0 + threadIdx.x % DEPTH;
    for (u32 row = threadIdx.x / DEPTH; row < TILE; row += THREADS / DEPTH) {
        u64 at = 0;
        const bool exists = k < k_end && start(row, at);
        tile[row * PITCH + threadIdx.x % DEPTH] = exists ? real_at(operand, at + k) : 0.0f;
    }
}

struct Product {
    f32 gate, up;
};

// The sums of row `first` + thread / 16 (below `end`) and column `column` + thread % 16.
DEVICE Product multiply(const LinearParams& params, const LinearOperands& operands, f32* tile_x, f32* tile_weight, f32* tile_up, u32 first, u32 end, u32 column) {
    const bool glu = present(operands.up);
    const u32 columns_end = params.n_first + params.n_count;
    const u32 row = threadIdx.x / TILE, lane = threadIdx.x % TILE;
    Product sum{0.0f, 0.0f};
    for (u32 block = 0; block < params.k; block += SUM_BLOCK) {
        Product part{0.0f, 0.0f};
        for (u32 k0 = block; k0 < min(block + SUM_BLOCK, params.k); k0 += DEPTH) {
            __syncthreads();
            stage(tile_x, operands.x, k0, params.k, [&](u32 r, u64& at) {
                if (first + r >= end) {
                    return false;
                }
                at = row_start(params, first + r, params.x_offset, params.x_stride_b, params.x_stride_r);
                return true;
            });
            const auto row_of = [&](u32 offset, u32 stride) {
                return [=](u32 r, u64& at) {
                    at = offset + static_cast<u64>(column + r) * stride;
                    return column + r < columns_end;
                };
            };
            stage(tile_weight, operands.weight, k0, params.k, row_of(params.weight_offset, params.weight_stride));
            if (glu) {
                stage(tile_up, operands.up, k0, params.k, row_of(params.up_offset, params.up_stride));
            }
            __syncthreads();
            for (u32 k = 0; k < DEPTH; k++) {
                const f32 x = tile_x[row * PITCH + k];
                part.gate = fmaf(x, tile_weight[lane * PITCH + k], part.gate);
                if (glu) {
                    part.up = fmaf(x, tile_up[lane * PITCH + k], part.up);
                }
            }
        }
        sum.gate += part.gate;
        sum.up += part.up;
    }
    return sum;
}

KERNEL(LinearParams, LinearOperands) {
    SHARED(f32, tile_x, 0, TILE * PITCH);
    SHARED(f32, tile_weight, 4 * TILE * PITCH, TILE * PITCH);
    SHARED(f32, tile_up, 8 * TILE * PITCH, TILE * PITCH);
    const u32 column_tiles = (params.n_count + TILE - 1) / TILE;
    const u32 column = params.n_first + blockIdx.x % column_tiles * TILE;
    const u32 tile = blockIdx.x / column_tiles;
    const u32 row = threadIdx.x / TILE;
    const Columns<1> c = columns<1>(params, operands, column + threadIdx.x % TILE);
    if (params.reduce == REDUCE_NONE) {
        const Product product = multiply(params, operands, tile_x, tile_weight, tile_up, tile * TILE, params.total_rows, column);
        if (tile * TILE + row < params.total_rows) {
            f32 p[1] = {product.gate};
            const f32 up[1] = {product.up};
            finish<1>(params, operands, c, tile * TILE + row, p, up);
        }
        return;
    }
    // `tile` is a batch entry.
    const u32 start = tile * params.rows;
    f32 all = 0.0f;
    for (u32 local = 0; local < params.rows; local += TILE) {
        const Product product = multiply(params, operands, tile_x, tile_weight, tile_up, start + local, start + params.rows, column);
        if (local + row < params.rows) {
            f32 p[1] = {product.gate};
            const f32 up[1] = {product.up};
            activate(params.activation, c, p, up);
            all = local == 0 ? p[0] : params.reduce == REDUCE_MAX ? larger(all, p[0]) : all + p[0];
        }
    }
    // The threads of one column are reduced in the order of their rows.
    __syncthreads();
    tile_x[threadIdx.x] = all;
    __syncthreads();
    if (row == 0 && c.exist != 0) {
        for (u32 other = 1; other < min(TILE, params.rows); other++) {
            const f32 next = tile_x[other * TILE + threadIdx.x];
            all = params.reduce == REDUCE_MAX ? larger(all, next) : all + next;
        }
        const f32 y = params.reduce == REDUCE_MEAN ? all / static_cast<f32>(params.rows) : all;
        real_store(operands.out, params.out_offset + static_cast<u64>(tile) * params.out_stride_b + c.first, y);
    }
}
