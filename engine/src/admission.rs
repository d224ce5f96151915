//! What the notes of replicas say at the start of a session: whom to believe, and what each of the others may lack.

use std::rc::Rc;

use reactor::bug;
use replica::Replica;
use uuid::Uuid;

use crate::core::Core;
use crate::members::Changes;
use crate::notes::{ChangesNote, INTENT, Intent, Noted, encode_token, place_of};
use crate::noting::{new_uuid, noted, set_note};
use crate::regions::Regions;
use crate::registry::{MemberState, VolumeRecord};
use crate::session::{Opened, SessionError};

/// What a session begins with, by member.
pub(crate) struct Admission {
    pub(crate) was_clean: bool,
    /// Whose content counts where replicas in sync may differ.
    pub(crate) source: Option<usize>,
    /// The token of each that is open and keeps notes.
    pub(crate) tokens: Vec<Option<Uuid>>,
    /// What each that is not in sync lacks, where that is known (I23).
    pub(crate) changes: Vec<Option<Changes>>,
}

impl Admission {
    /// Whether a member is in sync in this session.
    pub(crate) fn is_in_sync(&self, member: usize, opened: &Opened) -> bool {
        opened[member].is_some() && (self.was_clean || self.source == Some(member))
    }
}

impl Core {
    /// Reads the notes of the replicas that were opened in sync, and notes with those that stay in sync what the others lack. A
    /// replica whose notes fail is let go, if another one is left.
    pub(crate) async fn judge(&self, opened: &mut Opened, was_clean: bool) -> Result<Admission, SessionError> {
        loop {
            let (failed, error) = match self.judge_once(opened, was_clean).await {
                Ok(admission) => return Ok(admission),
                Err(failed) => failed,
            };
            tracing::warn!(volume = %self.config.volume, member = failed, %error, "a replica's notes failed");
            opened[failed] = None;
            if opened.iter().all(Option::is_none) {
                return Err(SessionError::Notes(error));
            }
        }
    }

    async fn judge_once(&self, opened: &Opened, was_clean: bool) -> Result<Admission, (usize, block_device::Error)> {
        let record = self.record.borrow().clone();
        let mut known: Vec<Option<Noted>> = record.replicas.iter().map(|_| None).collect();
        for (member, replica) in open_ones(opened) {
            known[member] = self.in_time(noted(&*replica)).await.map_err(|error| (member, error))?;
        }
        let tokens = known
            .iter()
            .enumerate()
            .map(|(member, known)| Some(known.as_ref()?.token(member).unwrap_or_else(new_uuid)));
        let tokens = tokens.collect();
        let source = source(opened, &known);
        let changes = lacking(&record, opened, &known, source, was_clean);
        let admission = Admission { was_clean, source, tokens, changes };
        for (member, replica) in open_ones(opened).filter(|(member, _)| admission.is_in_sync(*member, opened)) {
            let noting = self.note_changes(&record, &admission, member, &*replica);
            self.in_time(noting).await.map_err(|error| (member, error))?;
        }
        Ok(admission)
    }

    /// Before the record says who is in sync: what the others lack. The intent of the engine before is still there.
    async fn note_changes(
        &self,
        record: &VolumeRecord,
        admission: &Admission,
        member: usize,
        replica: &dyn Replica,
    ) -> Result<(), block_device::Error> {
        let Some(token) = admission.tokens[member] else { return Ok(()) };
        set_note(replica, place_of(member), &encode_token(token), true).await?;
        for (other, changes) in admission.changes.iter().enumerate().filter(|(other, _)| *other != member) {
            let Some(changes) = changes else { continue };
            let (replica_id, generation) = (record.replicas[other].replica, changes.generation);
            let note = ChangesNote { replica: replica_id, generation, regions: changes.regions.clone() };
            set_note(replica, place_of(other), &note.encode(record.size), false).await?;
        }
        Ok(())
    }

    /// After the record says who is in sync: the intent of this engine, durable before its first write, so that an older one that says
    /// "closed" is never taken for the last (I23).
    pub(crate) async fn open_notes(&self, opened: &Opened, admission: &Admission) -> Result<(), SessionError> {
        let intent = Intent { instance: self.instance, closed: false, everything: false, regions: Vec::new() };
        for (member, replica) in open_ones(opened).filter(|(member, _)| admission.is_in_sync(*member, opened)) {
            if admission.tokens[member].is_some() && !bug!("leave-the-old-intent-closed") {
                let note = intent.encode();
                let noting = set_note(&*replica, INTENT, &note, true);
                self.in_time(noting).await.map_err(SessionError::Notes)?;
            }
        }
        Ok(())
    }
}

fn open_ones(opened: &Opened) -> impl Iterator<Item = (usize, Rc<dyn Replica>)> {
    opened.iter().enumerate().filter_map(|(member, replica)| Some((member, Rc::clone(replica.as_ref()?))))
}

/// One that did not lose power, or nothing by it, before one that did; then the local one before others.
fn source(opened: &Opened, known: &[Option<Noted>]) -> Option<usize> {
    let open = open_ones(opened);
    let best = open.min_by_key(|(member, replica)| (intent(known, *member).is_none(), !replica.is_local(), *member));
    best.map(|(member, _)| member)
}

fn intent(known: &[Option<Noted>], member: usize) -> Option<Intent> {
    known[member].as_ref()?.intent()
}

/// What each member that will not be in sync lacks, where that is known.
fn lacking(
    record: &VolumeRecord,
    opened: &Opened,
    known: &[Option<Noted>],
    source: Option<usize>,
    was_clean: bool,
) -> Vec<Option<Changes>> {
    let of = |(member, replica): (usize, &crate::registry::ReplicaRecord)| {
        let source = source?;
        let from_source = intent(known, source)?;
        let regions = match (&replica.state, &opened[member]) {
            (MemberState::InSync, Some(_)) if was_clean || member == source => None,
            (MemberState::InSync, Some(_)) => in_flight(&from_source, &intent(known, member)?),
            // Gone back to a snapshot without it.
            _ if record.pending.is_some() => None,
            (MemberState::InSync, None) => (was_clean && from_source.closed).then(Regions::default),
            _ => known[source].as_ref()?.changes(member, replica.replica, replica.changes?, record.size),
        };
        let generation = match replica.state {
            MemberState::InSync => new_uuid(),
            _ => replica.changes?,
        };
        Some(Changes { generation, regions: regions?, unsaved: false })
    };
    record.replicas.iter().enumerate().map(of).collect()
}

/// Where two replicas that were in sync may differ after an engine's crash.
fn in_flight(one: &Intent, other: &Intent) -> Option<Regions> {
    let listed = !one.everything && !other.everything;
    listed.then(|| one.regions.iter().chain(&other.regions).map(|region| u64::from(*region)).collect())
}
