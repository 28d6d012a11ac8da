// attention_general: softmax(scale q k^T) v for every rule, a tile of rows at a time.
//
// Work: one block per tile of (row, query head) pairs of one problem and one K/V head, 64 on tensor cores, 32 in f32. It sweeps the keys in
// blocks of 64; a block that no row of the tile may see is not visited, and keys inside a block that none of them may see are not read.
// Under SameMedia the tile is cut at the runs of φ: NaN in one medium stays there.
// Shared memory, traffic within a tile: attention_mma.cuh or attention_ffma.cuh. K and V once per tile, q and out once.
// A row's result does not depend on the rows beside it: blocks begin at key 0 (SameMedia: at the medium) and merge in ascending order, and a
// block that only neighbours see leaves maximum, sum and decay (1) as they are.

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
