//! Listener, hand-over and connections on simulated reactors: hosts that behave, hosts that do not, devices that fail.

mod commands;
mod connecting;
mod hostile;
mod initiator;
mod util;
