//! `ashlar`.

fn main() {}
