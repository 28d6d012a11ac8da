// Tiles of `attention` in shared memory, and the copies that fill them: q, and STAGES blocks of K
// and of V, elements f16 or bf16 (ELEMENT).
//
// Rows have HEAD_DIM elements (64, 96 or 128; head_dim may be less, the rest is zeros) and are 16
// bytes further apart, so that the eight rows of a matrix that ldmatrix reads cause no bank
// conflict. With one stage, queries have two places. Keys that no row sees are not read: zeros
// stand in their place. Copies are cp.async, 16 bytes per thread and step.

constexpr u32 LANES = THREADS;
constexpr u32 STRIDE = HEAD_DIM + 8;
constexpr u32 PIECES = HEAD_DIM / 8;
constexpr u32 TILE = BLOCK * STRIDE;

// Rows at equal distances in memory: where the first begins, and the bytes from one to the next.
// `wide`: can they be copied 16 bytes at a time?
struct alignas(16) Lines {
    const ELEMENT* first;
    u32 bytes, wide;
};

// `lines`: of K and of V in the first segment, then in the second.
struct Shared {
    ELEMENT* q;
    ELEMENT* k;
    ELEMENT* v;
    RowSets rows;
    BlockWork* work;
    Lines* lines;
};

// Places for queries.
constexpr u32 PLACES = STAGES == 1 ? 2 : 1;
constexpr u32 Q_BYTES = 2 * TILE * PLACES;
constexpr u32 K_BYTES = 2 * TILE * STAGES;
constexpr u32 LINES_AT = Q_BYTES + 2 * K_BYTES;
constexpr u32 WORK_AT = LINES_AT + 4 * sizeof(Lines);
constexpr u32 SETS_AT = WORK_AT + sizeof(BlockWork);

DEVICE Shared shared_tiles() {
    SHARED(ELEMENT, tile_q, 0, TILE * PLACES);
    SHARED(ELEMENT, tile_k, Q_BYTES, TILE * STAGES);
    SHARED(ELEMENT, tile_v, Q_BYTES + K_BYTES, TILE * STAGES);
    SHARED(Lines, lines, LINES_AT, 4);
    SHARED(BlockWork, work, WORK_AT, 1);
    Shared shared{tile_q, tile_k, tile_v, {}, work, lines};
    if (PER_ROW) {
        shared.rows = row_sets(SETS_AT);
    }
    return shared;
}

// Columns 8 c to 8 c + 7 of a row into shared memory: asynchronously where 16 bytes can be read at
// once. Zeros where it does not exist.
DEVICE void stage_piece(ELEMENT* to, RowAt row, u32 c, bool exists) {
    const ELEMENT* from = static_cast<const ELEMENT*>(row.at) + (exists ? row.element + 8 * c : 0);
    if (row.wide) {
        copy_async_16(to, from, exists);
        return;
    }
    Wide wide{};
    for (u32 word = 0; exists && word < 4; word++) {
        wide.word[word] = from[2 * word].bits | static_cast<u32>(from[2 * word + 1].bits) << 16;
    }
    wide_store(to, wide);
}

// Rows that are copied at once, a piece per thread (with 12 pieces a row, the last warp rests).
// From step to step a thread keeps its columns, so that addresses are a multiplication apart and
// all copies of a tile are in flight at once.
constexpr u32 STEP_ROWS = PIECES == 8 ? 16 : 8;
static_assert(STEP_ROWS * PIECES <= LANES && BLOCK % STEP_ROWS == 0 && PAIRS == BLOCK, "a step has a thread for each piece");

// Copies a tile of 64 rows. Row n comes from line `from` + (n >> shift), lines `bytes` apart, and
// head n % 2^shift, heads `head_stride` elements apart. Lines after `last` do not exist. Bit n of
// `exists`: whether row n is read.
DEVICE void stage_lines(ELEMENT* to, const Lines& lines, u32 from, u32 last, u32 columns, u64 exists, u32 shift, u32 head_stride) {
    const u32 thread = thread_again(), row = thread / PIECES, c = thread % PIECES;
    if (row >= STEP_ROWS) {
        return;
    }
    const u64 own = 8 * c < columns ? exists >> row : 0;
    const u32 line = from + (row >> shift), head = row & ((1u << shift) - 1);
    const ELEMENT* column = lines.first + static_cast<u64>(head) * head_stride + (8 * c < columns ? 8 * c : 0);
#pragma unroll
    for (u32 i = 0; i < BLOCK / STEP_ROWS; i++) {
        const u64 down = static_cast<u64>(min(line + i * (STEP_ROWS >> shift), last)) * lines.bytes;
        const bool here = (own >> (i * STEP_ROWS) & 1) != 0;
        copy_async_16(to + (row * STRIDE + 8 * c), reinterpret_cast<const char*>(column) + down, here, 2 * i * STEP_ROWS * STRIDE);
    }
}

// Where rows begin, and whether stage_lines can copy them.
DEVICE Lines lines_from(RowAt row, u32 stride) {
    const bool is_short = stride < 1u << 31;
    return {static_cast<const ELEMENT*>(row.at) + row.element, 2 * stride, row.wide && is_short ? 1u : 0u};
}

// The lines of K and V in both segments, each by a thread of the first four.
DEVICE void publish_lines(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys) {
    const AttentionParams& p = call.params;
    const bool second = threadIdx.x >= 2, values = threadIdx.x % 2 == 1;
    const u32 j = second ? keys.first.positions : 0;
    const RowAt row = values ? key_row<true>(call, keys, j, tile.kv_head) : key_row<false>(call, keys, j, tile.kv_head);
    const u32 k_stride = second ? p.second_k_stride_r : p.first_k_stride_r, v_stride = second ? p.second_v_stride_r : p.first_v_stride_r;
    shared.lines[threadIdx.x] = lines_from(row, values ? v_stride : k_stride);
}

// Stages the pairs of a tile of rows, one after the other.
DEVICE void stage_q(const Call& call, ELEMENT* to, const Tile& tile, u32 start, u32 pairs) {
    const AttentionParams& p = call.params;
    const u32 heads = tile.heads;
    const Lines lines = lines_from(q_row(call, tile.entry, tile.offset + start, tile.head), p.q_stride_r);
    // Pairs a step apart have the same head.
    if (lines.wide != 0 && STEP_ROWS % heads == 0) {
        const u32 shift = __ffs(static_cast<i32>(heads)) - 1;
        stage_lines(to, lines, 0, (pairs >> shift) - 1, p.head_dim, low_bits(pairs), shift, p.q_stride_h);
        return;
    }
#pragma unroll 1
    for (u32 at = threadIdx.x; at < PAIRS * PIECES; at += LANES) {
        const u32 pair = at / PIECES, c = at % PIECES;
        const bool exists = pair < pairs && 8 * c < p.head_dim;
        const u32 n = pair < pairs ? pair : 0;
        const RowAt row = q_row(call, tile.entry, tile.offset + start + row_of_pair(tile, n), tile.head + head_of_pair(tile, n));
        stage_piece(to + pair * STRIDE + 8 * c, row, c, exists);
    }
}

// Stages a block of keys in which both segments meet, or that is not 16-byte aligned.
template <bool VALUES>
DEVICE void stage_mixed(const Call& call, ELEMENT* to, const Tile& tile, const Keys& keys, u32 block, u64 live) {
#pragma unroll 1
    for (u32 at = threadIdx.x; at < BLOCK * PIECES; at += LANES) {
        const u32 j = at / PIECES, c = at % PIECES;
        const bool exists = (live >> j & 1) != 0 && 8 * c < call.params.head_dim;
        const RowAt row = key_row<VALUES>(call, keys, block + j, tile.kv_head);
        stage_piece(to + j * STRIDE + 8 * c, row, c, exists);
    }
}

DEVICE void stage_keys(const Call& call, const Shared& shared, const Tile& tile, const Keys& keys, u32 block, u64 live, u32 stage, u32 mode) {
    const u32 positions = keys.first.positions, columns = call.params.head_dim;
    const bool in_second = block >= positions, in_one = in_second || block + BLOCK <= positions || keys.second.positions == 0;
    const Lines k = shared.lines[in_second ? 2 : 0], v = shared.lines[in_second ? 3 : 1];
    ELEMENT *to_k = shared.k + stage * TILE, *to_v = shared.v + stage * TILE;
    if (in_one && k.wide != 0 && v.wide != 0) {
        const u32 from = in_second ? block - positions : block, last = (in_second ? keys.second.positions : positions) - 1;
        if (mode != UNIFORM) {
            stage_lines(to_k, k, from, last, columns, live, 0, 0);
        }
        stage_lines(to_v, v, from, last, columns, live, 0, 0);
        return;
    }
    if (mode != UNIFORM) {
        stage_mixed<false>(call, to_k, tile, keys, block, live);
    }
    stage_mixed<true>(call, to_v, tile, keys, block, live);
}
