//! Both ends of iSCSI, bytes in between, and a clock that only the test moves.

mod data;
mod hostile;
mod login;
mod random;
mod tasks;
mod util;
