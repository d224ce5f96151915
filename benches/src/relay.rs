//! The limit of a volume in a file: the echo server with one transfer of a disk for each request, before it is answered. What it
//! reaches is what socket, reactor, disk and a host on the other core allow to any target: there is no protocol, no engine and no store.
//!
//! Transfers go to random blocks of the whole disk. A read is answered with what it found. What comes with a write is not looked at, as with the
//! echo: the same bytes are written each time, so not even the copy into memory that a disk takes is in it. Replies go out in the
//! order in which transfers end, which nobody sees: the load counts bytes. So latencies are exact at depth 1, and only there.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use reactor::simulated::Random;
use reactor::{Buffer, Disk, DiskReply, DiskSink, Received, Slice, TcpStream};

use crate::echo::{self, Shape};
use crate::store::load::incompressible;

/// Serves on `address` for as long as the reactor runs. What is on the disk is lost.
pub(crate) fn serve(address: SocketAddr, disk: Disk) -> io::Result<SocketAddr> {
    echo::serve_each(address, move |stream| {
        let disk = disk.clone();
        async move { relay(&stream, disk).await }
    })
}

/// Each turn: start a transfer for each request, answer those that have ended, send it all at once, wait. As a target does.
async fn relay(stream: &TcpStream, disk: Disk) -> io::Result<()> {
    let Some((shape, mut pending)) = echo::opening(stream).await? else { return Ok(()) };
    let ended = Rc::new(Ended::default());
    let mut transfers = Transfers::new(disk, shape, &ended);
    let mut answers = Vec::new();
    loop {
        while pending >= shape.request() {
            pending -= shape.request();
            transfers.start();
        }
        ended.take(&mut answers);
        for data in answers.drain(..) {
            // The load sees no more than that its connection ended.
            let data = data.inspect_err(|error| eprintln!("relay: {error}"))?;
            echo::reply(stream, &data);
        }
        stream.flush();
        if let Some(chunk) = wait(stream, &ended).await? {
            if chunk.is_empty() {
                return Ok(());
            }
            pending += chunk.len();
        }
    }
}

/// Waits for requests, or for the end of a transfer.
async fn wait(stream: &TcpStream, ended: &Ended) -> io::Result<Option<Received>> {
    let mut receive = pin!(stream.receive());
    poll_fn(|context| {
        if ended.any() {
            return Poll::Ready(Ok(None));
        }
        if let Poll::Ready(chunk) = receive.as_mut().poll(context) {
            return Poll::Ready(chunk.map(Some));
        }
        ended.waker.set(Some(context.waker().clone()));
        Poll::Pending
    })
    .await
}

/// Starts transfers of one connection's shape.
struct Transfers {
    disk: Disk,
    shape: Shape,
    blocks: u64,
    random: Random,
    /// What writes write: bytes that no disk makes less of.
    written: Slice,
    reply: DiskReply,
}

impl Transfers {
    fn new(disk: Disk, shape: Shape, ended: &Rc<Ended>) -> Self {
        let blocks = disk.size() / shape.block_size() as u64;
        let mut random = Random::new(reactor::random());
        let written = incompressible(shape.block_size(), &mut random);
        Self { disk, shape, blocks, random, written, reply: DiskReply::new(Rc::clone(ended) as Rc<dyn DiskSink>) }
    }

    fn start(&mut self) {
        let offset = self.random.below(self.blocks) * self.shape.block_size() as u64;
        if self.shape.writes() {
            self.disk.start_write(offset, self.written.clone(), &self.reply, 0);
        } else {
            // From the thread's pool, and back there once it is sent.
            self.disk.start_read(offset, Buffer::new(self.shape.block_size()), &self.reply, 0);
        }
    }
}

/// Transfers that have ended and are not answered yet, with the data to answer: none for a write.
#[derive(Default)]
struct Ended {
    results: RefCell<Vec<io::Result<Slice>>>,
    waker: Cell<Option<Waker>>,
}

impl Ended {
    fn any(&self) -> bool {
        !self.results.borrow().is_empty()
    }

    /// Swaps them with `into`, which is empty: nothing is allocated.
    fn take(&self, into: &mut Vec<io::Result<Slice>>) {
        std::mem::swap(&mut *self.results.borrow_mut(), into);
    }

    fn add(&self, result: io::Result<Slice>) {
        self.results.borrow_mut().push(result);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl DiskSink for Ended {
    fn read_done(&self, _token: u64, result: io::Result<()>, buffer: Buffer) {
        self.add(result.map(|()| buffer.freeze()));
    }

    fn write_done(&self, _token: u64, result: io::Result<()>) {
        self.add(result.map(|()| Slice::default()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reactor::{DiskAction, Reactor};

    use super::*;
    use crate::store::rig;

    const SIZE: u64 = 8 << 20;
    const BLOCK: u64 = 4096;

    /// What a disk was asked for while a load was on its relay, and how many I/Os the load counted.
    async fn relayed(disk: Disk, shape: Shape) -> (Vec<DiskAction>, u64) {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let actions = Rc::clone(&asked);
        disk.watch(move |action| actions.borrow_mut().push(action));
        let address = serve(([127, 0, 0, 1], 0).into(), disk).expect("it listens");
        let reached = echo::load(address, shape, 8, 2, Duration::from_millis(20)).await.expect("no errors");
        (asked.take(), reached.latency.count())
    }

    #[test]
    fn each_request_is_one_transfer_of_a_block() {
        let folder = tempfile::tempdir().expect("a folder");
        Reactor::run(&reactor::Config::default(), async move {
            for shape in [Shape::read(BLOCK as usize), Shape::write(BLOCK as usize)] {
                // One that answers at once, and one that does not.
                let path = folder.path().join(format!("{shape:?}"));
                let file = rig::open_file(&path, Some(SIZE)).expect("a file");
                for disk in [Disk::memory(SIZE).expect("memory"), file] {
                    let (actions, count) = relayed(disk, shape).await;
                    assert!(count > 0);
                    assert_eq!(actions.len() as u64, count);
                    for action in actions {
                        let (DiskAction::Read { offset, length } | DiskAction::Write { offset, length }) = action
                        else {
                            panic!("{action:?}");
                        };
                        assert_eq!(matches!(action, DiskAction::Write { .. }), shape.writes());
                        assert!(length == BLOCK && offset % BLOCK == 0 && offset < SIZE, "{action:?}");
                    }
                }
            }
        })
        .expect("a reactor");
    }
}
