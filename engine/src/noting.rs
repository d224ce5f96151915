//! Notes with the replicas in sync: where writes may be in flight, and what absent replicas lack. `docs/replication.md` has the
//! reasons for the order of things.

use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind};
use reactor::bug;
use replica::Replica;
use uuid::Uuid;

use crate::core::{Core, Phase};
use crate::flight::{Stage, ranges};
use crate::intent::Plan;
use crate::members::{Changes, Role, bit};
use crate::notes::{ChangesNote, INTENT, Intent, Noted, encode_token, place_of};

/// How long recording a failed replica may wait for what it lacks to be noted. Without it the replica is compared in full later.
const FOLLOWING_LIMIT: Duration = Duration::from_millis(500);

/// How long to leave a busy replica alone (I33).
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// The session ended before a note was with everyone.
pub(crate) struct NotNoted;

impl Core {
    /// Whether a write may be sent to replicas: its regions are noted. If not it waits for [`Core::keep_noting`].
    pub(crate) fn may_send(&self, index: usize) -> bool {
        let mut flight = self.flight.borrow_mut();
        let slot = flight.slot(index);
        let ranges = ranges(&slot.request);
        if !self.intents.borrow_mut().begin(&ranges, index) {
            slot.stage = Stage::Noting;
            self.signals.intent.notify_one();
            return false;
        }
        slot.stage = Stage::Active;
        slot.session = self.session.get();
        // From here on it may be on any replica, and durable on none.
        self.unflushed.borrow_mut().wrote(&ranges);
        if !bug!("follow-no-writes") {
            self.members.borrow_mut().follow(&ranges);
        }
        true
    }

    /// A write that was sent has been answered.
    pub(crate) fn sent_is_over(&self, request: &block_device::Request, session: u64) {
        if session == 0 || session != self.session.get() {
            return;
        }
        let ranges = ranges(request);
        if !bug!("forget-writes-that-end-during-a-flush") {
            self.unflushed.borrow_mut().wrote(&ranges);
        }
        if self.intents.borrow_mut().end(&ranges) {
            self.signals.intent.notify_one();
        }
    }

    /// Notes regions that writes wait for, and sends those writes. Runs for a session.
    pub(crate) async fn keep_noting(&self) {
        loop {
            self.signals.intent.notified().await;
            while self.note_next().await {
                let waiting = self.intents.borrow_mut().take_waiting();
                waiting.into_iter().for_each(|index| self.start_again(index));
            }
        }
    }

    async fn note_next(&self) -> bool {
        let _noting = self.noting.lock().await;
        let plan = if self.is_running() { self.intents.borrow_mut().plan() } else { None };
        let Some(plan) = plan else { return false };
        let noted = self.note(&plan).await.is_ok();
        if noted {
            self.intents.borrow_mut().done(&plan);
        }
        noted
    }

    async fn note(&self, plan: &Plan) -> Result<(), NotNoted> {
        if plan.leaves && !bug!("let-regions-leave-before-the-maps-have-them") {
            // What absent replicas lack there is known from the intent only, until it is noted for each.
            self.save_changes(false).await;
        }
        let intent = self.intent(plan.regions.clone(), plan.everywhere);
        if !bug!("write-without-an-intent") {
            self.note_with_all(INTENT, intent.encode(), false).await;
        }
        self.all_have_it().await
    }

    fn intent(&self, regions: Vec<u32>, everything: bool) -> Intent {
        Intent { instance: self.instance, closed: false, everything, regions }
    }

    /// A note counts once each replica that the record lists in sync has it: any of them may be whom the next engine asks.
    async fn all_have_it(&self) -> Result<(), NotNoted> {
        self.until(|| (self.members.borrow().failing() == 0 || !self.is_running()).then_some(())).await;
        if self.is_running() { Ok(()) } else { Err(NotNoted) }
    }

    fn start_again(&self, index: usize) {
        match &*self.phase.borrow() {
            Phase::Serving | Phase::Stopping => {}
            Phase::Waiting(_) | Phase::Stopped(_) => return,
        }
        self.start(index, reactor::now());
    }

    /// Ends what was at no replica when the session ended: writes that were not sent, reads whose answer was kept.
    pub(crate) fn end_unsent(&self, error: &Error) {
        let unsent = self.flight.borrow().at(Stage::Noting);
        unsent.into_iter().for_each(|index| self.finish(index, Err(error.clone())));
        self.answer_held(Some(error));
    }

    /// Puts a note with every member that has notes. One that fails is failed.
    async fn note_with_all(&self, place: u8, content: Vec<u8>, durable: bool) {
        let content: Rc<[u8]> = content.into();
        let members = self.members.borrow().noted();
        let set = move |replica: Rc<dyn Replica>| {
            let content = Rc::clone(&content);
            async move { set_note(&*replica, place, &content, durable).await }
        };
        self.tell_members("a note", members, set).await;
    }

    /// Notes what absent members lack, as far as it changed since it was noted last.
    pub(crate) async fn save_changes(&self, durable: bool) {
        let _saving = self.saving.lock().await;
        let count = self.members.borrow().0.len();
        for member in 0..count {
            let note = self.take_unsaved(member, durable);
            if let Some(note) = note {
                self.note_with_all(place_of(member), note, durable).await;
            }
        }
    }

    fn take_unsaved(&self, member: usize, all: bool) -> Option<Vec<u8>> {
        let replica = self.record.borrow().replicas.get(member)?.replica;
        let mut members = self.members.borrow_mut();
        let changes = members.0.get_mut(member)?.changes.as_mut().filter(|changes| changes.unsaved || all)?;
        changes.unsaved = false;
        Some(self.changes_note(replica, changes))
    }

    fn changes_note(&self, replica: Uuid, changes: &Changes) -> Vec<u8> {
        let note = ChangesNote { replica, generation: changes.generation, regions: changes.regions.clone() };
        note.encode(self.geometry.get().size())
    }

    /// Begins to follow what members that failed lack, before they are recorded out of sync. Where that does not work they are
    /// compared in full later (I23).
    pub(crate) async fn follow_failing(&self) {
        let following = self.begin_following();
        if following != 0 && reactor::timeout(FOLLOWING_LIMIT, self.save_changes(false)).await.is_err() {
            self.members.borrow_mut().stop_following(following);
        }
    }

    /// What a member lacks from now on begins with all that it may not have: writes in flight, and those that are not
    /// durable with it, should it lose power.
    fn begin_following(&self) -> u32 {
        let unflushed = self.unflushed.borrow().regions();
        // Nobody follows what going back to a snapshot changes.
        let mut known = unflushed.filter(|_| self.record.borrow().pending.is_none());
        if let Some(known) = &mut known
            && !bug!("forget-writes-in-flight-at-the-failure")
        {
            // A flush that ends on all replicas says nothing about those that are still there.
            for range in self.flight.borrow().written() {
                known.insert_range(range);
            }
        }
        let mut members = self.members.borrow_mut();
        let mut following = 0;
        for (index, member) in members.0.iter_mut().enumerate() {
            if member.failing.is_none() || member.following {
                continue;
            }
            member.following = true;
            let before = match (member.role, member.changes.take()) {
                _ if member.unsound => None,
                (Role::InSync, None) => Some(Changes::new()),
                (_, before) => before,
            };
            member.changes = before.zip(known.as_ref()).map(|(mut changes, known)| {
                if !bug!("follow-from-the-failure-on") {
                    changes.regions.add(known);
                }
                changes.unsaved = true;
                changes
            });
            if member.changes.is_some() {
                following |= bit(index);
            }
        }
        following
    }

    /// Gives a replica that is about to be in sync all notes, durably. Nothing is written meanwhile. Says whether it keeps notes, and its
    /// token.
    pub(crate) async fn note_all_with(&self, member: usize, replica: &dyn Replica) -> Result<Option<Uuid>, Error> {
        let token = match noted(replica).await? {
            Some(noted) => noted.token(member).unwrap_or_else(new_uuid),
            None => return Ok(None),
        };
        let others: Vec<(usize, Vec<u8>)> = {
            let (record, members) = (self.record.borrow(), self.members.borrow());
            let others = members.0.iter().enumerate().filter(|(index, _)| *index != member);
            let note = |(index, other): (usize, &crate::members::Member)| {
                let note = self.changes_note(record.replicas[index].replica, other.changes.as_ref()?);
                Some((index, note))
            };
            others.filter_map(note).collect()
        };
        for (index, note) in others {
            set_note(replica, place_of(index), &note, false).await?;
        }
        set_note(replica, place_of(member), &encode_token(token), false).await?;
        let (regions, everywhere) = self.intents.borrow().current();
        let durable = !bug!("in-sync-before-the-flush");
        set_note(replica, INTENT, &self.intent(regions, everywhere).encode(), durable).await?;
        Ok(Some(token))
    }

    /// Notes of one replica, within the deadline.
    pub(crate) async fn in_time<T>(&self, noting: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let late = || Error::with_detail(ErrorKind::TimedOut, "no answer in time");
        reactor::timeout(self.config.replica_deadline, noting).await.unwrap_or_else(|_| Err(late()))
    }

    /// The last notes of an engine that ends in order, durable: what absent members lack stays known after a power cut too.
    pub(crate) async fn close_notes(&self) {
        let _noting = self.noting.lock().await;
        self.save_changes(!bug!("clean-without-a-flush")).await;
        let intent = Intent { closed: true, ..self.intent(Vec::new(), false) };
        self.note_with_all(INTENT, intent.encode(), !bug!("clean-without-a-flush")).await;
    }
}

/// A replica's notes; none if it has no space to keep any.
pub(crate) async fn noted(replica: &dyn Replica) -> Result<Option<Noted>, Error> {
    match replica.notes().await {
        Ok(notes) => Ok(Some(Noted::new(notes))),
        Err(error) if error.kind() == ErrorKind::NoSpace => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a note; a replica that is busy is asked again.
pub(crate) async fn set_note(replica: &dyn Replica, place: u8, content: &[u8], durable: bool) -> Result<(), Error> {
    loop {
        match replica.set_note(place, content, durable).await {
            Err(error) if error.kind() == ErrorKind::Busy => reactor::sleep(BUSY_PAUSE).await,
            answer => return answer,
        }
    }
}

/// A uuid that nobody else has.
pub(crate) fn new_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(reactor::random_bytes()).into_uuid()
}
