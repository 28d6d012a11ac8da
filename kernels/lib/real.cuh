// real: elements of f32, f16 and bf16, in registers and in memory. All arithmetic is f32; each
// result is rounded once, to nearest even.

struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

// The conversions that are instructions: defined in ptx.cuh.
DEVICE f32 f16_to_f32(u16 bits);
DEVICE u16 f32_to_f16(f32 value);
DEVICE u16 f32_to_bf16(f32 value);
DEVICE u32 f32_to_f16_pair(f32 low, f32 high);
DEVICE u32 f32_to_bf16_pair(f32 low, f32 high);

DEVICE f32 to_f32(f32 value) {
    return value;
}
DEVICE f32 to_f32(f16 value) {
    return f16_to_f32(value.bits);
}
// bf16 is the upper half of f32.
DEVICE f32 to_f32(bf16 value) {
    return __uint_as_float(static_cast<u32>(value.bits) << 16);
}

template <class T> DEVICE T from_f32(f32 value);
template <> DEVICE f32 from_f32<f32>(f32 value) {
    return value;
}
template <> DEVICE f16 from_f32<f16>(f32 value) {
    return f16{f32_to_f16(value)};
}
template <> DEVICE bf16 from_f32<bf16>(f32 value) {
    return bf16{f32_to_bf16(value)};
}

// Two elements in a word, the first in the low half: as in memory, and as mma expects them.
template <class T> DEVICE u32 pack2(f32 low, f32 high);
template <> DEVICE u32 pack2<f16>(f32 low, f32 high) {
    return f32_to_f16_pair(low, high);
}
template <> DEVICE u32 pack2<bf16>(f32 low, f32 high) {
    return f32_to_bf16_pair(low, high);
}

template <class T> DEVICE void unpack2(u32 word, f32& low, f32& high);
template <> DEVICE void unpack2<f16>(u32 word, f32& low, f32& high) {
    low = f16_to_f32(static_cast<u16>(word));
    high = f16_to_f32(static_cast<u16>(word >> 16));
}
template <> DEVICE void unpack2<bf16>(u32 word, f32& low, f32& high) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
}

// An element of an operand of run-time type: bias, gate, residual, and all slow paths.
DEVICE f32 real_at(const Operand& operand, u64 index) {
    switch (operand.type) {
    case TYPE_F32: return static_cast<const f32*>(operand.at)[index];
    case TYPE_F16: return to_f32(static_cast<const f16*>(operand.at)[index]);
    case TYPE_BF16: return to_f32(static_cast<const bf16*>(operand.at)[index]);
    default: return 0.0f;
    }
}

DEVICE void real_store(const Operand& operand, u64 index, f32 value) {
    switch (operand.type) {
    case TYPE_F32: static_cast<f32*>(operand.at)[index] = value; break;
    case TYPE_F16: static_cast<f16*>(operand.at)[index] = from_f32<f16>(value); break;
    case TYPE_BF16: static_cast<bf16*>(operand.at)[index] = from_f32<bf16>(value); break;
    default: break;
    }
}

// 16 bytes: 4 elements of f32, 8 of f16 or bf16. One access, at a multiple of 16.
struct alignas(16) Wide {
    u32 word[4];
};
