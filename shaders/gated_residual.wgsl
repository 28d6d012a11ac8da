// gated_residual: out = x + tanh(gate) * row_mask * y, arithmetic in f32, one rounding at the end.
//
// Work: one invocation per word of a row of `out` (two adjacent elements; one may be missing at the
// row's ends), 256 per workgroup. Rows lie behind one another, so that narrow rows fill workgroups
// too. tanh is evaluated per element: some 50 operations beside 6 to 12 bytes of traffic.
// Workgroup memory: none. Traffic: x, y and out once each; gate and row_mask stay in the caches.

struct Params {
    x_offset: u32,
    y_offset: u32,
    gate_offset: u32,
    row_mask_offset: u32,
    out_offset: u32,
    words: u32,
    total_words: u32,
    rows: u32,
    width: u32,
    x_stride_b: u32,
    x_stride_r: u32,
    y_stride_b: u32,
    y_stride_r: u32,
    mask_stride_b: u32,
    mask_stride_r: u32,
    out_stride_b: u32,
    out_stride_r: u32,
    gate_step: u32,
}

// tanh(gate) y of one element, 0 where the row is masked: y is not read there.
fn branch(y: u32, column: u32, masked: bool) -> f32 {
    if masked || column >= params.width {
        return 0.0;
    }
    return tanh_exact(gate_at(params.gate_offset + column * params.gate_step)) * y_at(y + column);
}

fn residual(x: u32, out: u32, column: u32) -> f32 {
    if column >= params.width {
        return 0.0;
    }
    if x_present {
        return x_at(x + column);
    }
    return out_at(out + column);
}

@compute @workgroup_size(256)
fn gated_residual(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let word = linear_workgroup(workgroup, workgroups) * 256u + lane;
    if word >= params.total_words {
        return;
    }
    let row = word / params.words;
    let b = row / params.rows;
    let r = row % params.rows;
    let out = params.out_offset + b * params.out_stride_b + r * params.out_stride_r;
    let x = params.x_offset + b * params.x_stride_b + r * params.x_stride_r;
    let y = params.y_offset + b * params.y_stride_b + r * params.y_stride_r;
    var masked = false;
    if row_mask_present {
        masked = row_mask_at(params.row_mask_offset + b * params.mask_stride_b + r * params.mask_stride_r) == 0u;
    }
    // Columns before 0 wrap around and are beyond the width.
    let phase = out_phase(out);
    let first = 2u * (word % params.words) - phase;
    let second = first + 1u;
    let a = residual(x, out, first) + branch(y, first, masked);
    let c = residual(x, out, second) + branch(y, second, masked);
    out_store(out + first, a, c, first < params.width, second < params.width);
}
