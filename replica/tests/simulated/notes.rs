//! What an engine keeps with a replica: what survives what, and what ends with it; and content told by its hashes.

use block_device::{ErrorKind, Range};
use reactor::simulated::{NodeId, World};
use replica::{MAX_NOTE, NOTES, Note, RemoteOptions, RemoteReplica, Replica, content_hash};
use uuid::Uuid;

use crate::node::{BLOCK, SIZE, Server, address, boot, kind, open, spec, world, write};

fn with_replica(seed: u64) -> (World, NodeId, NodeId, Server) {
    let (world, node, engine) = world(seed);
    let shared = boot(&world, node);
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(node, async move { server.create(&spec()).await.expect("created") });
    (world, node, engine, shared)
}

async fn connect(epoch: u64) -> std::rc::Rc<RemoteReplica> {
    RemoteReplica::connect(address(), &open(epoch, 1), &RemoteOptions::default()).await.expect("granted")
}

fn note(place: u8, current: bool, content: &[u8]) -> Note {
    Note { place, current, content: content.to_vec() }
}

#[test]
fn notes_change_as_a_whole_and_survive_a_kill() {
    let (world, node, engine, _shared) = with_replica(1);
    world.block_on(engine, async {
        let replica = connect(1).await;
        assert_eq!(replica.notes().await.expect("listed"), []);
        for version in 0..5u8 {
            replica.set_note(0, &[version; 100], false).await.expect("kept");
        }
        replica.set_note(NOTES - 1, &[9; MAX_NOTE as usize], false).await.expect("kept");
        replica.set_note(3, &[], true).await.expect("kept");
        let long = replica.set_note(0, &[0; MAX_NOTE as usize + 1], false).await;
        assert_eq!(kind(long), Some(ErrorKind::InvalidField));
        assert_eq!(kind(replica.set_note(NOTES, &[], false).await), Some(ErrorKind::InvalidField));
    });
    world.kill(node);
    let _shared = boot(&world, node);
    world.block_on(engine, async {
        let notes = connect(2).await.notes().await.expect("listed");
        let expected = [note(0, true, &[4; 100]), note(3, true, &[]), note(NOTES - 1, true, &[9; MAX_NOTE as usize])];
        assert_eq!(notes, expected);
    });
}

#[test]
fn after_a_power_cut_a_durable_note_is_there_and_none_is_taken_for_the_last() {
    for seed in 0..20 {
        let (world, node, engine, _shared) = with_replica(seed);
        world.block_on(engine, async {
            let replica = connect(1).await;
            replica.set_note(0, b"durable", true).await.expect("kept");
            replica.set_note(1, b"durable", true).await.expect("kept");
            replica.set_note(0, b"later", false).await.expect("kept");
            replica.set_note(0, b"latest", false).await.expect("kept");
        });
        world.power_cut(node);
        let _shared = boot(&world, node);
        world.block_on(engine, async move {
            let notes = connect(2).await.notes().await.expect("listed");
            assert!(notes.iter().all(|note| !note.current), "{notes:?}");
            assert_eq!(notes.last(), Some(&note(1, false, b"durable")));
            let first = notes.iter().find(|note| note.place == 0);
            // Torn in both slots it is gone, which is as good as not known.
            let known: [&[u8]; 3] = [b"durable", b"later", b"latest"];
            assert!(first.is_none_or(|note| known.contains(&&note.content[..])), "seed {seed}: {first:?}");
        });
    }
}

#[test]
fn notes_end_with_their_head_and_stay_when_it_is_cut() {
    let (world, _, engine, shared) = with_replica(2);
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(engine, async {
        let replica = connect(1).await;
        replica.set_note(2, b"x", false).await.expect("kept");
        replica.snapshot(Uuid::from_bytes([0x51; 16]), replica.granted().geometry.size(), "s").await.expect("cut");
        assert_eq!(replica.notes().await.expect("listed"), [note(2, true, b"x")]);
        replica.reset().await.expect("reset");
        assert_eq!(replica.notes().await.expect("listed"), [], "a head made anew knows nothing");
    });
    assert_eq!(server.list().len(), 1, "nobody sees where notes are");
}

#[test]
fn a_replica_made_anew_under_the_same_uuid_has_no_notes() {
    let (world, node, engine, shared) = with_replica(5);
    world.block_on(engine, async { connect(1).await.set_note(1, b"token", true).await.expect("kept") });
    let server = shared.borrow().clone().expect("the node runs");
    world.block_on(node, async move {
        server.delete(spec().replica, None).await.expect("deleted");
        server.create(&spec()).await.expect("created");
    });
    world.block_on(engine, async { assert_eq!(connect(1).await.notes().await.expect("listed"), []) });
}

#[test]
fn what_a_newer_grant_replaced_notes_nothing_any_more() {
    // I12, I13
    let (world, _, engine, _shared) = with_replica(3);
    world.block_on(engine, async {
        let old = connect(1).await;
        old.set_note(0, b"old", false).await.expect("kept");
        let new = RemoteReplica::connect(address(), &open(2, 2), &RemoteOptions::default()).await.expect("granted");
        assert_eq!(kind(old.set_note(0, b"late", false).await), Some(ErrorKind::Fenced));
        assert_eq!(kind(old.notes().await), Some(ErrorKind::Fenced));
        assert_eq!(new.notes().await.expect("listed"), [note(0, true, b"old")]);
    });
}

#[test]
fn hashes_are_those_of_what_is_read() {
    let (world, _, engine, _shared) = with_replica(4);
    world.block_on(engine, async {
        let replica = connect(1).await;
        write(&*replica, 1, 7).await.expect("written");
        let snapshot = Uuid::from_bytes([0x51; 16]);
        replica.snapshot(snapshot, replica.granted().geometry.size(), "s").await.expect("cut");
        write(&*replica, 1, 8).await.expect("written");
        let head = replica.chain().await.expect("listed").pop().expect("a head").id;
        let range = Range { offset: 0, length: 3 * BLOCK };
        let of = |byte| content_hash(&vec![byte; BLOCK as usize]);
        assert_eq!(replica.hashes(snapshot, range, 4096).await.expect("hashed"), [of(0), of(7), of(0)]);
        assert_eq!(replica.hashes(head, range, 4096).await.expect("hashed"), [of(0), of(8), of(0)]);
        let whole = Range { offset: 0, length: SIZE };
        assert_eq!(replica.hashes(head, whole, 65536).await.expect("hashed").len() as u64, SIZE / 65536);
        let beyond = Range { offset: SIZE, length: BLOCK };
        assert_eq!(kind(replica.hashes(head, beyond, 4096).await), Some(ErrorKind::InvalidRange));
        let unknown = replica.hashes(Uuid::from_bytes([9; 16]), range, 4096).await;
        assert_eq!(kind(unknown), Some(ErrorKind::InvalidField));
    });
}
