// A prepared matrix NAME of bf16, four elements in two words. See prepared_f32.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec2<u32>>;
fn prepared_tile(tile: u32, lane: u32) -> vec4<f32> {
    let words = NAME[tile * LANES + lane];
    let bits = vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u);
    return bitcast<vec4<f32>>(bits);
}
