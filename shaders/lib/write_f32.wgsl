// A written operand NAME of f32, with the interface of the 16-bit ones: pairs with absent elements.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<f32>;
fn NAME_at(i: u32) -> f32 {
    return NAME[i];
}
// Always 0: an element fills its word.
fn NAME_phase(i: u32) -> u32 {
    return 0u;
}
// Elements i and i + 1. NAME_phase(i) is 0.
fn NAME_store(i: u32, a: f32, b: f32, has_a: bool, has_b: bool) {
    if has_a {
        NAME[i] = a;
    }
    if has_b {
        NAME[i + 1u] = b;
    }
}
