//! The logical-volume store: format, allocator, map, journal, chain, recovery
