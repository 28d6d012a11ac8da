// No scratch NAME.
fn NAME_at(i: u32) -> vec4<f32> {
    return vec4<f32>();
}
fn NAME_set(i: u32, x: vec4<f32>) {}
