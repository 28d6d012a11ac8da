// A written operand NAME of i32.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<i32>;
const NAME_present = true;
