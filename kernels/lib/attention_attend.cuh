// Rows of a tile from queries to results, above the tiles of attention_mma.cuh and
// attention_ffma.cuh, which provide Shared (with the sets `rows`), Sums, sweep, normalise_and_store
// and leave_state.

// The policies of rows without a visible key, one bit per policy; rows that see one are done.
DEVICE u32 empty_rows(const Call& call, const RowSets& shared, const Tile& tile, const Keys& keys, u32 start, u32 rows, bool saw) {
    if (!PER_ROW) {
        return saw ? 0 : 1u << empty_policy(call, keys, tile.entry, tile.offset + start);
    }
    const u32 r = threadIdx.x;
    // All threads have read what the rows got.
    __syncthreads();
    if (r < PAIRS) {
        u32 wanted = 0;
        if (r < rows && shared.gets[r] != VISIBLE) {
            const u32 policy = empty_policy(call, keys, tile.entry, tile.offset + start + r);
            shared.gets[r] = policy;
            wanted = 1u << policy;
        }
        for (u32 step = 16; step > 0; step /= 2) {
            wanted |= __shfl_xor_sync(ALL_LANES, wanted, step);
        }
        if (r % 32 == 0) {
            shared.any[r / 32] = wanted;
        }
    }
    __syncthreads();
    u64 wanted = 0;
    for (u32 warp = 0; warp < ROW_WARPS; warp++) {
        wanted |= shared.any[warp];
    }
    return static_cast<u32>(wanted);
}

constexpr u32 WRITERS = 4;

// The tile, and the keys of its problem. The first WRITERS threads call it.
DEVICE void publish(const Call& call, const Shared& shared, const Tile& tile) {
    const Keys keys = tile.start < tile.end ? keys_of(call, tile.problem) : Keys{};
    if (threadIdx.x == 0) {
        *shared.work = {tile, keys, 0};
    }
    publish_lines(call, shared, tile, keys);
}

DEVICE void publish_tile(const Call& call, const Shared& shared, u32 rows_per_tile) {
    if (threadIdx.x < WRITERS) {
        publish(call, shared, tile_of(call, rows_per_tile));
    }
    __syncthreads();
}

// Rows start .. start + rows of the problem: first what the rule shows them; then, for rows that
// saw nothing, what their policies say. The loop over modes keeps one copy of sweep and stores in
// the code. `next`: the rows that follow, if any.
DEVICE void attend(const Call& call, const Shared& shared, u32 start, u32 rows, Range next, Resident& resident) {
    const Tile& tile = shared.work->tile;
    const Keys& keys = shared.work->keys;
    const u32 positions = positions_of(keys);
    // φ and the keys that exist are not read again: both would be waited for.
    resident.again = resident.again && resident.alone;
    Range bounds{resident.block, resident.block + 1};
    if (!resident.again) {
        bounds = see_rows(call, shared.rows, tile, start, rows, positions);
    }
    const bool is_part = call.params.chunks > 1;
    if (is_part) {
        bounds = part_of_range(call, bounds, tile.chunk);
    }
    u32 wanted = 1u << VISIBLE;
#pragma unroll 1
    while (wanted != 0) {
        const u32 mode = 31 - __clz(static_cast<i32>(wanted));
        wanted ^= 1u << mode;
        Sums sums;
        const bool saw = sweep(call, shared, tile, keys, start, rows, next, mode, bounds, resident, sums);
        if (is_part) {
            leave_state(call, shared, tile, start, rows, sums);
            return;
        }
        if (mode != VISIBLE || saw) {
            normalise_and_store(call, shared, tile, start, rows, mode, resident, sums);
        }
        if (mode == VISIBLE) {
            wanted = empty_rows(call, shared.rows, tile, keys, start, rows, saw);
            bounds = {0, positions};
        }
    }
}
