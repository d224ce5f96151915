//! Work that many ask for and that one task does for all of them at once, round by round.

use std::cell::RefCell;

use tokio::sync::oneshot;

use crate::error::StoreError;

/// Who waits for the next round. Bounded by the requests in flight.
type Waiting = Vec<oneshot::Sender<Result<(), String>>>;

/// Rounds of some work.
#[derive(Default)]
pub(crate) struct Rounds(RefCell<State>);

#[derive(Default)]
struct State {
    waiting: Waiting,
    /// A round was asked for, by those who wait or by the store itself.
    wanted: bool,
    running: bool,
}

/// The end of a round that somebody waits for.
pub(crate) struct End(oneshot::Receiver<Result<(), String>>);

/// Those whom one round is for.
pub(crate) struct Round(Waiting);

impl Rounds {
    /// Takes a place in the next round: one that begins after this call. Someone has to ask for it yet.
    pub(crate) fn join(&self) -> End {
        let (done, end) = oneshot::channel();
        self.0.borrow_mut().waiting.push(done);
        End(end)
    }

    /// Asks for a round that begins from here on. True if the caller has to start the task that does them.
    #[must_use]
    pub(crate) fn ask(&self) -> bool {
        let mut state = self.0.borrow_mut();
        state.wanted = true;
        !std::mem::replace(&mut state.running, true)
    }

    /// The same, but a round that is under way is good enough, unless someone waits for the next one.
    #[must_use]
    pub(crate) fn ask_unless_running(&self) -> bool {
        let enough = {
            let state = self.0.borrow();
            state.running && state.waiting.is_empty()
        };
        !enough && self.ask()
    }

    /// The next round; `None` when nobody wants one: then the task ends.
    pub(crate) fn next(&self) -> Option<Round> {
        let mut state = self.0.borrow_mut();
        state.running = std::mem::take(&mut state.wanted);
        state.running.then(|| Round(std::mem::take(&mut state.waiting)))
    }
}

impl End {
    pub(crate) async fn wait(self) -> Result<(), StoreError> {
        match self.0.await {
            Ok(result) => result.map_err(|detail| StoreError::Stopped { detail }),
            Err(_) => Err(StoreError::Closed),
        }
    }
}

impl Round {
    /// Tells everyone how it ended.
    pub(crate) fn end(self, result: &Result<(), StoreError>) {
        for done in self.0 {
            let _ = done.send(result.as_ref().copied().map_err(ToString::to_string));
        }
    }
}
