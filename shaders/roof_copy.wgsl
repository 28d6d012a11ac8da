// roof_copy: `to` = `from`, as fast as the device can: the other side of the roofline that `xattn bench` measures. No op.
//
// Work: 16 KiB per workgroup of 256 invocations; each copies 4 vectors of 4 words, 4 KiB apart, so that neighbours read neighbours and
// every invocation has four loads under way.
// Workgroup memory: none. Traffic: every byte once from `from`, once to `to`. The host takes buffers that are larger than caches, and fills
// `from` with noise: some memories compress.
// Tried: nothing else yet.

struct Params {
    from_offset: u32,
    to_offset: u32,
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
    let source = params.from_offset / 4u + first;
    let a = from[source];
    let b = from[source + 256u];
    let c = from[source + 512u];
    let d = from[source + 768u];
    let target_quad = params.to_offset / 4u + first;
    to[target_quad] = a;
    to[target_quad + 256u] = b;
    to[target_quad + 512u] = c;
    to[target_quad + 768u] = d;
}
