// A tile of W in the kernels of `linear`: TILE_N rows and DEPTH columns, as weight.rs packs them.
// An invocation has 4 rows of one column. DEPTH is also the number of rows of invocations.
const QUADS_N = TILE_N / 4u;
const LANES = QUADS_N * DEPTH;
// vec4 from one staged column to the next: odd, so that transposed writes meet different banks.
const PITCH = QUADS_N + 1u;

// The tile of a workgroup of `linear`: a tile of rows by TILE_N columns, numbered from the first
// one of this part of the matrix. Tiles of the same rows are neighbours. Uniform in the workgroup.
struct Tile {
    block: u32,
    rows: u32,
}

fn tile_of(workgroup: u32) -> Tile {
    let blocks = (params.n_count - 1u) / TILE_N + 1u;
    return Tile(workgroup % blocks, workgroup / blocks);
}
