// attention_hopper: attention_resampler (few queries against many keys that all rows of a problem
// see, in one or two segments) on the tensor cores of compute capability 9.0. Chosen by its name,
// resampler-hopper, only: no table picks it before a GPU has measured it.
//
// Work: a block computes PAIRS (row, query head) pairs of one problem and K/V head, 64 for each of
// its one, two or four warpgroups, against 64 keys at a time. Heads that share a K/V head share a
// block: 64 latents and 4 query heads are one block of 256 pairs, which copies K and V once where
// attention_resampler does it four times. No split-K.
// Shared memory, traffic within a tile: lib/attention_hopper.cuh. K and V once per block, q and out
// once.
// Prediction (not measured) for 32 problems, 2304 + 64 keys, 16 heads of 96 columns, 4 K/V heads:
// 128 blocks of 256 pairs, 37 key blocks; SASS of ptxas 13.0 at 1.75 GHz. Tensor cores: 37 * 4 *
// 384 clocks, 33 us. Issue: 37 * 328 + 710 instructions of 16 warps, 29 us. MUFU: 34 * 8 clocks of
// 4 warps per key block, 23 us. The sum is 85 us, the largest 33: overlap decides.

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const Shared shared = shared_tiles();
    publish_tile(call, shared);
    const Tile& tile = shared.work->tile;
    if (tile.start >= tile.end) {
        return;
    }
    // First the keys that the rule shows; if there are none, what the policy for empty rows says.
#pragma unroll 1
    for (;;) {
        Sums sums;
        if (sweep(call, shared, sums) || shared.key_ranges->mode != VISIBLE) {
            normalise_and_store(call, shared, sums);
            return;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            *shared.key_ranges = {empty_policy(call, shared.work->keys, tile.entry, tile.offset + tile.start), 0, 0, 0};
        }
        __syncthreads();
    }
}
