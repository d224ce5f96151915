//! Tests against the real binaries
