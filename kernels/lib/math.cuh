// math: the functions of activations and gates, in f32, with their largest errors.
//
// expf (1 ulp) and logf (1) are the compiler's, with the errors of the CUDA C++ Programming Guide,
// "Mathematical Functions"; division, square root and fma are rounded correctly. Under the emulator
// they are the host's: last bits may differ. Never use --use_fast_math: it replaces all of them.

// 1 ulp; 0 for -infinity.
DEVICE f32 exp_of(f32 x) {
    return expf(x);
}

// 1 ulp; -infinity for 0.
DEVICE f32 log_of(f32 x) {
    return logf(x);
}

// The upper 12 bits of the mantissa: products of two such numbers are exact. In integers, which no
// compiler contracts.
DEVICE f32 upper_part(f32 x) {
    return __uint_as_float(__float_as_uint(x) & 0xfffff000u);
}

// tanh, rounded correctly but for one argument in 150 (at most 0.534 ulp): a gate multiplies whole
// tensors, so its error does not average out. Odd polynomial of degree 7 below 0.125. Else (1 - e)
// / (1 + e) with e = exp(-2|x|), which cannot overflow: e = 2^n (1 + s), and r, s, numerator and
// denominator are each upper part + rest. The text of shaders/lib/math.wgsl.
DEVICE f32 tanh_exact(f32 x) {
    const f32 a = fabsf(x);
    if (a < 0.125f) {
        const f32 z = x * x;
        return x * z * ((-0.05347999f * z + 0.13333073f) * z - 0.33333334f) + x;
    }
    const f32 v = -2.0f * fminf(a, 10.0f);
    const f32 n = rintf(v * 1.44269504f);
    // r = v - n ln 2: the first difference is exact.
    const f32 high = v - n * 0.693359375f;
    const f32 low = n * 2.12194440e-4f;
    const f32 r = high + low;
    const f32 r1 = upper_part(r);
    const f32 r2 = (high - r1) + low;
    // s = e^r - 1 = r + r^2 / 2 + r^3 Q(r), Q of degree 4 fitted to 4e-10.
    const f32 square = 0.5f * r1 * r1;
    const f32 cubic = r * r * r * ((((1.9910044e-4f * r + 1.3933546e-3f) * r + 8.333282e-3f) * r + 4.166648e-2f) * r + 0.16666667f);
    const f32 s1 = upper_part(r1 + square + cubic);
    const f32 s2 = ((r1 - s1) + square) + cubic + (r2 + r1 * r2 + 0.5f * r2 * r2);
    const f32 power = __uint_as_float(static_cast<u32>(static_cast<i32>(n) + 127) << 23);
    const f32 e1 = power * s1;
    const f32 e2 = power * s2;
    const f32 numerator1 = upper_part(1.0f - power - e1);
    const f32 numerator2 = (((1.0f - numerator1) - power) - e1) - e2;
    const f32 denominator1 = upper_part(1.0f + power + e1);
    const f32 denominator2 = (((1.0f - denominator1) + power) + e1) + e2;
    const f32 t = upper_part(numerator1 / denominator1);
    const f32 rest = (numerator1 - t * denominator1) + (numerator2 - t * denominator2);
    // fminf took NaN for 10.
    return x == x ? copysignf(t + rest / (denominator1 + denominator2), x) : x;
}

// x Phi(x) = max(x, 0) - |x| q with q = erfc(|x| / sqrt 2) / 2 = e^(-x^2 / 2) t P(t), t = 1 / (1 +
// 0.2687 |x|), the P of shaders/lib/math.wgsl (degree 8, relative error 2.0e-8). 10 ulp: 6.1 were
// measured with correctly rounded reciprocal and power of 2, and the device's may lose 0.5 and 1.5
// more. For negative x the exponent's error (two roundings, and 0.29 of one in the constant) counts
// x^2 / 2 times as much: 10 + 1.3 x^2 ulp, of a result that shrinks faster. Below -13.2 it is 0,
// also for -infinity. No branch: an epilogue calls it for each value of y.
DEVICE f32 gelu(f32 x) {
    const f32 a = fminf(fabsf(x), 14.0f);
    const f32 t = reciprocal(fma(a, 0.26870057685088805f, 1.0f));
    f32 p = 0.029521335f;
    p = fma(p, t, -0.13133193f);
    p = fma(p, t, 0.18234295f);
    p = fma(p, t, -0.081223205f);
    p = fma(p, t, 0.115371125f);
    p = fma(p, t, 0.069163535f);
    p = fma(p, t, 0.10199723f);
    p = fma(p, t, 0.106953085f);
    p = fma(p, t, 0.1072059f);
    const f32 q = p * t * exp2_approx(a * a * -0.72134752f);
    // x itself where it is NaN.
    return fma(-a, q, x < 0.0f ? 0.0f : x);
}

// x / (1 + e^-x). 3 ulp; below -88 it is 0 within 2^-119, also for -infinity.
DEVICE f32 silu(f32 x) {
    const f32 e = expf(-fabsf(x));
    const f32 factor = 1.0f / (1.0f + e);
    return x < 0.0f ? fmaxf(x, -104.0f) * e * factor : x * factor;
}
