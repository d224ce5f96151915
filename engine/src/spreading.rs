//! Copies of the record with the replicas, for the day on which the registry's is lost or was put back to an old one.
//!
//! The registry comes first, then the replicas, and only then what depends on the change: so no copy is newer than the registry's
//! record, and of what anyone was told at least one replica in sync knows. `docs/replication.md` has the reasons.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use block_device::{Error, ErrorKind};
use reactor::timeout;
use replica::{OpenError, OpenReplica, Replica};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::admission::Admission;
use crate::connector::Connector;
use crate::core::Core;
use crate::registry::{MemberState, ReplicaRecord, VolumeRecord, compact};
use crate::session::{Opened, SessionError, Tasks, URGENT_PAUSE, waiting_for};

/// How long to leave a busy replica alone (I33).
const BUSY_PAUSE: Duration = Duration::from_millis(1);

impl Core {
    /// Gives every replica that takes part a copy of a record. If none in sync can take it the volume is lost for now: nothing may be
    /// acknowledged that only the registry knows of.
    pub(crate) async fn spread_record(&self, record: &VolumeRecord) {
        let (members, in_sync) = {
            let members = self.members.borrow();
            (members.receiving(), members.in_sync())
        };
        if members != 0 {
            let know = self.tell_members("the membership", members, copier(record)).await;
            if know & in_sync == 0 {
                self.lose();
            }
        }
    }

    /// The same at the start of a session, for those in sync that were opened.
    pub(crate) async fn spread_among(&self, opened: &Opened, admission: &Admission) -> Result<(), SessionError> {
        let replicas = opened.iter().enumerate().filter(|(member, _)| admission.is_in_sync(*member, opened));
        let replicas = replicas.filter_map(|(member, replica)| Some((member, Rc::clone(replica.as_ref()?))));
        let copier = copier(&self.record.borrow());
        let answers = self.ask_each("the membership", replicas.collect(), copier).await;
        let mut failure = Error::with_detail(ErrorKind::Unavailable, "none is in sync");
        let mut known = false;
        for (member, answer) in answers {
            match answer {
                Ok(()) => known = true,
                Err(error) => {
                    tracing::warn!(volume = %self.config.volume, member, %error, "a replica does not keep the membership");
                    failure = error;
                }
            }
        }
        if known { Ok(()) } else { Err(SessionError::Copies(failure)) }
    }

    /// Looks at the replicas in sync until one of them answers; without one the epoch need not be raised. What their copies say is
    /// asked for before the registry, so that of one history the registry's record is the newer.
    pub(crate) async fn look(self: &Rc<Self>) -> Result<Vec<VolumeRecord>, SessionError> {
        loop {
            let record = self.record.borrow().clone();
            let copies = self.look_once(&record).await;
            if let Some(error) = self.stopped() {
                return Err(SessionError::Stopped(error));
            }
            if let Some(copies) = copies {
                return Ok(copies);
            }
            self.wait_for(waiting_for(&record));
            reactor::sleep(URGENT_PAUSE).await;
            self.load_again().await?;
        }
    }

    /// What the registry has by now: the session that ended may have changed the record without hearing of it, or another engine has. A
    /// registry that does not answer changes nothing.
    async fn load_again(&self) -> Result<(), SessionError> {
        let _recording = self.recording.lock().await;
        if let Ok(Some(loaded)) = self.registry.load(self.config.volume).await {
            self.check_taken_over(&loaded)?;
            *self.record.borrow_mut() = loaded;
        }
        Ok(())
    }

    /// The copies of those that answer: of all, or of those that do not keep the others waiting.
    async fn look_once(self: &Rc<Self>, record: &VolumeRecord) -> Option<Vec<VolumeRecord>> {
        let in_sync = record.replicas.iter().filter(|replica| replica.state == MemberState::InSync);
        let answers: Rc<RefCell<Vec<Option<Looked>>>> = Rc::default();
        let came = Rc::new(Notify::new());
        let mut tasks = Tasks::default();
        let mut asked = 0;
        for replica in in_sync {
            let (core, answers, came) = (Rc::clone(self), Rc::clone(&answers), Rc::clone(&came));
            let replica = replica.clone();
            asked += 1;
            tasks.spawn(async move {
                let (volume, limit) = (core.config.volume, core.config.remote.open_limit);
                let looked = timeout(limit, look_at(&*core.connector, &replica, volume)).await;
                answers.borrow_mut().push(looked.ok().and_then(Result::ok));
                came.notify_one();
            });
        }
        while answers.borrow().len() < asked {
            let found = answers.borrow().iter().any(Option::is_some);
            match found {
                true if timeout(URGENT_PAUSE, came.notified()).await.is_err() => break,
                true => {}
                false => came.notified().await,
            }
        }
        let answers = answers.take();
        answers.iter().any(Option::is_some).then(|| answers.into_iter().flatten().filter_map(|it| it.copy).collect())
    }
}

/// What a replica tells whoever looks at it.
pub(crate) struct Looked {
    /// The highest epoch that it granted.
    pub(crate) epoch: u64,
    pub(crate) granted: replica::Granted,
    /// Its copy of the record, if it has one that can be read.
    pub(crate) copy: Option<VolumeRecord>,
    /// That has the reservations; a reset left them behind.
    pub(crate) knows_reservations: bool,
}

/// Looks at a replica without opening it.
pub(crate) async fn look_at(
    connector: &dyn Connector,
    replica: &ReplicaRecord,
    volume: Uuid,
) -> Result<Looked, OpenError> {
    let open = OpenReplica { replica: replica.replica, volume, epoch: 0, instance: Uuid::nil() };
    let opened = connector.open(replica, open).await?;
    let known = opened.membership().await.map_err(OpenError::Failed)?;
    let mut copy = known.content.as_deref().and_then(compact::decode).filter(|copy| copy.volume == volume);
    let knows_reservations = known.attached.is_some();
    if let Some((copy, attached)) = copy.as_mut().zip(known.attached) {
        copy.reservations = attached;
    }
    Ok(Looked { epoch: known.epoch, granted: opened.granted(), copy, knows_reservations })
}

/// Puts a record with a replica.
pub(crate) fn copier(
    record: &VolumeRecord,
) -> impl Fn(Rc<dyn Replica>) -> replica::LocalFuture<'static, Result<(), Error>> + use<> {
    let content: Rc<[u8]> = compact::encode(record).into();
    let attached: Rc<[u8]> = record.reservations.as_slice().into();
    move |replica| {
        let (content, attached) = (Rc::clone(&content), Rc::clone(&attached));
        Box::pin(async move { set_membership(&*replica, &content, &attached).await })
    }
}

/// Whether a copy knows of something that this record does not: then the record is not of the same history, or is an old one.
pub(crate) fn is_newer(copy: &VolumeRecord, record: &VolumeRecord) -> bool {
    match copy.epoch == record.epoch {
        true => copy.instance != record.instance || copy.version > record.version,
        false => copy.epoch > record.epoch,
    }
}

async fn set_membership(replica: &dyn Replica, content: &[u8], attached: &[u8]) -> Result<(), Error> {
    loop {
        match replica.set_membership(content, attached).await {
            Err(error) if error.kind() == ErrorKind::Busy => reactor::sleep(BUSY_PAUSE).await,
            answer => return answer,
        }
    }
}
