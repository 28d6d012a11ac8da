// linear by cuBLASLt: alpha = tanh(gate) and beta = 1, which it reads from device memory.
//
// Work: one thread per column of y, or one thread for a scalar gate. Beta follows the alphas.
// Shared memory: none. Traffic: the gate once, as many floats written.

struct LinearFactorsOperands {
    Operand gate, factors;
};

KERNEL(LinearParams, LinearFactorsOperands) {
    const u32 count = params.gate_step == 0 ? 1 : params.n_count;
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    f32* factors = data<f32>(operands.factors);
    if (i < count) {
        factors[i] = tanh_exact(real_at(operands.gate, static_cast<u64>(params.gate_offset) + i));
    }
    if (i == 0) {
        factors[count] = 1.0f;
    }
}
