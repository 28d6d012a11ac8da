// gated_residual: out = x + tanh(gate) * row_mask * y in f32, rounded once at the end.
//
// Work: a thread has eight neighbouring columns of ROWS consecutive rows, so that tanh of a
// per-channel gate (about 40 operations) is evaluated once for all of them. `words`: such groups of
// columns. `total_words`: threads with work. Each operand's type is known at run time: f32 gates
// and residual streams beside 16-bit branches need no kernel of their own.
// Shared memory: none. Traffic: x, y and out once each, 16 bytes per access where base and strides
// allow; gate and row_mask stay in the caches.

struct GatedResidualParams {
    u32 x_offset;
    u32 y_offset;
    u32 gate_offset;
    u32 row_mask_offset;
    u32 out_offset;
    u32 words;
    u32 total_words;
    u32 rows;
    u32 width;
    u32 x_stride_b;
    u32 x_stride_r;
    u32 y_stride_b;
    u32 y_stride_r;
    u32 mask_stride_b;
    u32 mask_stride_r;
    u32 out_stride_b;
    u32 out_stride_r;
    u32 gate_step;
};

struct GatedResidualOperands {
    Operand x, y, gate, row_mask, out;
};

KERNEL(GatedResidualParams, GatedResidualOperands) {
    const u32 word = blockIdx.x * THREADS + threadIdx.x;
    if (word >= params.total_words) {
        return;
    }
    const u32 groups = (params.rows + ROWS - 1) / ROWS;
    const u32 column = word % params.words * COLUMNS;
    const u64 b = word / params.words / groups;
    const u32 first = word / params.words % groups * ROWS;
    const u32 end = min(first + ROWS, params.rows);
    const u32 count = params.width - column;

    f32 factor[COLUMNS];
    if (params.gate_step == 0) {
        const f32 gate = tanh_exact(real_at(operands.gate, params.gate_offset));
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            factor[j] = gate;
        }
    } else {
        columns_load(operands.gate, u64(params.gate_offset) + column, count, factor);
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            factor[j] = tanh_exact(factor[j]);
        }
    }

    const bool in_place = !present(operands.x);
    const Operand input = in_place ? operands.out : operands.x;
    for (u64 r = first; r < end; r++) {
        const u64 out = params.out_offset + b * params.out_stride_b + r * params.out_stride_r + column;
        const u64 x = params.x_offset + b * params.x_stride_b + r * params.x_stride_r + column;
        f32 sum[COLUMNS];
        columns_load(input, in_place ? out : x, count, sum);
        // A masked row is x alone: y is not read.
        const u64 mask = params.row_mask_offset + b * params.mask_stride_b + r * params.mask_stride_r;
        if (!present(operands.row_mask) || data<u32>(operands.row_mask)[mask] != 0) {
            f32 branch[COLUMNS];
            columns_load(operands.y, params.y_offset + b * params.y_stride_b + r * params.y_stride_r + column, count, branch);
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                sum[j] = fma(factor[j], branch[j], sum[j]);
            }
        }
        columns_store(operands.out, out, count, sum);
    }
}
