//! Lists of blocks as volumes of 16 TiB have them, in bounded memory. Alone in its process, whose memory it measures.

#![forbid(unsafe_code)]

use std::io::{self, Read};

use backup::block::Checksum;
use backup::format::backup::BackupConfig;

/// A backup's file, made as it is read.
struct Generated {
    piece: Vec<u8>,
    at: usize,
    next: u64,
    count: u64,
}

impl Generated {
    fn new(count: u64) -> Self {
        let head = br#"{"Name":"backup-1","VolumeName":"vol-1","CreatedTime":"2026-01-01T00:00:00Z","Blocks":["#;
        Self { piece: head.to_vec(), at: 0, next: 0, count }
    }

    fn refill(&mut self) {
        self.piece.clear();
        self.at = 0;
        while self.next < self.count && self.piece.len() < 1 << 16 {
            let comma = if self.next == 0 { "" } else { "," };
            let checksum = Checksum([self.next as u8; 32]);
            let entry = format!(r#"{comma}{{"Offset":{},"BlockChecksum":"{checksum}"}}"#, self.next << 21);
            self.piece.extend_from_slice(entry.as_bytes());
            self.next += 1;
            if self.next == self.count {
                self.piece.extend_from_slice(b"]}");
            }
        }
    }
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.refill();
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// The most memory that this process had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_list_is_parsed_in_bounded_memory() {
    // 16 TiB have 8 Mi blocks; the short run has as many as half a TiB.
    let count: u64 = if std::env::var_os("ASHLAR_LONG_TESTS").is_some() { 8 << 20 } else { 1 << 18 };
    let before = peak_kib();
    let mut sum = 0;
    let (_, blocks) = BackupConfig::parse(Generated::new(count), &mut |block| {
        sum += block.offset >> 21;
        Ok(())
    })
    .expect("a backup");
    assert_eq!((blocks.count, blocks.last, sum), (count, (count - 1) << 21, count * (count - 1) / 2));
    let grown = peak_kib() - before;
    // The list alone would be 10 MiB, or 320 MiB.
    assert!(grown < 6 << 10, "{grown} KiB");
}
