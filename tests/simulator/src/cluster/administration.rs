//! What whoever manages a volume does to it while its host uses it: snapshots, going back, growing, clones, other replicas.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use engine::{Engine, EngineError, NewReplica};
use reactor::sleep;
use replica::{Origin, ReplicaSpec};
use uuid::Uuid;

use super::node::{Node, address};
use super::volume::{CloneOf, Snapshot, Volume, short};

/// How long a replica may take to be made before nobody waits for it any more.
const MAKING: u32 = 500;

impl Volume {
    /// Snapshots the volume.
    pub(super) async fn snapshot(&self, engine: &Engine, id: Uuid) {
        let (path, reverts) = (self.path(), self.reverts.get());
        self.snapshots.borrow_mut().insert(id, Snapshot::Unknown);
        let reading = self.model.borrow_mut().start_read();
        self.note(format!("snapshot {} is asked for", short(id)));
        let result = engine.snapshot(id, "simulated").await;
        if !self.is_on(path) {
            return;
        }
        // One that goes back meanwhile may take it along.
        if result.is_ok() && self.reverts.get() == reverts {
            let possible = Rc::new(self.model.borrow().possible_since(reading));
            self.taken.set(self.taken.get() + 1);
            self.snapshots.borrow_mut().insert(id, Snapshot::Taken { order: self.taken.get(), possible });
        }
        self.end_act(&format!("snapshot {}", short(id)), result);
        self.model.borrow_mut().fail_read(reading);
    }

    /// Deletes a snapshot.
    pub(super) async fn delete_snapshot(&self, engine: &Engine, id: Uuid) {
        let path = self.path();
        self.snapshots.borrow_mut().insert(id, Snapshot::Unknown);
        self.note(format!("snapshot {} is to be deleted", short(id)));
        let result = engine.delete_snapshot(id).await;
        if !self.is_on(path) {
            return;
        }
        if result.is_ok() {
            self.snapshots.borrow_mut().insert(id, Snapshot::Deleted);
        }
        self.end_act(&format!("deleting snapshot {}", short(id)), result);
    }

    /// Goes back to a snapshot, and lets newer ones go with it.
    pub(super) async fn revert(&self, engine: &Engine, id: Uuid) {
        let Some(Snapshot::Taken { order, possible }) = self.snapshots.borrow().get(&id).cloned() else { return };
        let path = self.path();
        self.reverts.set(self.reverts.get() + 1);
        for snapshot in self.snapshots.borrow_mut().values_mut() {
            if matches!(snapshot, Snapshot::Taken { order: other, .. } if *other > order) {
                *snapshot = Snapshot::Unknown;
            }
        }
        let reverting = self.model.borrow_mut().start_revert(&possible);
        self.behind.iter().for_each(|behind| behind.reverts(&possible));
        self.note(format!("it is to go back to snapshot {}", short(id)));
        let result = engine.revert(id, true).await;
        if !self.is_on(path) {
            return;
        }
        self.model.borrow_mut().end_revert(reverting, result.is_ok());
        self.end_act(&format!("going back to snapshot {}", short(id)), result);
    }

    /// Makes the volume larger (I39).
    pub(super) async fn grow(&self, engine: &Engine, size: u64) {
        let path = self.path();
        let result = engine.grow(size).await;
        if !self.is_on(path) {
            return;
        }
        if result.is_ok() && size > self.size.get() {
            self.model.borrow_mut().grow((size / self.unit) as usize);
            self.size.set(size);
        }
        self.end_act(&format!("growing to {size}"), result);
    }

    fn end_act(&self, what: &str, result: Result<(), EngineError>) {
        let told = result.map_or_else(|error| error.to_string(), |()| "done".to_owned());
        self.note(format!("{what}: {told}"));
    }
}

/// A replica is being added to a volume on a node. One at a time: a volume has one replica on a node at most, but for those that were
/// let go and are not deleted yet.
pub(super) struct Adding {
    volume: Rc<Volume>,
    node: usize,
}

impl Adding {
    /// None while one is being added there already.
    pub(super) fn new(volume: &Rc<Volume>, node: usize) -> Option<Self> {
        volume.adding.borrow_mut().insert(node).then(|| Self { volume: Rc::clone(volume), node })
    }
}

impl Drop for Adding {
    fn drop(&mut self) {
        self.volume.adding.borrow_mut().remove(&self.node);
    }
}

/// Makes an empty replica. Says when it is there.
pub(super) async fn make_replica(node: Rc<Node>, volume: Rc<Volume>, replica: Uuid, made: Rc<Cell<bool>>) {
    let spec = ReplicaSpec {
        replica,
        volume: volume.id,
        name: format!("v{}", volume.plan.number),
        size: volume.size.get(),
        block_size: volume.plan.block,
    };
    let result = node.server().await.create(&spec).await;
    volume.log(&format!("a replica is made on n{}: {:?}", node.index, result.as_ref().err()));
    made.set(result.is_ok());
}

/// Takes a replica in once it was made.
pub(super) async fn add_replica(engine: Rc<Engine>, adding: Adding, replica: Uuid, made: Rc<Cell<bool>>) {
    let (volume, node) = (&adding.volume, adding.node);
    for _ in 0..MAKING {
        if made.get() {
            let new = NewReplica { replica, node: format!("n{node}"), address: address(node) };
            let result = engine.add_replica(new).await;
            return volume.end_act(&format!("adding a replica on n{node}"), result);
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Lets a replica go. Says when it belongs to the volume no more.
pub(super) async fn remove_replica(engine: Rc<Engine>, volume: Rc<Volume>, replica: Uuid, gone: Rc<Cell<bool>>) {
    let result = engine.remove_replica(replica).await;
    gone.set(result.is_ok());
    volume.end_act(&format!("removing replica {replica}"), result);
}

/// Deletes a replica once it belongs to its volume no more.
pub(super) async fn delete_replica(node: Rc<Node>, volume: Rc<Volume>, replica: Uuid, gone: Rc<Cell<bool>>) {
    let server = node.server().await;
    for _ in 0..MAKING {
        if gone.get() {
            let result = server.delete(replica, Some(volume.id)).await;
            return volume.log(&format!("replica {replica} is deleted: {:?}", result.err()));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Makes one replica of a clone, beside a replica in sync.
pub(super) async fn clone_replica(node: Rc<Node>, volume: Rc<Volume>, origin: Origin, clone: CloneOf) {
    let spec = ReplicaSpec {
        replica: clone.replica,
        volume: clone.volume,
        name: "clone".to_owned(),
        size: volume.size.get(),
        block_size: volume.plan.block,
    };
    let result = node.server().await.create_clone(&spec, origin).await;
    volume.log(&format!("a clone on n{}: {:?}", node.index, result.as_ref().err()));
    // A replica that was not in sync all the while may have had another snapshot of that name.
    if result.is_ok() && node.registry.is_in_sync(volume.id, origin.replica) {
        volume.clones.borrow_mut().push(clone);
    }
}
