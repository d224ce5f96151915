//! Benchmarks: the limits of the machine and what the project reaches of them.

#![forbid(unsafe_code)]

pub mod echo;
