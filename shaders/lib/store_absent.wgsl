// A written operand NAME that this call does not have. It takes no binding.
const NAME_present = false;
fn NAME_set(i: u32, word: u32) {}
