//! The simulated cluster: one seed, one thread, faults, invariants checked by number
