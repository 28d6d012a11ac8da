// An operand NAME of i32. NAME_at(i): its element i, counted from the start of the binding.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<i32>;
const NAME_present = true;
fn NAME_at(i: u32) -> i32 {
    return NAME[i];
}
