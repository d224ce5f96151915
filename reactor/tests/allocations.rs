//! An I/O in steady state allocates nothing: counted for the thread of the reactor, in a process of its own.

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use reactor::{Buffer, CountingAllocator, Disk, DiskOptions, DiskReply, DiskSink, Slice, spawn};

use support::{pair, run};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How many allocations `rounds` of a thing make, once it has been done for a while.
async fn allocations(rounds: usize, mut each: impl AsyncFnMut()) -> u64 {
    for _ in 0..rounds {
        each().await;
    }
    let before = CountingAllocator::count();
    for _ in 0..rounds {
        each().await;
    }
    CountingAllocator::count() - before
}

#[test]
fn requests_over_a_stream_allocate_nothing() {
    run(async {
        let (server, client) = pair().await;
        let data = Slice::zeroes(4096);
        let serving = spawn(async move {
            loop {
                let chunk = server.receive().await.expect("bytes");
                for _ in 0..chunk.len() / 72 {
                    server.push_copy(&[1; 24]);
                    server.push(data.clone());
                }
                drop(chunk);
                server.flush();
                server.drained(1 << 20).await.expect("sent");
            }
        });
        let count = allocations(300, async || {
            (0..32).for_each(|_| client.push_copy(&[2; 72]));
            client.flush();
            let mut received = 0;
            while received < 32 * 4120 {
                received += client.receive().await.expect("bytes").len();
            }
        });
        assert_eq!(count.await, 0);
        serving.abort();
    });
}

#[test]
fn disk_operations_allocate_nothing() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let options = DiskOptions { create: Some(1 << 20), buffered: true, ..DiskOptions::default() };
        let disk = Disk::open(&folder.path().join("disk"), &options).expect("opened");
        let count = allocations(200, async || {
            let data = Buffer::try_new(4096).expect("within the limit").freeze();
            disk.write(8192, data).await.expect("written");
            let buffer = Buffer::try_new(4096).expect("within the limit");
            disk.read(8192, buffer).await.0.expect("read");
        });
        assert_eq!(count.await, 0);
    });
}

/// Counts the ends of operations, and wakes whoever waits for the last.
#[derive(Default)]
struct Sink {
    done: Cell<usize>,
    waker: RefCell<Option<std::task::Waker>>,
}

impl DiskSink for Sink {
    fn read_done(&self, _token: u64, result: std::io::Result<()>, _buffer: Buffer) {
        result.expect("read");
        self.done.set(self.done.get() + 1);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn write_done(&self, _token: u64, _result: std::io::Result<()>) {
        unreachable!("nothing is written");
    }
}

#[test]
fn reads_that_answer_to_a_sink_allocate_nothing() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let options = DiskOptions { create: Some(1 << 20), buffered: true, ..DiskOptions::default() };
        let disk = Disk::open(&folder.path().join("disk"), &options).expect("opened");
        let sink = Rc::new(Sink::default());
        let reply = DiskReply::new(Rc::clone(&sink) as Rc<dyn DiskSink>);
        let count = allocations(100, async || {
            sink.done.set(0);
            for token in 0..64 {
                let buffer = Buffer::try_new(4096).expect("within the limit");
                disk.start_read(token * 4096, buffer, &reply, token);
            }
            std::future::poll_fn(|context| {
                if sink.done.get() == 64 {
                    return std::task::Poll::Ready(());
                }
                if sink.waker.borrow().is_none() {
                    *sink.waker.borrow_mut() = Some(context.waker().clone());
                }
                std::task::Poll::Pending
            })
            .await;
        });
        assert_eq!(count.await, 0);
    });
}
