// An operand NAME of bf16, two in a word. NAME_at(i): element i of the binding. Exact.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<u32>;
const NAME_present = true;
fn NAME_at(i: u32) -> f32 {
    let word = NAME[i >> 1u];
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
}
// Elements i to i + 3, from two words or three.
fn NAME_quad(i: u32) -> vec4<f32> {
    let word = i >> 1u;
    let a = NAME[word];
    let b = NAME[word + 1u];
    let c = NAME[word + 1u + (i & 1u)];
    let even = vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u);
    let odd = vec4<u32>(a & 0xffff0000u, b << 16u, b & 0xffff0000u, c << 16u);
    return bitcast<vec4<f32>>(select(even, odd, (i & 1u) == 1u));
}
