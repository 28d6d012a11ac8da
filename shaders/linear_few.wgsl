// linear for few rows and a prepared matrix (decoding): as `linear`, but W is loaded from memory
// straight into registers.
//
// Work: a workgroup computes RM rows and TILE_N columns. Of each DEPTH columns of k, an invocation
// takes one k and four columns of W: loads are coalesced (256 neighbouring vec4), and without a
// barrier in the loop many are in flight. The 16 partial sums of a result are added in a fixed
// order. Workgroup memory: 4 KiB, the partial sums of one row. Traffic: W once per RM rows; x is
// small and comes from the caches. Epilogue operands and y once.

var<workgroup> partial: array<vec4<f32>, LANES>;

// The sum over the 16 invocations that share columns, for each of them.
fn over_k(lane: u32, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    partial[lane] = value;
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var k = 0u; k < DEPTH; k++) {
        sum += partial[k * QUADS_N + lane % QUADS_N];
    }
    return sum;
}

@compute @workgroup_size(LANES)
fn linear_few(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(linear_workgroup(workgroup, workgroups));
    let block = tile.block;
    // A folded grid has workgroups without rows.
    if tile.rows > (params.total_rows - 1u) / RM {
        return;
    }
    let first = tile.rows * RM;
    var at = array<u32, RM>();
    for (var i = 0u; i < RM; i++) {
        // A row beyond the end repeats the last one and is not stored.
        let row = min(first + i, params.total_rows - 1u);
        at[i] = params.x_offset + row / params.rows * params.x_stride_b + row % params.rows * params.x_stride_r;
    }
    var gate = array<vec4<f32>, RM>();
    var up = array<vec4<f32>, RM>();
    for (var t = 0u; t < params.k_tiles; t++) {
        let tile = (block * params.k_tiles + t) * HALVES;
        let w = prepared_tile(tile, lane);
        var u = vec4<f32>();
        if HALVES == 2u {
            u = prepared_tile(tile + 1u, lane);
        }
        let k = t * DEPTH + lane / QUADS_N;
        if k < params.k {
            for (var i = 0u; i < RM; i++) {
                let x = vec4<f32>(x_at(at[i] + k));
                gate[i] = fma(x, w, gate[i]);
                if HALVES == 2u {
                    up[i] = fma(x, u, up[i]);
                }
            }
        }
    }
    let c = columns(params.n_first + block * TILE_N + lane % QUADS_N * 4u, params.n_first + params.n_count);
    for (var i = 0u; i < RM; i++) {
        let product = over_k(lane, gate[i]);
        var second = vec4<f32>();
        if HALVES == 2u {
            second = over_k(lane, up[i]);
        }
        if lane < QUADS_N && first + i < params.total_rows {
            finish(c, first + i, product, second);
        }
    }
}
