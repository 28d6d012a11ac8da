// An operand NAME that this call does not have. It takes no binding.
const NAME_present = false;
fn NAME_at(i: u32) -> f32 {
    return 0.0;
}
fn NAME_quad(i: u32) -> vec4<f32> {
    return vec4<f32>();
}
