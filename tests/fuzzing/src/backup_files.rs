//! What a backup store has: files of volumes, backups and locks, quantities and URLs in them, and packed blocks.

use backup::block::{Checksum, Compression, pack};
use backup::format::backup::{BackupConfig, BlockEntry};
use backup::format::volume::VolumeConfig;

/// The first byte says what the others are.
pub(super) fn files(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 5 {
        0 => backup::fuzzing::volume(bytes),
        1 => backup::fuzzing::backup(bytes),
        2 => backup::fuzzing::lock(bytes),
        3 => backup::fuzzing::block(bytes),
        _ => backup::fuzzing::url(bytes),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let seed = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
    let volume = VolumeConfig::new("vol-1", 64 << 20, Compression::Lz4, "2026-01-01T00:00:00Z".to_owned());
    let odd =
        br#"{"name":"vol-1","Size":"1","Labels":{"a":"b \u0026"},"DataEngine":"\"v2\"","New":{"x":[1,2.5e3,null]}}"#;
    let config = BackupConfig {
        name: "backup-1".to_owned(),
        volume: "vol-1".to_owned(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        parameters: Some(BackupConfig::parameters_for(2 << 20, false)),
        labels: Some([("a".to_owned(), "<b>".to_owned())].into()),
        compression: "lz4".to_owned(),
        ..BackupConfig::default()
    };
    let blocks = (0..3_u64).map(|n| Ok(BlockEntry { offset: n << 21, checksum: Checksum::of(&[n as u8]) }));
    let mut backup = Vec::new();
    // Memory takes all that is written to it.
    let _ = config.write(&mut backup, &mut blocks.into_iter());
    let packed = |method| pack(&[7; 5000], method).unwrap_or_default();
    vec![
        seed(0, &volume.to_bytes()),
        seed(0, odd),
        seed(1, &backup),
        seed(2, br#"{"Name":"lock-0123456789abcdef","Type":2,"Acquired":true}"#),
        seed(3, &[&[0], packed(Compression::Lz4).as_slice()].concat()),
        seed(3, &[&[1], packed(Compression::Gzip).as_slice()].concat()),
        seed(4, b"s3://bucket@region/path/?backup=backup-1&volume=vol-1"),
        seed(4, b"azblob://container@core.windows.net/x"),
        seed(4, b"vfs:///mnt/backups"),
    ]
}
