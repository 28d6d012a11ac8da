// columns: eight neighbouring columns of a row, of operands whose element type is known at run
// time. Ops that walk rows once (norm, gated_residual) are bound by memory: a test of the type
// costs nothing there, and every mixture of dtypes is one kernel.

constexpr u32 COLUMNS = 8;

// Columns `at` to `at + 7` of `from`; those from `count` on do not exist and become 0. Rows of
// eight columns of a wide operand are aligned to 16 bytes: one access of 16-bit, two of f32.
DEVICE void columns_load(const Operand& from, u64 at, u32 count, f32 (&value)[COLUMNS]) {
    const bool wide = count >= COLUMNS && is_wide(from);
    if (from.type == TYPE_F32) {
        const f32* row = data<f32>(from) + at;
        if (wide) {
            const Wide low = wide_load(row), high = wide_load(row + 4);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                value[j] = __uint_as_float(low.word[j]);
                value[4 + j] = __uint_as_float(high.word[j]);
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                value[j] = j < count ? row[j] : 0.0f;
            }
        }
        return;
    }
    const u16* row = data<u16>(from) + at;
    Wide words;
    if (wide) {
        words = wide_load(row);
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 low = 2 * j < count ? row[2 * j] : 0, high = 2 * j + 1 < count ? row[2 * j + 1] : 0;
            words.word[j] = low | high << 16;
        }
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        if (from.type == TYPE_F16) {
            unpack2<f16>(words.word[j], value[2 * j], value[2 * j + 1]);
        } else {
            unpack2<bf16>(words.word[j], value[2 * j], value[2 * j + 1]);
        }
    }
}

// The inverse; columns that do not exist are not written.
DEVICE void columns_store(const Operand& to, u64 at, u32 count, const f32 (&value)[COLUMNS]) {
    const bool wide = count >= COLUMNS && is_wide(to);
    if (to.type == TYPE_F32) {
        f32* row = data<f32>(to) + at;
        if (wide) {
            Wide low, high;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                low.word[j] = __float_as_uint(value[j]);
                high.word[j] = __float_as_uint(value[4 + j]);
            }
            wide_store_global(row, low);
            wide_store_global(row + 4, high);
        } else {
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                if (j < count) {
                    row[j] = value[j];
                }
            }
        }
        return;
    }
    Wide words;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const f32 low = value[2 * j], high = value[2 * j + 1];
        words.word[j] = to.type == TYPE_F16 ? pack2<f16>(low, high) : pack2<bf16>(low, high);
    }
    u16* row = data<u16>(to) + at;
    if (wide) {
        wide_store_global(row, words);
    } else {
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) {
            if (j < count) {
                row[j] = static_cast<u16>(words.word[j / 2] >> j % 2 * 16);
            }
        }
    }
}
