//! The replica protocol: frames and sessions, no I/O
