//! TLS for the replica protocol.

use std::io::{self, Write};
use std::sync::Arc;

use replica::{SecureSession, Security};
use tls::{Certificates, Session};

/// Connections between nodes, by their certificates.
#[derive(Clone, Debug)]
pub(crate) struct NodeSecurity(pub(crate) Arc<Certificates>);

impl Security for NodeSecurity {
    fn connect(&self, node: &str) -> io::Result<Box<dyn SecureSession>> {
        Ok(Box::new(Sealed(Session::connect(&self.0, node)?)))
    }

    fn accept(&self) -> io::Result<Box<dyn SecureSession>> {
        Ok(Box::new(Sealed(Session::accept(&self.0)?)))
    }
}

struct Sealed(Session);

impl SecureSession for Sealed {
    fn is_established(&self) -> bool {
        self.0.is_established()
    }

    fn receive(&mut self, bytes: &[u8], plain: &mut Vec<u8>, socket: &mut dyn Write) -> io::Result<()> {
        self.0.receive(bytes, plain, socket)
    }

    fn send(&mut self, parts: &[&[u8]], socket: &mut dyn Write) -> io::Result<()> {
        self.0.send(parts, socket)
    }
}
