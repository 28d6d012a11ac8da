// Stages TILE_N rows and DEPTH columns of a matrix NAME [N, K] as it lies, transposed: rows are
// read four elements at a time. tile_NAME[k * PITCH + c] holds rows 4 c to 4 c + 3 at column k.
var<workgroup> tile_NAME: array<vec4<f32>, PITCH * DEPTH>;
fn stage_NAME(block: u32, k0: u32, lane: u32) {
    let row = lane / (DEPTH / 4u);
    let n = block * TILE_N + row;
    let column = lane % (DEPTH / 4u) * 4u;
    let k = k0 + column;
    let at = params.NAME_offset + n * params.NAME_stride + k;
    let quad = NAME_columns(at, select(0u, params.k - k, n < params.n_count && k < params.k));
    let to = column * PITCH + row / 4u;
    tile_NAME[to][row % 4u] = quad.x;
    tile_NAME[to + PITCH][row % 4u] = quad.y;
    tile_NAME[to + 2u * PITCH][row % 4u] = quad.z;
    tile_NAME[to + 3u * PITCH][row % 4u] = quad.w;
}
