// The tile of a workgroup of `linear`: a tile of rows by 64 columns, numbered from the first one of
// this part of the matrix. Tiles of the same rows are neighbours. Uniform in the workgroup.
struct Tile {
    block: u32,
    rows: u32,
}

fn tile_of(workgroup: u32) -> Tile {
    let blocks = (params.n_count - 1u) / 64u + 1u;
    return Tile(workgroup % blocks, workgroup / blocks);
}
