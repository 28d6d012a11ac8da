// roof_multiply_add: f32 multiply-adds at full speed: the FP32 peak of `xattn bench`. Not an op.
//
// Work: each thread keeps 32 numbers in registers and applies x = factor x + term to all of them, 4
// times per step of the loop: 32 independent chains hide the latency of an instruction, and 128
// multiply-adds hide the cost of the loop. Factor and term are parameters and every number starts
// elsewhere, so no compiler can shorten the work. With 1/2 and 1/2 every chain becomes exactly 1,
// and each sum 32, which the host checks.
// Shared memory: none. Traffic: one word per thread, for 128 multiply-adds per step.

struct RoofMultiplyAddParams {
    u32 steps;
    f32 factor;
    f32 term;
};

struct RoofMultiplyAddOperands {
    Operand out;
};

KERNEL(RoofMultiplyAddParams, RoofMultiplyAddOperands) {
    f32 x[CHAINS];
#pragma unroll
    for (u32 i = 0; i < CHAINS; i++) {
        x[i] = static_cast<f32>(threadIdx.x + i);
    }
    for (u32 step = 0; step < params.steps; step++) {
#pragma unroll
        for (u32 again = 0; again < 4; again++) {
#pragma unroll
            for (u32 i = 0; i < CHAINS; i++) {
                x[i] = fma(x[i], params.factor, params.term);
            }
        }
    }
    f32 sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < CHAINS; i++) {
        sum += x[i];
    }
    data<f32>(operands.out)[static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x] = sum;
}
