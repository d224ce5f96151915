//! The chains of source and target: which snapshots they share, and copying those that the target lacks. Snapshots do not change, so
//! nothing has to be kept out.

use std::cell::Cell;

use block_device::{Error, ErrorKind, Range};
use replica::{ChainEntry, Extent, LvolKind, Replica};
use uuid::Uuid;

use super::compare::Pair;
use super::own::{merged, own_in};
use super::transfer::both;
use super::walk::Walk;
use super::{Job, interrupted};
use crate::members::Role;

impl Job<'_> {
    /// Makes the target ready for a copy: comes to know whether what it has can stay. If not, it is emptied.
    pub(super) async fn prepare(&self) -> Result<(), Error> {
        self.progress(|copy| copy.step = "comparing snapshots".to_owned());
        match self.can_stay().await? {
            true => self.core.in_time(self.target.set_state(replica::ReplicaState::Rebuilding)).await,
            false => self.empty().await,
        }
    }

    /// Whether the target's snapshots are the first of the source's, with the same content.
    async fn can_stay(&self) -> Result<bool, Error> {
        let source = self.source()?;
        let wanted = self.snapshots(&*source).await?;
        self.delete_strangers(&wanted).await?;
        let have = self.snapshots(&*self.target).await?;
        if !is_beginning(&have, &wanted) {
            return Ok(false);
        }
        if self.partial.get() {
            // They were the same when it left, and do not change (I24).
            return Ok(true);
        }
        for (index, snapshot) in have.iter().enumerate() {
            if snapshot.size != wanted[index].size {
                return Ok(false);
            }
            self.begin_lvol(format!("comparing snapshot {}", snapshot.name), wanted.len() - index)?;
            let pair = Pair { source: &*source, ours: snapshot.id, theirs: snapshot.id, end: snapshot.size };
            if !self.has_same_content(pair).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes snapshots that were deleted from the volume while the target was away, or that only the target has (I25). What it
    /// reads like stays.
    async fn delete_strangers(&self, wanted: &[ChainEntry]) -> Result<(), Error> {
        for snapshot in self.snapshots(&*self.target).await? {
            if !wanted.iter().any(|wanted| wanted.id == snapshot.id) {
                self.core.in_time(self.target.delete_snapshot(snapshot.id)).await?;
            }
        }
        Ok(())
    }

    /// Whether two lvols read the same, given that what they are read through does.
    async fn has_same_content(&self, pair: Pair<'_>) -> Result<bool, Error> {
        let (walk, same) = (Walk::new(pair), Cell::new(true));
        let compare = async |region| {
            let (ours, theirs) = self.own_of_both(pair, region).await?;
            for range in merged(ours.iter().chain(&theirs).map(|extent| extent.range)) {
                if same.get() && !self.is_equal(pair, range).await? {
                    same.set(false);
                    walk.end();
                }
            }
            Ok(())
        };
        self.walk(&walk, compare).await.map_err(interrupted)?;
        Ok(same.get())
    }

    /// Copies every snapshot that the target lacks, oldest first, or empties the target. The target's chain is a beginning of the
    /// source's, as [`Job::prepare`] and this function leave it.
    pub(super) async fn copy_snapshots(&self) -> Result<(), Error> {
        let source = self.source()?;
        let wanted = self.snapshots(&*source).await?;
        let have = self.snapshots(&*self.target).await?;
        if !is_beginning(&have, &wanted) {
            return Err(Error::with_detail(ErrorKind::Internal, "the replica has other snapshots than the source"));
        }
        for (index, snapshot) in wanted.iter().enumerate().skip(have.len()) {
            self.begin_lvol(format!("copying snapshot {}", snapshot.name), wanted.len() - index)?;
            let theirs = self.head(&*self.target).await?;
            if self.reaches_beyond(theirs, snapshot.size).await? {
                // It was written to when the volume had grown already. Whoever called looks at its snapshots again, and comes back.
                return self.empty().await;
            }
            let pair = Pair { source: &*source, ours: snapshot.id, theirs, end: snapshot.size };
            self.copy_snapshot(pair).await?;
            // The target's head reads like the snapshot now: cut it under the same uuid, with the size that the volume had.
            self.core.in_time(self.target.snapshot(snapshot.id, snapshot.size, &snapshot.name)).await?;
        }
        Ok(())
    }

    /// Whether the target's head has blocks where a snapshot that is still to be cut from it has ended: the volume was smaller then (I24).
    async fn reaches_beyond(&self, head: Uuid, end: u64) -> Result<bool, Error> {
        let rest = Range { offset: end, length: self.size().saturating_sub(end) };
        if rest.length == 0 {
            return Ok(false);
        }
        let found = self.core.in_time(self.target.extents(head, rest, 1)).await?;
        Ok(!found.list.is_empty())
    }

    async fn copy_snapshot(&self, pair: Pair<'_>) -> Result<(), Error> {
        let copy = async |region| Ok(self.copy_region(pair, region).await?);
        self.walk(&Walk::new(pair), copy).await.map_err(interrupted)
    }

    /// What the source's lvol and the target's have of their own within a region; with an empty target only the source is asked.
    pub(super) async fn own_of_both(&self, pair: Pair<'_>, region: Range) -> Result<(Vec<Extent>, Vec<Extent>), Error> {
        let ours = self.core.in_time(own_in(pair.source, pair.ours, region));
        if self.is_empty() {
            return Ok((ours.await?, Vec::new()));
        }
        let (ours, theirs) = both(ours, self.core.in_time(own_in(&*self.target, pair.theirs, region))).await;
        Ok((ours?, theirs?))
    }

    async fn snapshots(&self, replica: &dyn Replica) -> Result<Vec<ChainEntry>, Error> {
        let mut chain = self.core.in_time(replica.chain()).await?;
        chain.retain(|entry| entry.kind == LvolKind::Snapshot);
        Ok(chain)
    }

    /// The head of a replica's chain.
    pub(super) async fn head(&self, replica: &dyn Replica) -> Result<Uuid, Error> {
        let chain = self.core.in_time(replica.chain()).await?;
        let head = chain.last().filter(|entry| entry.kind == LvolKind::Head);
        head.map(|entry| entry.id).ok_or_else(|| Error::with_detail(ErrorKind::Internal, "a chain without a head"))
    }

    /// Whether source and target have the same snapshots now.
    pub(super) async fn same_snapshots(&self) -> Result<bool, Error> {
        let source = self.source()?;
        let (wanted, have) = (self.snapshots(&*source).await?, self.snapshots(&*self.target).await?);
        Ok(wanted.len() == have.len() && is_beginning(&have, &wanted))
    }

    /// Lets the target receive writes if no snapshot was taken since its snapshots were copied.
    pub(super) async fn attach_at_same_snapshots(&self) -> Result<bool, Error> {
        let _administration = self.core.administration.lock().await;
        let same = self.same_snapshots().await?;
        if same {
            // Writes in flight were not sent to the target. One that lands in a region where nobody has blocks yet would be
            // passed over by the copy, which looks for regions before it locks them (I17).
            let _held = self.core.hold_writes().await;
            self.core.catch_up_size(&*self.target).await?;
            self.attach(Role::Rebuilding);
        }
        Ok(same)
    }
}

fn is_beginning(have: &[ChainEntry], wanted: &[ChainEntry]) -> bool {
    have.len() <= wanted.len() && have.iter().zip(wanted).all(|(have, wanted)| have.id == wanted.id)
}
