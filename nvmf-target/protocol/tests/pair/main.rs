//! Host and target state machines against each other, on one virtual clock, over a wire that cuts wherever it likes.

mod admin;
mod data;
mod hostile;
mod random;
mod util;
