// An operand NAME of f16, two in a word. NAME_at(i): its element i, counted from the start of the binding.
// unpack2x16float is exact and needs no feature; an adapter may flush subnormals.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<u32>;
const NAME_present = true;
fn NAME_at(i: u32) -> f32 {
    let pair = unpack2x16float(NAME[i >> 1u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}
