//! Power cuts at every step of every operation on whole lvols.
//!
//! A story of operations, one after the other, each answered before the next. Whatever a cut left: what was answered has
//! happened; what was under way has happened or not, as a whole (I26); of data under way each block is old or new; and
//! the store goes on.

use std::collections::BTreeMap;
use std::rc::Rc;

use block_device::{BlockDevice, Range};
use lvol::{CreateLvol, LvolKind, Store};
use reactor::simulated::{NodeId, Observer, Random};
use uuid::Uuid;

use super::settle;
use crate::reference::Reference;
use crate::rig::{
    DISK, Rig, check_space, flush, id, lvol, open, read_all, snapshot, stamped, unmap, write, write_zeroes,
};

const CLUSTER: u64 = 64 << 10;

const SIZE: u64 = 6 * CLUSTER;

/// One operation of the story.
#[derive(Clone)]
enum Step {
    Create(u128),
    Write(u128, Range),
    Unmap(u128, Range),
    Zero(u128, Range),
    Snapshot(u128, u128),
    Clone(u128, u128),
    Revert(u128, u128),
    Grow(u128, u64),
    Rename(u128),
    /// Sets one attribute and removes another.
    Label(u128),
    /// A checkpoint, and no map stays in memory.
    Cool,
    Reopen,
    Delete(u128),
    /// Takes the deletion just asked for back.
    Cancel(u128),
}

const fn range(offset: u64, length: u64) -> Range {
    Range { offset, length }
}

fn story() -> Vec<Step> {
    use Step::{
        Cancel, Clone, Cool, Create, Delete, Grow, Label, Rename, Reopen, Revert, Snapshot, Unmap, Write, Zero,
    };
    vec![
        Create(1),
        Write(1, range(0, 3 * CLUSTER)),
        Snapshot(1, 10),
        Write(1, range(4096, CLUSTER)),
        Rename(1),
        Rename(10),
        Label(1),
        Cool,
        Snapshot(1, 11),
        Clone(10, 2),
        Label(11),
        Reopen,
        Write(2, range(CLUSTER, 8192)),
        Zero(1, range(8192, 2 * CLUSTER)),
        Cool,
        Grow(1, SIZE + CLUSTER + 4096),
        Label(1),
        Write(1, range(SIZE - 4096, 8192)),
        // Two read through it: it is marked, and stays.
        Delete(10),
        Cancel(10),
        Unmap(1, range(0, CLUSTER + 4096)),
        Reopen,
        Revert(1, 10),
        Cool,
        Write(1, range(0, 12288)),
        Delete(11),
        Snapshot(2, 12),
        Revert(1, 10),
        Unmap(2, range(0, SIZE)),
        Write(2, range(2 * CLUSTER - 4096, CLUSTER)),
        Cool,
        Delete(12),
        Delete(10),
        Reopen,
        Grow(2, SIZE + 4096),
        Delete(1),
        Rename(2),
        Delete(2),
    ]
}

/// A step, when it began and was answered, and what should be there afterwards.
struct Done {
    start: usize,
    end: usize,
    /// Blocks of this lvol may be old or new while the step is under way.
    writes: bool,
    after: Reference,
}

fn record(seed: u64) -> (Rig, Vec<Done>) {
    let rig = Rig::formatted(seed);
    rig.world.record_disk(rig.node, DISK);
    let (observer, node) = (rig.world.observer(), rig.node);
    let done = rig.run(async move {
        let mut store = open().await;
        let mut reference = Reference::default();
        let mut done: Vec<Done> = Vec::new();
        let nothing = Reference::default();
        for (number, step) in story().into_iter().enumerate() {
            let start = steps(&observer, node);
            let before_last = number.checked_sub(2).map_or(&nothing, |place| &done[place].after);
            if matches!(step, Step::Reopen) {
                store.close().await.expect("closed");
                store = open().await;
            }
            perform(&store, &mut reference, before_last, &step, number as u64 + 1).await;
            let writes = matches!(step, Step::Write(..) | Step::Unmap(..) | Step::Zero(..));
            done.push(Done { start, end: steps(&observer, node), writes, after: reference.clone() });
        }
        settle(&store).await;
        store.close().await.expect("closed");
        done
    });
    (rig, done)
}

fn steps(observer: &Observer, node: NodeId) -> usize {
    observer.disk_steps(node, DISK)
}

/// Does a step to the store and to the reference; it is durable then. `before_last` is how things were before the last step.
async fn perform(store: &Store, reference: &mut Reference, before_last: &Reference, step: &Step, stamp: u64) {
    match *step {
        Step::Create(number) => {
            let spec = CreateLvol { name: id(number).to_string(), ..lvol(number, SIZE) };
            store.create(&spec).await.expect("created");
            reference.create(id(number), SIZE);
        }
        Step::Write(number, Range { offset, length }) => {
            let head = store.open_lvol(id(number)).await.expect("opened");
            let data = stamped(stamp, length as usize);
            write(&head, offset, data.clone()).await.expect("written");
            flush(&head).await.expect("flushed");
            reference.write(id(number), offset, &data);
        }
        Step::Unmap(number, range) | Step::Zero(number, range) => {
            let head = store.open_lvol(id(number)).await.expect("opened");
            match step {
                Step::Unmap(..) => unmap(&head, range.offset, range.length).await.expect("unmapped"),
                _ => write_zeroes(&head, range.offset, range.length).await.expect("zeroed"),
            }
            flush(&head).await.expect("flushed");
            reference.zero(id(number), range);
        }
        Step::Snapshot(head, number) => {
            let spec = snapshot(number);
            store.snapshot(id(head), &spec).await.expect("cut");
            reference.snapshot(id(head), id(number), spec.name);
        }
        Step::Clone(parent, number) => {
            let spec = CreateLvol { name: id(number).to_string(), ..lvol(number, SIZE) };
            store.clone_snapshot(id(parent), &spec).await.expect("cloned");
            reference.clone_snapshot(id(parent), id(number), SIZE);
        }
        Step::Revert(head, number) => {
            store.revert(id(head), id(number)).await.expect("reverted");
            reference.revert(id(head), id(number));
        }
        Step::Grow(number, size) => {
            store.grow(id(number), size).await.expect("grown");
            reference.grow(id(number), size);
        }
        Step::Rename(number) => {
            let name = format!("renamed-{stamp}");
            store.rename(id(number), &name).await.expect("renamed");
            reference.rename(id(number), name);
        }
        Step::Label(number) => {
            let change = |key: &str, set: bool| (key.to_owned(), set.then(|| stamp.to_le_bytes().to_vec()));
            let is_even = stamp.is_multiple_of(2);
            let changes = vec![change("even", is_even), change("odd", !is_even)];
            store.set_attributes(id(number), &changes).await.expect("set");
            reference.set_attributes(id(number), changes);
        }
        Step::Cool => store.trim().await.expect("a checkpoint"),
        // Done by the caller, who has the store.
        Step::Reopen => {}
        Step::Delete(number) => {
            store.delete(id(number)).await.expect("deleted");
            reference.delete(id(number));
        }
        Step::Cancel(number) => {
            store.cancel_delete(id(number)).await.expect("taken back");
            *reference = before_last.clone();
        }
    }
}

/// What is there, as far as a user sees it.
#[derive(PartialEq)]
struct Seen {
    name: String,
    attributes: BTreeMap<String, Vec<u8>>,
    size: u64,
    snapshot: bool,
    parent: Option<Uuid>,
}

async fn look(store: &Store) -> (BTreeMap<Uuid, Seen>, BTreeMap<Uuid, Vec<u8>>) {
    let all = store.lvols();
    let going = |id: &Uuid| all.iter().any(|lvol| lvol.uuid == *id && lvol.deletion.is_some());
    let parent_of = |id: &Uuid| all.iter().find(|lvol| lvol.uuid == *id).and_then(|lvol| lvol.parent);
    let (mut seen, mut contents) = (BTreeMap::new(), BTreeMap::new());
    for info in all.iter().filter(|lvol| lvol.deletion.is_none()) {
        let open = store.open_lvol(info.uuid).await.expect("opened");
        assert_eq!(open.geometry().size(), info.size);
        contents.insert(info.uuid, read_all(&open).await);
        let parent = std::iter::successors(info.parent, parent_of).find(|parent| !going(parent));
        let snapshot = info.kind == LvolKind::Snapshot;
        let (name, attributes) = (info.name.clone(), info.attributes.clone());
        seen.insert(info.uuid, Seen { name, attributes, size: info.size, snapshot, parent });
    }
    (seen, contents)
}

fn shape(reference: &Reference) -> BTreeMap<Uuid, Seen> {
    let seen = reference.lvols.iter().map(|(id, lvol)| {
        let size = lvol.content.len() as u64;
        let (name, attributes) = (lvol.name.clone(), lvol.attributes.clone());
        (*id, Seen { name, attributes, size, snapshot: lvol.snapshot, parent: lvol.parent })
    });
    seen.collect()
}

/// Whether all contents are those of the reference.
fn same(found: &BTreeMap<Uuid, Vec<u8>>, reference: &Reference) -> bool {
    reference.lvols.iter().all(|(id, lvol)| found.get(id) == Some(&lvol.content))
}

/// Whether each block is that of one or the other.
fn mixture(found: &BTreeMap<Uuid, Vec<u8>>, before: &Reference, after: &Reference) -> bool {
    before.lvols.iter().all(|(id, old)| {
        let new = &after.lvols[id].content;
        let sectors = found[id].chunks(512).zip(old.content.chunks(512)).zip(new.chunks(512));
        found[id].len() == new.len() && sectors.into_iter().all(|((found, old), new)| found == old || found == new)
    })
}

async fn check(done: &[Done], at: usize) {
    let store = open().await;
    assert!(!store.info().damaged);
    let answered = done.iter().take_while(|done| done.end <= at).count();
    let nothing = Reference::default();
    let before = answered.checked_sub(1).map_or(&nothing, |last| &done[last].after);
    let under_way = done.get(answered).filter(|next| next.start <= at);
    let (seen, contents) = look(&store).await;
    let is = |reference: &Reference| seen == shape(reference) && same(&contents, reference);
    let good = is(before)
        || under_way.is_some_and(|next| {
            is(&next.after) || next.writes && seen == shape(before) && mixture(&contents, before, &next.after)
        });
    assert!(
        good,
        "cut {at}: after {answered} steps of the story the store is neither as before the next nor as after it"
    );
    check_space(&store);
    // Deletions that were begun end, and change nothing that can be read.
    settle(&store).await;
    let (again, contents_again) = look(&store).await;
    assert!(again == seen && contents_again == contents, "cut {at}: finishing what was begun changed something");
    check_space(&store);
    store.close().await.expect("closed");
}

#[test]
fn a_power_cut_at_every_step_of_every_operation_leaves_it_done_or_not_done() {
    let (rig, done) = record(91);
    let done = Rc::new(done);
    let history = rig.world.disk_history(rig.node, DISK);
    let mut random = Random::new(91);
    let mut checked = 0;
    for (at, cut) in history.cuts().enumerate() {
        for survival in cut.survivals(2, random.next_u64()) {
            let rig = Rig::with_image(at as u64, cut.image(survival));
            let done = Rc::clone(&done);
            rig.run(async move { check(&done, at).await });
            checked += 1;
        }
    }
    assert!(checked > 1000, "{checked}");
}
