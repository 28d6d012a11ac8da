// Stages 64 rows and 16 columns of a prepared matrix NAME of f32. It is stored tile by tile in the order of the stage, with zeros
// beyond its ends: every invocation moves one vec4, and neighbours move neighbours.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec4<f32>>;
var<workgroup> tile_NAME: array<vec4<f32>, PITCH * DEPTH>;
fn prepared_tile(tile: u32, lane: u32) -> vec4<f32> {
    return NAME[tile * 256u + lane];
}
fn stage_NAME(block: u32, k0: u32, lane: u32) {
    let tile = (block * params.k_tiles + k0 / DEPTH) * HALVES;
    tile_NAME[lane / 16u * PITCH + lane % 16u] = prepared_tile(tile, lane);
}
