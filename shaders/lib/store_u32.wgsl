// A written operand NAME of words: integers, or f32 as bits.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<u32>;
const NAME_present = true;
fn NAME_set(i: u32, word: u32) {
    NAME[i] = word;
}
