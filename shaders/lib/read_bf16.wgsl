// An operand NAME of bf16, two in a word. NAME_at(i): its element i, counted from the start of the binding. Exact.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<u32>;
const NAME_present = true;
fn NAME_at(i: u32) -> f32 {
    let word = NAME[i >> 1u];
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
}
