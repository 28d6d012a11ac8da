// attention_merge (split-K): merges the states of blocks that share a row, in key order.
//
// Work: one warp per (row, head), four per block; a lane owns every 32nd column. States of chunks
// without a visible key weigh 0. A row that no chunk saw keys for gets zeros: rows with another
// policy are never split into chunks. Shared memory: none. Traffic: states and out once.

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const u32 lane = threadIdx.x % 32;
    const u64 n = static_cast<u64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    const u32 head = static_cast<u32>(n % params.heads);
    const u64 row = n / params.heads;
    const u32 entry = static_cast<u32>(row / params.q_rows), at = static_cast<u32>(row % params.q_rows);
    if (entry >= params.q_entries) {
        return;
    }
    const f32* state = state_at(call, entry, at, head, 0);
    const u32 size = 2 + params.head_dim;
    f32 largest = -infinity();
    for (u32 chunk = 0; chunk < params.chunks; chunk++) {
        largest = fmaxf(largest, state[chunk * size]);
    }
    const f32 shift = softmax_shift(largest);
    f32 sum = 0.0f;
    for (u32 chunk = 0; chunk < params.chunks; chunk++) {
        sum = softmax_merge(sum, state[chunk * size + 1], state[chunk * size], shift);
    }
    // No state has a visible key: no sum of weights is positive or NaN.
    const bool empty = sum == 0.0f;
    const u64 out = out_row(call, entry, at, head);
    for (u32 column = lane; column < params.head_dim; column += 32) {
        f32 value = 0.0f;
        for (u32 chunk = 0; chunk < params.chunks; chunk++) {
            value = softmax_merge(value, state[chunk * size + 2 + column], state[chunk * size], shift);
        }
        real_store(operands.out, out + column, empty ? 0.0f : value / sum);
    }
    if (lane == 0) {
        store_log_sum_exp(call, entry, at, head, empty ? -infinity() : log_sum_exp_of(largest, sum));
    }
}
