//! A store that fails as networks and servers do.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backup::target::{Body, Content, Folder, Listing, ObjectInfo, Store};
use backup::{Error, Kind, Result};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::Random;

/// What goes wrong.
#[derive(Debug)]
struct Plan {
    random: Random,
    /// One request in so many fails, in one way or another; 0 is none.
    one_in: u64,
    /// All requests fail like this.
    outage: Option<Kind>,
    /// Which requests the outage is about.
    only: Option<&'static str>,
    /// Folders that are listed as if nothing were in them.
    forgotten: Option<&'static str>,
    requests: u64,
}

/// Another store with faults in front of it.
#[derive(Debug)]
pub(crate) struct Faulty<S> {
    pub(crate) inner: Arc<S>,
    plan: Mutex<Plan>,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// It is not done.
    Before(Kind),
    /// It is done, and the answer is lost.
    After(Kind),
    /// The body ends early, which is noticed.
    Cut,
    /// The body is another.
    Wrong,
}

/// Failures that pass.
const PASSING: [Kind; 7] =
    [Kind::Resolve, Kind::Connect, Kind::TimedOut, Kind::Throttled, Kind::Server, Kind::Interrupted, Kind::NoSpace];

impl<S> Faulty<S> {
    pub(crate) fn new(inner: Arc<S>, seed: u64, one_in: u64) -> Arc<Self> {
        let plan = Plan { random: Random::new(seed), one_in, outage: None, only: None, forgotten: None, requests: 0 };
        Arc::new(Self { inner, plan: Mutex::new(plan) })
    }

    pub(crate) fn set_outage(&self, outage: Option<Kind>) {
        let mut plan = self.plan.lock().expect("no panic");
        (plan.outage, plan.only) = (outage, None);
    }

    /// Requests whose keys have this part fail.
    pub(crate) fn set_outage_of(&self, part: &'static str, outage: Kind) {
        let mut plan = self.plan.lock().expect("no panic");
        (plan.outage, plan.only) = (Some(outage), Some(part));
    }

    /// Listings of folders with this part are empty.
    pub(crate) fn forget_in_listings(&self, part: &'static str) {
        self.plan.lock().expect("no panic").forgotten = Some(part);
    }

    pub(crate) fn set_rate(&self, one_in: u64) {
        self.plan.lock().expect("no panic").one_in = one_in;
    }

    pub(crate) fn requests(&self) -> u64 {
        self.plan.lock().expect("no panic").requests
    }

    fn fault(&self, key: &str, reads: bool) -> Fault {
        let mut plan = self.plan.lock().expect("no panic");
        plan.requests += 1;
        if let Some(kind) = plan.outage.filter(|_| plan.only.is_none_or(|part| key.contains(part))) {
            return Fault::Before(kind);
        }
        let one_in = plan.one_in;
        if one_in == 0 || plan.random.below(one_in) > 0 {
            return Fault::None;
        }
        let kind = PASSING[plan.random.below(PASSING.len() as u64) as usize];
        match plan.random.below(if reads { 4 } else { 2 }) {
            0 => Fault::Before(kind),
            1 => Fault::After(kind),
            2 => Fault::Cut,
            _ => Fault::Wrong,
        }
    }
}

/// Does a request, or what is left of it.
macro_rules! faulty {
    ($self:ident, $key:expr, $what:expr) => {
        match $self.fault($key, false) {
            Fault::Before(kind) => Err(Error::new(kind, "injected")),
            Fault::After(kind) => $what.await.and(Err(Error::new(kind, "injected, after it was done"))),
            _ => $what.await,
        }
    };
}

#[async_trait]
impl<S: Store> Store for Faulty<S> {
    async fn get(&self, key: &str) -> Result<Body> {
        let fault = self.fault(key, true);
        if let Fault::Before(kind) | Fault::After(kind) = fault {
            return Err(Error::new(kind, "injected"));
        }
        let body = self.inner.get(key).await?;
        Ok(match fault {
            Fault::Cut => {
                let cut = futures_util::stream::once(async { Err(Error::new(Kind::Interrupted, "injected: cut")) });
                body.take(1).chain(cut).boxed()
            }
            // Of the store's files only blocks say whether they are what was stored; others are replaced as a whole.
            Fault::Wrong if key.ends_with(".blk") => body.map(|piece| piece.map(|piece| damaged(&piece))).boxed(),
            Fault::Wrong => {
                futures_util::stream::once(async { Ok(Bytes::from_static(b"<html>Welcome!</html>")) }).boxed()
            }
            _ => body,
        })
    }

    async fn put(&self, key: &str, content: Content) -> Result<()> {
        faulty!(self, key, self.inner.put(key, content))
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<bool> {
        faulty!(self, key, self.inner.create(key, bytes))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        faulty!(self, key, self.inner.delete(key))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        faulty!(self, key, self.inner.head(key))
    }

    async fn folder(&self, folder: &str) -> Result<Folder> {
        let forgotten = self.plan.lock().expect("no panic").forgotten;
        if forgotten.is_some_and(|part| folder.contains(part)) {
            return Ok(Folder::default());
        }
        faulty!(self, folder, self.inner.folder(folder))
    }

    fn list(&self, folder: &str) -> Listing {
        match self.fault(folder, false) {
            Fault::None => self.inner.list(folder),
            Fault::Before(kind) | Fault::After(kind) => {
                // A part of a list, and then nothing.
                let end = futures_util::stream::once(async move { Err(Error::new(kind, "injected")) });
                self.inner.list(folder).take(1).chain(end).boxed()
            }
            Fault::Cut | Fault::Wrong => self.inner.list(folder),
        }
    }
}

/// The same bytes, but for one in the middle.
fn damaged(piece: &Bytes) -> Bytes {
    let mut piece = piece.to_vec();
    let middle = piece.len() / 2;
    if let Some(byte) = piece.get_mut(middle) {
        *byte ^= 0x40;
    }
    piece.into()
}
