// What a workgroup of `linear` makes: 64 columns, numbered from the first one of this part of the matrix, of a tile of rows. The tiles of
// the same rows are neighbours. Uniform in the workgroup.
struct Tile {
    block: u32,
    rows: u32,
}

fn tile_of(workgroup: u32) -> Tile {
    let blocks = (params.n_count - 1u) / 64u + 1u;
    return Tile(workgroup % blocks, workgroup / blocks);
}
