// A written operand NAME of 16-bit elements, two in a word. DTYPE_unpack and DTYPE_pack are those
// of bf16.wgsl and f16.wgsl.
//
// Baseline WGSL stores words only. A word that this invocation fills is stored whole. Of a shared
// word (the end of an odd row, or of a neighbour in memory that is no operand at all), it first
// clears, then sets its own half: two atomics, which leave the other half as it is whatever its
// owner does meanwhile. Only the owner changes a half, so the result is deterministic.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<atomic<u32>>;
fn NAME_at(i: u32) -> f32 {
    return DTYPE_unpack(atomicLoad(&NAME[i >> 1u]), i & 1u);
}
// 1 if element i is the upper half of a word: a row that starts there begins with half a pair.
fn NAME_phase(i: u32) -> u32 {
    return i & 1u;
}
// Elements i and i + 1. NAME_phase(i) is 0. i may lie before an operand's first one, if absent.
fn NAME_store(i: u32, a: f32, b: f32, has_a: bool, has_b: bool) {
    let word = i >> 1u;
    let bits = DTYPE_pack(a) | (DTYPE_pack(b) << 16u);
    if has_a && has_b {
        atomicStore(&NAME[word], bits);
    } else if has_a {
        atomicAnd(&NAME[word], 0xffff0000u);
        atomicOr(&NAME[word], bits & 0xffffu);
    } else if has_b {
        atomicAnd(&NAME[word], 0xffffu);
        atomicOr(&NAME[word], bits & 0xffff0000u);
    }
}
