// Functions that WGSL lacks (erf) or leaves too loose (exp: 3 + 2|x| ulp, tanh: overflows for large x on some adapters).
// Polynomials only; the errors named are those of f32 arithmetic with exact additions and products, division within 2.5 ulp.

// e^x for x <= 0; 0 below -87.3365, where results leave the normal range. 1 ulp. x = n ln 2 + r, ln 2 in two parts of which the
// first has 9 bits, so that n times it is exact with or without fused multiply-add; degree 7 in r.
fn exp_nonpositive(x: f32) -> f32 {
    let a = max(x, -87.3365);
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

// tanh, 2.5 ulp (relative 2.5 * 2^-24 measured over 0..12). Odd polynomial of degree 11 below 0.625, else (1 - e) / (1 + e) with
// e = exp(-2|x|), which cannot overflow.
fn tanh_exact(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.625 {
        let z = a * a;
        var p = -5.7049873e-3;
        p = fma(p, z, 2.0639088e-2);
        p = fma(p, z, -5.3739715e-2);
        p = fma(p, z, 0.13331442);
        p = fma(p, z, -0.3333328);
        return fma(x * z, p, x);
    }
    let e = exp_nonpositive(-2.0 * min(a, 10.0));
    return sign(x) * divide(1.0 - e, 1.0 + e);
}

// x Phi(x) = x (1 + erf(x / sqrt 2)) / 2. With a = |x| / sqrt 2 and q = erfc(a) / 2 it is x q for negative x, else x - x q.
// erfc(a) = e^(-a^2) t P(t), t = 1 / (1 + 0.38 a), P of degree 8 with a relative error of 2.0e-8 for a in 0..11. 6 ulp; without fused
// multiply-add 12.5 ulp more in the tail at -5. Beyond 14 the tail is below every f32.
fn gelu(x: f32) -> f32 {
    let a = min(abs(x), 14.0);
    let square = a * a;
    let lost = fma(a, a, -square);
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
