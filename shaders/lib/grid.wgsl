// A linear grid may exceed the 65535 workgroups of one dimension: the launcher folds it into two. Uniform in the workgroup.
fn linear_workgroup(workgroup: vec3<u32>, workgroups: vec3<u32>) -> u32 {
    return workgroup.x + workgroup.y * workgroups.x;
}
