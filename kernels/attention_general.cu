// attention_general: softmax(scale q k^T) v for every rule, one tile of rows at a time.
//
// Work: a block computes a tile of (row, query head) pairs of one problem and K/V head, 64 on
// tensor cores, 32 in f32, against 64 keys at a time. It skips key blocks that no row of the tile
// sees, and does not read keys inside a block that none sees. Under SameMedia the tile is cut at
// the runs of φ, so that NaN in one medium stays there.
// Shared memory, traffic within a tile: attention_mma.cuh or attention_ffma.cuh. K and V once per
// tile, q and out once.
// A row's result does not depend on its neighbours. Blocks begin at key 0 (SameMedia: at the
// medium) and merge in ascending order; one that only neighbours see changes no state.

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const Shared shared = shared_tiles();
    publish_tile(call, shared, params.tile_rows);
    const Tile& tile = shared.work->tile;
    Resident resident;
    for (u32 start = tile.start; start < tile.end;) {
        const u32 rows = params.rule == SAME_MEDIA ? run_of(call, tile, start, tile.end) : tile.end - start;
        attend(call, shared, start, rows, {0, 0}, resident);
        start += rows;
    }
}
