//! The life of a controller's connections: made together, lost together, made again.
//!
//! ```text
//!                 established                 a connection ends
//!   Connecting ────────────────▶ Live ────────────────────────────▶ Recovering
//!       │                        │  ▲         (Options::reconnect)   │    │
//!       │ failed                 │  └─────────── established ────────┘    │ time over, or
//!       ▼                        ▼ ended, without reconnect               ▼ refused for good
//!     Closed ◀───────────────────┴────────────────────────────────────────┘
//! ```
//! One connection's end is the end of all: the controller may have forgotten what was in flight on any of them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvmf_target_protocol::host::command::Command;
use reactor::{JoinHandle, TcpStream};
use uuid::Uuid;

use crate::connect::{self, Identity};
use crate::error::{CommandError, ConnectError, ConnectionError};
use crate::options::{Options, Reconnect};
use crate::queue::{CommandSink, Queue};

/// Users' commands that may be in flight on the admin queue; connecting needs one place more, and keep alive another.
const ADMIN_DEPTH: usize = 24;

/// How many heartbeats a command's time limit has at least.
const HEARTBEATS: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Live,
    Recovering,
    Closed,
}

/// A controller and its connections.
pub(crate) struct Session {
    pub(crate) address: SocketAddr,
    pub(crate) subsystem: String,
    pub(crate) options: Options,
    pub(crate) host_nqn: String,
    pub(crate) host_id: Uuid,
    pub(crate) admin: Rc<Queue>,
    pub(crate) io: Vec<Rc<Queue>>,
    phase: Cell<Phase>,
    /// Who the controller is, once established.
    identity: RefCell<Option<Identity>>,
    /// Why the last connection ended.
    last_error: RefCell<Option<ConnectionError>>,
    /// Why it was given up.
    failure: RefCell<Option<ConnectError>>,
    reconnects: Cell<u64>,
    keep_alive: Rc<KeepAlive>,
    heartbeat: RefCell<Option<JoinHandle<()>>>,
    recovery: RefCell<Option<JoinHandle<()>>>,
}

impl Session {
    /// Makes the first connection.
    pub(crate) async fn start(
        address: SocketAddr,
        subsystem: &str,
        options: Options,
    ) -> Result<Rc<Self>, ConnectError> {
        let session = Self::new(address, subsystem, options);
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

    fn new(address: SocketAddr, subsystem: &str, options: Options) -> Rc<Self> {
        let host_id = options.host_id.unwrap_or_else(|| Uuid::from_bytes(reactor::random_bytes()));
        let host_nqn = options.host_nqn.clone().unwrap_or_else(|| format!("nqn.2014-08.org.nvmexpress:uuid:{host_id}"));
        let period = heartbeat_period(&options);
        let time_limit = options.command_timeout.as_nanos().div_ceil(period.as_nanos().max(1)) as u32;
        let depth = usize::from(options.queue_depth);
        let patience = options.reconnect.map(|policy| policy.limit);
        let queue = |number, depth| Queue::new(number, depth, time_limit, patience);
        Rc::new(Self {
            address,
            subsystem: subsystem.to_owned(),
            host_nqn,
            host_id,
            admin: queue(0, ADMIN_DEPTH),
            io: (1..=options.io_queues).map(|number| queue(number, depth)).collect(),
            options,
            phase: Cell::new(Phase::Connecting),
            identity: RefCell::default(),
            last_error: RefCell::default(),
            failure: RefCell::default(),
            reconnects: Cell::new(0),
            keep_alive: Rc::default(),
            heartbeat: RefCell::default(),
            recovery: RefCell::default(),
        })
    }

    /// Who the controller was when it was last connected.
    pub(crate) fn identity<T>(&self, look: impl FnOnce(&Identity) -> T) -> T {
        match &*self.identity.borrow() {
            Some(identity) => look(identity),
            None => unreachable!("a session is handed out once it is established"),
        }
    }

    /// Why the controller was given up, if it was.
    pub(crate) fn failure(&self) -> Option<ConnectError> {
        self.failure.borrow().clone()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase.get() == Phase::Live
    }

    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.get()
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
        self.queues().for_each(|queue| queue.close());
    }

    /// A connection to the controller for one of its queues, ICReq and ICResp exchanged.
    pub(crate) async fn open(self: &Rc<Self>, queue: &Rc<Queue>) -> Result<(), ConnectionError> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| ConnectionError::io(&error))?;
        let session = Rc::downgrade(self);
        let ended = move |error| {
            if let Some(session) = session.upgrade() {
                session.connection_ended(error);
            }
        };
        queue.connect(stream, connect::connection_options(&self.options), ended).await
    }

    fn queues(&self) -> impl Iterator<Item = &Rc<Queue>> {
        std::iter::once(&self.admin).chain(&self.io)
    }

    fn disconnect(&self) {
        self.queues().for_each(|queue| queue.disconnect());
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
        self.queues().for_each(|queue| queue.resume());
    }

    /// Tries once to establish all connections.
    async fn attempt(self: &Rc<Self>) -> Result<(), ConnectError> {
        self.last_error.take();
        let result = match reactor::timeout(self.options.connect_timeout, connect::establish(self)).await {
            Ok(Ok(identity)) => self.recognise(identity),
            Ok(Err(error)) => Err(self.explain(error)),
            Err(_) => Err(ConnectError::TimedOut),
        };
        if result.is_err() {
            self.disconnect();
        }
        result
    }

    /// Takes the identity over if it is the first or the same as before.
    fn recognise(&self, identity: Identity) -> Result<(), ConnectError> {
        let mut known = self.identity.borrow_mut();
        if known.as_ref().is_some_and(|known| !known.is_same(&identity)) {
            return Err(ConnectError::IdentityChanged);
        }
        *known = Some(identity);
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

    /// Keeps the controller's keep alive timer from running out, and finds commands that are never answered.
    async fn beat(self: &Rc<Self>) {
        let period = heartbeat_period(&self.options);
        let keep_alive = self.options.keep_alive / 2;
        let mut silent = Duration::ZERO;
        loop {
            reactor::sleep(period).await;
            if !self.is_live() {
                continue;
            }
            // All queues count the heartbeat, also after one was late.
            if self.queues().filter(|queue| !queue.heartbeat()).count() > 0 {
                self.connection_ended(ConnectionError::TimedOut);
                continue;
            }
            silent += period;
            if !keep_alive.is_zero() && silent + period > keep_alive {
                silent = Duration::ZERO;
                self.keep_alive.send(&self.admin);
            }
        }
    }
}

/// Often enough for the keep alive timer and to notice a late command.
fn heartbeat_period(options: &Options) -> Duration {
    let for_commands = options.command_timeout / HEARTBEATS;
    let period = match options.keep_alive {
        Duration::ZERO => for_commands,
        keep_alive => for_commands.min(keep_alive / 2),
    };
    period.max(Duration::from_millis(1))
}

/// Three quarters to all of a delay, so that hosts that lost the same target do not come back in step.
fn spread(delay: Duration) -> Duration {
    delay - delay * (reactor::random() % 256) as u32 / 1024
}

/// The keep alive of a controller: at most one is in flight, whatever the controller does. That no answer comes is noticed
/// by its time limit.
#[derive(Default)]
struct KeepAlive {
    in_flight: Cell<bool>,
}

impl KeepAlive {
    fn send(self: &Rc<Self>, admin: &Queue) {
        if !self.in_flight.replace(true) {
            admin.send_internal(Command::keep_alive().into(), Rc::clone(self) as Rc<_>);
            admin.flush();
        }
    }
}

impl CommandSink for KeepAlive {
    fn data(&self, _token: u64, _offset: usize, _bytes: &[u8]) {}

    fn complete(&self, _token: u64, _outcome: Result<u64, CommandError>) {
        self.in_flight.set(false);
    }
}
