pub fn fields() -> Vec<(String, String)> { vec![] }
pub fn sizes() -> Vec<(&'static str, usize)> { vec![] }
