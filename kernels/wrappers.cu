// wrappers: one wrapper of lib/ptx.cuh on a warp's random registers, every lane's result written
// out. `xattn cuda-wrappers`, on hardware and on the emulator, compares it with what the emulator
// assumes of an instruction and the kernels rely on.
//
// Work: one warp; in each round a lane takes IN words, does STATEMENT with them, and writes OUT
// words. Words of a lane lie 32 apart.
// Shared memory: twice 32 rows of 16 bytes. Traffic: of no interest.

struct WrappersParams {
    u32 rounds;
};

struct WrappersOperands {
    Operand input, output;
};

// d += a b, with d in words 0 to 3, a in 4 to 7, b in 8 and 9.
template <class T> DEVICE void product(u32 (&out)[OUT], const u32 (&in)[IN]) {
    f32 d[4];
    const u32 a[4] = {in[4], in[5], in[6], in[7]}, b[2] = {in[8], in[9]};
    for (u32 j = 0; j < 4; j++) {
        d[j] = __uint_as_float(in[j]);
    }
    mma_16816<T>(d, a, b);
    for (u32 j = 0; j < 4; j++) {
        out[j] = __float_as_uint(d[j]);
    }
}

// Copies words 4 to 7 of the lane that word 0 names, unless word 1 is 0. A second group follows, so
// that only the older one is waited for.
DEVICE void copied(u32 (&out)[OUT], u32* tile, const u32* rows, const u32 (&in)[IN], u32 lane) {
    u32* row = tile + 4 * lane;
    for (u32 j = 0; j < 4; j++) {
        row[j] = 0xffffffffu;
    }
    __syncwarp();
    copy_async_16(row, rows + 4 * in[0], in[1] != 0);
    copy_async_commit();
    copy_async_16(row + 128, rows + 4 * lane, true);
    copy_async_commit();
    copy_async_wait<1>();
    for (u32 j = 0; j < 4; j++) {
        out[j] = row[j];
    }
    copy_async_wait<0>();
}

KERNEL(WrappersParams, WrappersOperands) {
    SHARED(u32, tile, 0, 256);
    const u32 lane = threadIdx.x;
    for (u32 round = 0; round < params.rounds; round++) {
        const u32* input = data<u32>(operands.input) + u64(round) * IN * 32;
        u32 in[IN], out[OUT];
        for (u32 j = 0; j < IN; j++) {
            in[j] = input[j * 32 + lane];
        }
        // A row of 16 bytes per lane, from words 0 to 3: what ldmatrix reads.
        __syncwarp();
        for (u32 j = 0; j < 4 && j < IN; j++) {
            tile[4 * lane + j] = in[j];
        }
        __syncwarp();
        STATEMENT;
        for (u32 j = 0; j < OUT; j++) {
            data<u32>(operands.output)[(u64(round) * OUT + j) * 32 + lane] = out[j];
        }
    }
}
