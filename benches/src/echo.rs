//! A server that does nothing: it answers each command with the same 4 KiB, in the shape of NVMe/TCP. What it reaches
//! on a machine is the limit for any target on the same reactor: only the kernel's TCP and the reactor are in it.
//!
//! A command capsule has 72 bytes (common header and submission queue entry). The answer is one C2HData PDU: a header of
//! 24 bytes, with the command's identifier and the flag that makes a response capsule needless, and 4 KiB of data.

use std::io;
use std::net::SocketAddr;

use reactor::{Slice, TcpListener, TcpStream, spawn};

/// The size of a command capsule without data: 8 bytes of common header, 64 of submission queue entry.
pub const COMMAND: usize = 72;

/// The size of the header of a C2HData PDU.
pub const HEADER: usize = 24;

/// The data of each answer.
pub const DATA: usize = 4096;

/// Where a command capsule has its command identifier: in bytes 2 and 3 of the entry.
const IDENTIFIER: std::ops::Range<usize> = 10..12;

/// Listens, and serves every connection with a task of its own until the task is aborted.
pub fn serve(address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_address();
    spawn(async move {
        while let Ok(stream) = listener.accept().await {
            spawn(answer(stream));
        }
    });
    Ok(address)
}

async fn answer(stream: TcpStream) -> io::Result<()> {
    let data = Slice::zeroes(DATA);
    let mut partial = Partial::default();
    loop {
        let chunk = stream.receive().await?;
        if chunk.is_empty() {
            return Ok(());
        }
        partial.for_each_command(&chunk, |identifier| {
            stream.push_copy(&header(identifier));
            stream.push(data.clone());
        });
        drop(chunk);
        stream.flush();
        // A host that does not read its answers gets no more of them.
        stream.drained(1 << 20).await?;
    }
}

/// The beginning of a command whose rest is still to come.
struct Partial {
    bytes: [u8; COMMAND],
    length: usize,
}

impl Default for Partial {
    fn default() -> Self {
        Self { bytes: [0; COMMAND], length: 0 }
    }
}

impl Partial {
    fn for_each_command(&mut self, mut chunk: &[u8], mut each: impl FnMut([u8; 2])) {
        if self.length > 0 {
            let (now, rest) = chunk.split_at(chunk.len().min(COMMAND - self.length));
            self.keep(now);
            chunk = rest;
            if self.length < COMMAND {
                return;
            }
            self.length = 0;
            each(identifier(&self.bytes));
        }
        let (commands, rest) = chunk.as_chunks::<COMMAND>();
        for command in commands {
            each(identifier(command));
        }
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

fn identifier(command: &[u8; COMMAND]) -> [u8; 2] {
    [command[IDENTIFIER.start], command[IDENTIFIER.start + 1]]
}

fn header(identifier: [u8; 2]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    // PDU type C2HData; flags SUCCESS and LAST_PDU; header length and data offset.
    header[..4].copy_from_slice(&[0x07, 0x0C, HEADER as u8, HEADER as u8]);
    header[4..8].copy_from_slice(&((HEADER + DATA) as u32).to_le_bytes());
    header[8..10].copy_from_slice(&identifier);
    header[16..20].copy_from_slice(&(DATA as u32).to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_however_they_are_cut() {
        let stream: Vec<u8> = (0..10_u8)
            .flat_map(|number| {
                let mut command = [0xEE; COMMAND];
                command[IDENTIFIER].copy_from_slice(&[number, 1]);
                command
            })
            .collect();
        for size in 1..stream.len() {
            let mut partial = Partial::default();
            let mut found = Vec::new();
            for chunk in stream.chunks(size) {
                partial.for_each_command(chunk, |identifier| found.push(identifier));
            }
            assert_eq!(found, (0..10).map(|number| [number, 1]).collect::<Vec<_>>(), "chunks of {size}");
        }
    }
}
