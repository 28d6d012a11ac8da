// Scratch NAME of vec4s.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<vec4<f32>>;
fn NAME_at(i: u32) -> vec4<f32> {
    return NAME[i];
}
fn NAME_set(i: u32, x: vec4<f32>) {
    NAME[i] = x;
}
