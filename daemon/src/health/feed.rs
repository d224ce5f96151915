//! News for the thread `health`, which waits for nobody.
//!
//! A list of cells, each written once: the control threads append, the one reader goes from cell to cell. Looking for the
//! next cell is one load, whatever the writers do, or if they are stopped in the middle of it. What has been read is freed.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use block_device::Meter;
use proto::v1;
use uuid::Uuid;

use crate::control::Load;

/// A volume that this node serves.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) meter: Arc<Meter>,
}

/// What only the reactors can say about their stores and engines, as it was at some time.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) stores: Vec<v1::Store>,
    pub(crate) engines: Vec<v1::Engine>,
    pub(crate) load: Load,
    pub(crate) taken: reactor::Instant,
}

/// Something that the thread should know.
#[derive(Debug)]
pub(crate) enum News {
    /// A volume is shown to hosts.
    Shown(Arc<Volume>),
    /// It is not any more.
    Gone(Uuid),
    /// They replace those before.
    Facts(Arc<Facts>),
}

#[derive(Debug, Default)]
struct Cell {
    /// Only the first one has none.
    news: Option<News>,
    next: OnceLock<Arc<Cell>>,
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Feed {
    /// The last cell. Among writers only: the reader never looks at it.
    end: Mutex<Arc<Cell>>,
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Follower {
    last: Arc<Cell>,
}

/// An empty feed.
pub(super) fn feed() -> (Feed, Follower) {
    let first = Arc::new(Cell::default());
    (Feed { end: Mutex::new(Arc::clone(&first)) }, Follower { last: first })
}

impl Feed {
    /// Appends.
    pub(crate) fn tell(&self, news: News) {
        let cell = Arc::new(Cell { news: Some(news), next: OnceLock::new() });
        // Poisoned or not, the end is a cell, and has no next one.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the holder of the lock sets it, once.
        let _ = end.next.set(Arc::clone(&cell));
        *end = cell;
    }
}

impl Follower {
    /// What came next, if something did.
    pub(super) fn next(&mut self) -> Option<&News> {
        self.last = Arc::clone(self.last.next.get()?);
        self.last.news.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_come_once_and_in_order_from_any_thread() {
        let (feed, mut follower) = feed();
        assert!(follower.next().is_none());
        std::thread::scope(|scope| {
            for writer in 0..4_u128 {
                let feed = &feed;
                scope.spawn(move || (0..1000).for_each(|n| feed.tell(News::Gone(Uuid::from_u128(writer << 64 | n)))));
            }
        });
        let mut expected = [0; 4];
        while let Some(news) = follower.next() {
            let News::Gone(uuid) = news else { panic!("not told: {news:?}") };
            let writer = (uuid.as_u128() >> 64) as usize;
            assert_eq!(uuid.as_u128() as u64, expected[writer]);
            expected[writer] += 1;
        }
        assert_eq!(expected, [1000; 4]);
    }

    #[test]
    fn what_was_read_is_freed_and_a_long_way_is_no_deep_one() {
        let (feed, mut follower) = feed();
        let meter = Arc::new(Meter::default());
        let volume = Volume { uuid: Uuid::nil(), name: "v".to_owned(), meter: Arc::clone(&meter) };
        feed.tell(News::Shown(Arc::new(volume)));
        (0..100_000).for_each(|_| feed.tell(News::Gone(Uuid::nil())));
        assert_eq!(Arc::strong_count(&meter), 2);
        while follower.next().is_some() {}
        assert_eq!(Arc::strong_count(&meter), 1);
    }

    /// A writer that was stopped holds the lock for ever.
    #[test]
    fn a_writer_that_is_stopped_does_not_stop_the_reader() {
        let (feed, mut follower) = feed();
        feed.tell(News::Gone(Uuid::nil()));
        let _stopped = feed.end.lock().expect("free");
        assert!(follower.next().is_some());
        assert!(follower.next().is_none());
    }
}
