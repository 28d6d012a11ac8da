// Every wrapper of kernels/lib/ptx.cuh, and the warp functions, once: each lane writes what it
// received. One warp.
//
// words: 32 lanes of 12 random words (a, b of mma in 0-5; d in 6-9 as f32), then a tile of 32 rows
// of 8 halves for ldmatrix. out: by wrapper, 32 lanes of 4 words (see Section).

struct WrapperParams {
    u32 unused;
};
struct WrapperOperands {
    Operand words, out;
};

DEVICE void put(const WrapperOperands& operands, u32 section, u32 word, u32 value) {
    data<u32>(operands.out)[(section * 32 + threadIdx.x) * 4 + word] = value;
}

KERNEL(WrapperParams, WrapperOperands) {
    SHARED(u32, tile, 0, 128);
    SHARED(u32, copied, 512, 128);
    const u32 lane = threadIdx.x;
    const u32* words = data<u32>(operands.words);
    const u32* mine = words + lane * 12;
    for (u32 i = lane; i < 128; i += 32) {
        tile[i] = words[32 * 12 + i];
    }
    __syncthreads();
    u32 r4[4], r2[2];
    ldmatrix_x4(r4, tile + lane * 4);
    for (u32 i = 0; i < 4; i++) {
        put(operands, 0, i, r4[i]);
    }
    ldmatrix_x4_trans(r4, tile + lane * 4);
    for (u32 i = 0; i < 4; i++) {
        put(operands, 1, i, r4[i]);
    }
    ldmatrix_x2(r2, tile + lane * 4);
    put(operands, 2, 0, r2[0]);
    put(operands, 2, 1, r2[1]);
    ldmatrix_x2_trans(r2, tile + lane * 4);
    put(operands, 2, 2, r2[0]);
    put(operands, 2, 3, r2[1]);

    const u32 a[4] = {mine[0], mine[1], mine[2], mine[3]}, b[2] = {mine[4], mine[5]};
    f32 d[4];
    for (u32 i = 0; i < 4; i++) {
        d[i] = __uint_as_float(mine[6 + i]);
    }
    mma_16816<f16>(d, a, b);
    for (u32 i = 0; i < 4; i++) {
        put(operands, 3, i, __float_as_uint(d[i]));
        d[i] = __uint_as_float(mine[6 + i]);
    }
    mma_16816<bf16>(d, a, b);
    for (u32 i = 0; i < 4; i++) {
        put(operands, 4, i, __float_as_uint(d[i]));
    }

    // Lanes below 20 copy, the others write zeros.
    copy_async_16(copied + lane * 4, words + 32 * 12 + lane * 4, lane < 20);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const Wide other = wide_load(copied + (lane ^ 1) * 4);
    for (u32 i = 0; i < 4; i++) {
        put(operands, 5, i, other.word[i]);
    }

    const u32 value = mine[0];
    put(operands, 6, 0, __shfl_sync(ALL_LANES, value, static_cast<i32>(mine[1] & 31)));
    put(operands, 6, 1, __shfl_xor_sync(ALL_LANES, value, 13));
    put(operands, 6, 2, __shfl_up_sync(ALL_LANES, value, 3));
    put(operands, 6, 3, __shfl_down_sync(ALL_LANES, value, 5));
    put(operands, 7, 0, __shfl_sync(ALL_LANES, value, 5, 8));
    put(operands, 7, 1, __shfl_xor_sync(ALL_LANES, value, 2, 4));
    put(operands, 7, 2, __shfl_up_sync(ALL_LANES, value, 3, 16));
    put(operands, 7, 3, __shfl_down_sync(ALL_LANES, value, 5, 8));
    put(operands, 8, 0, __ballot_sync(ALL_LANES, static_cast<i32>(value & 1)));
    put(operands, 8, 1, static_cast<u32>(__any_sync(ALL_LANES, lane == 7)));
    put(operands, 8, 2, static_cast<u32>(__all_sync(ALL_LANES, lane != 7)));
    // Halves of the warp on their own.
    const u32 half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    put(operands, 8, 3, __ballot_sync(half, static_cast<i32>(value & 1)));

    const f32 x = __uint_as_float(mine[6]);
    put(operands, 9, 0, pack2<f16>(x, __uint_as_float(mine[7])));
    put(operands, 9, 1, pack2<bf16>(x, __uint_as_float(mine[7])));
    put(operands, 9, 2, __float_as_uint(exp2_approx(x)));
    put(operands, 9, 3, __float_as_uint(reciprocal(x)));
    put(operands, 10, 0, __float_as_uint(warp_sum(x)));
    put(operands, 10, 1, __float_as_uint(warp_max(x)));
    put(operands, 10, 2, __float_as_uint(warp_sum<4>(x)));
    put(operands, 10, 3, __float_as_uint(warp_max<8>(x)));
}
