//! Speed, end to end.
fn main() {}
