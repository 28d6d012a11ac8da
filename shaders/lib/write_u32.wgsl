// A written operand NAME of u32.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<u32>;
const NAME_present = true;
