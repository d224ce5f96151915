//! Objects with the version of their last change, for those who follow: each change costs what it changed.
//!
//! ```text
//!             set, if it differs                        remove
//!   (none) ───────────────────▶ present, version n ───────────────▶ gone, version m ──▶ (forgotten, oldest first)
//!                                  ▲ │ set, if it differs
//!                                  └─┘ version n + k
//! ```
//! One version counts all changes. No history is kept but the last change of each object, so that what a follower is behind costs it one
//! message for each object, and no follower costs memory. A version that is older than the oldest one of what is forgotten cannot be gone on
//! from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::v1::ChangeKind;
use tokio::sync::watch;

use super::error::ControlError;

/// Objects that are gone and still known to be.
const MOST_GONE: usize = 1024;
/// The version that ends all who follow.
const END: u64 = u64::MAX;

/// Objects of one kind, by their keys.
pub(crate) struct Versions<T> {
    /// The number of this run: versions are those of a run.
    run: u64,
    table: Mutex<Table<T>>,
    newest: watch::Sender<u64>,
}

struct Table<T> {
    newest: u64,
    objects: BTreeMap<String, (u64, T)>,
    /// The last change of each object that is there or known to be gone.
    order: BTreeMap<u64, String>,
    gone: VecDeque<(u64, String, T)>,
    /// The newest one of those that are forgotten.
    forgotten: u64,
}

/// What somebody who follows is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change<T> {
    pub(crate) kind: ChangeKind,
    /// None with [`ChangeKind::Listed`].
    pub(crate) object: Option<T>,
    pub(crate) version: String,
}

impl<T: Clone + PartialEq> Versions<T> {
    pub(crate) fn new(run: u64) -> Arc<Self> {
        let table =
            Table { newest: 0, objects: BTreeMap::new(), order: BTreeMap::new(), gone: VecDeque::new(), forgotten: 0 };
        Arc::new(Self { run, table: Mutex::new(table), newest: watch::Sender::new(0) })
    }

    /// The version now.
    pub(crate) fn version(&self) -> String {
        self.text(self.table().newest)
    }

    /// An object as it was set last.
    pub(crate) fn get(&self, key: &str) -> Option<T> {
        self.table().objects.get(key).map(|(_, object)| object.clone())
    }

    /// All objects, in order of their keys.
    pub(crate) fn all(&self) -> Vec<T> {
        self.table().objects.values().map(|(_, object)| object.clone()).collect()
    }

    /// The keys of those that are wanted.
    pub(crate) fn keys_of(&self, is_wanted: impl Fn(&str, &T) -> bool) -> Vec<String> {
        let table = self.table();
        let wanted = table.objects.iter().filter(|(key, (_, object))| is_wanted(key, object));
        wanted.map(|(key, _)| key.clone()).collect()
    }

    /// Whether somebody follows.
    pub(crate) fn is_followed(&self) -> bool {
        self.newest.receiver_count() > 0
    }

    /// Makes an object or changes it. One that is as it was stays in its version.
    pub(crate) fn set(&self, key: &str, object: T) {
        let newest = {
            let mut table = self.table();
            if table.objects.get(key).is_some_and(|(_, known)| *known == object) {
                return;
            }
            // Of one that comes back nobody has to hear that it was gone.
            if let Some(place) = table.gone.iter().position(|(_, gone, _)| gone == key) {
                table.gone.remove(place);
            }
            table.put(key, object)
        };
        self.tell(newest);
    }

    /// An object is gone. One that is not there stays so.
    pub(crate) fn remove(&self, key: &str) {
        let newest = {
            let mut table = self.table();
            let Some((version, object)) = table.objects.remove(key) else { return };
            table.order.remove(&version);
            table.newest += 1;
            let newest = table.newest;
            table.gone.push_back((newest, key.to_owned(), object));
            if table.gone.len() > MOST_GONE
                && let Some((version, ..)) = table.gone.pop_front()
            {
                table.forgotten = version;
            }
            newest
        };
        self.tell(newest);
    }

    /// Follows from a version on; from the beginning when it is empty.
    pub(crate) fn follow(self: &Arc<Self>, version: &str) -> Result<Follower<T>, ControlError> {
        let after = match version {
            "" => None,
            version => Some(self.read(version)?),
        };
        let newest = self.newest.subscribe();
        Ok(Follower { versions: Arc::clone(self), newest, after, ready: VecDeque::new() })
    }

    /// Ends all who follow.
    pub(crate) fn end(&self) {
        self.newest.send_replace(END);
    }

    fn tell(&self, version: u64) {
        self.newest.send_if_modified(|newest| {
            let goes_on = *newest != END && *newest < version;
            if goes_on {
                *newest = version;
            }
            goes_on
        });
    }

    fn text(&self, version: u64) -> String {
        format!("{}-{version}", self.run)
    }

    fn read(&self, text: &str) -> Result<u64, ControlError> {
        let parts = text.split_once('-').and_then(|(run, version)| Some((run.parse().ok()?, version.parse().ok()?)));
        let Some((run, version)): Option<(u64, u64)> = parts else {
            return Err(ControlError::invalid("resource_version", format!("`{}` is none", text.escape_debug())));
        };
        let (newest, forgotten) = {
            let table = self.table();
            (table.newest, table.forgotten)
        };
        if run != self.run || version > newest || version < forgotten {
            return Err(ControlError::expired(text));
        }
        Ok(version)
    }

    /// What changed after a version, in order; or all there is.
    fn after(&self, version: Option<u64>) -> Result<(Vec<Change<T>>, u64), ControlError> {
        let table = self.table();
        let Some(version) = version else {
            let existing = table.objects.values();
            let existing = existing.map(|(version, object)| self.change(ChangeKind::Existing, Some(object), *version));
            let mut changes: Vec<_> = existing.collect();
            changes.push(self.change(ChangeKind::Listed, None, table.newest));
            // In the middle of the list there is no going on: what was not sent yet may be older.
            let count = changes.len() - 1;
            changes[..count].iter_mut().for_each(|change| change.version.clear());
            return Ok((changes, table.newest));
        };
        if version < table.forgotten {
            return Err(ControlError::expired(&self.text(version)));
        }
        let gone = table.gone.iter().filter(|(gone, ..)| *gone > version);
        let mut changes: BTreeMap<u64, Change<T>> =
            gone.map(|(at, _, object)| (*at, self.change(ChangeKind::Deleted, Some(object), *at))).collect();
        for (at, key) in table.order.range(version + 1..) {
            if let Some((_, object)) = table.objects.get(key) {
                changes.insert(*at, self.change(ChangeKind::Changed, Some(object), *at));
            }
        }
        Ok((changes.into_values().collect(), table.newest))
    }

    fn change(&self, kind: ChangeKind, object: Option<&T>, version: u64) -> Change<T> {
        Change { kind, object: object.cloned(), version: self.text(version) }
    }

    fn table(&self) -> MutexGuard<'_, Table<T>> {
        // Poisoned or not, the table is whole: nothing in a change of it panics half way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Table<T> {
    fn put(&mut self, key: &str, object: T) -> u64 {
        self.newest += 1;
        if let Some((before, _)) = self.objects.insert(key.to_owned(), (self.newest, object)) {
            self.order.remove(&before);
        }
        self.order.insert(self.newest, key.to_owned());
        self.newest
    }
}

/// Somebody who follows.
pub(crate) struct Follower<T> {
    versions: Arc<Versions<T>>,
    newest: watch::Receiver<u64>,
    /// What was told up to; none before the list.
    after: Option<u64>,
    ready: VecDeque<Change<T>>,
}

impl<T: Clone + PartialEq> Follower<T> {
    /// The next change; none at the end of the daemon. Can be given up and asked for again.
    pub(crate) async fn next(&mut self) -> Result<Option<Change<T>>, ControlError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(Some(change));
            }
            if *self.newest.borrow_and_update() == END {
                return Ok(None);
            }
            let (changes, newest) = self.versions.after(self.after)?;
            self.after = Some(newest);
            self.ready = changes.into();
            if self.ready.is_empty() && self.newest.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(follower: &mut Follower<u32>, count: usize) -> Vec<(ChangeKind, Option<u32>, String)> {
        let mut taken = Vec::new();
        for _ in 0..count {
            let change = follower.next().await.expect("not too old").expect("more");
            taken.push((change.kind, change.object, change.version));
        }
        taken
    }

    async fn is_quiet(follower: &mut Follower<u32>) -> bool {
        let mut next = std::pin::pin!(follower.next());
        std::future::poll_fn(|cx| std::task::Poll::Ready(next.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn a_list_comes_first_then_changes_with_content() {
        let versions = Versions::new(3);
        versions.set("a", 1);
        versions.set("b", 2);
        let mut follower = versions.follow("").expect("the beginning");
        let list = [
            (ChangeKind::Existing, Some(1), String::new()),
            (ChangeKind::Existing, Some(2), String::new()),
            (ChangeKind::Listed, None, "3-2".to_owned()),
        ];
        assert_eq!(take(&mut follower, 3).await, list);
        assert!(is_quiet(&mut follower).await);
        versions.set("b", 2);
        assert!(is_quiet(&mut follower).await, "nothing changed");
        versions.set("b", 20);
        versions.remove("a");
        versions.remove("a");
        let changes =
            [(ChangeKind::Changed, Some(20), "3-3".to_owned()), (ChangeKind::Deleted, Some(1), "3-4".to_owned())];
        assert_eq!(take(&mut follower, 2).await, changes);
        assert!(is_quiet(&mut follower).await);
    }

    #[tokio::test]
    async fn who_was_away_gets_the_last_change_of_each_object_and_only_what_changed() {
        let versions = Versions::new(1);
        (0..100).for_each(|n| versions.set(&format!("{n:03}"), n));
        let version = versions.version();
        (0..50).for_each(|n| versions.set("007", 1000 + n));
        versions.set("new", 5);
        versions.remove("000");
        let mut follower = versions.follow(&version).expect("it is known");
        let changes = take(&mut follower, 3).await;
        let told: Vec<_> = changes.iter().map(|(kind, object, _)| (*kind, *object)).collect();
        let expected =
            [(ChangeKind::Changed, Some(1049)), (ChangeKind::Changed, Some(5)), (ChangeKind::Deleted, Some(0))];
        assert_eq!(told, expected);
        assert!(is_quiet(&mut follower).await);
        // From the middle of what was told.
        let mut again = versions.follow(&changes[0].2).expect("it is known");
        assert_eq!(take(&mut again, 2).await, changes[1..]);
    }

    #[tokio::test]
    async fn what_comes_back_is_there_and_was_never_gone() {
        let versions = Versions::new(1);
        versions.set("a", 1);
        let version = versions.version();
        versions.remove("a");
        versions.set("a", 2);
        let mut follower = versions.follow(&version).expect("it is known");
        assert_eq!(take(&mut follower, 1).await[0].1, Some(2));
        assert!(is_quiet(&mut follower).await);
    }

    #[tokio::test]
    async fn a_version_of_another_run_or_too_old_or_of_the_future_has_to_list_again() {
        let versions = Versions::new(2);
        versions.set("kept", 1);
        let old = versions.version();
        for n in 0..=MOST_GONE {
            versions.set(&n.to_string(), 0);
            versions.remove(&n.to_string());
        }
        let expired = |version: &str| versions.follow(version).err().expect("expired").to_string();
        for version in [old.as_str(), "1-1", "3-1", "2-999999999"] {
            assert!(expired(version).contains("list again"), "{version}");
        }
        assert!(expired("yesterday").contains("resource_version"));
        assert!(versions.follow(&versions.version()).is_ok());
        assert_eq!(versions.table().gone.len(), MOST_GONE);
    }

    #[tokio::test]
    async fn a_follower_that_is_too_slow_is_told_so() {
        let versions = Versions::new(1);
        versions.set("kept", 1);
        let mut follower = versions.follow("").expect("the beginning");
        take(&mut follower, 2).await;
        for n in 0..=MOST_GONE {
            versions.set(&n.to_string(), 0);
            versions.remove(&n.to_string());
        }
        assert!(follower.next().await.is_err_and(|error| error.to_string().contains("list again")));
    }

    #[tokio::test]
    async fn followers_end_with_the_daemon() {
        let versions = Versions::<u32>::new(1);
        let mut follower = versions.follow("").expect("the beginning");
        take(&mut follower, 1).await;
        assert!(versions.is_followed());
        versions.end();
        versions.set("late", 1);
        assert_eq!(follower.next().await.expect("no error"), None);
        drop(follower);
        assert!(!versions.is_followed());
    }
}
