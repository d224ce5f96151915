//! Lists that nobody tells the changes of, looked at for those who follow them: while somebody does, and when somebody lists.
//!
//! ```text
//!               somebody follows             a while, or something was asked of the node
//!   (nothing) ───────────────────▶ wait ────────────────────────────────────────────────▶ look
//!        ▲                          │ ▲ ◀───────────────── what differs gets a version ────┘
//!        └──────── nobody follows ──┘
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1;
use tokio::sync::{Mutex, watch};

use super::error::ControlError;
use super::panics;
use super::streams::{ChangeStream, Told, stream};
use super::versions::{Change, Versions};

/// A list, and how it is looked at.
#[tonic::async_trait]
pub(crate) trait Source: Send + Sync + 'static {
    type Object: Clone + PartialEq + Send + Sync + 'static;

    /// What it lists, for the log.
    const WHAT: &'static str;
    /// Between two looks while somebody follows and nothing is asked of the node.
    const EVERY: Duration = Duration::from_secs(2);
    /// Changes that come within this are one.
    const GATHERED: Duration = Duration::from_millis(50);
    /// How long a look may take: a watch has no deadline of its own to speak of.
    const LIMIT: Duration = Duration::from_secs(10);

    /// All there is now.
    async fn look(&self) -> Result<Seen<Self::Object>, ControlError>;

    /// All there is now in one store.
    async fn look_into(&self, store_uuid: &str) -> Result<Vec<Self::Object>, ControlError> {
        let mut objects = self.look().await?.objects;
        objects.retain(|object| Self::store_uuid(object) == store_uuid);
        Ok(objects)
    }

    /// What stays the same as long as it is the same object.
    fn key(object: &Self::Object) -> Cow<'_, str>;

    /// The store that it is in, if it cannot be seen without that.
    fn store_uuid(_object: &Self::Object) -> &str {
        ""
    }

    /// Whether it cannot be seen while this store is not open.
    fn is_in(object: &Self::Object, store: &v1::UnopenedStore) -> bool {
        Self::store_uuid(object) == store.uuid
    }

    /// Without what changes all the time: that alone is no change.
    fn lasting(object: Self::Object) -> Self::Object {
        object
    }
}

/// What was found at a look.
#[derive(Debug, Default)]
pub(crate) struct Seen<T> {
    pub(crate) objects: Vec<T>,
    /// Stores that could not be looked into: what was seen there before may be there still.
    pub(crate) unopened: Vec<v1::UnopenedStore>,
}

/// A list with the versions of its objects.
pub(crate) struct Watched<S: Source> {
    source: S,
    known: Arc<Versions<S::Object>>,
    /// One look at a time: what was seen first is taken in first.
    looking: Mutex<()>,
    /// Something was asked of the node that may have changed it.
    asked: watch::Receiver<()>,
    /// There is a task that looks.
    is_kept: std::sync::Mutex<bool>,
}

impl<S: Source> Watched<S> {
    /// A list that nobody has looked at. `asked` is sent to when something was asked of the node that may have changed it.
    pub(crate) fn new(source: S, run: u64, asked: watch::Receiver<()>) -> Arc<Self> {
        let (known, looking, is_kept) = (Versions::new(run), Mutex::default(), std::sync::Mutex::default());
        Arc::new(Self { source, known, looking, asked, is_kept })
    }

    /// What there is now, and the version to go on from.
    pub(crate) async fn look(&self) -> Result<(Seen<S::Object>, String), ControlError> {
        self.take_in_all_of(None, self.source.look()).await
    }

    /// What there is now in one store, and the version to go on from. At the others nobody looks: what is known of them stays as it is.
    pub(crate) async fn look_into(&self, store_uuid: &str) -> Result<(Vec<S::Object>, String), ControlError> {
        let look = async {
            let objects = self.source.look_into(store_uuid).await?;
            Ok(Seen { objects, unopened: Vec::new() })
        };
        let (seen, version) = self.take_in_all_of(Some(store_uuid), look).await?;
        Ok((seen.objects, version))
    }

    /// `look` is at one store, or at all there are.
    async fn take_in_all_of(
        &self,
        store_uuid: Option<&str>,
        look: impl Future<Output = Result<Seen<S::Object>, ControlError>> + Send,
    ) -> Result<(Seen<S::Object>, String), ControlError> {
        let looked = async {
            let _turn = self.looking.lock().await;
            let seen = look.await?;
            self.take_in(&seen, store_uuid);
            Ok((seen, self.known.version()))
        };
        let late = |_| ControlError::unavailable("REACTOR", "a thread of the data path does not answer");
        tokio::time::timeout(S::LIMIT, looked).await.map_err(late)?
    }

    /// What there is, then what becomes of it.
    pub(crate) async fn watch<M: Send + 'static>(
        self: &Arc<Self>,
        version: &str,
        tell: impl Fn(Change<S::Object>) -> Told<M> + Send + 'static,
    ) -> Result<ChangeStream<M>, ControlError> {
        self.look().await?;
        let follower = self.known.follow(version)?;
        if !std::mem::replace(&mut *self.is_kept(), true) {
            tokio::spawn(Arc::clone(self).keep_looking());
        }
        Ok(stream(follower, tell))
    }

    /// Whether somebody follows.
    pub(crate) fn is_followed(&self) -> bool {
        self.known.is_followed()
    }

    /// Ends all who follow.
    pub(crate) fn end(&self) {
        self.known.end();
    }

    async fn keep_looking(self: Arc<Self>) {
        let (mut asked, mut is_late) = (self.asked.clone(), false);
        asked.mark_unchanged();
        while self.is_wanted() {
            tokio::select! {
                // Whoever asks ends with the daemon, and so does whoever follows.
                told = asked.changed() => if told.is_err() { return },
                () = tokio::time::sleep(S::EVERY) => {}
            }
            tokio::time::sleep(S::GATHERED).await;
            asked.mark_unchanged();
            // A panic over one object is logged, and does not end the looks.
            let looked = panics::caught(self.look()).await;
            if let Ok(Err(error)) = &looked
                && !is_late
            {
                tracing::warn!(what = S::WHAT, %error, "who watches hears of changes later");
            }
            is_late = !matches!(looked, Ok(Ok(_)));
        }
    }

    /// Whether somebody follows; if not, the task that asks ends.
    fn is_wanted(&self) -> bool {
        let mut is_kept = self.is_kept();
        // Who begins to follow does so before he looks whether there is a task.
        *is_kept = self.known.is_followed();
        *is_kept
    }

    fn is_kept(&self) -> MutexGuard<'_, bool> {
        self.is_kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, seen: &Seen<S::Object>, store_uuid: Option<&str>) {
        for object in &seen.objects {
            let key = S::key(object);
            let known = self.known.get(&key).map(S::lasting);
            if known.is_none_or(|known| known != S::lasting(object.clone())) {
                self.known.set(&key, object.clone());
            }
        }
        let there: BTreeSet<_> = seen.objects.iter().map(S::key).collect();
        let was_looked_for = |known: &S::Object| match store_uuid {
            Some(store_uuid) => S::store_uuid(known) == store_uuid,
            None => !seen.unopened.iter().any(|store| S::is_in(known, store)),
        };
        let gone = self.known.keys_of(|key, known| !there.contains(key) && was_looked_for(known));
        gone.iter().for_each(|key| self.known.remove(key));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proto::v1::ChangeKind;

    use super::*;

    /// Key, store, what lasts, what does not.
    type Thing = (&'static str, &'static str, u32, u32);

    #[derive(Default)]
    struct Things {
        there: Mutex<Vec<Thing>>,
        unopened: Mutex<Vec<&'static str>>,
        looks: AtomicU64,
    }

    #[tonic::async_trait]
    impl Source for Arc<Things> {
        type Object = Thing;

        const WHAT: &'static str = "things";

        async fn look(&self) -> Result<Seen<Thing>, ControlError> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            let unopened = self.unopened.lock().expect("no panic").clone();
            let unopened =
                unopened.into_iter().map(|uuid| v1::UnopenedStore { uuid: uuid.to_owned(), ..Default::default() });
            Ok(Seen { objects: self.there.lock().expect("no panic").clone(), unopened: unopened.collect() })
        }

        fn key(object: &Thing) -> Cow<'_, str> {
            object.0.into()
        }

        fn store_uuid(object: &Thing) -> &str {
            object.1
        }

        fn lasting(object: Thing) -> Thing {
            (object.0, object.1, object.2, 0)
        }
    }

    fn set(things: &Arc<Things>, there: &[Thing]) {
        *things.there.lock().expect("no panic") = there.to_vec();
    }

    fn tell(change: Change<Thing>) -> Told<(ChangeKind, Option<Thing>)> {
        Told::Message((change.kind, change.object))
    }

    const LOOK_EVERY: Duration = Arc::<Things>::EVERY;

    async fn next(stream: &mut ChangeStream<(ChangeKind, Option<Thing>)>) -> Option<(ChangeKind, Option<Thing>)> {
        stream.recv().await.map(|message| message.expect("no error"))
    }

    #[tokio::test(start_paused = true)]
    async fn who_follows_hears_what_differs_and_nobody_else_costs_a_look() {
        let (things, asked) = (Arc::new(Things::default()), watch::Sender::new(()));
        set(&things, &[("a", "s", 1, 1)]);
        let watched = Watched::new(Arc::clone(&things), 1, asked.subscribe());
        tokio::time::sleep(LOOK_EVERY * 100).await;
        assert_eq!(things.looks.load(Ordering::Relaxed), 0, "nobody follows");
        let mut stream = watched.watch("", tell).await.expect("it can be looked at");
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Existing, Some(("a", "s", 1, 1)))));
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Listed, None)));
        // What does not last changes all the time, and is told with what does.
        set(&things, &[("a", "s", 1, 2)]);
        tokio::time::sleep(LOOK_EVERY * 10).await;
        set(&things, &[("a", "s", 2, 3), ("b", "s", 1, 0)]);
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Changed, Some(("a", "s", 2, 3)))));
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Changed, Some(("b", "s", 1, 0)))));
        set(&things, &[("b", "s", 1, 0)]);
        // Before it would be looked at by itself.
        let before = tokio::time::Instant::now();
        asked.send_replace(());
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Deleted, Some(("a", "s", 2, 3)))));
        assert!(before.elapsed() < LOOK_EVERY);
        drop(stream);
        tokio::time::sleep(LOOK_EVERY * 2).await;
        let looks = things.looks.load(Ordering::Relaxed);
        asked.send_replace(());
        tokio::time::sleep(LOOK_EVERY * 100).await;
        assert_eq!(things.looks.load(Ordering::Relaxed), looks, "nobody follows any more");
    }

    #[tokio::test(start_paused = true)]
    async fn from_a_list_on_nothing_is_missed_though_nobody_followed() {
        let (things, asked) = (Arc::new(Things::default()), watch::Sender::new(()));
        set(&things, &[("a", "s", 1, 0), ("b", "s", 1, 0)]);
        let watched = Watched::new(Arc::clone(&things), 1, asked.subscribe());
        let (seen, version) = watched.look().await.expect("it can be looked at");
        assert_eq!(seen.objects.len(), 2);
        set(&things, &[("b", "s", 2, 0)]);
        let mut stream = watched.watch(&version, tell).await.expect("it is known");
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Changed, Some(("b", "s", 2, 0)))));
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Deleted, Some(("a", "s", 1, 0)))));
        watched.end();
        assert_eq!(next(&mut stream).await, None, "it ends with the daemon");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_at_one_store_leaves_the_others_as_they_are_known() {
        let (things, asked) = (Arc::new(Things::default()), watch::Sender::new(()));
        set(&things, &[("a", "one", 1, 0), ("b", "one", 1, 0), ("c", "two", 1, 0)]);
        let watched = Watched::new(Arc::clone(&things), 1, asked.subscribe());
        let (_, version) = watched.look().await.expect("it can be looked at");
        set(&things, &[("a", "one", 2, 0), ("d", "two", 1, 0)]);
        let (seen, later) = watched.look_into("one").await.expect("it can be looked at");
        assert_eq!(seen, [("a", "one", 2, 0)]);
        let mut known = watched.known.all();
        known.sort_unstable();
        assert_eq!(known, [("a", "one", 2, 0), ("c", "two", 1, 0)]);
        // From before it on nothing is missed, nor from it on.
        let mut stream = watched.watch(&version, tell).await.expect("it is known");
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Changed, Some(("a", "one", 2, 0)))));
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Deleted, Some(("b", "one", 1, 0)))));
        let of_two = [
            Some((ChangeKind::Changed, Some(("d", "two", 1, 0)))),
            Some((ChangeKind::Deleted, Some(("c", "two", 1, 0)))),
        ];
        assert_eq!([next(&mut stream).await, next(&mut stream).await], of_two);
        let mut stream = watched.watch(&later, tell).await.expect("it is known");
        assert_eq!([next(&mut stream).await, next(&mut stream).await], of_two);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_seen_is_not_gone() {
        let (things, asked) = (Arc::new(Things::default()), watch::Sender::new(()));
        set(&things, &[("a", "closed", 1, 0), ("b", "open", 1, 0)]);
        let watched = Watched::new(Arc::clone(&things), 1, asked.subscribe());
        let (_, version) = watched.look().await.expect("it can be looked at");
        set(&things, &[]);
        *things.unopened.lock().expect("no panic") = vec!["closed"];
        let mut stream = watched.watch(&version, tell).await.expect("it is known");
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Deleted, Some(("b", "open", 1, 0)))));
        things.unopened.lock().expect("no panic").clear();
        assert_eq!(next(&mut stream).await, Some((ChangeKind::Deleted, Some(("a", "closed", 1, 0)))));
    }
}
