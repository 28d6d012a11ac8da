// How the kernels of `attention` read queries, keys and values, and write results.

// vec4s of a row and of a panel of 128 columns of the result; whether rows are whole vec4s.
const QUADS = (HEAD_DIM + 3u) / 4u;
const PANEL = min(QUADS, 32u);
const WHOLE_QUADS = HEAD_DIM % 4u == 0u;

// How many of the four columns from 4 c on there are, none where `exists` is false.
fn columns_left(c: u32, exists: bool) -> u32 {
    return select(0u, HEAD_DIM - 4u * c, exists && 4u * c < HEAD_DIM);
}

// Row i of q, head h.
fn q_row(entry: u32, row: u32, head: u32) -> u32 {
    return params.q_offset + entry * params.q_stride_b + row * params.q_stride_r + head * params.q_stride_h;
}

// Columns 4 c to 4 c + 3 of row `at` of q; 0 beyond its end.
fn q_columns(at: u32, c: u32, exists: bool) -> vec4<f32> {
    let n = columns_left(c, exists);
    let i = at + 4u * c;
    if n == 0u {
        return vec4<f32>(0.0);
    }
    if WHOLE_QUADS || n >= 4u {
        return q_quad(i);
    }
    var x = vec4<f32>(q_at(i), 0.0, 0.0, 0.0);
    if n > 1u {
        x.y = q_at(i + 1u);
    }
    if n > 2u {
        x.z = q_at(i + 2u);
    }
    return x;
}

// Columns 4 c to 4 c + 3 of key j of K/V head g. A key that is not `live` is never read.
fn k_columns(keys: Keys, j: u32, g: u32, c: u32, live: bool) -> vec4<f32> {
    let n = columns_left(c, live);
    if n == 0u {
        return vec4<f32>(0.0);
    }
    if second_k_present && j >= keys.first.slots {
        let row = keys.second.start + j - keys.first.slots;
        let entry = keys.second.entry * params.second_k_stride_b + params.second_k_offset;
        let i = entry + row * params.second_k_stride_r + g * params.second_k_stride_h + 4u * c;
        if WHOLE_QUADS || n >= 4u {
            return second_k_quad(i);
        }
        var x = vec4<f32>(second_k_at(i), 0.0, 0.0, 0.0);
        if n > 1u {
            x.y = second_k_at(i + 1u);
        }
        if n > 2u {
            x.z = second_k_at(i + 2u);
        }
        return x;
    }
    let entry = keys.first.entry * params.first_k_stride_b + params.first_k_offset;
    let i = entry + (keys.first.start + j) * params.first_k_stride_r + g * params.first_k_stride_h + 4u * c;
    if WHOLE_QUADS || n >= 4u {
        return first_k_quad(i);
    }
    var x = vec4<f32>(first_k_at(i), 0.0, 0.0, 0.0);
    if n > 1u {
        x.y = first_k_at(i + 1u);
    }
    if n > 2u {
        x.z = first_k_at(i + 2u);
    }
    return x;
}

// The same of V.
fn v_columns(keys: Keys, j: u32, g: u32, c: u32, live: bool) -> vec4<f32> {
    let n = columns_left(c, live);
    if n == 0u {
        return vec4<f32>(0.0);
    }
    if second_v_present && j >= keys.first.slots {
        let row = keys.second.start + j - keys.first.slots;
        let entry = keys.second.entry * params.second_v_stride_b + params.second_v_offset;
        let i = entry + row * params.second_v_stride_r + g * params.second_v_stride_h + 4u * c;
        if WHOLE_QUADS || n >= 4u {
            return second_v_quad(i);
        }
        var x = vec4<f32>(second_v_at(i), 0.0, 0.0, 0.0);
        if n > 1u {
            x.y = second_v_at(i + 1u);
        }
        if n > 2u {
            x.z = second_v_at(i + 2u);
        }
        return x;
    }
    let entry = keys.first.entry * params.first_v_stride_b + params.first_v_offset;
    let i = entry + (keys.first.start + j) * params.first_v_stride_r + g * params.first_v_stride_h + 4u * c;
    if WHOLE_QUADS || n >= 4u {
        return first_v_quad(i);
    }
    var x = vec4<f32>(first_v_at(i), 0.0, 0.0, 0.0);
    if n > 1u {
        x.y = first_v_at(i + 1u);
    }
    if n > 2u {
        x.z = first_v_at(i + 2u);
    }
    return x;
}

// Stores columns 4 c to 4 c + 3 of a row of the result.
fn store_columns(entry: u32, row: u32, head: u32, c: u32, x: vec4<f32>) {
    let begin = params.out_offset + entry * params.out_stride_b + row * params.out_stride_r + head * params.out_stride_h;
    let at = begin + 4u * c;
    let n = columns_left(c, true);
    if out_phase(at) == 0u {
        out_store(at, x.x, x.y, n > 0u, n > 1u);
        out_store(at + 2u, x.z, x.w, n > 2u, n > 3u);
    } else {
        out_store(at - 1u, 0.0, x.x, false, n > 0u);
        out_store(at + 1u, x.y, x.z, n > 1u, n > 2u);
        out_store(at + 3u, x.w, 0.0, n > 3u, false);
    }
}

// -∞ is written as bits: WGSL may assume that there is none.
const EMPTY_LOG_SUM_EXP = 0xff800000u;

fn store_log_sum_exp(entry: u32, row: u32, head: u32, bits: u32) {
    let at = entry * params.log_sum_exp_stride_b + row * params.log_sum_exp_stride_r + head * params.log_sum_exp_stride_h;
    log_sum_exp_set(params.log_sum_exp_offset + at, bits);
}
