// norm: LayerNorm, RMSNorm or L2 normalisation (KIND) of rows x + add, optionally gathered from a
// table; statistics in f32.
//
// Work: TEAM threads per row: 8 for heads of up to 128 columns, a warp up to 1024, else a block. A
// thread has every TEAM-th group of eight columns and keeps the first HELD of them in registers
// over the passes: mean (Layer only), sum of squared differences, result. Groups beyond HELD, in
// rows of more than 8192 columns, are read again in each pass. A thread writes only what it alone
// reads, so in-place works. Sums: columns in order, then a butterfly over the team: the bits do not
// depend on where a row lies.
// Shared memory: 4 bytes per warp, where a team is a block. Traffic: x and add once, out once, 16
// bytes per access where base and strides allow; weight and bias stay in the caches.
// Tried (ptxas 13.0): one test per group of columns whether it is whole, and no division by a
// dimension of 1: 889 instructions per warp instead of 908 for a row of 8192 f32 columns with
// everything, but up to 96 bytes of spills and 12 more registers. Dropped.

#define LAYER 0
#define RMS 1
#define L2 2

struct NormParams {
    u32 x_offset;
    u32 rows_offset;
    u32 add_offset;
    u32 weight_offset;
    u32 bias_offset;
    u32 out_offset;
    u32 total_rows;
    u32 dim_b;
    u32 dim_c;
    u32 width;
    u32 x_stride_a;
    u32 x_stride_b;
    u32 x_stride_c;
    u32 rows_stride_a;
    u32 rows_stride_b;
    u32 last_row;
    u32 add_stride_a;
    u32 add_stride_b;
    u32 add_stride_c;
    u32 out_stride_a;
    u32 out_stride_b;
    u32 out_stride_c;
    f32 eps;
};

struct NormOperands {
    Operand x, rows, add, weight, bias, out;
};

// The sum over the team, in each of its threads.
DEVICE f32 team_sum(f32 value) {
#if TEAM > 32
    SHARED(f32, partial, 0, THREADS / 32);
    return block_sum(value, partial);
#else
    return warp_sum<TEAM>(value);
#endif
}

// The input, which is `out` in place, and where a row's operands begin.
struct Row {
    Operand input;
    u64 x, add, out;
};

DEVICE Row place(const NormParams& params, const NormOperands& operands, u32 row) {
    const u64 a = row / params.dim_c / params.dim_b;
    const u64 b = row / params.dim_c % params.dim_b;
    const u64 c = row % params.dim_c;
    Row at;
    at.add = params.add_offset + a * params.add_stride_a + b * params.add_stride_b + c * params.add_stride_c;
    at.out = params.out_offset + a * params.out_stride_a + b * params.out_stride_b + c * params.out_stride_c;
    at.input = present(operands.x) ? operands.x : operands.out;
    at.x = params.x_offset + a * params.x_stride_a + b * params.x_stride_b + c * params.x_stride_c;
    if (!present(operands.x)) {
        at.x = at.out;
    } else if (present(operands.rows)) {
        // Ids are untrusted: those outside the table count as its first or last row.
        const i32 id = data<i32>(operands.rows)[params.rows_offset + a * params.rows_stride_a + b * params.rows_stride_b];
        at.x = params.x_offset + u64(min(u32(max(id, 0)), params.last_row)) * params.x_stride_b;
    }
    return at;
}

// Eight columns of x + add; zeros past the row's end.
DEVICE void input(const NormOperands& operands, const Row& row, u32 column, u32 width, f32 (&value)[COLUMNS]) {
    const u32 count = column < width ? width - column : 0;
    columns_load(row.input, row.x + column, count, value);
    if (present(operands.add)) {
        f32 add[COLUMNS];
        columns_load(operands.add, row.add + column, count, add);
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            value[j] += add[j];
        }
    }
}

// The sum for the mean: columns past the end are 0.
DEVICE f32 sum_of(const f32 (&value)[COLUMNS]) {
    f32 sum = value[0];
#pragma unroll
    for (u32 j = 1; j < COLUMNS; j++) {
        sum += value[j];
    }
    return sum;
}

// The sum of squared differences from the mean; columns past the row's end have none.
DEVICE f32 squares_of(const f32 (&value)[COLUMNS], f32 mean, u32 column, u32 width) {
    f32 sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        const f32 difference = column + j < width ? value[j] - mean : 0.0f;
        sum = fma(difference, difference, sum);
    }
    return sum;
}

// 1 / sqrt(x) within 0.5 ulp (200,000 arguments), not the 1.5 of two rounded operations: it
// multiplies a whole row, so its error does not average out (most of a bridge's error in a fixture
// with rows of four columns). One Newton step, compensated for the rounding of its product.
DEVICE f32 reciprocal_root(f32 x) {
    const f32 y = 1.0f / sqrtf(x);
    const f32 product = x * y;
    const f32 rest = fma(-product, y, 1.0f) - fma(x, y, -product) * y;
    // rest is NaN for 0 and infinity.
    return rest == rest ? fma(0.5f * y, rest, y) : y;
}

DEVICE void result(
    const NormParams& params, const NormOperands& operands, const Row& row, u32 column, f32 mean, f32 factor, f32 (&value)[COLUMNS]
) {
    if (column >= params.width) {
        return;
    }
    const u32 count = params.width - column;
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        value[j] = (value[j] - mean) * factor;
    }
    if (present(operands.weight)) {
        f32 weight[COLUMNS];
        columns_load(operands.weight, u64(params.weight_offset) + column, count, weight);
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            value[j] *= weight[j];
        }
    }
    if (present(operands.bias)) {
        f32 bias[COLUMNS];
        columns_load(operands.bias, u64(params.bias_offset) + column, count, bias);
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            value[j] += bias[j];
        }
    }
    columns_store(operands.out, row.out + column, count, value);
}

KERNEL(NormParams, NormOperands) {
    constexpr u32 STEP = TEAM * COLUMNS;
    const u32 index = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
    const u32 first = threadIdx.x % TEAM * COLUMNS;
    // A team without a row has no columns, but takes part in the shuffles.
    const u32 width = index < params.total_rows ? params.width : 0;
    const Row row = place(params, operands, min(index, params.total_rows - 1));

    f32 held[HELD][COLUMNS];
#pragma unroll
    for (u32 h = 0; h < HELD; h++) {
        input(operands, row, first + h * STEP, width, held[h]);
    }

    f32 mean = 0.0f;
    if (KIND == LAYER) {
        f32 sum = 0.0f;
#pragma unroll
        for (u32 h = 0; h < HELD; h++) {
            sum += sum_of(held[h]);
        }
        for (u32 column = first + HELD * STEP; column < width; column += STEP) {
            f32 value[COLUMNS];
            input(operands, row, column, width, value);
            sum += sum_of(value);
        }
        mean = team_sum(sum) / f32(params.width);
    }

    f32 squares = 0.0f;
#pragma unroll
    for (u32 h = 0; h < HELD; h++) {
        squares += squares_of(held[h], mean, first + h * STEP, width);
    }
    for (u32 column = first + HELD * STEP; column < width; column += STEP) {
        f32 value[COLUMNS];
        input(operands, row, column, width, value);
        squares += squares_of(value, mean, column, width);
    }
    squares = team_sum(squares);

    // Not fmaxf, which drops a NaN.
    const f32 norm = sqrtf(squares);
    const f32 factor = KIND == L2 ? 1.0f / (norm < params.eps ? params.eps : norm)
                                  : reciprocal_root(squares / f32(params.width) + params.eps);
    if (width == 0) {
        return;
    }
#pragma unroll
    for (u32 h = 0; h < HELD; h++) {
        result(params, operands, row, first + h * STEP, mean, factor, held[h]);
    }
    for (u32 column = first + HELD * STEP; column < width; column += STEP) {
        f32 value[COLUMNS];
        input(operands, row, column, width, value);
        result(params, operands, row, column, mean, factor, value);
    }
}
