// Conversions and functions, element by element: out[function][i] = function(x[i]), as bits.

struct FunctionParams {
    u32 count;
};
struct FunctionOperands {
    Operand x, out;
};

KERNEL(FunctionParams, FunctionOperands) {
    SHARED(f32, scratch, 0, THREADS / 32);
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    const u32 word = i < params.count ? data<u32>(operands.x)[i] : 0;
    const f32 x = __uint_as_float(word);
    const u32 results[] = {__float_as_uint(to_f32(f16{static_cast<u16>(word)})),
                           __float_as_uint(to_f32(bf16{static_cast<u16>(word)})),
                           from_f32<f16>(x).bits,
                           from_f32<bf16>(x).bits,
                           __float_as_uint(tanh_exact(x)),
                           __float_as_uint(gelu(x)),
                           __float_as_uint(silu(x)),
                           __float_as_uint(block_sum(static_cast<f32>(threadIdx.x % 7), scratch))};
    if (i < params.count) {
        for (u32 function = 0; function < 8; function++) {
            data<u32>(operands.out)[function * params.count + i] = results[function];
        }
    }
}
