//! Hashes that the store keeps of snapshots are used instead of what they are of.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use block_device::{Range, Request, Slice, execute};
use lvol::{FormatOptions, REGION, Store};
use reactor::{Disk, DiskAction};
use replica::{Directory, Replica, ReplicaServer, content_hash};
use uuid::Uuid;

use crate::node::{open, spec, world};

const SNAPSHOT: Uuid = Uuid::from_bytes([0x51; 16]);

#[test]
fn a_snapshot_that_was_hashed_is_not_read_again() {
    let (world, node, _) = world(1);
    world.block_on(node, async {
        let disk = Disk::memory(64 << 20).expect("memory");
        Store::format(&disk, &FormatOptions::new(Uuid::from_bytes([0x5e; 16]), "store")).await.expect("formatted");
        let store = Store::open(disk.clone()).await.expect("just formatted");
        let read = Rc::new(Cell::new(0));
        let counter = Rc::clone(&read);
        disk.watch(move |action| {
            if let DiskAction::Read { length, .. } = action {
                counter.set(counter.get() + length);
            }
        });
        let server = ReplicaServer::new(store.clone(), &Directory::new());
        server.create(&spec()).await.expect("created");
        let replica = server.open_local(open(1, 1)).await.expect("granted");
        let content: Vec<u8> = (0..4 * REGION).map(|byte| (byte * 7 % 251) as u8).collect();
        execute(&*replica, Request::write(0, Slice::from(&content[..]))).await.expect("written");
        replica.snapshot(SNAPSHOT, replica.granted().geometry.size(), "s1").await.expect("cut");
        let expected: Vec<u128> = content.chunks(REGION as usize).map(content_hash).collect();
        let range = Range { offset: 0, length: 4 * REGION };
        let hashes = async || replica.hashes(SNAPSHOT, range, REGION as u32).await.expect("hashed");

        read.set(0);
        assert_eq!(hashes().await, expected, "read, as nothing is stored");
        assert_eq!(read.get(), 4 * REGION);
        store.set_hash_rate(1 << 30);
        while store.hashes(SNAPSHOT, 0, 4).await.expect("there").iter().any(|(_, hash)| hash.is_none()) {
            reactor::sleep(Duration::from_millis(50)).await;
        }
        read.set(0);
        assert_eq!(hashes().await, expected);
        assert!(read.get() < REGION, "{} bytes", read.get());

        // Others than whole regions are read.
        let fine = replica.hashes(SNAPSHOT, range, 4096).await.expect("hashed");
        assert_eq!(fine, content.chunks(4096).map(content_hash).collect::<Vec<_>>());
        let odd = Range { offset: 4096, length: REGION };
        let hashed = replica.hashes(SNAPSHOT, odd, REGION as u32).await.expect("hashed");
        assert_eq!(hashed, [content_hash(&content[4096..4096 + REGION as usize])]);
        // What has no value of its own is read: here zeroes that nobody wrote.
        let beyond = Range { offset: 3 * REGION, length: 2 * REGION + 4096 };
        let hashed = replica.hashes(SNAPSHOT, beyond, REGION as u32).await.expect("hashed");
        let zeroes = vec![0; REGION as usize];
        assert_eq!(hashed, [expected[3], content_hash(&zeroes), content_hash(&zeroes[..4096])]);
    });
}
