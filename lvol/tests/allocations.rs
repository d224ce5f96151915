//! Reads and overwrites in steady state allocate nothing and make no task, also through a long chain: counted for the thread of
//! the reactor, in a process of its own.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;

use block_device::{BlockDevice, Buffer, Completions, Outcome, Reply, Request, execute};
use lvol::{CreateLvol, FormatOptions, Lvol, SnapshotSpec, Store};
use reactor::{CountingAllocator, Disk, DiskOptions, Reactor};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SIZE: u64 = 4 << 20;
const BLOCK: u64 = 4096;

/// Requests in flight, and how many of them are counted.
const DEPTH: u64 = 16;
const REQUESTS: u64 = 2000;

/// An lvol whose first half is its own and whose second half is read through a chain of `snapshots` more.
async fn volume(disk: Disk, snapshots: u128) -> Rc<Lvol> {
    Store::format(&disk, &FormatOptions::new(Uuid::from_u128(1), "store")).await.expect("formatted");
    let store = Store::open(disk).await.expect("opened");
    let (uuid, attributes) = (Uuid::from_u128(2), BTreeMap::new());
    let spec = CreateLvol { uuid, name: "lvol".to_owned(), size: SIZE, block_size: 4096, attributes };
    store.create(&spec).await.expect("created");
    let lvol = store.open_lvol(uuid).await.expect("opened");
    fill(&lvol, SIZE).await;
    for number in 0..snapshots {
        let (uuid, name) = (Uuid::from_u128(100 + number), format!("snapshot-{number}"));
        store.snapshot(spec.uuid, &SnapshotSpec { uuid, name, attributes: BTreeMap::new() }).await.expect("cut");
    }
    fill(&lvol, SIZE / 2).await;
    lvol
}

async fn fill(lvol: &Rc<Lvol>, bytes: u64) {
    for offset in (0..bytes).step_by(1 << 20) {
        let data = Buffer::zeroed(1 << 20).freeze();
        execute(&**lvol, Request::write(offset, data)).await.expect("written");
    }
}

/// Keeps some requests in flight, each for another block, until `count` are done.
async fn drive(
    lvol: &Rc<Lvol>,
    completions: &Rc<Completions>,
    done: &mut Vec<(u64, Outcome)>,
    count: u64,
    writes: bool,
) {
    let submit = |number: u64| {
        let half = SIZE / 2;
        let (offset, request);
        if writes {
            offset = number * 7 * BLOCK % half;
            request = Request::write(offset, Buffer::try_new(4096).expect("within the limit").freeze());
        } else {
            offset = number * 7 * BLOCK % SIZE;
            request = Request::read(offset, BLOCK);
        }
        lvol.submit(request, Reply::new(completions.clone(), number));
    };
    (0..DEPTH).for_each(submit);
    let (mut begun, mut ended) = (DEPTH, 0);
    while ended < count {
        poll_fn(|context| completions.poll_ready(context)).await;
        completions.take(done);
        for (_, outcome) in done.drain(..) {
            outcome.expect("a good disk");
            ended += 1;
            if begun < count {
                submit(begun);
                begun += 1;
            }
        }
    }
}

async fn check(disk: Disk, snapshots: u128) {
    let lvol = volume(disk, snapshots).await;
    let (completions, mut done) = (Completions::new(), Vec::new());
    for writes in [false, true] {
        drive(&lvol, &completions, &mut done, REQUESTS, writes).await;
        let before = (CountingAllocator::count(), reactor::task_count());
        drive(&lvol, &completions, &mut done, REQUESTS, writes).await;
        let after = (CountingAllocator::count(), reactor::task_count());
        let made = after.0 - before.0;
        // Tables may still grow up to the requests in flight: the system decides how many end together.
        assert!(made <= DEPTH, "{made} allocations for {REQUESTS} requests, writes: {writes}, snapshots: {snapshots}");
        assert_eq!(after.1, before.1, "tasks, writes: {writes}, snapshots: {snapshots}");
    }
}

fn run(future: impl Future<Output = ()> + 'static) {
    Reactor::run(&reactor::Config::default(), future).expect("a reactor");
}

#[test]
fn requests_to_a_store_in_memory_allocate_nothing() {
    for snapshots in [0, 1, 20] {
        run(async move { check(Disk::memory(64 << 20).expect("memory"), snapshots).await });
    }
}

#[test]
fn requests_to_a_store_on_a_file_allocate_nothing() {
    for snapshots in [0, 20] {
        run(async move {
            let folder = tempfile::tempdir().expect("a folder");
            let options = DiskOptions { create: Some(64 << 20), buffered: true, ..DiskOptions::default() };
            check(Disk::open(&folder.path().join("disk"), &options).expect("opened"), snapshots).await;
        });
    }
}
