//! One queue: commands in, results out, over one connection at a time.
//!
//! There is no future and no task for a command: it is kept in a table under its slot, and its result goes to a
//! [`CommandSink`]. One task per connection takes in what arrives; what sinks submit meanwhile goes out together when all
//! of it is worked off.
//!
//! ```text
//!              submit                                   completion
//!   caller ──────────────▶ in flight ───────────────────────────────▶ sink.complete
//!            │               │      ▲
//!   no link  │     link lost ▼      │ resume
//!            └───────────▶ held ────┘
//!                            │ close
//!                            └──────────────────────────────────────▶ sink.complete(Err(Lost))
//! ```
//! A command that is answered with a passing state waits for a moment instead, and is then sent again, if the options
//! ask for it.

mod state;
mod waiter;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use nvmf_target_protocol::host::connection::{Connection, Options as ConnectionOptions};
use nvmf_target_protocol::wire::Completion;
use reactor::{Slice, TcpStream};

use self::state::{Link, Output, Pending, State, Step, is_passing};
use self::waiter::Waiter;
use crate::error::{CommandError, ConnectionError};
use crate::request::Request;

/// Takes the results of commands. The token is whatever the submitter chose: an index into its own table.
pub trait CommandSink {
    /// Some of the data that a command receives, to be copied to `offset`. Parts come in order from 0 on; after a
    /// reconnect a command that was sent again starts at 0 again. Do not submit from it.
    fn data(&self, token: u64, offset: usize, bytes: &[u8]);

    /// A command is done: its result (dwords 0 and 1 of the completion), or why not. Exactly one call for each
    /// submitted command (I34), never from within `submit`. New commands may be submitted from it; they go out with the
    /// next flush of the queue, which follows by itself.
    fn complete(&self, token: u64, outcome: Result<u64, CommandError>);
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many as the queue is deep are in flight: wait for one to complete.
    #[error("the queue is full")]
    Full,
    /// The controller is given up.
    #[error("connection lost")]
    Lost,
}

/// What [`Queue::execute`] returns.
#[derive(Debug)]
pub struct Answer {
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// The data received, as much as was asked for.
    pub data: Slice,
}

/// A submission queue and its completion queue.
pub struct Queue {
    /// 0 for the admin queue.
    number: u16,
    /// Most commands of users in flight or held.
    depth: usize,
    /// Time limit of a command in heartbeats.
    time_limit: u32,
    /// For how long a command that meets a passing state is sent again; not at all without it.
    patience: Option<Duration>,
    state: RefCell<State>,
}

/// Between the answer with a passing state and the next attempt.
const REST: Duration = Duration::from_millis(50);

impl Queue {
    pub(crate) fn new(number: u16, depth: usize, time_limit: u32, patience: Option<Duration>) -> Rc<Self> {
        Rc::new(Self { number, depth, time_limit, patience, state: RefCell::default() })
    }

    /// Its number, as Abort names it: 0 for the admin queue.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Most commands that may be in flight.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Submits a command; it goes out with the next [`Queue::flush`]. While the connection is lost and being made again
    /// it waits.
    ///
    /// # Errors
    /// The queue is full or given up; the sink is not called then.
    #[inline]
    pub fn submit(&self, request: Request, sink: Rc<dyn CommandSink>, token: u64) -> Result<(), SubmitError> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(SubmitError::Lost);
        }
        if state.users == self.depth {
            return Err(SubmitError::Full);
        }
        state.users += 1;
        let pending = self.pending(request, sink, token, false);
        if state.open {
            state.send(pending)
        } else {
            state.held.push_back(pending)
        }
        Ok(())
    }

    /// Sends what was submitted. Needless from within [`CommandSink::complete`].
    pub fn flush(&self) {
        if let Some(link) = &self.state.borrow().link {
            link.stream.flush();
        }
    }

    /// Submits a command and waits for its end; while the queue is full it waits for room. Dropping the future does not
    /// take the command back.
    ///
    /// # Errors
    /// The command's status, or the connection is lost for good.
    pub async fn execute(&self, request: impl Into<Request>) -> Result<Answer, CommandError> {
        let request = request.into();
        let sink = Waiter::new(&request);
        self.room().await?;
        // Nothing ran since there was room.
        self.submit(request, Rc::clone(&sink) as Rc<_>, 0).map_err(|_| CommandError::Lost)?;
        self.flush();
        sink.answer().await
    }

    /// Waits until there is room for a command.
    async fn room(&self) -> Result<(), CommandError> {
        self.wait_until(|state| match state {
            State { closed: true, .. } => Some(Err(CommandError::Lost)),
            State { users, .. } if *users < self.depth => Some(Ok(())),
            State { .. } => None,
        })
        .await
    }

    async fn wait_until<T>(&self, mut condition: impl FnMut(&State) -> Option<T>) -> T {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            match condition(&state) {
                Some(value) => Poll::Ready(value),
                None => {
                    state.waiting.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn pending(&self, request: Request, sink: Rc<dyn CommandSink>, token: u64, internal: bool) -> Pending {
        let heartbeats_left = if request.unlimited { None } else { Some(self.time_limit) };
        Pending { request, sink, token, heartbeats_left, internal, give_up: None }
    }
}

/// For the session that owns the queue.
impl Queue {
    /// Takes a fresh connection into use and exchanges ICReq and ICResp. `ended` is called when it ends other than by
    /// [`Queue::disconnect`].
    pub(crate) async fn connect(
        self: &Rc<Self>,
        stream: TcpStream,
        options: ConnectionOptions,
        ended: impl FnOnce(ConnectionError) + 'static,
    ) -> Result<(), ConnectionError> {
        let mut connection = Connection::new(options);
        connection.initialize(&mut Output(&stream));
        stream.flush();
        let mut link = Link { stream: stream.clone(), connection, initialized: false, receiver: None };
        let queue = Rc::clone(self);
        link.receiver = Some(reactor::spawn(async move {
            let error = queue.receive(&stream).await;
            ended(error);
        }));
        self.state.borrow_mut().link = Some(link);
        self.wait_until(|state| match &state.link {
            None => Some(Err(ConnectionError::Disconnected)),
            Some(link) => link.initialized.then_some(Ok(())),
        })
        .await
    }

    /// A Connect command succeeded: `commands` may be in flight, with `capsule_data` bytes of data in their capsules.
    pub(crate) fn connected(&self, commands: usize, capsule_data: u32) {
        let mut state = self.state.borrow_mut();
        let places = commands.max(state.in_flight.len());
        state.in_flight.resize_with(places, || None);
        if let Some(link) = &mut state.link {
            link.connection.connected(commands, capsule_data);
        }
    }

    /// Like [`Queue::execute`], for what belongs to connecting: goes out although users' commands are held.
    pub(crate) async fn execute_internal(&self, request: Request) -> Result<Answer, CommandError> {
        let sink = Waiter::new(&request);
        self.send_internal(request, Rc::clone(&sink) as Rc<_>);
        self.flush();
        sink.answer().await
    }

    /// Sends a command of ours; it is lost at once if there is no connection.
    pub(crate) fn send_internal(&self, request: Request, sink: Rc<dyn CommandSink>) {
        let pending = self.pending(request, sink, 0, true);
        let mut state = self.state.borrow_mut();
        if state.link.is_some() {
            state.send(pending);
        } else {
            drop(state);
            pending.lost();
        }
    }

    /// Lets users' commands flow, first those that were held, in their order.
    pub(crate) fn resume(&self) {
        let mut state = self.state.borrow_mut();
        state.open = true;
        while let Some(pending) = state.held.pop_front() {
            state.send(pending);
        }
        drop(state);
        self.flush();
    }

    /// Ends the connection, if there is one: users' commands in flight are held from here on, ours fail.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state.borrow_mut();
        state.open = false;
        let Some(link) = state.link.take() else { return };
        let (internal, users): (Vec<_>, Vec<_>) =
            state.in_flight.drain(..).flatten().partition(|pending| pending.internal);
        // Before what was submitted while there was no connection.
        for pending in users.into_iter().rev() {
            state.held.push_front(pending);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        link.stream.close();
        if let Some(receiver) = link.receiver {
            receiver.abort();
        }
        internal.into_iter().for_each(Pending::lost);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Gives the queue up: every command fails, now and from here on.
    pub(crate) fn close(&self) {
        self.disconnect();
        let (held, resting, waiting) = {
            let mut state = self.state.borrow_mut();
            state.closed = true;
            state.users = 0;
            let State { held, resting, waiting, .. } = &mut *state;
            (std::mem::take(held), std::mem::take(resting), std::mem::take(waiting))
        };
        held.into_iter().chain(resting).for_each(Pending::lost);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Counts one heartbeat; false when a command in flight is over its time limit.
    pub(crate) fn heartbeat(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let mut in_time = true;
        for left in state.in_flight.iter_mut().flatten().filter_map(|pending| pending.heartbeats_left.as_mut()) {
            in_time &= *left > 0;
            *left = left.saturating_sub(1);
        }
        in_time
    }

    /// Takes in what arrives until the connection ends.
    async fn receive(self: &Rc<Self>, stream: &TcpStream) -> ConnectionError {
        loop {
            let mut next = Some(stream.receive().await);
            while let Some(chunk) = next {
                let taken = match &chunk {
                    Ok(chunk) if chunk.is_empty() => Err(ConnectionError::Closed),
                    Ok(chunk) => self.take_in(chunk),
                    Err(error) => Err(ConnectionError::io(error)),
                };
                if let Err(error) = taken {
                    return error;
                }
                next = stream.try_receive();
            }
            stream.flush();
        }
    }

    fn take_in(self: &Rc<Self>, mut input: &[u8]) -> Result<(), ConnectionError> {
        loop {
            // Sinks are called with nothing borrowed: they may submit.
            let step = self.state.borrow_mut().step(&mut input)?;
            match step {
                Step::Starved => return Ok(()),
                Step::Done => {}
                Step::Data { sink, token, offset, bytes } => sink.data(token, offset as usize, bytes),
                Step::Completed { pending, completion, received } => self.completed(pending, completion, received),
                Step::Changed => self.wake_waiting(),
            }
        }
    }

    #[inline]
    fn completed(self: &Rc<Self>, mut pending: Pending, completion: Completion, received: u32) {
        if let Some(patience) = self.patience
            && !pending.internal
            && is_passing(completion.status)
            && reactor::now() < *pending.give_up.get_or_insert_with(|| reactor::now() + patience)
        {
            return self.rest(pending);
        }
        self.state.borrow_mut().leave(&pending);
        pending.completed(completion, received);
    }

    /// Keeps a command for a moment, then sends it again.
    fn rest(self: &Rc<Self>, pending: Pending) {
        let mut state = self.state.borrow_mut();
        state.resting.push(pending);
        if state.resting.len() > 1 {
            return;
        }
        let queue = Rc::clone(self);
        reactor::spawn(async move {
            reactor::sleep(REST).await;
            queue.wake_resting();
        });
    }

    fn wake_resting(&self) {
        let mut state = self.state.borrow_mut();
        for mut pending in std::mem::take(&mut state.resting) {
            pending.heartbeats_left = pending.heartbeats_left.map(|_| self.time_limit);
            if state.open { state.send(pending) } else { state.held.push_back(pending) }
        }
        drop(state);
        self.flush();
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut self.state.borrow_mut().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}
