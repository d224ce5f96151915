//! A record made anew from the copies that replicas keep, when the registry has lost its own.
//!
//! Whoever asks names the replicas it knows of; the copies name the others. The newest copy counts once each replica that it
//! names is there and has a copy too: had the volume gone on without one of them, another one would know. `docs/replication.md`
//! has the proof.

use std::collections::BTreeMap;
use std::rc::Rc;

use block_device::{Error, ErrorKind};
use reactor::{bug, spawn, timeout, wall_clock};
use replica::ReplicaState;
use uuid::Uuid;

use crate::config::{EngineConfig, EngineError};
use crate::connector::{Connector, NodeConnector};
use crate::core::Core;
use crate::noting::new_uuid;
use crate::registry::{MemberState, NewReplica, Registry, RegistryError, ReplicaRecord, VolumeRecord};
use crate::session::SessionError;
use crate::spreading::{Looked, is_newer, look_at};

/// How far a record that was forced is ahead of all that is known: more than the starts that any replica out of reach can have seen, so
/// that it is neither refused nor taken for newer when it comes back.
const FORCED: u64 = 1 << 32;

/// What the replicas of a volume say of its membership.
pub struct Survey {
    volume: Uuid,
    /// Those that were asked: all that somebody named.
    found: BTreeMap<Uuid, Found>,
}

struct Found {
    replica: NewReplica,
    answer: Result<Looked, String>,
}

/// Asks the replicas `members`, and those that their copies name, what they know.
pub async fn survey(config: &EngineConfig, members: &[NewReplica]) -> Survey {
    let connector = NodeConnector { local: config.local.clone(), remote: config.remote.clone() };
    survey_with(config, members, Rc::new(connector)).await
}

/// The same with replicas from `connector`.
pub async fn survey_with(config: &EngineConfig, members: &[NewReplica], connector: Rc<dyn Connector>) -> Survey {
    let mut survey = Survey { volume: config.volume, found: BTreeMap::new() };
    let mut next: Vec<NewReplica> = members.to_vec();
    while !next.is_empty() {
        let asking = next.drain(..).map(|replica| {
            let (connector, volume, limit) = (connector.clone(), config.volume, config.remote.open_limit);
            spawn(async move {
                let record = ReplicaRecord::new(replica.clone(), MemberState::InSync);
                let answer = match timeout(limit, look_at(&*connector, &record, volume)).await {
                    Ok(answer) => answer.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("no answer within {limit:?}")),
                };
                Found { replica, answer }
            })
        });
        for task in asking.collect::<Vec<_>>() {
            if let Ok(found) = task.await {
                survey.found.insert(found.replica.replica, found);
            }
        }
        next = survey.unasked();
    }
    survey
}

impl Survey {
    /// Those that copies name and nobody asked.
    fn unasked(&self) -> Vec<NewReplica> {
        let named = self.copies().flat_map(|copy| &copy.replicas).map(|replica| (replica.replica, replica));
        let unasked = named.filter(|(id, _)| !self.found.contains_key(id)).collect::<BTreeMap<_, _>>();
        unasked.into_values().map(ReplicaRecord::named).collect()
    }

    fn looked(&self) -> impl Iterator<Item = &Looked> {
        self.found.values().filter_map(|found| found.answer.as_ref().ok())
    }

    fn copies(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.looked().filter_map(|looked| looked.copy.as_ref())
    }

    fn newest(&self) -> Option<&VolumeRecord> {
        if bug!("believe-an-old-copy") {
            return self.copies().min_by_key(|copy| (copy.epoch, copy.version));
        }
        self.copies().max_by_key(|copy| (copy.epoch, copy.version))
    }

    /// Those of the newest copy that has them.
    fn reservations(&self) -> Vec<u8> {
        let knowing = self.looked().filter(|looked| looked.knows_reservations);
        let newest = knowing.filter_map(|looked| looked.copy.as_ref()).max_by_key(|copy| (copy.epoch, copy.version));
        newest.map(|copy| copy.reservations.clone()).unwrap_or_default()
    }

    /// Whether a replica knows of something that this record does not.
    pub fn knows_more_than(&self, record: &VolumeRecord) -> bool {
        self.copies().any(|copy| is_newer(copy, record))
    }

    /// Whether no engine has ever had any of them: they answered, granted nothing and keep nothing.
    pub fn is_untouched(&self) -> bool {
        let untouched = |looked: &Looked| looked.epoch == 0 && looked.copy.is_none();
        self.found.values().all(|found| found.answer.as_ref().is_ok_and(untouched))
    }

    /// The record of the volume, if that is certain: each replica that the newest copy names was asked and has a copy (I5, I6).
    ///
    /// # Errors
    /// Words that say what is waited for.
    pub fn record(&self) -> Result<VolumeRecord, EngineError> {
        let unavailable = |text| Err(EngineError::Unavailable(text));
        let Some(newest) = self.newest() else {
            let text = "the registry has no record of the volume, and no replica in reach keeps a copy";
            return unavailable(format!("{text}: {}", self.trouble(self.found.keys())));
        };
        let missing: Vec<_> =
            newest.replicas.iter().map(|replica| &replica.replica).filter(|id| !self.has_copy(id)).collect();
        if !missing.is_empty() && !bug!("open-without-a-replica-that-may-know-more") {
            return unavailable(format!(
                "the registry has no record of the volume. Its replicas keep copies; each of them has to be there, since one that is away may know \
                 more. Waiting for {}",
                self.trouble(missing)
            ));
        }
        Ok(self.renew(newest.clone(), 1))
    }

    fn has_copy(&self, replica: &Uuid) -> bool {
        let found = self.found.get(replica);
        found.is_some_and(|found| found.answer.as_ref().is_ok_and(|looked| looked.copy.is_some()))
    }

    /// What is the matter with each of these.
    fn trouble<'a>(&self, replicas: impl IntoIterator<Item = &'a Uuid>) -> String {
        let describe = |id: &Uuid| match self.found.get(id) {
            Some(Found { replica, answer: Err(error) }) => format!("{id} on {} ({error})", replica.node),
            Some(Found { replica, answer: Ok(_) }) => format!("{id} on {} (it has no copy)", replica.node),
            None => id.to_string(),
        };
        replicas.into_iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    /// A record that is newer than all that is known, and takes nothing for known that a copy does not say.
    fn renew(&self, mut record: VolumeRecord, ahead: u64) -> VolumeRecord {
        let granted = self.looked().map(|looked| looked.epoch).max().unwrap_or(0);
        (record.epoch, record.instance) = (record.epoch.max(granted) + ahead, new_uuid());
        // Writes may have been in flight.
        (record.version, record.clean) = (0, false);
        record.reservations = self.reservations();
        for replica in &mut record.replicas {
            (replica.token, replica.changes) = (None, None);
            // Whoever asked knows better where a replica is now.
            if let Some(found) = self.found.get(&replica.replica) {
                replica.address = found.replica.address;
            }
        }
        record
    }

    /// The record with which a person makes one replica the one that counts, whatever others may know.
    ///
    /// # Errors
    /// When that replica cannot be one: it does not answer, or is in the middle of a rebuild.
    pub fn forced(&self, replica: Uuid) -> Result<VolumeRecord, EngineError> {
        let refused = |text: String| Err(EngineError::Config(text));
        let looked = match self.found.get(&replica).map(|found| &found.answer) {
            None => return refused("it is no replica of the volume".to_owned()),
            Some(Err(error)) => return refused(format!("the replica does not answer: {error}")),
            Some(Ok(looked)) if looked.granted.state == ReplicaState::Rebuilding => {
                return refused("it was being rebuilt: its content is a mixture".to_owned());
            }
            Some(Ok(looked)) => looked,
        };
        let mut record = match self.newest() {
            Some(newest) => newest.clone(),
            None => {
                let geometry = looked.granted.geometry;
                let members = self.found.values().map(|found| found.replica.clone());
                VolumeRecord::new(self.volume, geometry.size(), geometry.block_size, members)
            }
        };
        if !record.replicas.iter().any(|known| known.replica == replica) {
            return refused("it was removed from the volume".to_owned());
        }
        // What a revert had begun it may have done or not: what it holds counts.
        record.pending = None;
        let since = wall_clock().as_secs();
        for known in &mut record.replicas {
            known.state = match known.replica == replica {
                true => MemberState::InSync,
                false => {
                    MemberState::OutOfSync { since, reason: "given up: another was recovered by force".to_owned() }
                }
            };
        }
        Ok(self.renew(record, FORCED))
    }

    /// What may be lost by [`Survey::forced`], in words.
    pub fn consequence(&self, replica: Uuid) -> String {
        format!(
            "The registry has no record of the volume that counts, so nobody can say for certain who has everything. {} {}{} All others are \
             overwritten from it when they come back. Make sure that no other engine of the volume runs any more.",
            self.what_is_known(),
            self.who_is_silent(),
            self.what_it_lacks(replica)
        )
    }

    fn what_is_known(&self) -> String {
        let Some(newest) = self.newest() else { return "No replica in reach keeps a copy of it.".to_owned() };
        let in_sync = newest.replicas.iter().filter(|replica| replica.state == MemberState::InSync);
        let nodes: Vec<_> = in_sync.map(|replica| replica.node.as_str()).collect();
        format!("The newest copy in reach (epoch {}) says in sync: on {}.", newest.epoch, nodes.join(", "))
    }

    fn who_is_silent(&self) -> String {
        let named: Vec<&Uuid> = match self.newest() {
            Some(newest) => newest.replicas.iter().map(|replica| &replica.replica).collect(),
            None => self.found.keys().collect(),
        };
        let silent: Vec<_> = named.into_iter().filter(|id| !self.has_copy(id)).collect();
        match silent.is_empty() {
            true => String::new(),
            false => format!("Nobody knows what these know: {}. ", self.trouble(silent)),
        }
    }

    fn what_it_lacks(&self, replica: Uuid) -> String {
        let known = self.newest().and_then(|newest| newest.replicas.iter().find(|known| known.replica == replica));
        match known.map(|known| &known.state) {
            Some(MemberState::InSync) => {
                "The chosen one was in sync then: what was acknowledged without it since is lost.".to_owned()
            }
            Some(MemberState::OutOfSync { reason, .. }) => {
                format!("The chosen one had left before ({reason}): whatever was acknowledged since is lost.")
            }
            Some(MemberState::Settling | MemberState::Rebuilding) => {
                "The chosen one was being brought back: what it had not got yet is lost.".to_owned()
            }
            None => "How old the chosen one is is not known.".to_owned(),
        }
    }
}

impl Core {
    /// The registry has lost the record of a volume whose engine runs, but does not serve: it is made anew, if that is certain.
    pub(crate) async fn restored_record(&self) -> Result<VolumeRecord, SessionError> {
        let members: Vec<_> = self.record.borrow().replicas.iter().map(ReplicaRecord::named).collect();
        let survey = survey_with(&self.config, &members, Rc::clone(&self.connector)).await;
        let mut record = survey.record().map_err(SessionError::Lost)?;
        record.version = restore(&*self.registry, None, &record).await.map_err(SessionError::Lost)?;
        Ok(record)
    }
}

/// Puts a record from a [`Survey`] where the registry has none, a damaged one, or one that the survey knew more than. Returns its version.
///
/// `instead_of` is the version that the registry had when the survey began, none if it had none that can be read. What came into the registry since stays,
/// and the survey says nothing about it: it may be of an engine that serves, and whose copies the survey has met.
pub async fn restore(
    registry: &dyn Registry,
    instead_of: Option<u64>,
    record: &VolumeRecord,
) -> Result<u64, EngineError> {
    let found = match registry.load(record.volume).await {
        Ok(found) => found,
        Err(RegistryError::Damaged { .. }) => {
            registry.set_aside(record.volume).await?;
            None
        }
        Err(error) => return Err(error.into()),
    };
    let version = found.as_ref().map(|found| found.version);
    if version != instead_of || found.is_some_and(|found| record.epoch <= found.epoch) {
        let text = "the registry has a record that is as new";
        return Err(EngineError::Failed(Error::with_detail(ErrorKind::InvalidField, text)));
    }
    let version = registry.store(instead_of, record).await?;
    tracing::warn!(volume = %record.volume, epoch = record.epoch, "the membership was made anew from the replicas' copies");
    Ok(version)
}
