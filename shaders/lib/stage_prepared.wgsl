// Stages a tile of a prepared matrix NAME as it is stored: one vec4 per invocation.
const NAME_present = true;
var<workgroup> tile_NAME: array<vec4<f32>, PITCH * DEPTH>;
fn stage_NAME(block: u32, k0: u32, lane: u32) {
    let tile = (block * params.k_tiles + k0 / DEPTH) * HALVES + HALF;
    tile_NAME[lane / QUADS_N * PITCH + lane % QUADS_N] = prepared_tile(tile, lane);
}
