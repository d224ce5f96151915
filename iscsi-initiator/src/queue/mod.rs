//! One queue: commands in, results out, over one connection at a time.
//!
//! There is no future and no task for a command: it is kept in a table under its slot, and its result goes to a
//! [`CommandSink`]. One task per connection takes in what arrives; what sinks submit meanwhile goes out together when all
//! of it is worked off.
//!
//! ```text
//!              submit                                   status
//!   caller ──────────────▶ in flight ───────────────────────────────▶ sink.complete
//!            │               │      ▲
//!   no link, │     link lost ▼      │ resume, window open
//!   window   └───────────▶ held ────┘
//!   closed                   │ close
//!                            └──────────────────────────────────────▶ sink.complete(Err(Lost))
//! ```
//! A command that meets a unit attention was not carried out and is sent again at once. One that meets a passing state waits for a
//! moment and is then sent again, if the options ask for it.

mod state;
mod waiter;
mod window;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use iscsi_target_protocol::initiator::connection::Connection;
use reactor::{Slice, TcpStream};

pub(crate) use self::state::Output;
pub(crate) use self::window::Window;

use self::state::{Link, Pending, State, Step};
use self::waiter::Waiter;
use crate::error::{CommandError, ConnectionError};
use crate::request::Request;

/// Takes the results of commands. The token is whatever the submitter chose: an index into its own table.
pub trait CommandSink {
    /// Some of the data that a command receives, to be copied to `offset`. Parts come in order from 0 on; a command that was
    /// sent again starts at 0 again. Do not submit from it.
    fn data(&self, token: u64, offset: usize, bytes: &[u8]);

    /// A command is done: how many bytes it received, or why not. Exactly one call for each submitted command (I34), never from
    /// within `submit`. New commands may be submitted from it; they go out with the next flush of the queue, which follows by itself.
    fn complete(&self, token: u64, outcome: Result<u32, CommandError>);
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many as the queue is deep are in flight: wait for one to complete.
    #[error("the queue is full")]
    Full,
    /// The target is given up.
    #[error("connection lost")]
    Lost,
}

/// What [`Queue::execute`] returns.
#[derive(Debug)]
pub struct Answer {
    /// The data received: less than was asked for only if the command may be short.
    pub data: Slice,
}

/// What takes commands to the unit over one connection.
pub struct Queue {
    this: Weak<Self>,
    /// The logical unit; known once it is found.
    lun: Cell<u64>,
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

/// How often a command is sent again because of unit attentions: more than a unit has kinds of them.
const ATTENTIONS_MAX: u8 = 32;

impl Queue {
    pub(crate) fn new(depth: usize, time_limit: u32, patience: Option<Duration>) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            lun: Cell::new(0),
            depth,
            time_limit,
            patience,
            state: RefCell::default(),
        })
    }

    /// Most commands that may be in flight.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Submits a command to the logical unit; it goes out with the next [`Queue::flush`], or when the target's window has room for it.
    /// While the connection is lost and being made again it waits.
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
        let pending = Pending::new(request, self.lun.get(), sink, token, self.time_limit);
        self.dispatch(&mut state, pending);
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

    /// Sends a user's command, or holds it behind those that are held.
    #[inline]
    fn dispatch(&self, state: &mut State, pending: Pending) {
        if !state.open || !state.held.is_empty() {
            return state.held.push_back(pending);
        }
        if let Some(pending) = state.send(pending) {
            state.held.push_back(pending);
            self.wait_for_window(state);
        }
    }

    /// Has this queue called when the window opens.
    fn wait_for_window(&self, state: &State) {
        if let Some(link) = &state.link {
            link.window.add(self.this.clone());
        }
    }

    /// Sends what is held, as far as the window allows.
    fn send_held(&self) {
        let mut state = self.state.borrow_mut();
        while state.open
            && let Some(pending) = state.held.pop_front()
        {
            if let Some(pending) = state.send(pending) {
                state.held.push_front(pending);
                self.wait_for_window(&state);
                break;
            }
        }
    }
}

/// For the session that owns the queue.
impl Queue {
    /// Names the logical unit that commands go to.
    pub(crate) fn set_lun(&self, lun: u64) {
        self.lun.set(lun);
    }

    /// Takes a connection into use that is logged in, and the bytes that came after its login. `ended` is called when it ends other
    /// than by [`Queue::disconnect`].
    pub(crate) fn connect(
        self: &Rc<Self>,
        stream: TcpStream,
        unread: Vec<u8>,
        connection: Connection,
        window: Rc<Window>,
        ended: impl FnOnce(ConnectionError) + 'static,
    ) {
        let mut link = Link::new(stream.clone(), connection, window);
        let queue = Rc::clone(self);
        link.receiver = Some(reactor::spawn(async move {
            let error = queue.receive(&stream, &unread).await;
            ended(error);
        }));
        self.state.borrow_mut().link = Some(link);
    }

    /// Like [`Queue::execute`], for what belongs to connecting: goes out although users' commands are held.
    pub(crate) async fn execute_internal(&self, lun: u64, request: Request) -> Result<Answer, CommandError> {
        let sink = Waiter::new(&request);
        let mut pending = Pending::new(request, lun, Rc::clone(&sink) as Rc<_>, 0, self.time_limit);
        pending.internal = true;
        let refused = {
            let mut state = self.state.borrow_mut();
            if state.link.is_some() { state.send(pending) } else { Some(pending) }
        };
        if let Some(pending) = refused {
            pending.lost();
        }
        self.flush();
        sink.answer().await
    }

    /// Lets users' commands flow, first those that were held, in their order.
    pub(crate) fn resume(&self) {
        self.state.borrow_mut().open = true;
        self.send_held();
        self.flush();
    }

    /// Asks the target to close the session of this connection.
    pub(crate) fn log_out(&self) {
        if let Some(link) = &mut self.state.borrow_mut().link {
            link.log_out();
        }
    }

    /// Waits until that is answered or the connection has ended.
    pub(crate) async fn logged_out(&self) {
        self.wait_until(|state| match &state.link {
            Some(link) if !link.logged_out => None,
            _ => Some(()),
        })
        .await;
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

    /// Counts one heartbeat; false when a command or ping in flight is over its time limit.
    pub(crate) fn heartbeat(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let State { in_flight, held, open, link, .. } = &mut *state;
        // Of those that wait for the window the first one is enough.
        let waits = held.front_mut().filter(|_| *open);
        let commands = in_flight.iter_mut().flatten().chain(waits).map(|pending| &mut pending.heartbeats_left);
        let ping = link.iter_mut().filter_map(|link| link.ping.as_mut());
        let mut in_time = true;
        for left in commands.chain(ping) {
            in_time &= *left > 0;
            *left = left.saturating_sub(1);
        }
        in_time
    }

    /// Pings the target if nothing came since the last call.
    pub(crate) fn ping_if_silent(&self) {
        if let Some(link) = &mut self.state.borrow_mut().link {
            link.ping_if_silent(self.time_limit);
        }
    }

    /// Takes in what arrives until the connection ends.
    async fn receive(&self, stream: &TcpStream, unread: &[u8]) -> ConnectionError {
        if let Err(error) = self.take_in(unread) {
            return error;
        }
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

    fn take_in(&self, mut input: &[u8]) -> Result<(), ConnectionError> {
        loop {
            // Sinks are called with nothing borrowed: they may submit.
            let step = self.state.borrow_mut().step(&mut input)?;
            match step {
                Step::Starved => break,
                Step::Done => {}
                Step::Data { sink, token, offset, bytes } => sink.data(token, offset as usize, bytes),
                Step::Completed { pending, outcome } => self.completed(pending, outcome),
                Step::Changed => self.wake_waiting(),
            }
        }
        let window =
            self.state.borrow().link.as_ref().filter(|link| link.window.has_room()).map(|link| Rc::clone(&link.window));
        if let Some(window) = window {
            // Others of the session may wait, too.
            for queue in window.take_waiting() {
                queue.send_held();
                queue.flush();
            }
        }
        Ok(())
    }

    #[inline]
    fn completed(&self, mut pending: Pending, outcome: Result<u32, CommandError>) {
        if let Err(error) = outcome
            && !pending.internal
        {
            if let CommandError::Check(sense) = error
                && sense.is_attention()
                && pending.attentions < ATTENTIONS_MAX
            {
                pending.attentions += 1;
                return self.dispatch(&mut self.state.borrow_mut(), pending);
            }
            if let Some(patience) = self.patience
                && error.is_passing()
                && reactor::now() < *pending.give_up.get_or_insert_with(|| reactor::now() + patience)
            {
                return self.rest(pending);
            }
        }
        self.state.borrow_mut().leave(&pending);
        pending.sink.complete(pending.token, outcome);
    }

    /// Keeps a command for a moment, then sends it again.
    fn rest(&self, pending: Pending) {
        let mut state = self.state.borrow_mut();
        state.resting.push(pending);
        if state.resting.len() > 1 {
            return;
        }
        let queue = self.this.clone();
        reactor::spawn(async move {
            reactor::sleep(REST).await;
            if let Some(queue) = queue.upgrade() {
                queue.wake_resting();
            }
        });
    }

    fn wake_resting(&self) {
        let mut state = self.state.borrow_mut();
        for mut pending in std::mem::take(&mut state.resting) {
            pending.heartbeats_left = self.time_limit;
            self.dispatch(&mut state, pending);
        }
        drop(state);
        self.flush();
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut self.state.borrow_mut().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}
