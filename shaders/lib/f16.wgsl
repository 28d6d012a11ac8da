// f16 to and from f32. Packing rounds to nearest even, in integers: pack2x16float leaves the
// rounding to the adapter.
fn f16_unpack(word: u32, half: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, half == 1u);
}
fn f16_pack(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    var half = 0u;
    if size > 0x7f800000u {
        // NaN.
        half = 0x7e00u;
    } else if size >= 0x477ff000u {
        // From the middle between 65504 and 65536 on: infinity.
        half = 0x7c00u;
    } else if size >= 0x38800000u {
        // Normal: drop 13 bits of the mantissa; a carry raises the exponent, as it should.
        half = (size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u;
    } else if size >= 0x33000000u {
        // Subnormal: units of 2^-24.
        let shift = 126u - (size >> 23u);
        let mantissa = (size & 0x7fffffu) | 0x800000u;
        let kept = mantissa >> shift;
        let rest = mantissa & ((1u << shift) - 1u);
        let middle = 1u << (shift - 1u);
        half = kept + select(0u, 1u, rest > middle || (rest == middle && (kept & 1u) == 1u));
    }
    return sign | half;
}
