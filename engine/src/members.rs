//! The replicas of a volume while an engine works with them.

use std::rc::Rc;

use block_device::{Error, Range};
use reactor::{Instant, bug};
use replica::Replica;
use uuid::Uuid;

use crate::config::CopyProgress;
use crate::latency::Latency;
use crate::mending::Damage;
use crate::noting::new_uuid;
use crate::regions::Regions;

/// A set of members, a bit for each by its place in the record.
pub(crate) type Mask = u32;

/// The mask of one member.
pub(crate) const fn bit(member: usize) -> Mask {
    1 << member
}

/// What a member does for the volume now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing: not open, or out of sync.
    Absent,
    /// A source of reads; recorded in sync.
    InSync,
    /// Receives writes; recorded settling.
    Settling,
    /// Receives writes; recorded rebuilding.
    Rebuilding,
}

/// One replica.
pub(crate) struct Member {
    pub(crate) role: Role,
    pub(crate) replica: Option<Rc<dyn Replica>>,
    /// It failed, but the record does not say so yet: it gets nothing any more.
    pub(crate) failing: Option<Error>,
    /// The last thing that went wrong, for people.
    pub(crate) trouble: Option<String>,
    /// How often it left since it was in sync for a while.
    pub(crate) departures: u32,
    /// When it is tried again.
    pub(crate) next_try: Option<Instant>,
    pub(crate) copy: Option<CopyProgress>,
    pub(crate) latency: Latency,
    pub(crate) damage: Damage,
    /// Its disk takes no repairs: whatever it is known to lack, all of it is compared when it comes back.
    pub(crate) unsound: bool,
    /// It has the notes that those in sync have.
    pub(crate) noted: bool,
    /// What it lacks while it is not in sync, if that is known (I23).
    pub(crate) changes: Option<Changes>,
    /// It failed, and what it lacks is followed, or known not to be.
    pub(crate) following: bool,
}

/// What a member lacks: each write since a certain time is added when it is sent.
pub(crate) struct Changes {
    /// Names the time: what was followed at another one is something else.
    pub(crate) generation: Uuid,
    pub(crate) regions: Regions,
    /// It grew since it was noted.
    pub(crate) unsaved: bool,
}

impl Changes {
    /// Of someone who lacks nothing yet.
    pub(crate) fn new() -> Self {
        Self { generation: new_uuid(), regions: Regions::default(), unsaved: true }
    }
}

impl Member {
    pub(crate) fn absent() -> Self {
        Self {
            role: Role::Absent,
            replica: None,
            failing: None,
            trouble: None,
            departures: 0,
            next_try: None,
            copy: None,
            latency: Latency::default(),
            damage: Damage::default(),
            unsound: false,
            noted: false,
            changes: None,
            following: false,
        }
    }

    /// The replica, if it can be used.
    fn working(&self) -> Option<&Rc<dyn Replica>> {
        self.replica.as_ref().filter(|_| self.failing.is_none())
    }
}

/// All of them, in the record's order.
#[derive(Default)]
pub(crate) struct Members(pub(crate) Vec<Member>);

impl Members {
    fn mask(&self, wanted: impl Fn(&Member) -> bool) -> Mask {
        let chosen = self.0.iter().enumerate().filter(|(_, member)| wanted(member));
        chosen.fold(0, |mask, (index, _)| mask | bit(index))
    }

    /// Those recorded in sync, failing ones too: an acknowledgement waits for them (I1).
    pub(crate) fn in_sync(&self) -> Mask {
        self.mask(|member| member.role == Role::InSync)
    }

    /// Those that have to be recorded out of sync before a write that they lack is acknowledged.
    pub(crate) fn recorded(&self) -> Mask {
        self.mask(|member| matches!(member.role, Role::InSync | Role::Settling))
    }

    /// Those that failed and are not recorded so yet.
    pub(crate) fn failing(&self) -> Mask {
        self.mask(|member| member.failing.is_some())
    }

    /// Those that have the notes of those in sync, and can be told new ones.
    pub(crate) fn noted(&self) -> Mask {
        self.mask(|member| member.noted && member.working().is_some())
    }

    /// Those that failed and can be recorded: what they lack is followed, or known not to be.
    pub(crate) fn followed(&self) -> Mask {
        self.mask(|member| member.failing.is_some() && member.following)
    }

    /// A write is about to be sent: whoever is not in sync may come to lack it.
    pub(crate) fn follow(&mut self, ranges: &[Range]) {
        for changes in self.0.iter_mut().filter_map(|member| member.changes.as_mut()) {
            let new = ranges.iter().fold(false, |new, range| changes.regions.insert_range(*range) | new);
            changes.unsaved |= new;
        }
    }

    /// What these lack is not known any more.
    pub(crate) fn stop_following(&mut self, members: Mask) {
        for (index, member) in self.0.iter_mut().enumerate() {
            if members & bit(index) != 0 {
                member.changes = None;
            }
        }
    }

    /// Those that get writes.
    pub(crate) fn receiving(&self) -> Mask {
        self.mask(|member| member.role != Role::Absent && member.working().is_some())
    }

    /// Those that can be read from: what is on its way may differ (I8).
    pub(crate) fn readable(&self) -> Mask {
        let readable = |role| role == Role::InSync || role != Role::Absent && bug!("read-from-replicas-on-their-way");
        self.mask(|member| readable(member.role) && member.working().is_some())
    }

    /// When the last of those that the record may list in sync confirmed that no newer epoch had been granted; none without any.
    pub(crate) fn confirmed(&self) -> Option<Instant> {
        let confirmed = self.replicas(self.recorded()).map(|(_, replica)| replica.confirmed());
        confirmed.min()
    }

    /// Whether this is the only one left that can be read from: it is never failed for being slow (I3).
    pub(crate) fn is_last(&self, member: usize) -> bool {
        self.readable() == bit(member)
    }

    /// Whom a host's read goes to: the local one unless it is much slower than others, else the fastest, without those in `tried`.
    pub(crate) fn reader(&self, tried: Mask) -> Option<usize> {
        let readable = self.readable() & !tried;
        let candidates = || self.0.iter().enumerate().filter(|(index, _)| readable & bit(*index) != 0);
        let (fastest, best) = candidates().min_by_key(|(_, member)| member.latency.figure())?;
        let local = candidates().find(|(_, member)| member.working().is_some_and(|replica| replica.is_local()));
        let local = local.filter(|(_, member)| !member.latency.is_much_slower_than(&best.latency));
        Some(local.map_or(fastest, |(index, _)| index))
    }

    /// Who else should be asked, so that it is known how fast it is: when `chosen` is not simply the one at hand.
    pub(crate) fn unknown(&self, chosen: usize, now: Instant) -> Option<usize> {
        let is_at_hand =
            |member: &Member| !member.latency.is_slow() && member.working().is_some_and(|replica| replica.is_local());
        if is_at_hand(&self.0[chosen]) {
            return None;
        }
        let others = self.readable() & !bit(chosen);
        (0..self.0.len()).find(|&index| others & bit(index) != 0 && self.0[index].latency.is_old(now))
    }

    /// The member to copy from: the local one, or the first, without those in `tried`.
    pub(crate) fn source(&self, tried: Mask) -> Option<usize> {
        let readable = self.readable() & !tried;
        let mut candidates = (0..self.0.len()).filter(|&index| readable & bit(index) != 0);
        let first = candidates.clone().next();
        candidates.find(|&index| self.0[index].working().is_some_and(|replica| replica.is_local())).or(first)
    }

    /// A member's replica, if it can be used.
    pub(crate) fn replica(&self, member: usize) -> Option<Rc<dyn Replica>> {
        self.0.get(member)?.working().cloned()
    }

    /// The replicas of a mask.
    pub(crate) fn replicas(&self, mask: Mask) -> impl Iterator<Item = (usize, &Rc<dyn Replica>)> {
        let chosen = self.0.iter().enumerate().filter(move |(index, _)| mask & bit(*index) != 0);
        chosen.filter_map(|(index, member)| Some((index, member.replica.as_ref()?)))
    }
}
