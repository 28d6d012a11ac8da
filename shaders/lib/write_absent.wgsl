// A written operand NAME of reals that this shader does not have. It takes no binding.
fn NAME_phase(i: u32) -> u32 {
    return 0u;
}
fn NAME_store(i: u32, a: f32, b: f32, has_a: bool, has_b: bool) {}
