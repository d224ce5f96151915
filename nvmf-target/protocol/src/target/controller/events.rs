//! Asynchronous events (Base 5.2): requests held until there is something to tell.
//!
//! An event is told once and then masked until the host has read the log page it names (with RAE clear). A
//! change that comes while masked is told after that, so the host never misses the last one.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::Outcome;
use crate::slots::Slot;
use crate::wire::feature::event;
use crate::wire::log_page::Notice;
use crate::wire::{Completion, Status};

/// Requests that may be held at one time (AERL).
pub(super) const REQUESTS_MAX: usize = 8;

/// Changed namespaces that the page lists by number; more are told as "many" (Base 5.16.1.5).
const CHANGED_MAX: usize = 1024;
/// First entry of a Changed Namespace List that stands for more than 1024.
const CHANGED_MANY: u32 = 0xffff_ffff;

const NOTICES: [Notice; 3] = [Notice::NamespaceChanged, Notice::AnaChanged, Notice::DiscoveryChanged];

/// A set of notices.
#[derive(Clone, Copy, Debug, Default)]
struct NoticeSet(u8);

impl NoticeSet {
    fn insert(&mut self, notice: Notice) {
        self.0 |= bit(notice);
    }

    fn remove(&mut self, notice: Notice) {
        self.0 &= !bit(notice);
    }

    fn contains(self, notice: Notice) -> bool {
        self.0 & bit(notice) != 0
    }
}

fn bit(notice: Notice) -> u8 {
    match notice {
        Notice::NamespaceChanged => 1 << 0,
        Notice::AnaChanged => 1 << 1,
        Notice::DiscoveryChanged => 1 << 2,
    }
}

/// The bit of Asynchronous Event Configuration that lets a notice through.
fn enabled_by(notice: Notice) -> u32 {
    match notice {
        Notice::NamespaceChanged => event::NAMESPACE_CHANGED,
        Notice::AnaChanged => event::ANA_CHANGED,
        Notice::DiscoveryChanged => event::DISCOVERY_CHANGED,
    }
}

pub(super) struct Events {
    /// Held requests with their command identifiers, oldest first; at most [`REQUESTS_MAX`].
    held: VecDeque<(Slot, u16)>,
    /// Requests aborted and not yet answered; together with `held` bounded by the admin queue.
    aborted: Vec<Slot>,
    pending: NoticeSet,
    masked: NoticeSet,
    changed: BTreeSet<u32>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self {
            held: VecDeque::with_capacity(REQUESTS_MAX),
            aborted: Vec::new(),
            pending: NoticeSet::default(),
            masked: NoticeSet::default(),
            changed: BTreeSet::new(),
        }
    }

    pub(super) fn request(&mut self, slot: Slot, command_id: u16) -> Result<Outcome, Status> {
        if self.held.len() >= REQUESTS_MAX {
            return Err(Status::AsyncEventLimitExceeded);
        }
        self.held.push_back((slot, command_id));
        Ok(Outcome::Held)
    }

    pub(super) fn abort(&mut self, command_id: u16) -> bool {
        let Some(index) = self.held.iter().position(|(_, held)| *held == command_id) else { return false };
        if let Some((slot, _)) = self.held.remove(index) {
            self.aborted.push(slot);
        }
        true
    }

    pub(super) fn notify(&mut self, notice: Notice, namespace: u32) {
        self.pending.insert(notice);
        if notice == Notice::NamespaceChanged && self.changed.len() <= CHANGED_MAX {
            self.changed.insert(namespace);
        }
    }

    pub(super) fn next_completion(&mut self, enabled: u32) -> Option<(Slot, Completion)> {
        if let Some(slot) = self.aborted.pop() {
            return Some((slot, Completion::error(Status::AbortRequested)));
        }
        let notice = NOTICES.into_iter().find(|notice| {
            self.pending.contains(*notice) && !self.masked.contains(*notice) && enabled & enabled_by(*notice) != 0
        })?;
        let (slot, _) = self.held.pop_front()?;
        self.pending.remove(notice);
        self.masked.insert(notice);
        Some((slot, Completion::with_result(notice.to_result())))
    }

    /// The host read the page that `notice` names.
    pub(super) fn unmask(&mut self, notice: Notice) {
        self.masked.remove(notice);
    }

    /// The Changed Namespace List; `clear` when the host reads it for good.
    pub(super) fn changed_namespaces(&mut self, clear: bool) -> Vec<u32> {
        let list = if self.changed.len() > CHANGED_MAX {
            alloc::vec![CHANGED_MANY]
        } else {
            self.changed.iter().copied().collect()
        };
        if clear {
            self.changed.clear();
            // Told by the page itself.
            self.pending.remove(Notice::NamespaceChanged);
        }
        list
    }
}
