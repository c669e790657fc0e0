//! The `dino-host` program.
fn main() {}
