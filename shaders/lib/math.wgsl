// Functions that WGSL lacks (erf) or leaves too loose (exp: 3 + 2|x| ulp, tanh: overflows for large
// x on some adapters). Polynomials only. The errors named are those of f32 arithmetic with exact
// additions and products, division within 2.5 ulp.

// e^x for x <= 0; 0 below -87.3365, where results leave the normal range. 1 ulp. x = n ln 2 + r;
// degree 7 in r. ln 2 is in two parts. The first has 9 bits, so that n times it is exact with or
// without fused multiply-add.
fn exp_nonpositive(x: f32) -> f32 {
    // Not `max`, which may drop a NaN.
    let a = select(x, -87.3365, x < -87.3365);
    let n = round(a * 1.44269504);
    var r = fma(n, -0.693359375, a);
    r = fma(n, 2.12194440e-4, r);
    var p = 1.9875691e-4;
    p = fma(p, r, 1.3982e-3);
    p = fma(p, r, 8.333452e-3);
    p = fma(p, r, 4.1665796e-2);
    p = fma(p, r, 0.16666666);
    p = fma(p, r, 0.5);
    let y = fma(p, r * r, r) + 1.0;
    let power = bitcast<f32>(u32(i32(n) + 127) << 23u);
    return select(y * power, 0.0, x < -87.3365);
}

// a / b for b in 1..4, within 1 ulp: one correction of whatever the adapter's division gives.
fn divide(a: f32, b: f32) -> f32 {
    let q = a / b;
    return fma(fma(-b, q, a), 1.0 / b, q);
}

// The upper 12 bits of the mantissa: products of two such numbers are exact. Integer arithmetic:
// compilers may take x - (x - y), the usual way to a rounding error, for y (Mesa does).
fn upper(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
}

// tanh, rounded correctly but for one argument in 150 (at most 0.534 ulp; measured over 0..12): a
// gate multiplies whole tensors, so that its error does not average out. Odd polynomial of degree 7
// below 0.125. Else (1 - e) / (1 + e) with e = exp(-2|x|), which cannot overflow: e = 2^n (1 + s),
// and r, s, numerator and denominator are each carried as upper part + rest.
fn tanh_exact(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.125 {
        let z = x * x;
        return x * z * ((-0.05347999 * z + 0.13333073) * z - 0.33333334) + x;
    }
    let v = -2.0 * min(a, 10.0);
    let n = round(v * 1.44269504);
    // r = v - n ln 2: the first difference is exact.
    let high = v - n * 0.693359375;
    let low = n * 2.12194440e-4;
    let r = high + low;
    let r1 = upper(r);
    let r2 = (high - r1) + low;
    // s = e^r - 1 = r + r^2 / 2 + r^3 Q(r), Q of degree 4 fitted to 4e-10.
    let square = 0.5 * r1 * r1;
    let cubic = r * r * r * ((((1.9910044e-4 * r + 1.3933546e-3) * r + 8.333282e-3) * r + 4.166648e-2) * r + 0.16666667);
    let s1 = upper(r1 + square + cubic);
    let s2 = ((r1 - s1) + square) + cubic + (r2 + r1 * r2 + 0.5 * r2 * r2);
    let power = bitcast<f32>(u32(i32(n) + 127) << 23u);
    let e1 = power * s1;
    let e2 = power * s2;
    let numerator1 = upper(1.0 - power - e1);
    let numerator2 = (((1.0 - numerator1) - power) - e1) - e2;
    let denominator1 = upper(1.0 + power + e1);
    let denominator2 = (((1.0 - denominator1) + power) + e1) + e2;
    let t = upper(numerator1 / denominator1);
    let rest = (numerator1 - t * denominator1) + (numerator2 - t * denominator2);
    // NaN is told by its bits, since WGSL may assume that there is none.
    let is_nan = (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
    return select(sign(x) * (t + rest / (denominator1 + denominator2)), x, is_nan);
}

// x Phi(x) = x (1 + erf(x / sqrt 2)) / 2. With a = |x| / sqrt 2 and q = erfc(a) / 2 it is x q for
// negative x, else x - x q. erfc(a) = e^(-a^2) t P(t), t = 1 / (1 + 0.38 a), P of degree 8 with a
// relative error of 2.0e-8 for a in 0..11. The square's rounding error is carried along. 6 ulp for
// positive x, 12.5 for negative x above -5 (without fused multiply-add). Beyond 14 the tail is
// below every f32.
fn gelu(x: f32) -> f32 {
    let a = min(abs(x), 14.0);
    let square = a * a;
    let a1 = upper(a);
    let a2 = a - a1;
    let lost = (a1 * a1 - square) + 2.0 * a1 * a2 + a2 * a2;
    var e = exp_nonpositive(-0.5 * square);
    e = e - e * (0.5 * lost);
    let t = 1.0 / fma(a, 0.26870057685088805, 1.0);
    var p = 0.05904267;
    p = fma(p, t, -0.26266386);
    p = fma(p, t, 0.3646859);
    p = fma(p, t, -0.16244641);
    p = fma(p, t, 0.23074225);
    p = fma(p, t, 0.13832707);
    p = fma(p, t, 0.20399446);
    p = fma(p, t, 0.21390616);
    p = fma(p, t, 0.2144118);
    let q = 0.5 * p * t * e;
    return select(x - a * q, max(x, -14.0) * q, x < 0.0);
}

// x / (1 + e^-x). 3.2 ulp. Below -88 the result is 0 within 2^-119.
fn silu(x: f32) -> f32 {
    let e = exp_nonpositive(-abs(x));
    let factor = divide(1.0, 1.0 + e);
    return select(x * factor, max(x, -104.0) * e * factor, x < 0.0);
}
