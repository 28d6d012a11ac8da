// A prepared matrix NAME of f32: tiles of 16 columns and 64 rows, column by column, with zeros beyond the ends of the matrix. Every
// invocation of 256 reads one vec4 of a tile, four rows of one column, and neighbours read neighbours.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec4<f32>>;
fn prepared_tile(tile: u32, lane: u32) -> vec4<f32> {
    return NAME[tile * 256u + lane];
}
