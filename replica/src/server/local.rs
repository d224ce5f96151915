//! A replica on the reactor of whoever uses it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use block_device::{BlockDevice, Error, ErrorKind, Geometry, Outcome, Range, Reply, Request, execute};
use lvol::StoreError;
use reactor::Instant;
use uuid::Uuid;

use super::hashing::hash_range;
use super::{Inner, view};
use crate::gate::Gate;
use crate::{
    ChainEntry, DamagedRegion, Extent, ExtentKind, Extents, Granted, LocalFuture, Membership, Note, OpenReplica,
    Replica, ReplicaState,
};

/// A replica that was granted to an engine on this reactor, or to a connection.
pub struct LocalReplica {
    server: Rc<Inner>,
    open: OpenReplica,
    gate: Rc<Gate>,
    state: ReplicaState,
    confirmed: Cell<Instant>,
}

impl LocalReplica {
    pub(super) fn new(server: Rc<Inner>, open: OpenReplica, gate: Rc<Gate>, state: ReplicaState) -> Rc<Self> {
        Rc::new(Self { server, open, gate, state, confirmed: Cell::new(reactor::now()) })
    }

    /// Refuses a control call of a grant that has ended.
    fn check(&self) -> Result<(), Error> {
        self.gate.ended().map_or(Ok(()), Err)
    }

    /// The lvol of the replica's chain that engines call so; any other is refused.
    fn lvol(&self, id: Uuid) -> Result<Uuid, Error> {
        let chain = self.server.chain(self.open.replica);
        let found = view::in_chain(&chain, id).map(|lvol| lvol.uuid);
        found.ok_or_else(|| Error::with_detail(ErrorKind::InvalidField, format_args!("no lvol {id} in the chain")))
    }

    /// Opens the lvol of the replica's chain that engines call so.
    async fn open_lvol(&self, id: Uuid) -> Result<Rc<lvol::Lvol>, Error> {
        self.check()?;
        let lvol = self.lvol(id)?;
        self.server.store.open_lvol(lvol).await.map_err(|error: StoreError| Error::from(error))
    }

    async fn list_extents(&self, id: Uuid, range: Range, max: u32) -> Result<Extents, Error> {
        self.check()?;
        let lvol = self.lvol(id)?;
        let store = &self.server.store;
        let max = max.clamp(1, replica_protocol::MAX_EXTENTS) as usize;
        // What a clone begins with is in no chain that an engine sees: the oldest of the chain has it.
        let own = match self.server.chain(self.open.replica).first() {
            Some(oldest) if oldest.uuid == lvol => store.extents_of_chain(lvol, range, max).await,
            _ => store.extents(lvol, range, max).await,
        };
        let own = own.map_err(Error::from)?;
        let next = (own.len() == max).then(|| own.last().map(lvol::Extent::end)).flatten();
        let extent = |extent: &lvol::Extent| Extent {
            range: Range { offset: extent.offset, length: extent.length },
            kind: match extent.kind {
                lvol::ExtentKind::Data => ExtentKind::Data,
                lvol::ExtentKind::Zero => ExtentKind::Zero,
            },
        };
        Ok(Extents { list: own.iter().map(extent).collect(), next })
    }
}

impl BlockDevice for LocalReplica {
    fn geometry(&self) -> Geometry {
        self.gate.device().geometry()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.gate.submit(request, reply);
    }
}

impl Replica for LocalReplica {
    fn id(&self) -> Uuid {
        self.open.replica
    }

    fn granted(&self) -> Granted {
        // The size is the head's now: it may have grown since.
        Granted { epoch: self.open.epoch, geometry: self.geometry(), state: self.state }
    }

    fn is_local(&self) -> bool {
        true
    }

    fn failure(&self) -> Option<Error> {
        self.gate.ended()
    }

    fn failed(&self) -> LocalFuture<'_, Error> {
        Box::pin(self.gate.when_ended())
    }

    fn fail(&self, error: Error) {
        self.gate.abandon(&error);
    }

    fn oldest(&self) -> Option<Instant> {
        self.gate.oldest()
    }

    fn reported_age(&self) -> Option<Duration> {
        None
    }

    fn chain(&self) -> LocalFuture<'_, Result<Vec<ChainEntry>, Error>> {
        Box::pin(async move {
            self.check()?;
            Ok(view::entries(&self.server.chain(self.open.replica)))
        })
    }

    fn snapshot(&self, id: Uuid, size: u64, name: &str) -> LocalFuture<'_, Result<(), Error>> {
        let name = name.to_owned();
        Box::pin(async move { self.server.snapshot(self.open.replica, &self.gate, id, size, &name).await })
    }

    fn extents(&self, lvol: Uuid, range: Range, max: u32) -> LocalFuture<'_, Result<Extents, Error>> {
        Box::pin(self.list_extents(lvol, range, max))
    }

    fn read_lvol(&self, lvol: Uuid, range: Range) -> LocalFuture<'_, Outcome> {
        Box::pin(async move {
            let device = self.open_lvol(lvol).await?;
            execute(&*device, Request::Read { range }).await
        })
    }

    fn hashes(&self, lvol: Uuid, range: Range, granule: u32) -> LocalFuture<'_, Result<Vec<u128>, Error>> {
        Box::pin(async move {
            let device = self.open_lvol(lvol).await?;
            hash_range(&self.server.store, (self.lvol(lvol)?, &device), range, granule).await
        })
    }

    fn findings(&self) -> u32 {
        self.server.store.findings()
    }

    fn more_findings(&self, seen: u32) -> LocalFuture<'_, ()> {
        Box::pin(self.server.store.more_findings(seen))
    }

    fn damage(&self) -> LocalFuture<'_, Result<Vec<DamagedRegion>, Error>> {
        Box::pin(async move {
            self.check()?;
            let store = &self.server.store;
            Ok(view::damage(&self.server.chain(self.open.replica), &store.damage()))
        })
    }

    fn repair(&self, snapshot: Uuid, offset: u64, data: Vec<u8>) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.server.repair(self.open.replica, &self.gate, snapshot, offset, &data).await })
    }

    fn reset(&self) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.server.reset(self.open.replica, &self.gate))
    }

    fn set_state(&self, state: ReplicaState) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.server.set_state(self.open.replica, &self.gate, state))
    }

    fn delete_snapshot(&self, id: Uuid) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.server.delete_snapshot(self.open.replica, &self.gate, id))
    }

    fn revert(&self, snapshot: Uuid) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.server.revert(self.open.replica, &self.gate, snapshot))
    }

    fn grow(&self, size: u64) -> LocalFuture<'_, Result<(), Error>> {
        Box::pin(self.server.grow(self.open.replica, &self.gate, size))
    }

    fn set_note(&self, place: u8, content: &[u8], durable: bool) -> LocalFuture<'_, Result<(), Error>> {
        let content = content.to_vec();
        Box::pin(async move { self.server.set_note(self.open.replica, &self.gate, place, &content, durable).await })
    }

    fn notes(&self) -> LocalFuture<'_, Result<Vec<Note>, Error>> {
        Box::pin(self.server.list_notes(self.open.replica, &self.gate))
    }

    fn set_membership(&self, content: &[u8], attached: &[u8]) -> LocalFuture<'_, Result<(), Error>> {
        let (content, attached) = (content.to_vec(), attached.to_vec());
        Box::pin(async move { self.server.set_membership(self.open.replica, &self.gate, content, &attached).await })
    }

    fn membership(&self) -> LocalFuture<'_, Result<Membership, Error>> {
        Box::pin(self.server.membership(self.open.replica))
    }

    fn confirmed(&self) -> Instant {
        // A newer grant ends this one's gate first, on this reactor.
        if self.gate.ended().is_none() {
            self.confirmed.set(reactor::now());
        }
        self.confirmed.get()
    }

    fn close(&self) {
        self.gate.end(Error::with_detail(ErrorKind::Aborted, "the replica was closed"));
    }
}

impl Drop for LocalReplica {
    fn drop(&mut self) {
        // Nobody is left to ask for anything: also what a connection that died had open.
        self.close();
    }
}
