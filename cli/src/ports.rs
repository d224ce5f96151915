//! Ports on loopback for daemons that keep theirs over restarts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;

/// The system must not give a stopped daemon's port to somebody else: these are below the range that it chooses from for outgoing connections.
const ALL: Range<u16> = 10_000..30_000;

/// Ports of one block: more than the daemons of a cluster have.
const BLOCK: u16 = 64;

/// A block of ports. Whoever reserves one elsewhere gets another as long as this lives.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Listens on the block's first port: nobody else can.
    _guard: TcpListener,
    rest: Range<u16>,
}

impl Ports {
    /// Takes a block that nobody has.
    pub(crate) fn reserve() -> io::Result<Self> {
        let blocks = (ALL.end - ALL.start) / BLOCK;
        // Not from the first on: many programs look at the same time.
        let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for step in 0..u64::from(blocks) {
            // The remainder is below their number.
            let block = (random.wrapping_add(step) % u64::from(blocks)) as u16;
            let first = ALL.start + block * BLOCK;
            match TcpListener::bind((Ipv4Addr::LOCALHOST, first)) {
                Ok(guard) => return Ok(Self { _guard: guard, rest: first + 1..first + BLOCK }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The next one that nobody listens on.
    pub(crate) fn next(&mut self) -> io::Result<SocketAddr> {
        for port in self.rest.by_ref() {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            // Binding it to see whether it is free could be what keeps it taken: a child that another thread is just starting has our sockets too.
            if TcpStream::connect(address).is_err() {
                return Ok(address);
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nobody_gets_the_port_of_another_nor_one_that_is_used() {
        let mut blocks: Vec<_> = (0..3).map(|_| Ports::reserve().expect("there are hundreds")).collect();
        let taken = SocketAddr::from((Ipv4Addr::LOCALHOST, blocks[0].rest.start));
        let _listener = TcpListener::bind(taken).expect("it is of our block");
        let mut ports = BTreeSet::new();
        for block in &mut blocks {
            for _ in 0..40 {
                let address = block.next().expect("there is room");
                assert!(address != taken && ports.insert(address), "{address} is taken");
            }
        }
    }
}
