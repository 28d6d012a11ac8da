// attention_media: softmax(scale q k^T) v where each row sees the keys of one medium (φ), by runs.
//
// Work: one workgroup per tile of up to 32 (row, query head) pairs, as in attention_general. The
// tile is cut at the runs of equal φ, which it finds from φ itself (32 numbers; a media plan would
// save nothing). Each run meets the keys of its own medium, usually one block of 64. Rows of other
// media never touch what is read for it: NaN in one medium stays there. A run of r rows costs the
// arithmetic of r rounded up to 4.
// Workgroup memory: 15.6 KiB. Traffic: q and out once; K and V of a medium once per run and tile.
// Measured on lavapipe (Mesa 22.3.6, 2 cores that others shared; 512 rows, 8 heads x 64, f32; ms,
// median of 11; `cargo bench --bench wgpu_unfused`): 1, 4, 8, 16, 32 media: 32, 34, 35, 35, 56;
// scores, mask, softmax and product as four dispatches: 29, 74, 134, 250, 459.

var<workgroup> run_rows: atomic<u32>;
var<workgroup> shared_rows: u32;

// The number of rows from `start` on that share its φ.
fn run_from(lane: u32, tile: Tile, start: u32) -> u32 {
    workgroupBarrier();
    if lane == 0u {
        atomicStore(&run_rows, tile.end - start);
    }
    workgroupBarrier();
    if lane < tile.end - start {
        let row = tile.offset + start;
        if phi_of(tile.entry, row + lane) != phi_of(tile.entry, row) {
            atomicMin(&run_rows, lane);
        }
    }
    workgroupBarrier();
    if lane == 0u {
        shared_rows = atomicLoad(&run_rows);
    }
    return workgroupUniformLoad(&shared_rows);
}

@compute @workgroup_size(LANES)
fn attention_media(
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
        let keys = keys_of(tile.problem);
        var start = tile.start;
        // At most one run per row.
        for (var run = 0u; run < PAIRS && start < tile.end; run++) {
            let rows = run_from(lane, tile, start);
            attend(lane, tile, keys, start, rows);
            start += rows;
        }
    }
}
