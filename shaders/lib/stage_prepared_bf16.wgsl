// Stages 64 rows and 16 columns of a prepared matrix NAME of bf16, four elements in two words. See stage_prepared_f32.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec2<u32>>;
var<workgroup> tile_NAME: array<vec4<f32>, PITCH * DEPTH>;
fn prepared_tile(tile: u32, lane: u32) -> vec4<f32> {
    let words = NAME[tile * 256u + lane];
    let bits = vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u);
    return bitcast<vec4<f32>>(bits);
}
fn stage_NAME(block: u32, k0: u32, lane: u32) {
    let tile = (block * params.k_tiles + k0 / DEPTH) * HALVES;
    tile_NAME[lane / 16u * PITCH + lane % 16u] = prepared_tile(tile, lane);
}
