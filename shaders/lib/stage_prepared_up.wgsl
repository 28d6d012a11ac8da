// Stages the matrix NAME that a prepared gate matrix multiplies: its tiles lie behind those of the gate, pair by pair.
const NAME_present = true;
var<workgroup> tile_NAME: array<vec4<f32>, PITCH * DEPTH>;
fn stage_NAME(block: u32, k0: u32, lane: u32) {
    let tile = (block * params.k_tiles + k0 / DEPTH) * HALVES + 1u;
    tile_NAME[lane / 16u * PITCH + lane % 16u] = prepared_tile(tile, lane);
}
