//! The logical-volume store.
#![forbid(unsafe_code)]
#![allow(dead_code)]
mod allocator;
mod format;
mod map;
