// Elements i to i + n - 1 of NAME, at most four, and zeros behind them. Nothing else is read.
fn NAME_columns(i: u32, n: u32) -> vec4<f32> {
    if n >= 4u {
        return NAME_quad(i);
    }
    var x = vec4<f32>();
    for (var j = 0u; j < n; j++) {
        x[j] = NAME_at(i + j);
    }
    return x;
}
