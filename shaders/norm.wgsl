// norm: LayerNorm, RMSNorm or L2 normalisation of rows x + add, optionally gathered from a table;
// statistics in f32.
//
// Work: TEAM invocations per row, 256 / TEAM rows per workgroup: a wide row has a workgroup of its
// own, narrow ones (q/k norms per head) share one. Three passes over the row: mean (Layer only),
// mean square of the differences, result. An invocation visits the same words in each pass, which
// makes in-place safe. Sums: one per invocation, then a tree over the team in a fixed order.
// Workgroup memory: 1 KiB of partial sums.
// Traffic: x and add once from memory, then from the caches (width 4096: 16 KiB); out once.

@compute @workgroup_size(256)
fn norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    norm_rows(linear_workgroup(workgroup, workgroups), lane);
}
