//! What the machine allows a copy: from file to file, and through a connection on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use reactor::{Buffer, Disk, DiskOptions, Reactor, Slice};

const PIECE: u64 = 1 << 20;
/// Pieces on their way at once.
const DEPTH: u64 = 4;

/// Waits until the file system of `folder` is done with what was removed there before: freeing and discarding the blocks of large files can
/// take a disk many seconds, in which each flush waits, and with it the kernel's last steps for a process that was killed. A minute at most.
pub(super) fn settle(folder: &Path) -> anyhow::Result<()> {
    const QUICK: Duration = Duration::from_millis(50);
    const QUICK_IN_A_ROW: u32 = 40;
    let mut file = tempfile::tempfile_in(folder)?;
    let (begun, mut quick) = (Instant::now(), 0);
    while quick < QUICK_IN_A_ROW && begun.elapsed() < Duration::from_secs(60) {
        thread::sleep(QUICK);
        let flush = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
        quick = if flush.elapsed() < QUICK { quick + 1 } else { 0 };
    }
    Ok(())
}

/// A file that can be copied.
pub(super) fn make_file(path: &Path, length: u64) -> anyhow::Result<()> {
    let path = path.to_owned();
    let make = async move {
        let disk = Disk::open(&path, &DiskOptions { create: Some(length), ..DiskOptions::default() })?;
        let data = Slice::from(&vec![0x5a; PIECE as usize][..]);
        for piece in 0..length / PIECE {
            disk.write(piece * PIECE, data.clone()).await?;
        }
        disk.sync().await?;
        anyhow::Ok(())
    };
    Reactor::run(&reactor::Config::default(), make).context("no reactor")?
}

/// Bytes a second of a copy of a file, past the page cache, until it is durable.
pub(super) fn disk_copy(from: &Path, to: &Path, length: u64) -> anyhow::Result<f64> {
    let (source, target) = (from.to_owned(), to.to_owned());
    let copy = async move {
        let from = Disk::open(&source, &DiskOptions::default())?;
        let to = Disk::open(&target, &DiskOptions { create: Some(length), ..DiskOptions::default() })?;
        let begun = Instant::now();
        let lanes: Vec<_> = (0..DEPTH)
            .map(|lane| {
                let (from, to) = (from.clone(), to.clone());
                reactor::spawn(async move {
                    for piece in (lane..length / PIECE).step_by(DEPTH as usize) {
                        let (read, buffer) = from.read(piece * PIECE, Buffer::new(PIECE as usize)).await;
                        read?;
                        to.write(piece * PIECE, buffer.freeze()).await?;
                    }
                    std::io::Result::Ok(())
                })
            })
            .collect();
        for lane in lanes {
            lane.await.map_err(|_| anyhow!("a copy ended early"))??;
        }
        to.sync().await?;
        anyhow::Ok(length as f64 / begun.elapsed().as_secs_f64())
    };
    let rate = Reactor::run(&reactor::Config::default(), copy).context("no reactor")?;
    std::fs::remove_file(to)?;
    rate
}

/// Bytes a second through a TCP connection.
pub(super) fn loopback_copy(length: u64) -> anyhow::Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let begun = Instant::now();
    let sending = thread::spawn(move || {
        let data = vec![0x5a; PIECE as usize];
        (0..length / PIECE).try_for_each(|_| sender.write_all(&data))
    });
    let mut buffer = vec![0; PIECE as usize];
    while receiver.read(&mut buffer)? > 0 {}
    sending.join().map_err(|_| anyhow!("the sender panicked"))??;
    Ok(length as f64 / begun.elapsed().as_secs_f64())
}
