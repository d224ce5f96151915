//! See `fuzzing::TARGETS`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::run("backup_files", bytes));
