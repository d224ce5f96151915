//! The parsers as functions for fuzzers: any bytes in, and a panic when something is wrong with us.

use crate::format::backup::{BackupConfig, BlockEntry};
use crate::format::lock::LockFile;
use crate::format::volume::VolumeConfig;

/// A file of a volume: what is read is what is written again, and stays so.
///
/// # Panics
/// When it does not.
pub fn volume(bytes: &[u8]) {
    let Ok(config) = VolumeConfig::parse(bytes) else { return };
    let written = config.to_bytes();
    let again = VolumeConfig::parse(&written).expect("our own file");
    assert_eq!(again.to_bytes(), written);
}

/// A file of a backup: its blocks are in order, and it comes back.
///
/// # Panics
/// When it does not.
pub fn backup(bytes: &[u8]) {
    let Some((config, blocks)) = parse(bytes) else { return };
    assert!(blocks.is_sorted_by(|one, next| one.offset < next.offset));
    let mut written = Vec::new();
    config.write(&mut written, &mut blocks.iter().copied().map(Ok)).expect("memory takes it");
    assert_eq!(parse(&written), Some((config, blocks)));
}

fn parse(bytes: &[u8]) -> Option<(BackupConfig, Vec<BlockEntry>)> {
    let mut blocks = Vec::new();
    let read = BackupConfig::parse(bytes, &mut |block| {
        blocks.push(block);
        Ok(())
    });
    Some((read.ok()?.0, blocks))
}

/// A lock.
///
/// # Panics
/// When what is read is not what is written again.
pub fn lock(bytes: &[u8]) {
    let Ok(lock) = LockFile::parse(bytes) else { return };
    assert_eq!(LockFile::parse(&lock.to_bytes()), Ok(lock));
}

/// A block: the first bit chooses the method, and nothing larger than a page comes out.
///
/// # Panics
/// When something does.
pub fn block(bytes: &[u8]) {
    use crate::block::{Checksum, Compression, unpack};
    let Some((first, packed)) = bytes.split_first() else { return };
    let method = if first & 1 == 0 { Compression::Lz4 } else { Compression::Gzip };
    assert!(
        unpack(packed, method, 4096, &Checksum::of(bytes)).is_err(),
        "no block has the checksum of its packed form"
    );
}

/// A URL of a target: what is read is what is written again.
///
/// # Panics
/// When it is not.
pub fn url(bytes: &[u8]) {
    use crate::target::TargetUrl;
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(url) = text.parse::<TargetUrl>() else { return };
    assert_eq!(url.to_string().parse(), Ok(url));
}
