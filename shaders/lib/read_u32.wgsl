// An operand NAME of u32. NAME_at(i): element i of the binding.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<u32>;
const NAME_present = true;
fn NAME_at(i: u32) -> u32 {
    return NAME[i];
}
