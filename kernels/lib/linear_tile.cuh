// What the tiled kernels of `linear` share: which tile a block computes, the pipeline that copies x
// and W to shared memory, and the way of the sums through shared memory to y. The kernels
// themselves multiply a step.
//
// Constants: ELEMENT (f16, bf16 or f32), TILE_M rows and TILE_N columns of a tile, STAGES of the
// pipeline, BLOCK_SUMS (sum k in blocks of SUM_BLOCK; 0 or 1), REDUCE (reduce over rows; 0 or 1).
//
// A step is 64 bytes of k of each row: four chunks of 16. Two rows share a line of 128 bytes, and
// the chunk of row r lies at place chunk ^ (r / 2 % 4). Eight consecutive rows at one chunk cover
// the 32 banks once: ldmatrix and 16-byte loads have no bank conflict.
//
// A gated activation needs two products of the same columns. The tile then alternates eight rows of
// gate and of up, for half as many columns of y. Everything up to the epilogue is the same.

constexpr u32 CHUNK = 16 / sizeof(ELEMENT);
constexpr u32 TILE_K = 4 * CHUNK;
constexpr u32 STEPS_PER_BLOCK = SUM_BLOCK / TILE_K;
// Row pitch of the sums in shared memory (f32): reads and writes spread over the banks.
constexpr u32 PITCH = TILE_N + 8;
constexpr u32 STAGE_ELEMENTS = (TILE_M + TILE_N) * TILE_K;
constexpr u32 STAGED_BYTES = TILE_M * PITCH * 4;
constexpr u32 PIPELINE_BYTES = STAGES * STAGE_ELEMENTS * sizeof(ELEMENT);
constexpr u32 SHARED_BYTES = PIPELINE_BYTES > STAGED_BYTES ? PIPELINE_BYTES : STAGED_BYTES;
// Row tiles that are walked down before the next column: they meet in the L2 cache.
constexpr u32 WALK = 8;

DEVICE u32 tiles_of(u32 n, u32 tile) {
    return (n + tile - 1) / tile;
}

// Where chunk `chunk` of row `row` of a tile lies, in elements.
DEVICE u32 chunk_at(u32 row, u32 chunk) {
    return row * TILE_K + (chunk ^ (row / 2 % 4)) * CHUNK;
}

// A tile of y: rows first..end of all batch entries, columns from `column` on. With a reduction:
// all rows of batch entry `entry`.
struct Tile {
    u32 first, end, column, entry;
};

DEVICE Tile tile_of_block(const LinearParams& params, const LinearOperands& operands) {
    const u32 width = present(operands.up) ? TILE_N / 2 : TILE_N;
    const u32 column_tiles = tiles_of(params.n_count, width);
    Tile tile;
    if (REDUCE) {
        tile.entry = blockIdx.x / column_tiles;
        tile.column = params.n_first + blockIdx.x % column_tiles * width;
        tile.first = tile.entry * params.rows;
        tile.end = tile.first + params.rows;
        return tile;
    }
    const u32 row_tiles = tiles_of(params.total_rows, TILE_M);
    const u32 group = blockIdx.x / (WALK * column_tiles), place = blockIdx.x % (WALK * column_tiles);
    const u32 high = min(WALK, row_tiles - group * WALK);
    tile.entry = 0;
    tile.first = (group * WALK + place % high) * TILE_M;
    tile.end = params.total_rows;
    tile.column = params.n_first + place / high * width;
    return tile;
}

// A thread's part of ROWS rows of x or W: chunk thread % 4 of rows thread / 4 + i THREADS / 4.
template <u32 ROWS> struct Panel {
    static constexpr u32 COUNT = ROWS * 4 / THREADS;
    static_assert(COUNT * THREADS == ROWS * 4, "each thread copies the same number of chunks");
    // Null where there is no such row.
    const ELEMENT* row[COUNT];
    const ELEMENT* base;
    bool wide;
};

DEVICE Panel<TILE_M> panel_of_x(const LinearParams& params, const LinearOperands& operands, u32 first, u32 end) {
    Panel<TILE_M> panel;
    panel.base = data<ELEMENT>(operands.x);
    panel.wide = is_wide(operands.x);
#pragma unroll
    for (u32 i = 0; i < panel.COUNT; i++) {
        const u32 row = first + threadIdx.x / 4 + i * (THREADS / 4);
        panel.row[i] = row < end ? panel.base + row_start(params, row, params.x_offset, params.x_stride_b, params.x_stride_r) : nullptr;
    }
    return panel;
}

DEVICE Panel<TILE_N> panel_of_weight(const LinearParams& params, const LinearOperands& operands, u32 column) {
    const bool glu = present(operands.up);
    Panel<TILE_N> panel;
    panel.base = data<ELEMENT>(operands.weight);
    panel.wide = is_wide(operands.weight) && (!glu || is_wide(operands.up));
#pragma unroll
    for (u32 i = 0; i < panel.COUNT; i++) {
        const u32 row = threadIdx.x / 4 + i * (THREADS / 4);
        const bool up = glu && row / 8 % 2 == 1;
        const u32 n = column + (glu ? row / 16 * 8 + row % 8 : row);
        const ELEMENT* start = up ? data<ELEMENT>(operands.up) + params.up_offset : panel.base + params.weight_offset;
        panel.row[i] = n < params.n_first + params.n_count ? start + static_cast<u64>(n) * (up ? params.up_stride : params.weight_stride) : nullptr;
    }
    return panel;
}

// Whole aligned chunks by cp.async; an odd K's end and unaligned rows one by one; else zeros.
template <u32 ROWS> DEVICE void copy_panel(ELEMENT* tile, const Panel<ROWS>& panel, u32 k0, u32 k_end) {
    const u32 k = k0 + threadIdx.x % 4 * CHUNK;
#pragma unroll
    for (u32 i = 0; i < panel.COUNT; i++) {
        ELEMENT* to = tile + chunk_at(threadIdx.x / 4 + i * (THREADS / 4), threadIdx.x % 4);
        const bool exists = panel.row[i] != nullptr && k < k_end;
        if (panel.wide && (!exists || k + CHUNK <= k_end)) {
            copy_async_16(to, exists ? panel.row[i] + k : panel.base, exists);
            continue;
        }
        alignas(16) ELEMENT elements[CHUNK];
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) {
            elements[j] = exists && k + j < k_end ? panel.row[i][k + j] : ELEMENT{};
        }
        wide_store(to, wide_load(elements));
    }
}

// x W^T of a tile. `step(x, w)` adds a step's product to the fragment's sums; `fold()` moves them
// to the totals.
template <class Step, class Fold>
DEVICE void multiply(const LinearParams& params, const LinearOperands& operands, ELEMENT* tiles, const Tile& tile, Step step, Fold fold) {
    const Panel<TILE_M> x = panel_of_x(params, operands, tile.first, tile.end);
    const Panel<TILE_N> w = panel_of_weight(params, operands, tile.column);
    const u32 steps = tiles_of(params.k, TILE_K);
    const auto copy = [&](u32 s) {
        if (s < steps) {
            ELEMENT* stage = tiles + s % STAGES * STAGE_ELEMENTS;
            copy_panel(stage, x, s * TILE_K, params.k);
            copy_panel(stage + TILE_M * TILE_K, w, s * TILE_K, params.k);
        }
        // An empty group too: the wait counts groups.
        copy_async_commit();
    };
    for (u32 s = 0; s + 1 < STAGES; s++) {
        copy(s);
    }
    for (u32 s = 0; s < steps; s++) {
        copy_async_wait<STAGES - 2>();
        // All copies of step s are here; all threads are done with step s - 1, refilled next.
        __syncthreads();
        copy(s + STAGES - 1);
        const ELEMENT* stage = tiles + s % STAGES * STAGE_ELEMENTS;
        step(stage, stage + TILE_M * TILE_K);
        if (BLOCK_SUMS && (s % STEPS_PER_BLOCK == STEPS_PER_BLOCK - 1 || s + 1 == steps)) {
            fold();
        }
    }
    // The stages are free again.
    __syncthreads();
}

// The columns that a thread finishes, and its rows: thread / groups + i THREADS / groups.
struct Finisher {
    u32 groups, group, row;
    Columns<COLUMNS> c;
};

DEVICE Finisher finisher(const LinearParams& params, const LinearOperands& operands, const Tile& tile) {
    Finisher f;
    f.groups = present(operands.up) ? TILE_N / 16 : TILE_N / 8;
    f.group = threadIdx.x % f.groups;
    f.row = threadIdx.x / f.groups;
    f.c = columns<COLUMNS>(params, operands, tile.column + f.group * 8);
    return f;
}

// Four neighbouring groups begin with their lower half, the next four with their upper one:
// together they touch each bank once (twice where gate and up alternate).
DEVICE void staged_columns(const f32* staged, u32 row, u32 group, bool upper_first, f32 (&value)[COLUMNS]) {
    const f32* at = staged + row * PITCH + group * 8;
    const Wide first = wide_load(at + (upper_first ? 4 : 0)), second = wide_load(at + (upper_first ? 0 : 4));
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        value[j] = __uint_as_float(upper_first ? second.word[j] : first.word[j]);
        value[4 + j] = __uint_as_float(upper_first ? first.word[j] : second.word[j]);
    }
}

// Calls `each(row, p, up)` for this thread's rows of a tile: the sums of its eight columns.
template <class Each> DEVICE void for_each_row(const Finisher& f, const f32* staged, u32 rows, Each each) {
    const bool glu = f.groups == TILE_N / 16;
    const bool upper_first = f.group / 4 % 2 == 1;
    for (u32 row = f.row; row < min(rows, TILE_M); row += THREADS / f.groups) {
        f32 p[COLUMNS], up[COLUMNS] = {};
        staged_columns(staged, row, glu ? 2 * f.group : f.group, upper_first, p);
        if (glu) {
            staged_columns(staged, row, 2 * f.group + 1, upper_first, up);
        }
        each(row, p, up);
    }
}

DEVICE void finish_tile(const LinearParams& params, const LinearOperands& operands, const f32* staged, const Tile& tile) {
    const Finisher f = finisher(params, operands, tile);
    for_each_row(f, staged, tile.end - tile.first, [&](u32 row, f32(&p)[COLUMNS], const f32(&up)[COLUMNS]) {
        finish<COLUMNS>(params, operands, f.c, tile.first + row, p, up);
    });
}

// One value per column over the rows of a batch entry. `make(tile)` stages a tile's sums.
template <class Make> DEVICE void reduce_rows(const LinearParams& params, const LinearOperands& operands, f32* staged, Tile tile, Make make) {
    const Finisher f = finisher(params, operands, tile);
    const u32 start = tile.first;
    f32 all[COLUMNS] = {};
    bool some = false;
    for (; tile.first < tile.end; tile.first += TILE_M) {
        make(tile);
        for_each_row(f, staged, tile.end - tile.first, [&](u32, f32(&p)[COLUMNS], const f32(&up)[COLUMNS]) {
            activate<COLUMNS>(params.activation, f.c, p, up);
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                all[j] = !some ? p[j] : params.reduce == REDUCE_MAX ? larger(all[j], p[j]) : all[j] + p[j];
            }
            some = true;
        });
        __syncthreads();
    }
    // Threads of the same columns are reduced in the order of their first rows.
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        staged[f.row * PITCH + f.group * 8 + j] = all[j];
    }
    __syncthreads();
    if (f.row != 0 || f.c.exist == 0) {
        return;
    }
    const u32 threads = min(THREADS / f.groups, tile.end - start);
    for (u32 other = 1; other < threads; other++) {
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            const f32 next = staged[other * PITCH + f.group * 8 + j];
            all[j] = params.reduce == REDUCE_MAX ? larger(all[j], next) : all[j] + next;
        }
    }
    if (params.reduce == REDUCE_MEAN) {
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            all[j] = all[j] / static_cast<f32>(params.rows);
        }
    }
    store_columns<COLUMNS>(operands.out, params.out_offset + static_cast<u64>(tile.entry) * params.out_stride_b + f.c.first, f.c.exist, all);
}
