//! Copying snapshots: they do not change, so nothing has to be kept out.

use block_device::{Error, ErrorKind, Range, Request};
use replica::{ChainEntry, ExtentKind, LvolKind, Replica};
use uuid::Uuid;

use super::transfer::{perform, pieces, read_lvol, write};
use super::{EXTENTS, Job, REGION};
use crate::members::Role;

impl Job<'_> {
    /// Copies every snapshot that the target lacks, oldest first. The target's chain is a beginning of the source's, as a
    /// reset and this function leave it.
    pub(super) async fn copy_snapshots(&self) -> Result<(), Error> {
        let source = self.source()?;
        let wanted = snapshots(&*source).await?;
        let have = snapshots(&*self.target).await?;
        if !is_beginning(&have, &wanted) {
            return Err(Error::with_detail(ErrorKind::Internal, "the replica has other snapshots than the source"));
        }
        for snapshot in &wanted[have.len()..] {
            self.progress(|copy| {
                copy.step = format!("copying snapshot {}", snapshot.name);
                (copy.position, copy.size) = (0, self.target.geometry().size());
            });
            self.copy_lvol(&*source, snapshot.id).await?;
            // What the target's head holds now is what the snapshot has: cut it under the same uuid.
            self.target.snapshot(snapshot.id, &snapshot.name).await?;
        }
        Ok(())
    }

    /// Copies an lvol's own blocks; what it lacks is read through the chain, which is equal already (I18).
    async fn copy_lvol(&self, source: &dyn Replica, lvol: Uuid) -> Result<(), Error> {
        let mut next = Some(0);
        while let Some(from) = next {
            let extents = source.extents(lvol, from, EXTENTS).await?;
            for extent in &extents.list {
                for piece in pieces(extent.range, REGION) {
                    self.copy_piece(source, lvol, piece, extent.kind).await?;
                    self.progress(|copy| copy.position = piece.end());
                }
            }
            next = extents.next;
        }
        Ok(())
    }

    async fn copy_piece(&self, source: &dyn Replica, lvol: Uuid, piece: Range, kind: ExtentKind) -> Result<(), Error> {
        match kind {
            ExtentKind::Data => {
                let data = read_lvol(source, lvol, piece).await?;
                write(&*self.target, piece.offset, data).await?;
                self.progress(|copy| copy.written += piece.length);
            }
            ExtentKind::Zero => self.zero(piece).await?,
        }
        Ok(())
    }

    /// Makes a range of the target read as zeroes, whatever the chain below has.
    pub(super) async fn zero(&self, range: Range) -> Result<(), Error> {
        perform(&*self.target, Request::WriteZeroes { range, unmap: true, fua: false }).await.map(drop)
    }

    /// Whether source and target have the same snapshots now.
    pub(super) async fn same_snapshots(&self) -> Result<bool, Error> {
        let source = self.source()?;
        let (wanted, have) = (snapshots(&*source).await?, snapshots(&*self.target).await?);
        Ok(wanted.len() == have.len() && is_beginning(&have, &wanted))
    }

    /// Lets the target receive writes if no snapshot was taken since its snapshots were copied.
    pub(super) async fn attach_at_same_snapshots(&self) -> Result<bool, Error> {
        let _administration = self.core.administration.lock().await;
        let same = self.same_snapshots().await?;
        if same {
            self.core.catch_up_size(&*self.target).await?;
            self.attach(Role::Rebuilding);
        }
        Ok(same)
    }
}

async fn snapshots(replica: &dyn Replica) -> Result<Vec<ChainEntry>, Error> {
    let mut chain = replica.chain().await?;
    chain.retain(|entry| entry.kind == LvolKind::Snapshot);
    Ok(chain)
}

/// The head of a replica's chain.
pub(super) async fn head(replica: &dyn Replica) -> Result<Uuid, Error> {
    let chain = replica.chain().await?;
    let head = chain.last().filter(|entry| entry.kind == LvolKind::Head);
    head.map(|entry| entry.id).ok_or_else(|| Error::with_detail(ErrorKind::Internal, "a chain without a head"))
}

fn is_beginning(have: &[ChainEntry], wanted: &[ChainEntry]) -> bool {
    have.len() <= wanted.len() && have.iter().zip(wanted).all(|(have, wanted)| have.id == wanted.id)
}
