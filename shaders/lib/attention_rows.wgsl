// How the kernels of `attention` read queries, keys and values, and write results.

// vec4s of a row and of a panel of 128 columns of the result.
const QUADS = (HEAD_DIM + 3u) / 4u;
const PANEL = min(QUADS, 32u);
// Finite: WGSL may assume that there are no infinities.
const LOWEST = -3.0e38;

// The number of columns from 4 c on; 0 where `exists` is false.
fn columns_left(c: u32, exists: bool) -> u32 {
    return select(0u, HEAD_DIM - 4u * c, exists && 4u * c < HEAD_DIM);
}

fn q_row(entry: u32, row: u32, head: u32) -> u32 {
    return params.q_offset + entry * params.q_stride_b + row * params.q_stride_r + head * params.q_stride_h;
}

// Columns 4 c to 4 c + 3 of row `at` of q; 0 beyond its end.
fn row_columns(at: u32, c: u32, exists: bool) -> vec4<f32> {
    return q_columns(at + 4u * c, columns_left(c, exists));
}

// Columns 4 c to 4 c + 3 of key j of K/V head g. A key that is not `live` is never read.
fn key_columns(keys: Keys, j: u32, g: u32, c: u32, live: bool) -> vec4<f32> {
    let n = columns_left(c, live);
    if second_k_present && j >= keys.first.positions {
        return second_k_columns(second_k_row(keys.second, j - keys.first.positions, g) + 4u * c, n);
    }
    return first_k_columns(first_k_row(keys.first, j, g) + 4u * c, n);
}

// The same of V.
fn value_columns(keys: Keys, j: u32, g: u32, c: u32, live: bool) -> vec4<f32> {
    let n = columns_left(c, live);
    if second_v_present && j >= keys.first.positions {
        return second_v_columns(second_v_row(keys.second, j - keys.first.positions, g) + 4u * c, n);
    }
    return first_v_columns(first_v_row(keys.first, j, g) + 4u * c, n);
}

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
