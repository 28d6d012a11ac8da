// reduce: sums and maxima over a warp or a block in one fixed order: the same bits in every run.

constexpr u32 ALL_LANES = 0xffffffffu;

// The sum over aligned groups of LANES (a power of two), in every lane. All 32 lanes must call it.
template <u32 LANES = 32> DEVICE f32 warp_sum(f32 value) {
#pragma unroll
    for (u32 step = LANES / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, step);
    }
    return value;
}

// The largest value of aligned groups of LANES, in every lane; NaN loses against every number.
template <u32 LANES = 32> DEVICE f32 warp_max(f32 value) {
#pragma unroll
    for (u32 step = LANES / 2; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
    }
    return value;
}

// The sum over the block, in every thread; all must call it, and THREADS is a multiple of 32.
// `scratch` is THREADS / 32 values of shared memory, free again at once: the first barrier waits
// for the readers of the last sum.
DEVICE f32 block_sum(f32 value, f32* scratch) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_sum(value);
    __syncthreads();
    if (lane == 0) {
        scratch[warp] = value;
    }
    __syncthreads();
    f32 sum = scratch[0];
    for (u32 other = 1; other < THREADS / 32; other++) {
        sum += scratch[other];
    }
    return sum;
}

// Words 0 to 3 of four lanes that share a row, transposed: lane t gets word t of each of them.
DEVICE void exchange(u32 (&word)[4]) {
    const bool odd = (threadIdx.x & 1) != 0, upper = (threadIdx.x & 2) != 0;
#pragma unroll
    for (u32 n = 0; n < 4; n += 2) {
        const u32 got = __shfl_xor_sync(ALL_LANES, odd ? word[n] : word[n + 1], 1);
        word[n] = odd ? got : word[n];
        word[n + 1] = odd ? word[n + 1] : got;
    }
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
        const u32 got = __shfl_xor_sync(ALL_LANES, upper ? word[n] : word[n + 2], 2);
        word[n] = upper ? got : word[n];
        word[n + 2] = upper ? word[n + 2] : got;
    }
}
