//! Listener, hand-over and connections on simulated reactors: initiators that behave, initiators that do not, devices that fail.

mod commands;
mod hostile;
mod logins;
mod management;
mod reservations;
mod util;
