//! Volumes that may have changed, told by whoever changes them: reactors too, which wait for nobody.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use uuid::Uuid;

/// Those that are on their way. Of more it is known only that there were more: then all are looked at.
const ON_THEIR_WAY: usize = 4096;

/// Where volumes are told.
#[derive(Clone)]
pub(crate) struct Touches {
    sender: mpsc::Sender<Uuid>,
    /// More were told than there was room for.
    overrun: Arc<AtomicBool>,
    /// For the first who asks.
    touched: Arc<Mutex<Option<Touched>>>,
}

/// Where they come out.
pub(crate) struct Touched {
    receiver: mpsc::Receiver<Uuid>,
    overrun: Arc<AtomicBool>,
}

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    Some(BTreeSet<Uuid>),
    All,
}

impl Touches {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(ON_THEIR_WAY);
        let overrun = Arc::new(AtomicBool::new(false));
        let touched = Touched { receiver, overrun: Arc::clone(&overrun) };
        Self { sender, overrun, touched: Arc::new(Mutex::new(Some(touched))) }
    }

    /// This one may have changed.
    pub(crate) fn touch(&self, volume: Uuid) {
        if self.sender.try_send(volume).is_err() {
            self.overrun.store(true, Ordering::Release);
        }
    }

    pub(crate) fn touched(&self) -> Option<Touched> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Touched {
    /// All that have come since the last time; waits for one at least. None when nobody is left to tell.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        let mut volumes = BTreeSet::from([self.receiver.recv().await?]);
        // What comes while this runs is for the next time.
        for _ in 0..ON_THEIR_WAY {
            match self.receiver.try_recv() {
                Ok(volume) => volumes.insert(volume),
                Err(_) => break,
            };
        }
        // After the channel was emptied: who finds it full from here on says so again.
        let overrun = self.overrun.swap(false, Ordering::AcqRel);
        Some(if overrun { Batch::All } else { Batch::Some(volumes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn volumes_come_once_and_too_many_are_all() {
        let touches = Touches::new();
        let mut touched = touches.touched().expect("the first to ask");
        assert!(touches.touched().is_none());
        [3, 1, 3].into_iter().for_each(|volume| touches.touch(Uuid::from_u128(volume)));
        let expected = BTreeSet::from([Uuid::from_u128(1), Uuid::from_u128(3)]);
        assert_eq!(touched.next().await, Some(Batch::Some(expected)));
        (0..=ON_THEIR_WAY as u128).for_each(|volume| touches.touch(Uuid::from_u128(volume)));
        assert_eq!(touched.next().await, Some(Batch::All));
        touches.touch(Uuid::nil());
        assert_eq!(touched.next().await, Some(Batch::Some(BTreeSet::from([Uuid::nil()]))));
    }
}
