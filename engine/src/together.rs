//! Asking all replicas for the same change, and what it means when some of them do not follow.

use std::future::Future;
use std::rc::Rc;

use block_device::{Error, ErrorKind};
use replica::Replica;

use crate::config::EngineError;
use crate::core::Core;
use crate::members::{Mask, bit};

/// What each member said.
pub(crate) type Answers = Vec<(usize, Result<(), Error>)>;

impl Core {
    /// Those that a change of the volume has to reach.
    pub(crate) fn readable(&self) -> Mask {
        self.members.borrow().readable()
    }

    /// Makes a change on these members, all at once. Done when each of them has it or is recorded out of sync (I25).
    ///
    /// # Errors
    /// When none has it. Members of which nobody knows then are out of sync, those that said clearly that they have not
    /// stay as they were.
    pub(crate) async fn together<F>(
        &self,
        what: &'static str,
        members: Mask,
        change: impl Fn(Rc<dyn Replica>) -> F,
    ) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), Error>> + 'static,
    {
        let answers = self.ask(what, members, change).await;
        let (have, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| answer.is_ok());
        if have.is_empty() {
            return Err(self.nobody_has_it(failed));
        }
        // Who lacks it is out of sync before anyone hears that it is there.
        for (member, answer) in failed {
            if let Err(error) = answer {
                self.member_failed(member, &error);
            }
        }
        self.until(|| (self.members.borrow().failing() == 0 || !self.is_serving()).then_some(())).await;
        match self.is_serving() {
            true => Ok(()),
            false => Err(EngineError::Unavailable("the volume closed meanwhile".to_owned())),
        }
    }

    /// Asks members for something, all at once, each for at most the deadline.
    pub(crate) async fn ask<F>(&self, what: &'static str, members: Mask, ask: impl Fn(Rc<dyn Replica>) -> F) -> Answers
    where
        F: Future<Output = Result<(), Error>> + 'static,
    {
        let replicas: Vec<(usize, Rc<dyn Replica>)> =
            self.members.borrow().replicas(members).map(|(member, replica)| (member, Rc::clone(replica))).collect();
        self.ask_each(what, replicas, ask).await
    }

    /// The same for replicas that are not members yet.
    pub(crate) async fn ask_each<F>(
        &self,
        what: &'static str,
        replicas: Vec<(usize, Rc<dyn Replica>)>,
        ask: impl Fn(Rc<dyn Replica>) -> F,
    ) -> Answers
    where
        F: Future<Output = Result<(), Error>> + 'static,
    {
        let limit = self.config.replica_deadline;
        let asking = replicas.into_iter().map(|(member, replica)| {
            let asked = ask(replica);
            let task = reactor::spawn(async move {
                let late = || Error::with_detail(ErrorKind::TimedOut, format_args!("no answer to {what} in time"));
                reactor::timeout(limit, asked).await.unwrap_or_else(|_| Err(late()))
            });
            (member, task)
        });
        let mut answers = Vec::new();
        for (member, task) in asking.collect::<Vec<_>>() {
            let ended = |_| Error::with_detail(ErrorKind::Internal, "asking a replica panicked");
            answers.push((member, task.await.map_err(ended).and_then(|answer| answer)));
        }
        answers
    }

    /// Tells members something that all have to know, and says who does then. One that fails is failed; the last one that is slow is
    /// asked again (I3).
    pub(crate) async fn tell_members<F>(
        &self,
        what: &'static str,
        members: Mask,
        tell: impl Fn(Rc<dyn Replica>) -> F,
    ) -> Mask
    where
        F: Future<Output = Result<(), Error>> + 'static,
    {
        let (mut asked, mut know) = (members, 0);
        while asked != 0 {
            let answers = self.ask(what, asked, &tell).await;
            asked = 0;
            for (member, answer) in answers {
                match answer {
                    Ok(()) => know |= bit(member),
                    Err(error) if error.kind() == ErrorKind::TimedOut && self.may_stall(member) => asked |= bit(member),
                    Err(error) => self.member_failed(member, &error),
                }
            }
        }
        know
    }

    fn may_stall(&self, member: usize) -> bool {
        self.is_running() && self.members.borrow().is_last(member)
    }

    /// Nobody said that it has the change. One that said clearly that it has not is as before; of the others nobody
    /// knows, and they cannot stay beside it (I25).
    fn nobody_has_it(&self, failed: Answers) -> EngineError {
        let unknown =
            |error: &Error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Unavailable | ErrorKind::Aborted);
        let errors = failed.into_iter().filter_map(|(member, answer)| Some((member, answer.err()?)));
        let (lost, clear): (Vec<_>, Vec<_>) = errors.partition(|(_, error)| unknown(error));
        let told = clear.first().or(lost.first()).map(|(_, error)| error.clone());
        for (member, error) in lost {
            self.member_failed(member, &error);
        }
        told.map_or_else(|| EngineError::Unavailable("no replica in sync".to_owned()), EngineError::Failed)
    }
}
