//! Operations on whole lvols: deletes that merge, clones, reverts, growth.

mod crash;
mod merge;
mod merge_crash;

use std::rc::Rc;

use lvol::{Lvol, Store};
use uuid::Uuid;

use crate::rig::{id, lvol, open, read_all, stamped, write};

const BLOCK: u64 = 4096;

const CLUSTER: u64 = 64 << 10;

/// Blocks of a cluster.
const PER_CLUSTER: u64 = CLUSTER / BLOCK;

/// Bytes of the lvols here.
const SIZE: u64 = 2 << 20;

/// A store with one head, number 1.
async fn with_head() -> (Store, Rc<Lvol>) {
    let store = open().await;
    store.create(&lvol(1, SIZE)).await.expect("created");
    let head = store.open_lvol(id(1)).await.expect("opened");
    (store, head)
}

/// Writes blocks, `first` to before `last`, full of a stamp.
async fn fill(lvol: &Rc<Lvol>, first: u64, last: u64, stamp: u64) {
    write(lvol, first * BLOCK, stamped(stamp, ((last - first) * BLOCK) as usize)).await.expect("written");
}

/// What one who reads all of an lvol should find: runs of blocks full of a stamp, on zeroes.
fn expected(runs: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    for &(first, last, stamp) in runs {
        let bytes = stamped(stamp, ((last - first) * BLOCK) as usize);
        content[(first * BLOCK) as usize..(last * BLOCK) as usize].copy_from_slice(&bytes);
    }
    content
}

/// The content of an lvol, opened for it.
async fn content(store: &Store, uuid: Uuid) -> Vec<u8> {
    read_all(&store.open_lvol(uuid).await.expect("opened")).await
}

/// Waits until every deletion that can end has ended.
pub(crate) async fn settle(store: &Store) {
    loop {
        let lvols = store.lvols();
        let mut going =
            lvols.iter().filter(|lvol| lvol.deletion.as_ref().is_some_and(|going| going.waits_for.is_none()));
        let Some(lvol) = going.next() else { return };
        store.deleted(lvol.uuid).await.expect("deleted");
    }
}
