// norm for wide rows, on adapters with subgroups of 4 to 128: as `norm`, but for the sums.
//
// Work: one row per workgroup (TEAM is 256). The hardware adds within each subgroup; every
// invocation then adds the at most 64 partial sums in the same order. The assignment of invocations
// to subgroups does not matter.
// Workgroup memory: 256 bytes, one sum per subgroup.
// Traffic: as `norm`. Saves six of the eight barriers of each sum.

@compute @workgroup_size(256)
fn norm_subgroups(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    team_subgroup = subgroup;
    team_subgroups = subgroups;
    team_lane = subgroup_lane;
    norm_rows(linear_workgroup(workgroup, workgroups), lane);
}
