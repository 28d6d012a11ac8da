// roof_copy: `out` = `x` at full speed: the bandwidth roof of `xattn bench`. Not an op.
//
// Work: 16 KiB per block of 256 threads. Each copies 4 times 16 bytes, 4 KiB apart, so that
// accesses are coalesced and every thread has four loads in flight. The host gives whole blocks.
// Shared memory: none. Traffic: every byte once from `x`, once to `out`. The host takes regions of
// several L2 caches, and fills `x` with noise: some memories compress.

struct RoofCopyParams {
    u32 unused;
};

struct RoofCopyOperands {
    Operand x, out;
};

KERNEL(RoofCopyParams, RoofCopyOperands) {
    constexpr u32 EACH = 4;
    const u64 first = static_cast<u64>(blockIdx.x) * (EACH * THREADS) + threadIdx.x;
    const u32* x = data<u32>(operands.x) + 4 * first;
    u32* out = data<u32>(operands.out) + 4 * first;
    Wide quad[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        quad[i] = wide_load(x + 4 * THREADS * i);
    }
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        wide_store(out + 4 * THREADS * i, quad[i]);
    }
}
