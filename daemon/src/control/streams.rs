//! Changes as the streams of the API.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tonic::Status;
use tonic::codegen::tokio_stream::Stream;

use super::versions::{Change, Follower};

/// Messages that a stream is ahead of its client.
const AHEAD: usize = 64;

/// Messages as they come.
pub(crate) struct ChangeStream<M>(mpsc::Receiver<Result<M, Status>>);

/// What becomes of a change.
pub(crate) enum Told<M> {
    /// Nothing: it is not what the client wants to hear of.
    Nothing,
    Message(M),
    /// After it nothing comes any more.
    Last(M),
}

/// Sends what a follower gets until the client goes or the daemon ends.
pub(crate) fn stream<T, M>(
    mut follower: Follower<T>,
    tell: impl Fn(Change<T>) -> Told<M> + Send + 'static,
) -> ChangeStream<M>
where
    T: Clone + PartialEq + Send + 'static,
    M: Send + 'static,
{
    let (parts, stream) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let change = tokio::select! {
                () = parts.closed() => return,
                change = follower.next() => change,
            };
            let (part, is_last) = match change {
                Ok(None) => return,
                Err(error) => (Err(Status::from(error)), true),
                Ok(Some(change)) => match tell(change) {
                    Told::Nothing => continue,
                    Told::Message(message) => (Ok(message), false),
                    Told::Last(message) => (Ok(message), true),
                },
            };
            if parts.send(part).await.is_err() || is_last {
                return;
            }
        }
    });
    ChangeStream(stream)
}

#[cfg(test)]
impl<M> ChangeStream<M> {
    pub(crate) async fn recv(&mut self) -> Option<Result<M, Status>> {
        self.0.recv().await
    }
}

impl<M> Stream for ChangeStream<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
