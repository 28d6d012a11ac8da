// attention_pack: copies one index operand (lengths, bits, slots, offsets, φ) into the binding that
// the main dispatch reads all of them from, for calls that would otherwise bind more than 8 storage
// buffers.
//
// Work: one invocation per word, 256 per workgroup. Workgroup memory: none. Traffic: in, out once.

struct Params {
    index_offset: u32,
    packed_offset: u32,
    words: u32,
    rows: u32,
    width: u32,
    stride_b: u32,
    stride_r: u32,
    stride_w: u32,
}

@compute @workgroup_size(256)
fn attention_pack(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear_workgroup(workgroup, workgroups) * 256u + lane;
    if i < params.words {
        let row = i / params.width;
        let place = row / params.rows * params.stride_b + row % params.rows * params.stride_r;
        packed_set(params.packed_offset + i, index_at(params.index_offset + place + i % params.width * params.stride_w));
    }
}
