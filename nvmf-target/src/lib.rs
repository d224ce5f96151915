//! The NVMe/TCP target: listener and connection driver
