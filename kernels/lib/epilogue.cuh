// The epilogue of `linear`, for COUNT neighbouring columns of one row at a time.
//
//   a = activation(p + bias)         gated: silu(p) * up
//   y = residual + tanh(gate) * a    masked rows: y = residual, by index: no NaN of theirs passes
//
// Types of residual, bias, gate and result are known at run time. Eight columns, the first a
// multiple of eight, are read and written 16 bytes at a time where the operand allows it.

// Columns of the result, of which the first `exist` exist.
template <u32 COUNT> struct Columns {
    u32 first;
    u32 exist;
    f32 bias[COUNT];
    f32 gate[COUNT];
};

template <u32 COUNT> DEVICE Columns<COUNT> columns(const LinearParams& params, const LinearOperands& operands, u32 first) {
    Columns<COUNT> c;
    const u32 end = params.n_first + params.n_count;
    c.first = first;
    c.exist = first < end ? min(end - first, COUNT) : 0;
#pragma unroll
    for (u32 j = 0; j < COUNT; j++) {
        c.bias[j] = 0.0f;
        c.gate[j] = 1.0f;
        if (j < c.exist) {
            if (present(operands.bias)) {
                c.bias[j] = real_at(operands.bias, static_cast<u64>(params.bias_offset) + first + j);
            }
            if (present(operands.gate)) {
                c.gate[j] = tanh_exact(real_at(operands.gate, params.gate_offset + static_cast<u64>(first + j) * params.gate_step));
            }
        }
    }
    return c;
}

// NaN stays, which fmaxf would drop.
DEVICE f32 relu(f32 x) {
    return x < 0.0f ? 0.0f : x;
}

// The larger one; NaN if either is NaN.
DEVICE f32 larger(f32 a, f32 b) {
    return a > b || a != a ? a : b;
}

// p becomes a. One branch for all columns.
template <u32 COUNT> DEVICE void activate(u32 activation, const Columns<COUNT>& c, f32 (&p)[COUNT], const f32 (&up)[COUNT]) {
#pragma unroll
    for (u32 j = 0; j < COUNT; j++) {
        p[j] += c.bias[j];
    }
    switch (activation) {
    case ACTIVATION_GELU:
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            p[j] = gelu(p[j]);
        }
        break;
    case ACTIVATION_RELU:
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            p[j] = relu(p[j]);
        }
        break;
    case ACTIVATION_SQUARED_RELU:
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            p[j] = relu(p[j]) * relu(p[j]);
        }
        break;
    case ACTIVATION_SWIGLU:
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            p[j] = silu(p[j]) * up[j];
        }
        break;
    default: break;
    }
}

// The columns of one row of an operand; lib/columns.cuh has eight at a time.
template <u32 COUNT> DEVICE void load_columns(const Operand& from, u64 at, u32 exist, f32 (&value)[COUNT]) {
    if constexpr (COUNT == COLUMNS) {
        columns_load(from, at, exist, value);
    } else {
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            value[j] = j < exist ? real_at(from, at + j) : 0.0f;
        }
    }
}

template <u32 COUNT> DEVICE void store_columns(const Operand& to, u64 at, u32 exist, const f32 (&value)[COUNT]) {
    if constexpr (COUNT == COLUMNS) {
        columns_store(to, at, exist, value);
    } else {
#pragma unroll
        for (u32 j = 0; j < COUNT; j++) {
            if (j < exist) {
                real_store(to, at + j, value[j]);
            }
        }
    }
}

// Finishes and stores the columns of the row at `out_at`. `y` enters as the residual, if any.
template <u32 COUNT>
DEVICE void finish_at(const LinearParams& params, const LinearOperands& operands, const Columns<COUNT>& c, bool masked, u64 out_at, f32 (&p)[COUNT],
                      const f32 (&up)[COUNT], f32 (&y)[COUNT]) {
    const bool stays = present(operands.residual);
    if (!masked) {
        activate(params.activation, c, p, up);
    }
#pragma unroll
    for (u32 j = 0; j < COUNT; j++) {
        const f32 rest = stays ? y[j] : 0.0f;
        const f32 branch = c.gate[j] * p[j];
        y[j] = masked ? rest : stays ? rest + branch : branch;
    }
    store_columns(operands.out, out_at + c.first, c.exist, y);
}

DEVICE bool is_masked(const LinearParams& params, const LinearOperands& operands, u32 row) {
    return present(operands.row_mask) &&
           data<u32>(operands.row_mask)[row_start(params, row, params.row_mask_offset, params.mask_stride_b, params.mask_stride_r)] == 0;
}

DEVICE u64 residual_row(const LinearParams& params, u32 row) {
    return row_start(params, row, params.residual_offset, params.residual_stride_b, params.residual_stride_r);
}

DEVICE u64 out_row(const LinearParams& params, u32 row) {
    return row_start(params, row, params.out_offset, params.out_stride_b, params.out_stride_r);
}

template <u32 COUNT>
DEVICE void finish(const LinearParams& params, const LinearOperands& operands, const Columns<COUNT>& c, u32 row, f32 (&p)[COUNT], const f32 (&up)[COUNT]) {
    if (c.exist == 0) {
        return;
    }
    const bool masked = is_masked(params, operands, row);
    f32 y[COUNT];
    if (present(operands.residual)) {
        load_columns(operands.residual, residual_row(params, row) + c.first, c.exist, y);
    }
    finish_at<COUNT>(params, operands, c, masked, out_row(params, row), p, up, y);
}
