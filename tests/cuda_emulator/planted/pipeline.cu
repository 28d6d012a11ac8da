// Tensor copies, transaction barriers and products of a warpgroup, and, with PLANT set, one bug of
// a class. C = A B^T + P (sum over steps of B_s)^T for f16 A and B [64, k], with P = 2 I written by
// ordinary stores.
//
// Work: a warpgroup multiplies, one thread of a fifth warp copies, two stages ahead at most. Shared
// memory: two stages of A and B, 64 rows of 64 halves each, swizzled by 128 bytes; P; four
// barriers.

struct PipelineParams {
    u32 k;
};
struct PipelineOperands {
    Operand out;
};
struct PipelineMaps {
    TensorMap a, b;
};

KERNEL_WITH_MAPS(PipelineParams, PipelineOperands, PipelineMaps) {
    SHARED(u16, stages, 0, 2 * 8192);
    SHARED(u16, p, 32768, 4096);
    SHARED(u64, full, 40960, 2);
    SHARED(u64, empty, 40976, 2);
    const u32 steps = params.k / 64;
    if (threadIdx.x == 128) {
        for (u32 i = 0; i < 2; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 128);
        }
#if PLANT != MISSING_BARRIER_INIT_FENCE
        barrier_init_fence();
#endif
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        for (u32 step = 0; step < steps && threadIdx.x == 128; step++) {
            u16* stage = stages + step % 2 * 8192;
#if PLANT == MISSING_EMPTY_WAIT
            if (step < 2)
#endif
#if PLANT == WRONG_EMPTY_PARITY
            barrier_wait(empty + step % 2, step / 2 % 2);
#else
            barrier_wait(empty + step % 2, 1 - step / 2 % 2);
#endif
#if PLANT == WRONG_BYTES
            barrier_expect(full + step % 2, 8192);
#else
            barrier_expect(full + step % 2, 16384);
#endif
#if PLANT == WRONG_TARGET
            tensor_copy(stage + 64, maps.a, step * 64, 0, full + step % 2);
#else
            tensor_copy(stage, maps.a, step * 64, 0, full + step % 2);
#endif
            tensor_copy(stage + 4096, maps.b, step * 64, 0, full + step % 2);
        }
#if PLANT == NOT_ALL_WARPS
        named_barrier<128>(1);
#endif
        return;
    }
    // Two in each row of the diagonal.
    for (u32 i = threadIdx.x; i < 512; i += 128) {
        const u32 row = i / 8, chunk = i % 8;
        Wide words = {};
        if (chunk == row / 8) {
            words.word[row % 8 / 2] = row % 2 == 0 ? 0x4000u : 0x40000000u;
        }
        wide_store(reinterpret_cast<char*>(p) + swizzled<128>(row * 128 + chunk * 16), words);
    }
#if PLANT != MISSING_PROXY_FENCE
    async_proxy_fence();
#endif
#if PLANT == NOT_ALL_WARPS
    if (threadIdx.x < 96)
#endif
#if PLANT != MISSING_NAMED_BARRIER
    named_barrier<128>(1);
#endif
    f32 d[32];
    for (u32 i = 0; i < 32; i++) {
        d[i] = 0.0f;
    }
    for (u32 step = 0; step < steps; step++) {
        const u16* stage = stages + step % 2 * 8192;
#if PLANT == WRONG_FULL_PARITY
        barrier_wait(full + step % 2, 1 - step / 2 % 2);
#elif PLANT != MISSING_FULL_WAIT
        barrier_wait(full + step % 2, step / 2 % 2);
#endif
#if PLANT != MISSING_PRODUCT_FENCE
        wgmma_fence();
#endif
        for (u32 k = 0; k < 4; k++) {
            wgmma_shared<f16, 64, false>(d, rows_of_k<128>(stage + k * 16), rows_of_k<128>(stage + 4096 + k * 16), true);
            wgmma_shared<f16, 64, false>(d, rows_of_k<128>(p + k * 16), rows_of_k<128>(stage + 4096 + k * 16), true);
        }
#if PLANT == WARP_LEFT_OUT
        if (threadIdx.x < 96 || step + 1 < steps) {
            wgmma_shared<f16, 64, false>(d, rows_of_k<128>(p), rows_of_k<128>(p), true);
        }
#endif
        wgmma_commit();
#if PLANT == TOUCHED_IN_FLIGHT
        d[step % 32] += 0.5f;
#endif
#if PLANT == RELEASED_EARLY
        barrier_arrive(empty + step % 2);
        wgmma_wait<0>();
#elif PLANT == MISSING_PRODUCT_WAIT
        barrier_arrive(empty + step % 2);
#else
        wgmma_wait<0>();
        barrier_arrive(empty + step % 2);
#endif
    }
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (u32 i = 0; i < 32; i++) {
        data<f32>(operands.out)[(row + i % 4 / 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
    }
#if PLANT == MISSING_PRODUCT_WAIT
    wgmma_wait<0>();
#endif
}
