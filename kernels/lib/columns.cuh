// columns: eight neighbouring columns of a row, of operands whose element type is known at run time. Rows of reals that ops walk once
// (norm, gated_residual) are bound by memory: a test of the type costs nothing there, and every mixture of dtypes is one kernel.

constexpr u32 COLUMNS = 8;

template <class T> DEVICE void elements_load(const Operand& from, u64 at, u32 count, f32 (&value)[COLUMNS]) {
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        value[j] = j < count ? to_f32(data<T>(from)[at + j]) : 0.0f;
    }
}

template <class T> DEVICE void elements_store(const Operand& to, u64 at, u32 count, const f32 (&value)[COLUMNS]) {
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        if (j < count) {
            data<T>(to)[at + j] = from_f32<T>(value[j]);
        }
    }
}

// Columns `at` to `at + 7` of `from`; of them only the first `count` exist, the others become 0. Rows of eight columns lie on multiples
// of 16 bytes where the operand is wide: one access of 16-bit elements, two of f32.
DEVICE void columns_load(const Operand& from, u64 at, u32 count, f32 (&value)[COLUMNS]) {
    if (count >= COLUMNS && is_wide(from)) {
        if (from.type == TYPE_F32) {
            const Wide low = wide_load(data<f32>(from) + at), high = wide_load(data<f32>(from) + at + 4);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                value[j] = __uint_as_float(low.word[j]);
                value[4 + j] = __uint_as_float(high.word[j]);
            }
            return;
        }
        const Wide words = wide_load(data<u16>(from) + at);
        if (from.type == TYPE_F16) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                unpack2<f16>(words.word[j], value[2 * j], value[2 * j + 1]);
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                unpack2<bf16>(words.word[j], value[2 * j], value[2 * j + 1]);
            }
        }
        return;
    }
    switch (from.type) {
    case TYPE_F32: elements_load<f32>(from, at, count, value); break;
    case TYPE_F16: elements_load<f16>(from, at, count, value); break;
    default: elements_load<bf16>(from, at, count, value); break;
    }
}

// The same the other way round.
DEVICE void columns_store(const Operand& to, u64 at, u32 count, const f32 (&value)[COLUMNS]) {
    if (count >= COLUMNS && is_wide(to)) {
        Wide words;
        if (to.type == TYPE_F32) {
            Wide high;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                words.word[j] = __float_as_uint(value[j]);
                high.word[j] = __float_as_uint(value[4 + j]);
            }
            wide_store(data<f32>(to) + at, words);
            wide_store(data<f32>(to) + at + 4, high);
            return;
        }
        if (to.type == TYPE_F16) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                words.word[j] = pack2<f16>(value[2 * j], value[2 * j + 1]);
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                words.word[j] = pack2<bf16>(value[2 * j], value[2 * j + 1]);
            }
        }
        wide_store(data<u16>(to) + at, words);
        return;
    }
    switch (to.type) {
    case TYPE_F32: elements_store<f32>(to, at, count, value); break;
    case TYPE_F16: elements_store<f16>(to, at, count, value); break;
    default: elements_store<bf16>(to, at, count, value); break;
    }
}
