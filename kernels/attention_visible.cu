// attention_visible: row_visible of `attention`, 1 for rows that see a key, else 0. A launch of its
// own: it depends on index operands only.
//
// Work: one thread per row, 64 keys at a time up to the first set that has one. Shared memory:
// none. Traffic: the index operands and row_visible once.

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const u64 index = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (index >= static_cast<u64>(params.q_entries) * params.q_rows) {
        return;
    }
    const u32 entry = static_cast<u32>(index / params.q_rows), row = static_cast<u32>(index % params.q_rows);
    u32 problem = entry, start = 0;
    if (present(operands.q_offsets)) {
        // The last problem that has the row; rows of none stay as they are.
        bool found = false;
        for (u32 b = 0; b < params.batch; b++) {
            const Range own = query_rows(call, b);
            if (row >= own.begin && row < own.end) {
                found = true;
                problem = b;
                start = own.begin;
            }
        }
        if (!found) {
            return;
        }
    }
    const Keys keys = keys_of(call, problem);
    const Range range = key_range(call, problem, entry, row, row - start, positions_of(keys));
    u32 sees = 0;
    for (u32 j = range.begin; j < range.end && sees == 0; j += BLOCK) {
        sees = visible(call, keys, entry, row, range, j) != 0 ? 1 : 0;
    }
    const u64 at = static_cast<u64>(entry) * params.row_visible_stride_b + static_cast<u64>(row) * params.row_visible_stride_r;
    data<u32>(operands.row_visible)[params.row_visible_offset + at] = sees;
}
