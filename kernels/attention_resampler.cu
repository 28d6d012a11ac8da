// attention_resampler: few queries against many keys that all rows of a problem see (resamplers,
// Q-Former), in one or two segments.
//
// Work: a block computes a tile of (row, query head) pairs of one problem and K/V head, 64 on
// tensor cores, 32 in f32, against 64 keys at a time; a key exists for all rows or none. The second
// segment follows the first on one key axis: a block may hold the end of one and the beginning of
// the other, and nothing is concatenated in memory.
// Split-K: where a problem has few tiles and many keys, `chunks` blocks of `chunk_keys` keys share
// a tile, and attention_merge merges their states. Both numbers depend on the shapes of one
// problem, never on how many problems there are.
// Shared memory, traffic within a tile: attention_mma.cuh or attention_ffma.cuh. K and V once per
// tile, q and out once, states twice.

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const Shared shared = shared_tiles();
    publish_tile(call, shared, params.tile_rows);
    const Tile& tile = shared.work->tile;
    Resident resident;
    if (tile.start < tile.end) {
        attend(call, shared, tile.start, tile.end - tile.start, {0, 0}, resident);
    }
}
