// roof_copy: `out` = `x` at the device's full bandwidth: the memory side of the roofline that
// `xattn bench` measures. No op.
//
// Work: 16 KiB per workgroup of 256 invocations. Each copies 4 vectors of 4 words, 4 KiB apart:
// loads are coalesced, and every invocation has four in flight.
// Workgroup memory: none. Traffic: every byte once from `x`, once to `out`. The host takes buffers
// that are larger than caches, and fills `x` with noise: some memories compress.

struct Params {
    x_offset: u32,
    out_offset: u32,
    quads: u32,
}

@compute @workgroup_size(256)
fn roof_copy(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = linear_workgroup(workgroup, workgroups) * 1024u + lane;
    if first + 768u >= params.quads {
        return;
    }
    let source = params.x_offset / 4u + first;
    let a = x[source];
    let b = x[source + 256u];
    let c = x[source + 512u];
    let d = x[source + 768u];
    let result = params.out_offset / 4u + first;
    out[result] = a;
    out[result + 256u] = b;
    out[result + 512u] = c;
    out[result + 768u] = d;
}
