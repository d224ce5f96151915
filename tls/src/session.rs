//! TLS around the replica protocol, without I/O.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use rustls::{ClientConnection, Connection, ServerConnection};

use crate::Certificates;
use crate::connector::nobody;
use crate::settings::REPLICA;
use crate::standing::{Side, Standing};

/// One connection. Bytes from the socket go into [`Session::receive`], bytes to the peer into [`Session::send`]; what either wants to be
/// sent it writes to the `socket` that it is given, which has to take all of it.
pub struct Session {
    connection: Connection,
    standing: Standing,
}

impl Session {
    /// The side that connects, to the replicas of a node. Its first message is written by the first [`Session::send`].
    ///
    /// # Errors
    /// When the certificates do not work with our version of TLS.
    pub fn connect(certificates: &Arc<Certificates>, node: &str) -> io::Result<Self> {
        let standing = Standing::new(certificates, Side::Node(node.to_owned()));
        let config = certificates.current().to_replicas_of(node).map_err(io::Error::other)?;
        Ok(Self::new(ClientConnection::new(config, nobody()).map_err(io::Error::other)?.into(), standing))
    }

    /// The side that listens, for nodes that are peers.
    ///
    /// # Errors
    /// When the certificates do not work with our version of TLS.
    pub fn accept(certificates: &Arc<Certificates>) -> io::Result<Self> {
        let standing = Standing::new(certificates, Side::Peer);
        let config = Arc::clone(&certificates.current().replicas);
        Ok(Self::new(ServerConnection::new(config).map_err(io::Error::other)?.into(), standing))
    }

    fn new(mut connection: Connection, standing: Standing) -> Self {
        // Credits of the replica protocol bound what is sent; all of it leaves at once.
        connection.set_buffer_limit(None);
        Self { connection, standing }
    }

    /// Whether both sides have proved who they are.
    pub fn is_established(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Takes in what the peer sent, and adds what it says to `plain`. Answers of the handshake go to `socket`, also the alert that tells
    /// the peer of an error.
    ///
    /// # Errors
    /// When the peer is not who it should be, or is not accepted any more, or does not keep to TLS. Nothing works after that.
    pub fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>, socket: &mut dyn Write) -> io::Result<()> {
        self.check_standing()?;
        while !bytes.is_empty() {
            // Nothing is read any more once the peer has said that it ends.
            if self.connection.read_tls(&mut bytes)? == 0 {
                break;
            }
            let processed = self.connection.process_new_packets();
            self.write(socket)?;
            let waiting = processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let waiting = waiting.plaintext_bytes_to_read();
            if waiting > 0 {
                self.connection.reader().take(waiting as u64).read_to_end(plain)?;
            }
            self.check_protocol()?;
        }
        Ok(())
    }

    /// Encrypts the parts as one piece of the stream.
    ///
    /// # Errors
    /// When the session has failed, or the peer is not accepted any more.
    pub fn send(&mut self, parts: &[&[u8]], socket: &mut dyn Write) -> io::Result<()> {
        self.check_standing()?;
        let given = parts.iter().filter(|part| !part.is_empty());
        let mut parts: Vec<IoSlice<'_>> = given.map(|part| IoSlice::new(part)).collect();
        let mut left = &mut parts[..];
        while !left.is_empty() {
            match self.connection.writer().write_vectored(left)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                taken => IoSlice::advance_slices(&mut left, taken),
            }
        }
        self.write(socket)
    }

    fn check_standing(&mut self) -> io::Result<()> {
        let chain = self.connection.peer_certificates().filter(|_| !self.connection.is_handshaking());
        self.standing.check(chain)
    }

    fn write(&mut self, socket: &mut dyn Write) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(socket)?;
        }
        Ok(())
    }

    /// A peer that wants to speak something else must not get as far as speaking.
    fn check_protocol(&self) -> io::Result<()> {
        match self.is_established() && self.connection.alpn_protocol() != Some(REPLICA) {
            true => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak the replica protocol in TLS"))
            }
            false => Ok(()),
        }
    }
}
