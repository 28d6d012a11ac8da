// wrappers, wgmma: d (+)= a b of lib/hopper.cuh on operands that the caller laid out for shared
// memory, every thread's sums written out. `xattn cuda-wrappers` compares it with what the emulator
// assumes of descriptors and swizzles, and the kernels rely on.
//
// Constants: ELEMENT, COLUMNS_N (N), B_BY_N, SWIZZLE (of both operands), A_IN_REGISTERS.
//
// Work: one warpgroup. In each round: d from the input; SWIZZLE / 32 products of 16 k, the first of
// which adds to d in odd rounds only; d to the output. Words of a round: d (COLUMNS_N / 2 per
// thread, 128 apart), then a (64 rows of SWIZZLE bytes), then b (COLUMNS_N * SWIZZLE bytes).
// Shared memory: a and b, from multiples of 1024 bytes on. Traffic: of no interest.

struct WrappersParams {
    u32 rounds;
};

struct WrappersOperands {
    Operand input, output;
};

constexpr u32 SUMS = COLUMNS_N / 2, A_WORDS = 16 * SWIZZLE, B_WORDS = COLUMNS_N * SWIZZLE / 4;
constexpr u32 STEPS = SWIZZLE / 32;

DEVICE MatrixAt b_at(const u32* b, u32 step) {
    // Panels of SWIZZLE / 2 neighbouring n hold SWIZZLE / 2 rows of k.
    return B_BY_N ? rows_of_n<SWIZZLE>(b + step * SWIZZLE * 4, SWIZZLE * SWIZZLE / 2) : rows_of_k<SWIZZLE>(b + step * 8);
}

KERNEL(WrappersParams, WrappersOperands) {
    SHARED(u32, a, 0, A_WORDS);
    SHARED(u32, b, 8192, B_WORDS);
    const u32 thread = threadIdx.x;
    for (u32 round = 0; round < params.rounds; round++) {
        const u32* input = data<u32>(operands.input) + u64(round) * (SUMS * 128 + A_WORDS + B_WORDS);
        f32 d[SUMS];
#pragma unroll
        for (u32 i = 0; i < SUMS; i++) {
            d[i] = __uint_as_float(input[i * 128 + thread]);
        }
        input += SUMS * 128;
        for (u32 i = thread * 4; i < A_WORDS; i += 512) {
            wide_store(a + i, wide_load(input + i));
        }
        for (u32 i = thread * 4; i < B_WORDS; i += 512) {
            wide_store(b + i, wide_load(input + A_WORDS + i));
        }
        async_proxy_fence();
        named_barrier<128>(1);
        u32 fragment[STEPS][4];
#pragma unroll
        for (u32 i = 0; i < 4 * STEPS; i++) {
            const u32 row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8, byte = i / 4 * 32 + thread % 4 * 4 + i / 2 % 2 * 16;
            fragment[i / 4][i % 4] = a[swizzled<SWIZZLE>(row * SWIZZLE + byte) / 4];
        }
        wgmma_hold(d);
        wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            const bool add = step > 0 || round % 2 == 1;
            if constexpr (A_IN_REGISTERS) {
                wgmma_registers<ELEMENT, COLUMNS_N, B_BY_N>(d, fragment[step], b_at(b, step), add);
            } else {
                wgmma_shared<ELEMENT, COLUMNS_N, B_BY_N>(d, rows_of_k<SWIZZLE>(a + step * 8), b_at(b, step), add);
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(d);
        // All products are done: the next round may write.
        named_barrier<128>(1);
#pragma unroll
        for (u32 i = 0; i < SUMS; i++) {
            data<u32>(operands.output)[(u64(round) * SUMS + i) * 128 + thread] = __float_as_uint(d[i]);
        }
    }
}
