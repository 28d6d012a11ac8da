// The sum over a workgroup of 256 (TEAM is 256) by subgroups of at least 4, bit-identical in all.
var<private> team_subgroup: u32;
var<private> team_subgroups: u32;
var<private> team_lane: u32;
var<workgroup> team_partial: array<f32, 64>;
fn team_sum(lane: u32, value: f32) -> f32 {
    let partial = subgroupAdd(value);
    workgroupBarrier();
    if team_lane == 0u {
        team_partial[team_subgroup] = partial;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < team_subgroups; i++) {
        sum += team_partial[i];
    }
    return sum;
}
