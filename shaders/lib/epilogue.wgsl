// The epilogue of `linear`: four neighbouring columns of one row at a time.
//
//   a = activation(p + bias)            gated: silu(p) * q
//   y = residual + tanh(gate) * row_mask * a

const NONE = 0u;
const GELU = 1u;
const RELU = 2u;
const SQUARED_RELU = 3u;
const SWIGLU = 4u;

// Columns of the result; some may lie beyond the end.
struct Columns {
    first: u32,
    exist: vec4<bool>,
    bias: vec4<f32>,
    gate: vec4<f32>,
}

fn columns(first: u32, end: u32) -> Columns {
    var c = Columns(first, vec4<bool>(false), vec4<f32>(0.0), vec4<f32>(1.0));
    for (var j = 0u; j < 4u; j++) {
        if first + j < end {
            c.exist[j] = true;
            if bias_present {
                c.bias[j] = bias_at(params.bias_offset + first + j);
            }
            if gate_present {
                c.gate[j] = tanh_exact(gate_at(params.gate_offset + (first + j) * params.gate_step));
            }
        }
    }
    return c;
}

fn activated(c: Columns, product: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    let p = product + c.bias;
    if ACTIVATION == GELU {
        return vec4<f32>(gelu(p.x), gelu(p.y), gelu(p.z), gelu(p.w));
    }
    if ACTIVATION == RELU {
        return relu(p);
    }
    if ACTIVATION == SQUARED_RELU {
        return relu(p) * relu(p);
    }
    if ACTIVATION == SWIGLU {
        return vec4<f32>(silu(p.x), silu(p.y), silu(p.z), silu(p.w)) * up;
    }
    return p;
}

// NaN stays NaN, which max does not promise.
fn relu(p: vec4<f32>) -> vec4<f32> {
    return select(p, vec4<f32>(), p < vec4<f32>());
}

fn finish(c: Columns, row: u32, product: vec4<f32>, up: vec4<f32>) {
    let b = row / params.rows;
    let r = row % params.rows;
    let at = params.out_offset + b * params.out_stride_b + r * params.out_stride_r + c.first;
    var y = vec4<f32>();
    if residual_present {
        let place = params.residual_offset + b * params.residual_stride_b + r * params.residual_stride_r + c.first;
        for (var j = 0u; j < 4u; j++) {
            if c.exist[j] {
                y[j] = residual_at(place + j);
            }
        }
    } else if IN_PLACE {
        for (var j = 0u; j < 4u; j++) {
            if c.exist[j] {
                y[j] = out_at(at + j);
            }
        }
    }
    var masked = false;
    if row_mask_present {
        masked = row_mask_at(params.row_mask_offset + b * params.mask_stride_b + r * params.mask_stride_r) == 0u;
    }
    if !masked {
        y += activated(c, product, up) * c.gate;
    }
    store(c, at, y);
}

// Stores four elements from `at` on. The first one may be the upper half of a word.
fn store(c: Columns, at: u32, y: vec4<f32>) {
    let e = c.exist;
    if out_phase(at) == 0u {
        out_store(at, y.x, y.y, e.x, e.y);
        out_store(at + 2u, y.z, y.w, e.z, e.w);
    } else {
        out_store(at - 1u, 0.0, y.x, false, e.x);
        out_store(at + 1u, y.y, y.z, e.y, e.z);
        out_store(at + 3u, y.w, 0.0, e.w, false);
    }
}
