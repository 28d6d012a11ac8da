// The launcher folds a grid of more than 65535 workgroups into two dimensions. Uniform.
fn linear_workgroup(workgroup: vec3<u32>, workgroups: vec3<u32>) -> u32 {
    return workgroup.x + workgroup.y * workgroups.x;
}
