// An operand NAME that this call does not have. It takes no binding.
const NAME_present = false;
fn NAME_at(i: u32) -> u32 {
    return 0u;
}
