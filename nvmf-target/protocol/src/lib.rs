//! NVMe over TCP: wire structures and the connection state machine, no I/O
