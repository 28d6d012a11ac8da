// ln x for normal x > 0, 1.5 ulp (WGSL's own is only good to an absolute 2^-21 near 1). NaN and
// infinity stay what they are. x = 2^e (1 + t), t in sqrt(1/2) - 1 .. sqrt 2 - 1;
// ln(1 + t) = t - t^2 / 2 + t^3 P(t), P of degree 8 fitted at Chebyshev points, relative error
// 3.8e-9. ln 2 in two parts as in math.wgsl.
fn ln(x: f32) -> f32 {
    let bits = bitcast<u32>(x) - 0x3f3504f3u;
    let e = f32(bitcast<i32>(bits) >> 23u);
    let t = bitcast<f32>((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0;
    var p = 0.0714975372;
    p = fma(p, t, -0.115712009);
    p = fma(p, t, 0.116615117);
    p = fma(p, t, -0.124110505);
    p = fma(p, t, 0.142499357);
    p = fma(p, t, -0.166684806);
    p = fma(p, t, 0.200007081);
    p = fma(p, t, -0.249999896);
    p = fma(p, t, 0.333333313);
    let square = t * t;
    var y = fma(e, -2.12194440e-4, square * t * p);
    y = fma(-0.5, square, y);
    return select(fma(e, 0.693359375, t + y), x, bitcast<u32>(x) >= 0x7f800000u);
}
