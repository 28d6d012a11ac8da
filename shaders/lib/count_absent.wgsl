// No counter NAME.
fn NAME_add(i: u32) {}
