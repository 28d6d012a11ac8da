// A prepared matrix NAME of f32: tiles of DEPTH columns and TILE_N rows, column by column, zeros
// beyond the ends. Invocation i reads vec4 i of a tile: coalesced, four rows of one column.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec4<f32>>;
fn prepared_tile(tile: u32, lane: u32) -> vec4<f32> {
    return NAME[tile * LANES + lane];
}
