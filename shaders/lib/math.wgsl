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

// a * b as p + its rounding error, without relying on fused multiply-add: factors are cut into halves of 12 bits, whose products are
// exact.
fn exact_product(a: f32, b: f32) -> vec2<f32> {
    let a_high = bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
    let b_high = bitcast<f32>(bitcast<u32>(b) & 0xfffff000u);
    let a_low = a - a_high;
    let b_low = b - b_high;
    let p = a * b;
    return vec2<f32>(p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low);
}

// tanh, rounded correctly but for one argument in 150 (at most 0.534 ulp; measured over 0..12): a gate multiplies whole tensors, so that
// its error does not average out. Odd polynomial of degree 7 below 0.125. Else (1 - e) / (1 + e) with e = exp(-2|x|), which cannot
// overflow: e = 2^n (1 + s), and s, numerator, denominator and quotient are each carried as a sum of two numbers.
fn tanh_exact(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.125 {
        let z = x * x;
        return x * z * ((-0.05347999 * z + 0.13333073) * z - 0.33333334) + x;
    }
    let v = -2.0 * min(a, 10.0);
    let n = round(v * 1.44269504);
    // v - n ln 2: the first difference is exact.
    let high = v - n * 0.693359375;
    let low = n * 2.12194440e-4;
    let r = high + low;
    let r_lo = select(high - (r - low), low - (r - high), abs(high) >= abs(low));
    // e^r - 1 = r + r^2 / 2 + r^3 Q(r), Q of degree 4 fitted to 4e-10.
    let square = exact_product(r, r);
    let half = 0.5 * square.x;
    let quadratic = r + half;
    let cubic = r * square.x
        * ((((1.9910044e-4 * r + 1.3933546e-3) * r + 8.333282e-3) * r + 4.166648e-2) * r + 0.16666667);
    let s = quadratic + cubic;
    let s_lo = (cubic - (s - quadratic)) + ((half - (quadratic - r)) + (r_lo + r_lo * r) + 0.5 * square.y);
    let power = bitcast<f32>(u32(i32(n) + 127) << 23u);
    let e = power * s;
    let e_lo = power * s_lo;
    let below = 1.0 - power;
    let above = 1.0 + power;
    let numerator = below - e;
    let numerator_lo = ((below - numerator) - e) - e_lo + ((1.0 - below) - power);
    let denominator = above + e;
    let denominator_lo = ((above - denominator) + e) + e_lo + (power - (above - 1.0));
    let t = numerator / denominator;
    let back = exact_product(t, denominator);
    let rest = ((numerator - back.x) - back.y) + (numerator_lo - t * denominator_lo);
    return sign(x) * (t + rest / denominator);
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
