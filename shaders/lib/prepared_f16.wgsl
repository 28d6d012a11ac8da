// A prepared matrix NAME of f16, four elements in two words. See prepared_f32.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec2<u32>>;
fn prepared_tile(tile: u32, lane: u32) -> vec4<f32> {
    let words = NAME[tile * LANES + lane];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
