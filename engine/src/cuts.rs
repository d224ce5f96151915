//! Snapshots as backups read them: what one holds, where two of them differ, and their bytes. Maps of a replica in sync tell the former two; nothing
//! is found by reading. Hosts go first, as they do with copies.

use std::rc::Rc;

use block_device::{Error, ErrorKind, Range, Segments};
use replica::{ChainEntry, Extent, ExtentKind, LvolKind, Replica};
use uuid::Uuid;

use crate::allocation::overlaid;
use crate::config::EngineError;
use crate::copy::read_lvol;
use crate::core::Core;
use crate::members::bit;

/// Extents of each lvol of the chain that are looked at for one answer.
const EXTENTS: u32 = 256;

impl Core {
    /// Runs that a snapshot has data in, or in which it differs from the snapshot `since`: at most `max` that end after byte `from`, in order; none
    /// at the end. The outer None: there is no such snapshot any more.
    pub(crate) async fn snapshot_extents(
        &self,
        snapshot: Uuid,
        since: Option<Uuid>,
        from: u64,
        max: usize,
    ) -> Result<Option<Vec<Range>>, EngineError> {
        self.ask_sources(|source| async move { differences(&*source, snapshot, since, from, max).await }).await
    }

    /// A range of a snapshot. None: there is no such snapshot any more.
    pub(crate) async fn read_snapshot(&self, snapshot: Uuid, range: Range) -> Result<Option<Segments>, EngineError> {
        let mut read = Segments::none();
        let mut offset = range.offset;
        while offset < range.end() {
            let step = self.step_beside_hosts().await;
            let piece = Range { offset, length: step.size.min(range.end() - offset) };
            let data = self.ask_sources(|source| async move { read_piece(&*source, snapshot, piece).await }).await?;
            let Some(data) = data else { return Ok(None) };
            data.into_iter().for_each(|slice| read.push(slice));
            offset += piece.length;
        }
        Ok(Some(read))
    }

    /// What a replica in sync says: the local one, or else the first; if that fails the next one.
    async fn ask_sources<T, F>(&self, ask: impl Fn(Rc<dyn Replica>) -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.check_serving()?;
        let (mut tried, mut said) = (0, None);
        loop {
            let source = {
                let members = self.members.borrow();
                members.source(tried).and_then(|member| Some((member, members.replica(member)?)))
            };
            let Some((member, replica)) = source else {
                let none = || EngineError::Unavailable("no replica in sync can be read now".to_owned());
                return Err(said.map_or_else(none, EngineError::Failed));
            };
            tried |= bit(member);
            match self.in_time(ask(replica)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => said = Some(error),
            }
        }
    }
}

async fn read_piece(source: &dyn Replica, snapshot: Uuid, piece: Range) -> Result<Option<Segments>, Error> {
    match read_lvol(source, snapshot, piece).await {
        Ok(data) => Ok(Some(data)),
        // Whether it is gone is for the chain to say: an error may mean anything.
        Err(error) => match place(&source.chain().await?, snapshot) {
            Some(_) => Err(error),
            None => Ok(None),
        },
    }
}

fn place(chain: &[ChainEntry], snapshot: Uuid) -> Option<usize> {
    chain.iter().position(|entry| entry.id == snapshot && entry.kind == LvolKind::Snapshot)
}

async fn differences(
    source: &dyn Replica,
    snapshot: Uuid,
    since: Option<Uuid>,
    from: u64,
    max: usize,
) -> Result<Option<Vec<Range>>, Error> {
    let chain = source.chain().await?;
    let Some(at) = place(&chain, snapshot) else { return Ok(None) };
    // What lies between two snapshots is what they may differ in, whichever of them is the older one.
    let between = match since.map(|since| place(&chain, since)) {
        None => 0..at + 1,
        Some(Some(since)) => since.min(at) + 1..since.max(at) + 1,
        Some(None) => {
            return Err(Error::with_detail(ErrorKind::InvalidField, "the snapshot to compare with is gone"));
        }
    };
    let (lvols, end) = (&chain[between], chain[at].size);
    let mut offset = from;
    while offset < end {
        let mut window = Range { offset, length: end - offset };
        let mut layers = Vec::new();
        for lvol in lvols {
            let extents = source.extents(lvol.id, window, EXTENTS).await?;
            if let Some(next) = extents.next {
                // What is behind is not known of this lvol.
                window.length = window.length.min(next.saturating_sub(window.offset));
            }
            let counts = |extent: Extent| match since {
                // Zeroes in place of data are a difference, too.
                Some(_) => Extent { kind: ExtentKind::Data, ..extent },
                None => extent,
            };
            layers.push(extents.list.into_iter().map(counts).collect());
        }
        let runs = overlaid(&layers, window).into_iter().filter(|run| run.mapped).map(|run| run.range);
        let found: Vec<Range> = runs.take(max).collect();
        if !found.is_empty() {
            return Ok(Some(found));
        }
        if window.length == 0 {
            return Err(Error::with_detail(ErrorKind::Internal, "the map goes on where it began"));
        }
        offset = window.end();
    }
    Ok(Some(Vec::new()))
}
