// An operand NAME of f16, two in a word. NAME_at(i): element i of the binding. unpack2x16float is
// exact and needs no feature; an adapter may flush subnormals.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<u32>;
const NAME_present = true;
fn NAME_at(i: u32) -> f32 {
    let pair = unpack2x16float(NAME[i >> 1u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}
// Elements i to i + 3, from two words or three.
fn NAME_quad(i: u32) -> vec4<f32> {
    let word = i >> 1u;
    let a = unpack2x16float(NAME[word]);
    let b = unpack2x16float(NAME[word + 1u]);
    let c = unpack2x16float(NAME[word + 1u + (i & 1u)]);
    return select(vec4<f32>(a, b), vec4<f32>(a.y, b, c.x), (i & 1u) == 1u);
}
