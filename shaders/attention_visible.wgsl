// attention_visible: row_visible of `attention`, 1 for rows that see a key, else 0. A dispatch of
// its own: it reads index operands only, and the main one binds fewer buffers.
//
// Work: one invocation per row, 256 per workgroup. It tests keys 32 at a time and stops at the
// first one that the row sees.
// Workgroup memory: none. Traffic: the index operands and row_visible once.

@compute @workgroup_size(256)
fn attention_visible(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_workgroup(workgroup, workgroups) * 256u + lane;
    if index >= params.q_entries * params.q_rows {
        return;
    }
    let entry = index / params.q_rows;
    let row = index % params.q_rows;
    var problem = entry;
    var start = 0u;
    if q_offsets_present {
        // The last problem that has the row; a row of no problem stays as it is.
        var found = false;
        for (var b = 0u; b < params.batch; b++) {
            let at = params.q_offsets_offset + b * params.q_offsets_stride;
            let next = q_offsets_at(at + params.q_offsets_stride);
            let range = rows_between(q_offsets_at(at), next, params.q_rows);
            if row >= range.x && row - range.x < range.y {
                found = true;
                problem = b;
                start = range.x;
            }
        }
        if !found {
            return;
        }
    }
    let keys = keys_of(problem);
    let range = key_range(problem, entry, row, row - start, positions_of(keys));
    var sees = 0u;
    for (var j = range.x; j < range.y && sees == 0u; j += 32u) {
        sees = select(0u, 1u, visible(keys, entry, row, range, j) != 0u);
    }
    row_visible_set(params.row_visible_offset + entry * params.row_visible_stride_b + row * params.row_visible_stride_r, sees);
}
