//! Tasks of the vmi workspace.
fn main() {}
