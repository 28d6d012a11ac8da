// roof_multiply_add: f32 multiply-adds at the device's full rate: the arithmetic side of the
// roofline that `xattn bench` measures. No op.
//
// Work: each invocation keeps 8 vectors of 4 numbers and applies x = factor x + term to all of
// them, 4 times per step of the loop: 32 independent chains hide the latency of an instruction, and
// 128 multiply-adds the cost of the loop. Factor and term come from the uniform and every number
// starts at another value, so that no compiler can see that there is less to do. With 1/2 and 1/2
// every chain becomes exactly 1, fused or not: each sum is then 32, which the host checks.
// Workgroup memory: none. Traffic: one word per invocation, for 256 multiply-adds per step.

struct Params {
    out_offset: u32,
    invocations: u32,
    steps: u32,
    factor: f32,
    term: f32,
}

@compute @workgroup_size(256)
fn roof_multiply_add(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let invocation = linear_workgroup(workgroup, workgroups) * 256u + lane;
    let factor = vec4<f32>(params.factor);
    let term = vec4<f32>(params.term);
    let start = vec4<f32>(0.0, 1.0, 2.0, 3.0) + f32(lane);
    var a = start;
    var b = start + 4.0;
    var c = start + 8.0;
    var d = start + 12.0;
    var e = start + 16.0;
    var f = start + 20.0;
    var g = start + 24.0;
    var h = start + 28.0;
    for (var step = 0u; step < params.steps; step++) {
        for (var again = 0u; again < 4u; again++) {
            a = fma(a, factor, term);
            b = fma(b, factor, term);
            c = fma(c, factor, term);
            d = fma(d, factor, term);
            e = fma(e, factor, term);
            f = fma(f, factor, term);
            g = fma(g, factor, term);
            h = fma(h, factor, term);
        }
    }
    let sum = a + b + c + d + e + f + g + h;
    out_store(params.out_offset + invocation, sum.x + sum.y + sum.z + sum.w, 0.0, invocation < params.invocations, false);
}
