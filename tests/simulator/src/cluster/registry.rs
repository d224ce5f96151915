//! The cluster's registry: one strict compare-and-swap store that every node reaches over a network of its own. It also
//! checks what each change of a record may be.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use engine::{MemberState, Registry, RegistryError, ReplicaRecord, VolumeRecord};
use reactor::simulated::{Observer, Random};
use reactor::sleep;
use replica::LocalFuture;
use uuid::Uuid;

/// How long a call travels, at most, in one direction.
const TRAVEL: u64 = 2_000;

/// What is told of a volume that lost what was not flushed.
type OnLoss = Box<dyn Fn(Uuid)>;

/// What is told of a replica of a volume whose place in the record has changed.
type OnMember = Box<dyn Fn(Uuid, Uuid, Came)>;

/// What became of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// It is not in sync any more.
    Left,
    /// It is in sync.
    Back,
    /// It is, because a person said so.
    ByForce,
}

/// The registry. It loses a record only when the plan says so.
pub(super) struct SharedRegistry {
    observer: Observer,
    /// Of a volume whose record is lost: what it was.
    records: RefCell<BTreeMap<Uuid, VolumeRecord>>,
    /// Volumes whose record is lost.
    lost: RefCell<BTreeSet<Uuid>>,
    /// Counts all changes: the version of a record is the number of its last one.
    revision: Cell<u64>,
    /// Replicas that were seen to keep a copy of their volume's record.
    copies: RefCell<BTreeSet<Uuid>>,
    /// By node: how often its process was up and went away again, and whether it is away.
    ups: RefCell<BTreeMap<usize, (u64, bool)>>,
    /// Nodes that do not reach it.
    away: RefCell<BTreeSet<usize>>,
    /// Its answers are lost now and then.
    pub(super) mute: Cell<bool>,
    /// By volume: members recorded in sync whose machine lost power since, with what was not flushed.
    lost_power: RefCell<BTreeMap<Uuid, BTreeSet<Uuid>>>,
    /// Told of volumes that lost what was not flushed, because their record names nobody any more who kept its power.
    on_loss: RefCell<Option<OnLoss>>,
    on_member: RefCell<Option<OnMember>>,
    /// By volume: the replica of which a person says that it counts.
    forced: RefCell<BTreeMap<Uuid, Uuid>>,
}

impl SharedRegistry {
    pub(super) fn new(observer: Observer) -> Rc<Self> {
        Rc::new(Self {
            observer,
            records: RefCell::default(),
            lost: RefCell::default(),
            revision: Cell::new(0),
            copies: RefCell::default(),
            ups: RefCell::default(),
            away: RefCell::default(),
            mute: Cell::new(false),
            lost_power: RefCell::default(),
            on_loss: RefCell::default(),
            on_member: RefCell::default(),
            forced: RefCell::default(),
        })
    }

    pub(super) fn on_loss(&self, told: impl Fn(Uuid) + 'static) {
        *self.on_loss.borrow_mut() = Some(Box::new(told));
    }

    pub(super) fn on_member(&self, told: impl Fn(Uuid, Uuid, Came) + 'static) {
        *self.on_member.borrow_mut() = Some(Box::new(told));
    }

    /// A person says that a replica counts, whatever it lacks, or has said so.
    pub(super) fn set_forced(&self, volume: Uuid, replica: Option<Uuid>) {
        match replica {
            Some(replica) => self.forced.borrow_mut().insert(volume, replica),
            None => self.forced.borrow_mut().remove(&volume),
        };
    }

    pub(super) fn insert(&self, record: VolumeRecord) {
        self.records.borrow_mut().insert(record.volume, VolumeRecord { version: self.next_revision(), ..record });
    }

    fn next_revision(&self) -> u64 {
        self.revision.set(self.revision.get() + 1);
        self.revision.get()
    }

    /// Loses the record of a volume.
    pub(super) fn lose(&self, volume: Uuid) {
        self.lost.borrow_mut().insert(volume);
    }

    pub(super) fn has_lost(&self, volume: Uuid) -> bool {
        self.lost.borrow().contains(&volume)
    }

    /// A replica keeps a copy, or it was made anew and keeps none.
    pub(super) fn keeps_copy(&self, replica: Uuid, keeps: bool) {
        match keeps {
            true => self.copies.borrow_mut().insert(replica),
            false => self.copies.borrow_mut().remove(&replica),
        };
    }

    pub(super) fn has_copy(&self, replica: Uuid) -> bool {
        self.copies.borrow().contains(&replica)
    }

    /// A node's process serves its replicas, or has ended.
    pub(super) fn set_up(&self, node: usize, up: bool) {
        let mut ups = self.ups.borrow_mut();
        let (count, is_up) = ups.entry(node).or_default();
        (*count, *is_up) = (*count + 1, up);
    }

    /// The nodes with a replica in sync that are away, each with a number that tells one absence from another.
    pub(super) fn away_in_sync(&self, volume: Uuid) -> BTreeMap<usize, u64> {
        let ups = self.ups.borrow();
        let away = |node: usize| ups.get(&node).filter(|(_, up)| !up).map(|(count, _)| *count);
        let members = self.replicas(volume).into_iter().filter(|(_, replica)| self.is_in_sync(volume, *replica));
        members.filter_map(|(node, _)| Some((node, away(node)?))).collect()
    }

    /// The record of a volume; the last there was if it is lost.
    pub(super) fn record(&self, volume: Uuid) -> VolumeRecord {
        self.records.borrow()[&volume].clone()
    }

    /// The replicas that belong to a volume now, by node.
    pub(super) fn replicas(&self, volume: Uuid) -> Vec<(usize, Uuid)> {
        let node = |name: &str| name.trim_start_matches('n').parse().unwrap_or_default();
        self.record(volume).replicas.iter().map(|replica| (node(&replica.node), replica.replica)).collect()
    }

    /// The replica of a volume on a node, if one belongs to it.
    pub(super) fn replica_on(&self, volume: Uuid, node: usize) -> Option<Uuid> {
        self.replicas(volume).into_iter().find(|(other, _)| *other == node).map(|(_, replica)| replica)
    }

    pub(super) fn is_in_sync(&self, volume: Uuid, replica: Uuid) -> bool {
        in_sync(&self.record(volume)).contains(&replica)
    }

    pub(super) fn is_out_of_sync(&self, volume: Uuid, replica: Uuid) -> bool {
        let out = |member: &ReplicaRecord| matches!(member.state, MemberState::OutOfSync { .. });
        self.record(volume).replicas.iter().any(|member| member.replica == replica && out(member))
    }

    /// Whether all replicas of a volume are in sync.
    pub(super) fn is_whole(&self, volume: Uuid) -> bool {
        self.record(volume).replicas.iter().all(|replica| replica.state == MemberState::InSync)
    }

    pub(super) fn set_away(&self, node: usize, away: bool) {
        match away {
            true => self.away.borrow_mut().insert(node),
            false => self.away.borrow_mut().remove(&node),
        };
    }

    pub(super) fn everyone_reaches_it(&self) {
        self.away.borrow_mut().clear();
        self.mute.set(false);
    }

    /// A member's machine lost its power. What is not flushed is on all replicas in sync: as long as one of them kept its power
    /// nothing is lost.
    pub(super) fn lost_power(&self, volume: Uuid, replica: Uuid) {
        let record = self.record(volume);
        self.lost_power.borrow_mut().entry(volume).or_default().insert(replica);
        self.look_for_loss(&record);
    }

    fn look_for_loss(&self, record: &VolumeRecord) {
        let lost = {
            let mut lost = self.lost_power.borrow_mut();
            let lost = lost.entry(record.volume).or_default();
            // Whoever is not in sync is made so again from another one.
            lost.retain(|replica| in_sync(record).contains(replica));
            let all = in_sync(record).is_subset(lost);
            if all {
                lost.clear();
            }
            all
        };
        if let Some(told) = self.on_loss.borrow().as_ref().filter(|_| lost) {
            told(record.volume);
        }
    }

    fn change(&self, expected: Option<u64>, mut record: VolumeRecord) -> Result<u64, RegistryError> {
        let volume = record.volume;
        let mut records = self.records.borrow_mut();
        let there = records.get(&volume).filter(|_| !self.has_lost(volume));
        let found = there.map(|record| record.version);
        if found != expected {
            return Err(RegistryError::Conflict { volume, found });
        }
        record.version = self.next_revision();
        self.observer.log(format!("record of {}: {}", &volume.to_string()[..8], summary(&record)));
        let forced = self.forced.borrow().get(&volume).copied();
        match there {
            Some(before) => check_change(before, &record, forced),
            None => assert!(!in_sync(&record).is_empty(), "I3 broken: a record made anew has nothing in sync"),
        }
        self.lost.borrow_mut().remove(&volume);
        self.tell_members(&records[&volume], &record, forced);
        self.look_for_loss(&record);
        let version = record.version;
        records.insert(volume, record);
        Ok(version)
    }

    /// Those that leave come first: what one that is forced lacks they have.
    fn tell_members(&self, before: &VolumeRecord, after: &VolumeRecord, forced: Option<Uuid>) {
        let on_member = self.on_member.borrow();
        let Some(told) = on_member.as_ref() else { return };
        let (before, now) = (in_sync(before), in_sync(after));
        before.difference(&now).for_each(|left| told(after.volume, *left, Came::Left));
        for came in now.difference(&before) {
            told(after.volume, *came, if forced == Some(*came) { Came::ByForce } else { Came::Back });
        }
    }
}

fn in_sync(record: &VolumeRecord) -> BTreeSet<Uuid> {
    let members = record.replicas.iter();
    members.filter(|replica| replica.state == MemberState::InSync).map(|replica| replica.replica).collect()
}

fn check_change(before: &VolumeRecord, after: &VolumeRecord, forced: Option<Uuid>) {
    assert!(!in_sync(after).is_empty(), "I3 broken: nothing is recorded in sync any more");
    assert!(after.epoch >= before.epoch, "I12 broken: epoch {} after {}", after.epoch, before.epoch);
    let taken_over = after.instance != before.instance;
    assert!(!taken_over || after.epoch > before.epoch, "I14 broken: two engines with epoch {}", after.epoch);
    assert!(after.size >= before.size, "I39 broken: {} bytes after {}", after.size, before.size);
    for new in &after.replicas {
        let old = before.replicas.iter().find(|old| old.replica == new.replica);
        let stale = old.is_none_or(|old| matches!(old.state, MemberState::OutOfSync { .. }));
        let jumps = stale && new.state == MemberState::InSync && forced != Some(new.replica);
        assert!(!jumps, "I5 broken: replica {} was out of sync and is in sync without a rebuild", new.replica);
    }
}

/// A record in a line.
pub(super) fn summary(record: &VolumeRecord) -> String {
    let members: Vec<_> =
        record.replicas.iter().map(|replica| format!("{} {}", replica.node, word(&replica.state))).collect();
    format!("version {}, epoch {}, clean {}, {}", record.version, record.epoch, record.clean, members.join(", "))
}

/// A member's state in a word, and why.
pub(super) fn word(state: &MemberState) -> String {
    match state {
        MemberState::InSync => "in-sync".to_owned(),
        MemberState::Settling => "settling".to_owned(),
        MemberState::Rebuilding => "rebuilding".to_owned(),
        MemberState::OutOfSync { reason, .. } => format!("out-of-sync ({reason})"),
    }
}

/// The registry as one node reaches it.
pub(super) struct NodeRegistry {
    pub(super) shared: Rc<SharedRegistry>,
    pub(super) node: usize,
    pub(super) random: RefCell<Random>,
}

impl NodeRegistry {
    /// One way to the registry or back.
    async fn travel(&self) -> Result<(), RegistryError> {
        let microseconds = self.random.borrow_mut().below(TRAVEL);
        sleep(Duration::from_micros(microseconds)).await;
        match self.shared.away.borrow().contains(&self.node) {
            true => Err(io::Error::other("the simulated registry is out of reach").into()),
            false => Ok(()),
        }
    }

    async fn answer<T>(&self, answer: Result<T, RegistryError>) -> Result<T, RegistryError> {
        self.travel().await?;
        match self.shared.mute.get() && self.random.borrow_mut().one_in(3) {
            true => Err(io::Error::other("the simulated registry's answer was lost").into()),
            false => answer,
        }
    }
}

impl Registry for NodeRegistry {
    fn load(&self, volume: Uuid) -> LocalFuture<'_, Result<Option<VolumeRecord>, RegistryError>> {
        Box::pin(async move {
            self.travel().await?;
            let record = self.shared.records.borrow().get(&volume).cloned();
            self.answer(Ok(record.filter(|_| !self.shared.has_lost(volume)))).await
        })
    }

    fn store(&self, expected: Option<u64>, record: &VolumeRecord) -> LocalFuture<'_, Result<u64, RegistryError>> {
        let record = record.clone();
        Box::pin(async move {
            self.travel().await?;
            let changed = self.shared.change(expected, record);
            self.answer(changed).await
        })
    }

    fn set_aside(&self, _volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        // No record here is ever damaged.
        Box::pin(self.travel())
    }

    fn remove(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            self.travel().await?;
            self.shared.records.borrow_mut().remove(&volume);
            self.answer(Ok(())).await
        })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Uuid>, RegistryError>> {
        Box::pin(async move {
            self.travel().await?;
            let volumes = self.shared.records.borrow().keys().copied().collect();
            self.answer(Ok(volumes)).await
        })
    }
}
