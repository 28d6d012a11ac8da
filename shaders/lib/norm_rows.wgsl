// The rows of `norm`, for its entry points, each of which chooses a `team_sum(lane, x)`.

struct Params {
    x_offset: u32,
    rows_offset: u32,
    add_offset: u32,
    weight_offset: u32,
    bias_offset: u32,
    out_offset: u32,
    total_rows: u32,
    dim_b: u32,
    dim_c: u32,
    width: u32,
    x_stride_a: u32,
    x_stride_b: u32,
    x_stride_c: u32,
    rows_stride_a: u32,
    rows_stride_b: u32,
    last_row: u32,
    add_stride_a: u32,
    add_stride_b: u32,
    add_stride_c: u32,
    out_stride_a: u32,
    out_stride_b: u32,
    out_stride_c: u32,
    eps: f32,
}

const LAYER = 0u;
const RMS = 1u;
const L2 = 2u;

struct Row {
    x: u32,
    add: u32,
    out: u32,
    phase: u32,
}

fn place(row: u32) -> Row {
    let a = row / (params.dim_b * params.dim_c);
    let b = row / params.dim_c % params.dim_b;
    let c = row % params.dim_c;
    var x = params.x_offset + a * params.x_stride_a + b * params.x_stride_b + c * params.x_stride_c;
    if rows_present {
        // Ids are hostile: those outside the table count as its first or last row.
        let id = rows_at(params.rows_offset + a * params.rows_stride_a + b * params.rows_stride_b);
        x = params.x_offset + min(u32(max(id, 0i)), params.last_row) * params.x_stride_b;
    }
    let out = params.out_offset + a * params.out_stride_a + b * params.out_stride_b + c * params.out_stride_c;
    let add = params.add_offset + a * params.add_stride_a + b * params.add_stride_b + c * params.add_stride_c;
    return Row(x, add, out, out_phase(out));
}

fn input(row: Row, column: u32) -> f32 {
    var value = 0.0;
    if x_present {
        value = x_at(row.x + column);
    } else {
        value = out_at(row.out + column);
    }
    if add_present {
        value += add_at(row.add + column);
    }
    return value;
}

fn difference(row: Row, column: u32, mean: f32) -> f32 {
    if column >= params.width {
        return 0.0;
    }
    return input(row, column) - mean;
}

fn scaled(row: Row, column: u32, mean: f32, factor: f32) -> f32 {
    if column >= params.width {
        return 0.0;
    }
    var value = (input(row, column) - mean) * factor;
    if weight_present {
        value *= weight_at(params.weight_offset + column);
    }
    if bias_present {
        value += bias_at(params.bias_offset + column);
    }
    return value;
}

fn norm_rows(workgroup: u32, lane: u32) {
    let member = lane % TEAM;
    let index = workgroup * (256u / TEAM) + lane / TEAM;
    // A team without a row has no words, but goes through the barriers.
    let exists = index < params.total_rows;
    let row = place(min(index, params.total_rows - 1u));
    let words = select(0u, (params.width + row.phase + 1u) / 2u, exists);
    // Columns before 0 wrap around and are beyond the width.
    var mean = 0.0;
    if KIND == LAYER {
        var sum = 0.0;
        for (var w = member; w < words; w += TEAM) {
            let column = 2u * w - row.phase;
            sum += difference(row, column, 0.0) + difference(row, column + 1u, 0.0);
        }
        mean = team_sum(lane, sum) / f32(params.width);
    }
    var squares = 0.0;
    for (var w = member; w < words; w += TEAM) {
        let column = 2u * w - row.phase;
        let first = difference(row, column, mean);
        let second = difference(row, column + 1u, mean);
        squares += first * first + second * second;
    }
    squares = team_sum(lane, squares);
    var factor = 0.0;
    if KIND == L2 {
        let length = sqrt(squares);
        factor = 1.0 / select(length, params.eps, length < params.eps);
    } else {
        factor = 1.0 / sqrt(squares / f32(params.width) + params.eps);
    }
    for (var w = member; w < words; w += TEAM) {
        let column = 2u * w - row.phase;
        let a = scaled(row, column, mean, factor);
        let b = scaled(row, column + 1u, mean, factor);
        out_store(row.out + column, a, b, column < params.width, column + 1u < params.width);
    }
}
