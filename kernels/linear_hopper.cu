// linear in f16 and bf16 on compute capability 9.0 (wgmma, TMA): a matrix product (GEMM), y =
// epilogue(x W^T), with 16-bit results. x and W have one type.
//
// Work: persistent, warp-specialised blocks of three warpgroups, at most one per SM. Block b
// computes tiles b, b + blocks, ... of TILE_M x TILE_N, walked down 8 row tiles before the next
// column tile; which block computes a tile changes no result. One thread of the first warpgroup
// copies 64 columns of k of x and W per stage, as far ahead as there are stages, into the next tile
// while this one is finished. The other two multiply and run the epilogue:
//   TURNS 0   both compute one tile of 128 x 256, 64 x 256 each
//   TURNS 1   each computes tiles of 128 x 128 in turn: one multiplies during the other's epilogue
// A pair of matrices (SwiGLU): the first half of a stage's rows of W is the gate, the second up, so
// that a thread holds both products of its columns; a tile has half as many columns of y.
// Sums: one chain of f32 over all k in the accumulators. 16-bit results hide what tensor cores lose
// by rounding towards zero; f32 results are not served, since a second set of sums does not fit the
// registers (128 for sums, 232 in all).
// Epilogue, from registers: four lanes exchange words, so that each gets eight neighbouring columns
// of a row: residual and y 16 bytes at a time, the residual two rows ahead of its use. A switch
// picks the registers of a group of eight: unrolled, the code would stand there 16 times.
// Shared memory: STAGES of (TILE_M + TILE_N) rows of 128 bytes, swizzled: 4 of 48 KiB, or 6 of 32
// KiB; two barriers per stage, two for turns.
// Traffic: x once per TILE_N columns, W once per TILE_M rows, from L2; residual and y once.
//
// Prediction at 2048 multiply-adds per SM and clock (m64n256k16 in 128); instructions counted in
// the SASS of ptxas 13.0, nothing measured:
//   from L2         128 x 256: 48 KiB per 1024 clocks, 48 bytes per clock; 128 x 128: 32 KiB per
//                   512, 64 bytes per clock. 132 SMs at 1.7 GHz then want 10.8 and 14.4 TB/s, more
//                   than L2 is known to give. If a measurement shows this bound, clusters of two
//                   blocks are next: each copies half of what both read (32 and 48 bytes/clock).
//   shared memory   m64n256k16 reads 10 KiB in 128 clocks (80 bytes per clock of 128), m64n128k16
//                   6 KiB in 64 (96)
//   epilogue        about 73 instructions per element with erf GELU (50 of them gelu), 27 without
//                   activation. At 128 lanes per clock, 18,700 and 6,900 clocks for 128 x 256, and
//                   65,536 of multiplying for K = 4096, 262,144 for K = 16384. TURNS 0 hides none:
//                   29 % and 3 %. TURNS 1 hides 9,300 clocks of issue behind the other's 32,768.
// Tried (ptxas 13.0): the residual of all of a lane's rows a group ahead: 80 bytes of stack with
// TURNS 1; two rows ahead: none.

constexpr u32 TILE_K = 64, WALK = 8;
constexpr u32 STAGE_BYTES = (TILE_M + TILE_N) * TILE_K * 2;
// A warpgroup's rows of a tile, in fragments of 64.
constexpr u32 FRAGMENTS = (TURNS ? TILE_M : TILE_M / 2) / 64;
constexpr u32 HALF_N = TILE_N / 2;
// SUMS: registers of a fragment's sums. GROUPS: groups of eight that a lane finishes per row, at
// columns 8 (4 i + t).
constexpr u32 SUMS = TILE_N / 2, GROUPS = TILE_N / 32;
static_assert(FRAGMENTS * SUMS == 128, "the registers that setmaxnreg leaves room for");
// Arrivals that free a stage: one lane of each warp that read it.
constexpr u32 READERS = TURNS ? 4 : 8;

struct LinearMaps {
    TensorMap x, weight, up;
};

struct Barriers {
    u64* full;
    u64* empty;
    u64* turn;
};

// A place in the ring of stages. `parity`: of the phase of `full` that fills it.
struct Place {
    u32 stage, parity;
};

DEVICE void advance(Place& place) {
    place.stage++;
    if (place.stage == STAGES) {
        place.stage = 0;
        place.parity ^= 1;
    }
}

DEVICE u32 tiles_of(u32 n, u32 tile) {
    return (n + tile - 1) / tile;
}

DEVICE u32 tile_columns(const LinearOperands& operands) {
    return present(operands.up) ? HALF_N : TILE_N;
}

DEVICE u32 tile_count(const LinearParams& params, const LinearOperands& operands) {
    return tiles_of(params.total_rows, TILE_M) * tiles_of(params.n_count, tile_columns(operands));
}

struct Tile {
    u32 row, column;
};

DEVICE Tile tile_at(const LinearParams& params, const LinearOperands& operands, u32 index) {
    const u32 column_tiles = tiles_of(params.n_count, tile_columns(operands)), row_tiles = tiles_of(params.total_rows, TILE_M);
    const u32 group = index / (WALK * column_tiles), place = index % (WALK * column_tiles);
    const u32 high = min(WALK, row_tiles - group * WALK);
    return {(group * WALK + place % high) * TILE_M, place / high * tile_columns(operands)};
}

// The producer thread: all stages of all tiles. Past the end of rows, columns or k come zeros.
DEVICE void produce(const LinearParams& params, const LinearOperands& operands, const LinearMaps& maps, ELEMENT* stages, const Barriers& barriers) {
    const bool pair = present(operands.up);
    const u32 steps = tiles_of(params.k, TILE_K), tiles = tile_count(params, operands);
    Place place = {0, 0};
    for (u32 index = blockIdx.x; index < tiles; index += gridDim.x) {
        const Tile tile = tile_at(params, operands, index);
        for (u32 step = 0; step < steps; step++) {
            ELEMENT* stage = stages + place.stage * (STAGE_BYTES / 2);
            u64* full = barriers.full + place.stage;
            barrier_wait(barriers.empty + place.stage, place.parity ^ 1);
            barrier_expect(full, STAGE_BYTES);
            tensor_copy(stage, maps.x, step * TILE_K, tile.row, full);
            tensor_copy(stage + TILE_M * TILE_K, maps.weight, step * TILE_K, tile.column, full);
            if (pair) {
                tensor_copy(stage + (TILE_M + HALF_N) * TILE_K, maps.up, step * TILE_K, tile.column, full);
            } else {
                tensor_copy(stage + (TILE_M + HALF_N) * TILE_K, maps.weight, step * TILE_K, tile.column + HALF_N, full);
            }
            advance(place);
        }
    }
}

using Sums = f32[FRAGMENTS][SUMS];

// The sums of a tile. A stage is free when the next one's wgmma are issued and its own are done.
DEVICE void multiply(Sums& sums, const ELEMENT* stages, const Barriers& barriers, Place& place, u32 steps, u32 first_row) {
    const bool speaks = threadIdx.x % 32 == 0;
    u32 before = 0;
#pragma unroll
    for (u32 m = 0; m < FRAGMENTS; m++) {
        wgmma_hold(sums[m]);
    }
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        const ELEMENT* stage = stages + place.stage * (STAGE_BYTES / 2);
        const MatrixAt x = rows_of_k<128>(stage + first_row * TILE_K), w = rows_of_k<128>(stage + TILE_M * TILE_K);
        barrier_wait(barriers.full + place.stage, place.parity);
        wgmma_fence();
#pragma unroll
        for (u32 k = 0; k < TILE_K / 16; k++) {
#pragma unroll
            for (u32 m = 0; m < FRAGMENTS; m++) {
                // 64 rows are 8 KiB, 16 columns 32 bytes.
                wgmma_shared<ELEMENT, TILE_N, false>(sums[m], further(x, m * 8192 + k * 32), further(w, k * 32), step > 0 || k > 0);
            }
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (speaks && step > 0) {
            barrier_arrive(barriers.empty + before);
        }
        before = place.stage;
        advance(place);
    }
    if (TURNS && speaks) {
        // All wgmma of this tile are issued: the other warpgroup's turn.
        barrier_arrive(barriers.turn + (2 - threadIdx.x / 128));
    }
    wgmma_wait<0>();
    if (speaks) {
        barrier_arrive(barriers.empty + before);
    }
#pragma unroll
    for (u32 m = 0; m < FRAGMENTS; m++) {
        wgmma_hold(sums[m]);
    }
}

// Group `group` of row `row % 2` (the lane's, and eight further) of fragment `row / 2`: four pairs
// of columns, 8 apart. SHIFT: where the sums of the gate (0) or of up begin.
template <u32 SHIFT> DEVICE void pick(const Sums& sums, u32 row, u32 group, u32 (&low)[4], u32 (&high)[4]) {
#define PICK(i)                                                                                    \
    case i:                                                                                        \
        if constexpr (i < 2 * FRAGMENTS * GROUPS) {                                                \
            constexpr u32 at = i % GROUPS * 16 + i / GROUPS % 2 * 2 + SHIFT;                       \
            const f32(&from)[SUMS] = sums[i / GROUPS / 2];                                         \
            low[0] = __float_as_uint(from[(at + 0) % SUMS]), high[0] = __float_as_uint(from[(at + 1) % SUMS]);   \
            low[1] = __float_as_uint(from[(at + 4) % SUMS]), high[1] = __float_as_uint(from[(at + 5) % SUMS]);   \
            low[2] = __float_as_uint(from[(at + 8) % SUMS]), high[2] = __float_as_uint(from[(at + 9) % SUMS]);   \
            low[3] = __float_as_uint(from[(at + 12) % SUMS]), high[3] = __float_as_uint(from[(at + 13) % SUMS]); \
        }                                                                                          \
        break;
    switch (row * GROUPS + group) {
        PICK(0) PICK(1) PICK(2) PICK(3) PICK(4) PICK(5) PICK(6) PICK(7)
        PICK(8) PICK(9) PICK(10) PICK(11) PICK(12) PICK(13) PICK(14) PICK(15)
    }
#undef PICK
}

// Eight neighbouring columns of one of this lane's rows.
template <u32 SHIFT> DEVICE void gather(const Sums& sums, u32 row, u32 group, f32 (&p)[COLUMNS]) {
    u32 low[4], high[4];
    pick<SHIFT>(sums, row, group, low, high);
    exchange(low);
    exchange(high);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        p[2 * j] = __uint_as_float(low[j]);
        p[2 * j + 1] = __uint_as_float(high[j]);
    }
}

// As `columns`, 16 bytes at a time. A scalar gate comes as its tanh, in `gate`.
DEVICE Columns<COLUMNS> columns_of_group(const LinearParams& params, const LinearOperands& operands, u32 first, f32 gate) {
    Columns<COLUMNS> c;
    c.first = first;
    c.exist = first < params.n_count ? min(params.n_count - first, COLUMNS) : 0;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        c.bias[j] = 0.0f;
        c.gate[j] = gate;
    }
    if (present(operands.bias)) {
        columns_load(operands.bias, static_cast<u64>(params.bias_offset) + first, c.exist, c.bias);
    }
    if (present(operands.gate) && params.gate_step != 0) {
        columns_load(operands.gate, static_cast<u64>(params.gate_offset) + first, c.exist, c.gate);
#pragma unroll 1
        for (u32 j = 0; j < COLUMNS; j++) {
            // Rotated by one each time: constant indices keep the array in registers.
            const f32 next = tanh_exact(c.gate[0]);
#pragma unroll
            for (u32 i = 0; i + 1 < COLUMNS; i++) {
                c.gate[i] = c.gate[i + 1];
            }
            c.gate[COLUMNS - 1] = next;
        }
    }
    return c;
}

constexpr u32 LANE_ROWS = 2 * FRAGMENTS;

// Where a lane's rows of a tile begin.
struct Rows {
    u64 residual[LANE_ROWS], out[LANE_ROWS];
    bool masked[LANE_ROWS], exists[LANE_ROWS];
};

DEVICE Rows rows_of_lane(const LinearParams& params, const LinearOperands& operands, u32 start) {
    Rows rows;
#pragma unroll
    for (u32 r = 0; r < LANE_ROWS; r++) {
        const u32 row = start + r / 2 * 64 + r % 2 * 8, real = min(row, params.total_rows - 1);
        rows.exists[r] = row < params.total_rows;
        rows.residual[r] = residual_row(params, real);
        rows.out[r] = out_row(params, real);
        rows.masked[r] = is_masked(params, operands, real);
    }
    return rows;
}

// What belongs to row r, by selection: registers have no run-time index.
template <class T> DEVICE T of_row(const T (&all)[LANE_ROWS], u32 r) {
    T one = all[0];
#pragma unroll
    for (u32 i = 1; i < LANE_ROWS; i++) {
        one = r == i ? all[i] : one;
    }
    return one;
}

// Raw columns of the residual, if they are 16-bit and aligned. The load stays in flight.
DEVICE void fetch(const LinearParams& params, const LinearOperands& operands, const Rows& rows, u32 row, u32 first, Wide& words) {
    if (is_wide(operands.residual) && operands.residual.type != TYPE_F32 && first + COLUMNS <= params.n_count) {
        words = wide_load(data<u16>(operands.residual) + of_row(rows.residual, row) + first);
    }
}

// Unpacks what `fetch` loaded, or loads what it did not.
DEVICE void residual_of(const LinearOperands& operands, const Columns<COLUMNS>& c, const Wide& ahead, u64 at, f32 (&y)[COLUMNS]) {
    if (is_wide(operands.residual) && operands.residual.type != TYPE_F32 && c.exist == COLUMNS) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (operands.residual.type == TYPE_F16) {
                unpack2<f16>(ahead.word[j], y[2 * j], y[2 * j + 1]);
            } else {
                unpack2<bf16>(ahead.word[j], y[2 * j], y[2 * j + 1]);
            }
        }
    } else if (present(operands.residual)) {
        columns_load(operands.residual, at + c.first, c.exist, y);
    }
}

DEVICE void finish_tile(const LinearParams& params, const LinearOperands& operands, const Sums& sums, const Tile& tile, u32 first_row, f32 gate) {
    const bool pair = present(operands.up);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const Rows rows = rows_of_lane(params, operands, tile.row + first_row + warp * 16 + lane / 4);
    const u32 groups = pair ? GROUPS / 2 : GROUPS, column = tile.column + lane % 4 * 8;
    // The residual of this row, the next, and the one after it.
    Wide words, next = {}, last = {};
    fetch(params, operands, rows, 0, column, next);
    fetch(params, operands, rows, 1, column, last);
#pragma unroll 1
    for (u32 group = 0; group < groups; group++) {
        const Columns<COLUMNS> c = columns_of_group(params, operands, column + group * 32, gate);
#pragma unroll 1
        for (u32 r = 0; r < LANE_ROWS; r++) {
            words = next;
            next = last;
            const u32 ahead = group * LANE_ROWS + r + 2;
            if (ahead < groups * LANE_ROWS) {
                fetch(params, operands, rows, ahead % LANE_ROWS, column + ahead / LANE_ROWS * 32, last);
            }
            f32 p[COLUMNS], up[COLUMNS] = {}, y[COLUMNS];
            gather<0>(sums, r, group, p);
            if (pair) {
                gather<SUMS / 2>(sums, r, group, up);
            }
            if (c.exist > 0 && of_row(rows.exists, r)) {
                residual_of(operands, c, words, of_row(rows.residual, r), y);
                finish_at<COLUMNS>(params, operands, c, of_row(rows.masked, r), of_row(rows.out, r), p, up, y);
            }
        }
    }
}

// Warpgroup `own` (0 or 1) of the two that multiply.
DEVICE void consume(const LinearParams& params, const LinearOperands& operands, const ELEMENT* stages, const Barriers& barriers, u32 own) {
    const u32 steps = tiles_of(params.k, TILE_K), tiles = tile_count(params, operands);
    const u32 first_row = TURNS ? 0 : own * 64;
    const f32 gate = present(operands.gate) && params.gate_step == 0 ? tanh_exact(real_at(operands.gate, params.gate_offset)) : 1.0f;
    Place place = {0, 0};
    u32 made = 0;
    for (u32 index = blockIdx.x, n = 0; index < tiles; index += gridDim.x, n++) {
        if (TURNS && n % 2 != own) {
            // The other warpgroup's tile: its stages are skipped.
            place.stage += steps;
            place.parity ^= place.stage / STAGES % 2;
            place.stage %= STAGES;
            continue;
        }
        if (TURNS) {
            // Warpgroup 0 begins: a new barrier lets parity 1 through.
            barrier_wait(barriers.turn + own, (made + own + 1) % 2);
            made++;
        }
        Sums sums;
        multiply(sums, stages, barriers, place, steps, first_row);
        finish_tile(params, operands, sums, tile_at(params, operands, index), first_row, gate);
    }
}

KERNEL_WITH_MAPS(LinearParams, LinearOperands, LinearMaps) {
    SHARED(ELEMENT, stages, 0, STAGES * STAGE_BYTES / 2);
    SHARED(u64, full, STAGES * STAGE_BYTES, STAGES);
    SHARED(u64, empty, STAGES * STAGE_BYTES + 8 * STAGES, STAGES);
    SHARED(u64, turn, STAGES * STAGE_BYTES + 16 * STAGES, 2);
    const Barriers barriers = {full, empty, turn};
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_init(full + stage, 1);
            barrier_init(empty + stage, READERS);
        }
        barrier_init(turn, 4);
        barrier_init(turn + 1, 4);
        barrier_init_fence();
    }
    __syncthreads();
    // Uniform in a warp, which the compiler cannot know.
    const u32 group = __shfl_sync(ALL_LANES, threadIdx.x / 128, 0);
    if (group == 0) {
        registers_down<40>();
        if (threadIdx.x == 0) {
            tensor_prefetch(maps.x);
            tensor_prefetch(maps.weight);
            produce(params, operands, maps, stages, barriers);
        }
    } else {
        registers_up<232>();
        consume(params, operands, stages, barriers, group - 1);
    }
}
