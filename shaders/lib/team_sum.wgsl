// The sum over teams of TEAM neighbouring invocations (a power of two) of a workgroup of 256,
// bit-identical in all of them: a tree through workgroup memory, in a fixed order.
var<workgroup> team_partial: array<f32, 256>;
fn team_sum(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    team_partial[lane] = value;
    for (var step = TEAM / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane % TEAM < step {
            team_partial[lane] += team_partial[lane + step];
        }
    }
    workgroupBarrier();
    return team_partial[lane / TEAM * TEAM];
}
