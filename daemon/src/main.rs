//! `ashlard`.

fn main() {}
