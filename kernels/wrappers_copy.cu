// wrappers, tensor copies: boxes of a matrix as they arrive in shared memory, and the barriers that
// count their bytes (lib/hopper.cuh). `xattn cuda-wrappers` compares it with its own model.
//
// Constants: BOX_ROWS.
//
// Work: one warp. In each round one thread copies the box of 64 columns at the column and row in
// two words of the input, which may lie outside the matrix; all wait for the round's phase and
// write the box out. The matrix follows the rounds' words, which fill whole lines of 128 bytes.
// Shared memory: the box, one barrier. Traffic: of no interest.

struct WrappersParams {
    u32 rounds;
};

struct WrappersOperands {
    Operand input, output;
};

struct WrappersMaps {
    TensorMap matrix;
};

constexpr u32 IMAGE_WORDS = BOX_ROWS * 32;

KERNEL_WITH_MAPS(WrappersParams, WrappersOperands, WrappersMaps) {
    SHARED(u32, image, 0, IMAGE_WORDS);
    SHARED(u64, arrived, IMAGE_WORDS * 4, 1);
    const u32 lane = threadIdx.x;
    if (lane == 0) {
        barrier_init(arrived, 1);
        barrier_init_fence();
    }
    __syncthreads();
    for (u32 round = 0; round < params.rounds; round++) {
        const u32* place = data<u32>(operands.input) + 2 * round;
        if (lane == 0) {
            barrier_expect(arrived, IMAGE_WORDS * 4);
            tensor_copy(image, maps.matrix, place[0], place[1], arrived);
        }
        barrier_wait(arrived, round % 2);
        for (u32 i = lane; i < IMAGE_WORDS; i += 32) {
            data<u32>(operands.output)[u64(round) * IMAGE_WORDS + i] = image[i];
        }
        // The next round's copy may overwrite it.
        __syncthreads();
    }
}
