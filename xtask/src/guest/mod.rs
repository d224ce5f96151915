//! A real Linux host to test against: a Debian guest under qemu, driven step by step.
//!
//! [`Image`] builds the guest once, [`Machine`] boots it and runs steps in it. The guest's side is in
//! `tests/e2e/guest/`. With user-mode networking the guest finds this machine's loopback at [`HOST`].

mod image;
mod machine;

pub(crate) use image::Image;
pub(crate) use machine::Machine;

/// The address at which the guest finds the loopback of the machine it runs on.
pub(crate) const HOST: &str = "10.0.2.2";
