// attention_hopper
KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const Shared shared = shared_tiles();
    agree(call, shared);
    const Tile& tile = shared.agreed->tile;
    if (tile.start >= tile.end) {
        return;
    }
    // What the rule shows; then, if that is nothing, what the policy says of all slots.
#pragma unroll 1
    for (;;) {
        Sums sums;
        if (sweep(call, shared, sums) || shared.plan->mode != VISIBLE) {
            finish(call, shared, sums);
            return;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            *shared.plan = {empty_policy(call, shared.agreed->keys, tile.entry, tile.offset + tile.start), 0, 0, 0};
        }
        __syncthreads();
    }
}
