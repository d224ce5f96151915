//! Snapshots as backups read them: by the maps, from whichever replica in sync can.

use block_device::{Range, Request, execute};
use engine::Engine;
use reactor::simulated::World;
use uuid::Uuid;

use crate::fakes::{BLOCK, Cluster};
use crate::model::write;

const SIZE: u64 = 4 << 20;

fn story<F: Future<Output = ()> + 'static>(seed: u64, story: F) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    world.block_on(node, story);
}

fn snapshot_id(number: u8) -> Uuid {
    Uuid::from_bytes([0x70 + number; 16])
}

async fn cut(engine: &Engine, number: u8) {
    engine.snapshot(snapshot_id(number), &format!("s{number}")).await.expect("cut");
}

/// The blocks that a snapshot has data in, or in which it differs from another one, asked for a few runs at a time.
async fn blocks(engine: &Engine, of: u8, since: Option<u8>) -> Vec<u64> {
    let (mut blocks, mut from) = (Vec::new(), 0);
    loop {
        let found = engine.snapshot_extents(snapshot_id(of), since.map(snapshot_id), from, 3).await.expect("maps");
        let found = found.expect("the snapshot is there");
        assert!(found.len() <= 3 && found.iter().all(|run| run.end() > from), "{found:?} from {from}");
        let Some(last) = found.last() else { return blocks };
        from = last.end();
        blocks.extend(found.iter().flat_map(|run| run.offset / BLOCK..run.end() / BLOCK));
    }
}

async fn read(engine: &Engine, of: u8, block: u64) -> Option<u8> {
    let range = Range { offset: block * BLOCK, length: BLOCK };
    let data = engine.read_snapshot(snapshot_id(of), range).await.expect("readable")?.to_vec();
    assert!(data.len() as u64 == BLOCK && data.iter().all(|byte| *byte == data[0]));
    Some(data[0])
}

#[test]
fn what_two_snapshots_differ_in_is_told_by_their_maps() {
    story(1, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        for number in 1..=3 {
            write(&*engine, 0, number).await.expect("acknowledged");
            write(&*engine, 10 * u64::from(number), 100 + number).await.expect("acknowledged");
            cut(&engine, number).await;
        }
        let zeroed = Range { offset: 10 * BLOCK, length: BLOCK };
        let zeroes = Request::WriteZeroes { range: zeroed, unmap: true, fua: false };
        execute(&*engine, zeroes).await.expect("acknowledged");
        cut(&engine, 4).await;
        write(&*engine, 50, 9).await.expect("acknowledged");
        assert_eq!(blocks(&engine, 2, None).await, [0, 10, 20]);
        assert_eq!(blocks(&engine, 4, None).await, [0, 20, 30], "what is zero again has nothing to be kept");
        assert_eq!(blocks(&engine, 3, Some(1)).await, [0, 20, 30]);
        assert_eq!(blocks(&engine, 1, Some(3)).await, [0, 20, 30], "whichever is the older one");
        assert_eq!(blocks(&engine, 4, Some(3)).await, [10], "zeroes in place of data are a difference");
        assert_eq!(blocks(&engine, 4, Some(4)).await, [0; 0]);
        assert_eq!((read(&engine, 1, 0).await, read(&engine, 4, 0).await), (Some(1), Some(3)));
        assert_eq!((read(&engine, 3, 10).await, read(&engine, 4, 10).await), (Some(101), Some(0)));

        // What a deleted one had belongs to the next: the difference stays the same.
        engine.delete_snapshot(snapshot_id(2)).await.expect("deleted");
        assert_eq!(blocks(&engine, 3, Some(1)).await, [0, 20, 30]);
        assert_eq!(engine.snapshot_extents(snapshot_id(2), None, 0, 3).await.expect("maps"), None);
        assert!(engine.snapshot_extents(snapshot_id(3), Some(snapshot_id(2)), 0, 3).await.is_err());
    });
}

#[test]
fn a_map_of_many_runs_comes_in_parts_and_nothing_is_left_out() {
    story(2, async {
        let cluster = Cluster::new(1, SIZE);
        let engine = cluster.serve().await;
        let odd = |block: &u64| block % 2 == 1;
        for block in (0..SIZE / BLOCK).filter(odd) {
            write(&*engine, block, 1).await.expect("acknowledged");
        }
        cut(&engine, 1).await;
        for block in (0..SIZE / BLOCK).filter(|block| block % 3 == 0) {
            write(&*engine, block, 2).await.expect("acknowledged");
        }
        cut(&engine, 2).await;
        let expected: Vec<_> = (0..SIZE / BLOCK).filter(odd).collect();
        assert_eq!(blocks(&engine, 1, None).await, expected);
        let expected: Vec<_> = (0..SIZE / BLOCK).filter(|block| block % 3 == 0).collect();
        assert_eq!(blocks(&engine, 2, Some(1)).await, expected);
        let expected: Vec<_> = (0..SIZE / BLOCK).filter(|block| block % 2 == 1 || block % 3 == 0).collect();
        assert_eq!(blocks(&engine, 2, None).await, expected);
    });
}

#[test]
fn another_replica_in_sync_is_asked_when_one_cannot_read() {
    story(3, async {
        let cluster = Cluster::new(2, SIZE);
        let engine = cluster.serve().await;
        write(&*engine, 5, 7).await.expect("acknowledged");
        cut(&engine, 1).await;
        for node in 0..2 {
            assert_eq!(read(&engine, 1, 5).await, Some(7), "before {node} breaks");
            cluster.nodes[node].disk.borrow_mut().break_block(snapshot_id(1), 5);
        }
        let range = Range { offset: 5 * BLOCK, length: BLOCK };
        assert!(engine.read_snapshot(snapshot_id(1), range).await.is_err(), "nobody has it any more");
    });
}
