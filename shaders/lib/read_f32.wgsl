// An operand NAME of f32. NAME_at(i): element i of the binding.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<f32>;
const NAME_present = true;
fn NAME_at(i: u32) -> f32 {
    return NAME[i];
}
// Elements i to i + 3.
fn NAME_quad(i: u32) -> vec4<f32> {
    return vec4<f32>(NAME[i], NAME[i + 1u], NAME[i + 2u], NAME[i + 3u]);
}
