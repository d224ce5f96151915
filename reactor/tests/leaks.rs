//! Nothing stays behind (I40). One test in a process of its own, as it counts the descriptors of the process.

mod support;

use std::pin::pin;

use reactor::{Buffer, Disk, DiskOptions, TcpListener, TcpStream, spawn, yield_now};

use support::{any_port, open_descriptors, poll_once, run, until};

/// Futures of every kind, dropped after none to a few turns, many times.
#[test]
fn futures_dropped_at_any_moment_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let before = open_descriptors();
    run(async move {
        let at_start = open_descriptors();
        let options = DiskOptions { create: Some(8 << 20), buffered: true, ..DiskOptions::default() };
        for round in 0..400 {
            let turns = round % 4;
            let disk = Disk::open(&path, &options).expect("free, as the last round's is closed");
            drop_streams(turns).await;
            drop_disk_operations(&disk, turns).await;
            drop(disk);
            until(|| reactor::buffer::lent() == 0).await;
            until(|| open_descriptors() == at_start).await;
        }
        assert_eq!(reactor::task_count(), 1);
    });
    assert_eq!(open_descriptors(), before);
}

async fn drop_streams(turns: usize) {
    let listener = TcpListener::bind(any_port()).expect("listening");
    let address = listener.local_address();
    let connect = spawn(TcpStream::connect(address));
    let receive = spawn(async move { TcpStream::connect(address).await?.receive().await });
    drop_after(turns, listener.accept()).await;
    let sender = TcpStream::connect(address).await.expect("connected");
    sender.push(Buffer::try_new(1 << 20).expect("within the limit").freeze());
    sender.flush();
    drop_after(turns, sender.receive()).await;
    connect.abort();
    receive.abort();
}

async fn drop_disk_operations(disk: &Disk, turns: usize) {
    for at in 0..4 {
        let buffer = Buffer::try_new(1 << 20).expect("within the limit");
        drop_after(turns, disk.read(at << 20, buffer)).await;
        let data = Buffer::try_new(1 << 20).expect("within the limit").freeze();
        drop_after(turns, disk.write(at << 20, data)).await;
    }
    drop_after(turns, disk.sync()).await;
    drop_after(turns, disk.discard(0, 1 << 20)).await;
    drop_after(turns, disk.write_zeroes(1 << 20, 1 << 20)).await;
    drop_after(turns, reactor::files::read("/proc/self/status".as_ref())).await;
}

async fn drop_after<F: Future>(turns: usize, future: F) {
    let mut future = pin!(future);
    for _ in 0..turns {
        if poll_once(&mut future).await.is_ready() {
            return;
        }
        yield_now().await;
    }
}
