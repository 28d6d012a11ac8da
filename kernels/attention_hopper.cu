// attention_hopper: attention_resampler (softmax(scale q k^T) v for few queries against many keys that all rows of a problem see, in one or two
// segments) on the tensor cores of compute capability 9.0. By the name resampler-hopper; no table chooses it before a GPU has measured it.
//
// Work: a block takes PAIRS (row, query head) pairs of one problem and one K/V head, 64 for each of its one, two or four warpgroups, and sweeps the keys in
// blocks of 64. Heads that share a K/V head are together: 64 latents and 4 query heads are one block of 256 pairs, which copies and reads K and V
// once where attention_resampler does it four times. Nothing is split over blocks.
// Shared memory, traffic within a tile: lib/attention_hopper.cuh. K and V once per block, q and out once.
// Prediction for 32 problems, 2304 + 64 keys, 16 heads of 96 columns, 4 K/V heads (128 blocks of 256 pairs, 37 blocks of keys; instructions counted in the
// SASS of ptxas 13.0, 1.75 GHz; nothing was measured): tensor cores 37 * 4 * 384 clocks, 33 us; issue 37 * 328 + 710 instructions of 16 warps,
// 29 us; MUFU 34 * 8 clocks of 4 warps for each block of keys, 23 us. The sum of the three is 85 us, the largest 33: what four warpgroups overlap decides.

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const Shared shared = shared_tiles();
    publish_tile(call, shared);
    const Tile& tile = shared.work->tile;
    if (tile.start >= tile.end) {
        return;
    }
    // What the rule shows; then, if that is nothing, what the policy says of all slots.
#pragma unroll 1
    for (;;) {
        Sums sums;
        if (sweep(call, shared, sums) || shared.plan->mode != VISIBLE) {
            normalise_and_store(call, shared, sums);
            return;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            *shared.plan = {empty_policy(call, shared.work->keys, tile.entry, tile.offset + tile.start), 0, 0, 0};
        }
        __syncthreads();
    }
}
