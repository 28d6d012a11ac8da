// attention_general: softmax(scale q k^T) v for every rule, a tile of rows at a time.
//
// Work: one workgroup per tile of up to 32 (row, query head) pairs: rows of one problem times the
// heads that share a K/V head, so that a block of K and V is read once for all of them. It sweeps
// the keys in blocks of 64. A block that no row of the tile sees is not visited, and a key that
// none of them sees is not read. Results wider than 128 columns are cut into panels; the workgroup
// of each panel computes the scores again. lib/attention_tile.wgsl has the inside of a tile.
// Workgroup memory: 15.6 KiB. Traffic: out once; K and V once per tile; q once per tile and block,
// from the cache from the second block on.
// A row's result does not depend on the rows beside it: blocks begin at key 0 and merge in
// ascending order. A block that only other rows see leaves maximum, sum and decay (1) unchanged.
// SPLIT is split-K: a workgroup has one chunk of the keys, and `attention_merge` merges the chunks.
// Tried: results stored from registers, pair by pair, in a text per mode: 7.0 s instead of 1.1 s to
// compile with f16 results, two segments and compat policies (lavapipe, Mesa 22.3.6).

@compute @workgroup_size(LANES)
fn attention_general(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = linear_workgroup(workgroup, workgroups);
    // More than one turn only where ragged problems overlap.
    for (var turn = 0u; turn < params.turns; turn++) {
        let tile = tile_of(first + turn * workgroups.x * workgroups.y, lane);
        if tile.start >= tile.end {
            break;
        }
        attend(lane, tile, keys_of(tile.problem), tile.start, tile.end - tile.start);
    }
}
