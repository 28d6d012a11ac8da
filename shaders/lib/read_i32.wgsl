// An operand NAME of i32. NAME_at(i): element i of the binding.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<i32>;
const NAME_present = true;
fn NAME_at(i: u32) -> i32 {
    return NAME[i];
}
