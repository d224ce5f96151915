//! The tasks of a connection: one receives, one asks how the replica is.

use std::rc::{Rc, Weak};

use block_device::{Error, ErrorKind};
use reactor::{Instant, now, sleep_until, spawn};

use super::{RemoteOptions, RemoteReplica};
use crate::stream::Stream;

/// The tasks hold the replica only while they do something: they end with it.
pub(super) fn start(replica: &Rc<RemoteReplica>, options: &RemoteOptions) {
    spawn(receive(Rc::downgrade(replica), replica.stream.clone()));
    spawn(watch(Rc::downgrade(replica), options.clone()));
}

/// Until the stream ends, which closing it does too.
async fn receive(replica: Weak<RemoteReplica>, stream: Stream) {
    let mut ended = Vec::new();
    loop {
        let chunk = match stream.receive().await {
            Ok(chunk) if chunk.is_empty() => Err("the replica's node closed the connection".to_owned()),
            Ok(chunk) => Ok(chunk),
            Err(error) => Err(format!("the connection failed: {error}")),
        };
        let Some(replica) = replica.upgrade() else { return };
        let result = chunk.and_then(|chunk| {
            let received = replica.receive(&chunk, &mut ended);
            received.map_err(|error| format!("the replica's node broke the protocol: {error}"))
        });
        ended.drain(..).for_each(super::Ended::tell);
        match result {
            Ok(false) => {}
            Ok(true) => {
                let text = "the replica has granted a newer epoch";
                return replica.end(&Error::with_detail(ErrorKind::Fenced, text));
            }
            Err(text) => return replica.end(&Error::with_detail(ErrorKind::Unavailable, text)),
        }
    }
}

/// Pings, and fails the replica when nothing comes from it any more.
async fn watch(replica: Weak<RemoteReplica>, options: RemoteOptions) {
    let mut next = now() + options.ping_interval;
    loop {
        // At the limit itself: reads wait for what is found out then.
        let Some(limit) = replica.upgrade().map(|replica| replica.silent_at(&options)) else { return };
        sleep_until(next.min(limit)).await;
        let Some(replica) = replica.upgrade() else { return };
        if replica.failure_is_set() {
            return;
        }
        if now() >= replica.silent_at(&options) {
            let text = format!("the replica's node has been silent for {:?}", options.silence_limit);
            return replica.end(&Error::with_detail(ErrorKind::TimedOut, text));
        }
        if now() >= next {
            next = now() + options.ping_interval;
            replica.ping();
        }
    }
}

impl RemoteReplica {
    fn failure_is_set(&self) -> bool {
        self.state.borrow().failure.is_some()
    }

    /// When it will have been silent for too long.
    fn silent_at(&self, options: &RemoteOptions) -> Instant {
        self.state.borrow().last_heard + options.silence_limit
    }

    fn ping(&self) {
        let ping = {
            let mut state = self.state.borrow_mut();
            if state.closing {
                return;
            }
            state.pinged.push_back(reactor::now());
            state.client.ping()
        };
        self.stream.push_copy(&ping);
        self.stream.flush_at_turn_end();
    }
}
