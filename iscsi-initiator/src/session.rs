//! The life of a unit's connections: made together, lost together, made again.
//!
//! ```text
//!                 established                 a connection ends
//!   Connecting ────────────────▶ Live ────────────────────────────▶ Recovering
//!       │                        │  ▲         (Options::reconnect)   │    │
//!       │ failed                 │  └─────────── established ────────┘    │ time over, or
//!       ▼                        ▼ ended, without reconnect               ▼ refused for good
//!     Closed ◀───────────────────┴────────────────────────────────────────┘
//! ```
//! At error recovery level 0 a connection's end is that of its session (RFC 7143, 7.1.3); the other sessions of the unit end with it,
//! so that all come back together. A new login with the same ISID takes the old session's place: the target ends what was left of
//! it first (6.3.5), so nothing of it takes effect later (I16).

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use iscsi_target_protocol::wire::Name;
use iscsi_target_protocol::wire::login::Isid;
use reactor::JoinHandle;

use crate::connect::{self, Medium};
use crate::error::{CommandError, ConnectError, ConnectionError};
use crate::login::{Place, log_in};
use crate::options::{Options, Reconnect};
use crate::queue::{Queue, Window};

/// How many heartbeats a command's time limit has at least.
const HEARTBEATS: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Live,
    Recovering,
    Closed,
}

/// A unit and its connections.
pub(crate) struct Session {
    address: SocketAddr,
    target: Name,
    initiator: Name,
    /// The part of the ISIDs that all sessions of this unit share.
    isid: Isid,
    pub(crate) options: Options,
    pub(crate) queues: Vec<Rc<Queue>>,
    phase: Cell<Phase>,
    /// What the unit is, once established.
    medium: RefCell<Option<Medium>>,
    /// Why the last connection ended.
    last_error: RefCell<Option<ConnectionError>>,
    /// Why it was given up.
    failure: RefCell<Option<ConnectError>>,
    reconnects: Cell<u64>,
    heartbeat: RefCell<Option<JoinHandle<()>>>,
    recovery: RefCell<Option<JoinHandle<()>>>,
}

impl Session {
    /// Makes the first connections.
    pub(crate) async fn start(address: SocketAddr, target: &Name, options: Options) -> Result<Rc<Self>, ConnectError> {
        let session = Self::new(address, target, options);
        match session.attempt().await {
            Ok(()) => {
                session.go_live();
                let beating = Rc::clone(&session);
                *session.heartbeat.borrow_mut() = Some(reactor::spawn(async move { beating.beat().await }));
                Ok(session)
            }
            Err(error) => {
                session.close(error.clone());
                Err(error)
            }
        }
    }

    fn new(address: SocketAddr, target: &Name, options: Options) -> Rc<Self> {
        let period = heartbeat_period(&options);
        let time_limit = options.command_timeout.as_nanos().div_ceil(period.as_nanos().max(1)) as u32;
        let depth = usize::from(options.queue_depth);
        let patience = options.reconnect.map(|policy| policy.limit);
        Rc::new(Self {
            address,
            target: target.clone(),
            initiator: options.initiator.clone().unwrap_or_else(random_name),
            isid: random_isid(),
            queues: (0..options.queues).map(|_| Queue::new(depth, time_limit, patience)).collect(),
            options,
            phase: Cell::new(Phase::Connecting),
            medium: RefCell::default(),
            last_error: RefCell::default(),
            failure: RefCell::default(),
            reconnects: Cell::new(0),
            heartbeat: RefCell::default(),
            recovery: RefCell::default(),
        })
    }

    /// What the unit was when it was last connected.
    pub(crate) fn medium<T>(&self, look: impl FnOnce(&Medium) -> T) -> T {
        match &*self.medium.borrow() {
            Some(medium) => look(medium),
            None => unreachable!("a session is handed out once it is established"),
        }
    }

    /// Why the target was given up, if it was.
    pub(crate) fn failure(&self) -> Option<ConnectError> {
        self.failure.borrow().clone()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase.get() == Phase::Live
    }

    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.get()
    }

    /// Logs out of all sessions; connections may end meanwhile.
    pub(crate) async fn log_out(&self) {
        self.queues.iter().for_each(|queue| queue.log_out());
        for queue in &self.queues {
            queue.logged_out().await;
        }
    }

    /// Nothing that happens to the connections from here on is made good.
    pub(crate) fn leave(&self) {
        if self.is_live() {
            self.phase.set(Phase::Connecting);
        }
    }

    /// Ends everything: commands fail from here on.
    pub(crate) fn close(&self, reason: ConnectError) {
        if self.phase.replace(Phase::Closed) == Phase::Closed {
            return;
        }
        self.failure.borrow_mut().get_or_insert(reason);
        for task in [&self.heartbeat, &self.recovery] {
            if let Some(task) = task.borrow_mut().take() {
                task.abort();
            }
        }
        self.queues.iter().for_each(|queue| queue.close());
    }

    /// Logs a queue in: as connection `cid` of the session of `joins`, or as a session of its own, named after the queue's number.
    pub(crate) async fn open(
        self: &Rc<Self>,
        queue: &Rc<Queue>,
        number: u16,
        cid: u16,
        joins: Option<&Rc<Window>>,
    ) -> Result<Rc<Window>, ConnectError> {
        let mut isid = self.isid;
        // What belongs to the same session has the same ISID.
        isid[4..].copy_from_slice(&(number - cid).to_be_bytes());
        let place = Place {
            initiator: &self.initiator,
            target: Some(&self.target),
            isid,
            cid,
            joins: joins.map(|window| &**window),
        };
        let entered = log_in(self.address, &place, &self.options).await?;
        let window = joins.map_or_else(|| Window::new(entered.numbers), Rc::clone);
        let session = Rc::downgrade(self);
        let ended = move |error| {
            if let Some(session) = session.upgrade() {
                session.connection_ended(error);
            }
        };
        queue.connect(entered.stream, entered.unread, entered.connection, Rc::clone(&window), ended);
        Ok(window)
    }

    fn disconnect(&self) {
        self.queues.iter().for_each(|queue| queue.disconnect());
    }

    fn connection_ended(self: &Rc<Self>, error: ConnectionError) {
        let phase = self.phase.get();
        if phase == Phase::Closed {
            return;
        }
        tracing::debug!(address = %self.address, %error, "connection ended");
        *self.last_error.borrow_mut() = Some(error.clone());
        // While connecting, the attempt fails by this: what it waits for is lost.
        self.disconnect();
        if phase != Phase::Live {
            return;
        }
        match self.options.reconnect {
            None => self.close(error.into()),
            Some(policy) => {
                self.phase.set(Phase::Recovering);
                let session = Rc::clone(self);
                let recovery = reactor::spawn(async move { session.recover(policy).await });
                *self.recovery.borrow_mut() = Some(recovery);
            }
        }
    }

    fn go_live(&self) {
        self.phase.set(Phase::Live);
        self.queues.iter().for_each(|queue| queue.resume());
    }

    /// Tries once to establish all connections.
    async fn attempt(self: &Rc<Self>) -> Result<(), ConnectError> {
        self.last_error.take();
        let result = match reactor::timeout(self.options.connect_timeout, connect::establish(self)).await {
            Ok(Ok(medium)) => self.recognise(medium),
            Ok(Err(error)) => Err(self.explain(error)),
            Err(_) => Err(ConnectError::TimedOut),
        };
        // One of several may have ended while another was made.
        let ended = self.last_error.borrow().clone();
        let result = result.and_then(|()| ended.map_or(Ok(()), |error| Err(error.into())));
        if result.is_err() {
            self.disconnect();
        }
        result
    }

    /// Takes the unit over if it is the first or the same as before.
    fn recognise(&self, medium: Medium) -> Result<(), ConnectError> {
        let mut known = self.medium.borrow_mut();
        if known.as_ref().is_some_and(|known| !known.is_same(&medium)) {
            return Err(ConnectError::IdentityChanged);
        }
        *known = Some(medium);
        Ok(())
    }

    /// What failed because a connection ended is explained by why it did.
    fn explain(&self, error: ConnectError) -> ConnectError {
        let lost = matches!(
            error,
            ConnectError::Command { error: CommandError::Lost, .. }
                | ConnectError::Connection(ConnectionError::Disconnected)
        );
        match self.last_error.borrow().clone() {
            Some(reason) if lost => reason.into(),
            _ => error,
        }
    }

    async fn recover(self: &Rc<Self>, policy: Reconnect) {
        let deadline = reactor::now() + policy.limit;
        let mut delay = policy.first_delay;
        loop {
            reactor::sleep(spread(delay).min(deadline - reactor::now())).await;
            match self.attempt().await {
                Ok(()) => {
                    self.reconnects.set(self.reconnects.get() + 1);
                    return self.go_live();
                }
                Err(error) if !error.is_retryable() || reactor::now() >= deadline => return self.close(error),
                Err(error) => tracing::debug!(address = %self.address, %error, "not connected again yet"),
            }
            delay = (delay * 2).min(policy.max_delay);
        }
    }

    /// Pings a target that is silent, and finds commands and pings that are never answered.
    async fn beat(self: &Rc<Self>) {
        let period = heartbeat_period(&self.options);
        let interval = self.options.ping_interval / 2;
        let mut since_pings = Duration::ZERO;
        loop {
            reactor::sleep(period).await;
            if !self.is_live() {
                continue;
            }
            // All queues count the heartbeat, also after one was late.
            if self.queues.iter().filter(|queue| !queue.heartbeat()).count() > 0 {
                self.connection_ended(ConnectionError::TimedOut);
                continue;
            }
            since_pings += period;
            if !interval.is_zero() && since_pings + period > interval {
                since_pings = Duration::ZERO;
                self.queues.iter().for_each(|queue| queue.ping_if_silent());
            }
        }
    }
}

/// Often enough for the pings and to notice a late command.
fn heartbeat_period(options: &Options) -> Duration {
    let for_commands = options.command_timeout / HEARTBEATS;
    let period = match options.ping_interval {
        Duration::ZERO => for_commands,
        interval => for_commands.min(interval / 2),
    };
    period.max(Duration::from_millis(1))
}

/// Three quarters to all of a delay, so that hosts that lost the same target do not come back in step.
fn spread(delay: Duration) -> Duration {
    delay - delay * (reactor::random() % 256) as u32 / 1024
}

/// A name for a host that has none.
pub(crate) fn random_name() -> Name {
    let text = format!("iqn.2026-01.io.ashlar:host:{:016x}", reactor::random());
    let Some(name) = Name::parse(&text) else { unreachable!("{text} is a name") };
    name
}

/// A session identifier of the random format (RFC 7143, 11.12.5); the last two bytes, its qualifier, are zero.
pub(crate) fn random_isid() -> Isid {
    let [a, b, c, ..] = reactor::random_bytes();
    [0x80, a, b, c, 0, 0]
}
