// Parameters and operands of the kernels of `linear`.
struct LinearParams {
    u32 x_offset;
    u32 weight_offset;
    u32 up_offset;
    u32 bias_offset;
    u32 residual_offset;
    u32 gate_offset;
    u32 row_mask_offset;
    u32 out_offset;
    u32 total_rows; // of all batch entries
    u32 rows;       // of one
    u32 n_first;    // first column of the result: 0 here
    u32 n_count;
    u32 k;
    u32 k_tiles; // of WGSL's prepared matrices: 0 here
    u32 weight_stride;
    u32 up_stride;
    u32 x_stride_b;
    u32 x_stride_r;
    u32 residual_stride_b;
    u32 residual_stride_r;
    u32 mask_stride_b;
    u32 mask_stride_r;
    u32 out_stride_b;
    u32 out_stride_r;
    u32 gate_step;
    u32 activation;
    u32 reduce;
};

// `up` is the second matrix of a gated activation. In place, `residual` is `out` again.
struct LinearOperands {
    Operand x, weight, up, bias, residual, gate, row_mask, out;
};

constexpr u32 ACTIVATION_NONE = 0, ACTIVATION_GELU = 1, ACTIVATION_RELU = 2, ACTIVATION_SQUARED_RELU = 3, ACTIVATION_SWIGLU = 4;
constexpr u32 REDUCE_NONE = 0, REDUCE_MAX = 1, REDUCE_MEAN = 2;

// Columns of k per sum, as on the CPU and in WGSL: a chain of thousands of additions loses more.
constexpr u32 SUM_BLOCK = 256;

// Where a row of all batch entries' rows begins, in elements.
DEVICE u64 row_start(const LinearParams& params, u32 row, u32 offset, u32 stride_b, u32 stride_r) {
    return offset + static_cast<u64>(row / params.rows) * stride_b + static_cast<u64>(row % params.rows) * stride_r;
}
