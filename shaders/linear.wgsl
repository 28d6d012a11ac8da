// linear: a matrix product (GEMM) with an epilogue, y = epilogue(x W^T), and a reduction over rows.
//
// Work: a workgroup of 16 x 16 invocations computes a tile of 16 TM rows and TILE_N = 64 columns.
// The register tile of an invocation is TM (1, 2 or 4) rows by 4 columns. It accumulates in f32
// over blocks of 256 columns of k, and adds the blocks in order. The rows of all batch entries form
// one axis, whatever their strides. With a reduction, a workgroup walks over all row tiles of one
// batch entry and keeps one value per column. Workgroup memory: 16 columns of k of x and of W (of
// both matrices of a gated activation), 4352 bytes each. A pitch of 17 vec4 spreads transposed
// writes over the banks. Traffic: x once per 64 columns, W once per 16 TM rows, epilogue operands
// and y once. Tried: one running sum over all of k. Idefics2's connector in f32 then ends 3.5e-6
// from float64, in blocks 6e-7; 0.97 to 1.01 of the time (llvmpipe, three shapes).

// Rows of the reduction.
const KEEP = 0u;
const MAX = 1u;
const MEAN = 2u;

// Columns of k that are summed separately, as on the CPU.
const BLOCK = 256u;

var<workgroup> tile_x: array<vec4<f32>, PITCH * DEPTH>;

// Stages rows first .. first + 16 TM (below end) of x, transposed: tile_x[k * PITCH + c] holds rows
// 4 c to 4 c + 3 at column k.
fn stage_x(first: u32, end: u32, k0: u32, lane: u32) {
    let local = lane / (DEPTH / 4u);
    if local >= DEPTH * TM {
        return;
    }
    let row = first + local;
    let column = lane % (DEPTH / 4u) * 4u;
    let k = k0 + column;
    let at = params.x_offset + row / params.rows * params.x_stride_b + row % params.rows * params.x_stride_r + k;
    let quad = x_columns(at, select(0u, params.k - k, row < end && k < params.k));
    let to = column * PITCH + local / 4u;
    tile_x[to][local % 4u] = quad.x;
    tile_x[to + PITCH][local % 4u] = quad.y;
    tile_x[to + 2u * PITCH][local % 4u] = quad.z;
    tile_x[to + 3u * PITCH][local % 4u] = quad.w;
}

// Accumulators: TM rows by 4 columns of W, and of the second matrix.
struct Sums {
    gate: array<vec4<f32>, TM>,
    up: array<vec4<f32>, TM>,
}

// The partial sums over columns start .. stop of k.
fn multiply_block(first: u32, end: u32, block: u32, lane: u32, start: u32, stop: u32) -> Sums {
    var sums = Sums(array<vec4<f32>, TM>(), array<vec4<f32>, TM>());
    let column = lane % QUADS_N;
    let row = lane / QUADS_N * TM;
    for (var k0 = start; k0 < stop; k0 += DEPTH) {
        workgroupBarrier();
        stage_x(first, end, k0, lane);
        stage_weight(block, k0, lane);
        if up_present {
            stage_up(block, k0, lane);
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let w = tile_weight[k * PITCH + column];
            let x = tile_x[k * PITCH + row / 4u];
            for (var i = 0u; i < TM; i++) {
                sums.gate[i] = fma(vec4<f32>(x[row % 4u + i]), w, sums.gate[i]);
            }
            if up_present {
                let u = tile_up[k * PITCH + column];
                for (var i = 0u; i < TM; i++) {
                    sums.up[i] = fma(vec4<f32>(x[row % 4u + i]), u, sums.up[i]);
                }
            }
        }
    }
    return sums;
}

fn multiply(first: u32, end: u32, block: u32, lane: u32) -> Sums {
    var sums = Sums(array<vec4<f32>, TM>(), array<vec4<f32>, TM>());
    for (var start = 0u; start < params.k; start += BLOCK) {
        let part = multiply_block(first, end, block, lane, start, min(start + BLOCK, params.k));
        for (var i = 0u; i < TM; i++) {
            sums.gate[i] += part.gate[i];
            sums.up[i] += part.up[i];
        }
    }
    return sums;
}

// The larger one of each pair, or NaN, which is told by its bits: WGSL may assume there is none.
fn larger(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let size_a = bitcast<vec4<u32>>(a) & vec4<u32>(0x7fffffffu);
    let size_b = bitcast<vec4<u32>>(b) & vec4<u32>(0x7fffffffu);
    let infinity = vec4<u32>(0x7f800000u);
    return select(select(max(a, b), b, size_b > infinity), a, size_a > infinity);
}

fn fold(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    if REDUCE == MAX {
        return larger(a, b);
    }
    return a + b;
}

// One value per column over the rows of batch entry `entry`.
fn reduce_rows(c: Columns, entry: u32, block: u32, lane: u32) {
    let start = entry * params.rows;
    let end = start + params.rows;
    let row = lane / QUADS_N;
    var all = vec4<f32>();
    for (var first = start; first < end; first += DEPTH * TM) {
        let sums = multiply(first, end, block, lane);
        for (var i = 0u; i < TM; i++) {
            let at = first + row * TM + i;
            if at < end {
                let value = activated(c, sums.gate[i], sums.up[i]);
                // An invocation's first row has no earlier one to compare with.
                all = select(fold(all, value), value, vec4<bool>(first == start && i == 0u));
            }
        }
    }
    // Each row of invocations now holds one value per column, if it had a row at all. Fixed order.
    workgroupBarrier();
    tile_x[lane] = all;
    workgroupBarrier();
    if row == 0u {
        for (var other = 1u; other < DEPTH && other * TM < params.rows; other++) {
            all = fold(all, tile_x[other * QUADS_N + lane]);
        }
        if REDUCE == MEAN {
            all = all / f32(params.rows);
        }
        store(c, params.out_offset + entry * params.out_stride_b + c.first, all);
    }
}

@compute @workgroup_size(LANES)
fn linear(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(linear_workgroup(workgroup, workgroups));
    let block = tile.block;
    // Rows per workgroup: a batch entry's, or a tile's. A folded grid has workgroups without rows.
    let rows = select(params.rows, DEPTH * TM, REDUCE == KEEP);
    if tile.rows > (params.total_rows - 1u) / rows {
        return;
    }
    let c = columns(params.n_first + block * TILE_N + lane % QUADS_N * 4u, params.n_first + params.n_count);
    if REDUCE != KEEP {
        reduce_rows(c, tile.rows, block, lane);
        return;
    }
    let first = tile.rows * rows;
    let sums = multiply(first, params.total_rows, block, lane);
    for (var i = 0u; i < TM; i++) {
        let row = first + lane / QUADS_N * TM + i;
        if row < params.total_rows {
            finish(c, row, sums.gate[i], sums.up[i]);
        }
    }
}
