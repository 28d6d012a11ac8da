// An index operand NAME that `attention_pack` has copied into `packed`, dense. It has no binding.
const NAME_present = true;
fn NAME_at(i: u32) -> u32 {
    return packed_at(params.packed_offset + i);
}
