//! The body of an answer: a stream has its place and its deadline until its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::codegen::http::HeaderMap;

use super::classes::Class;
use super::{Call, deadlines, errors};

pub(super) struct Held {
    inner: Body,
    deadline: Option<(Pin<Box<Sleep>>, Duration, Class)>,
    has_ended: bool,
    call: Arc<Call>,
}

impl Held {
    pub(super) fn new(inner: Body, deadline: Option<(Instant, Duration, Class)>, call: Arc<Call>) -> Self {
        let deadline = deadline.map(|(at, limit, class)| (Box::pin(tokio::time::sleep_until(at)), limit, class));
        Self { inner, deadline, has_ended: false, call }
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            let complete = |mut frame: Frame<Bytes>| {
                if let Some(trailers) = frame.trailers_mut() {
                    errors::complete_trailers(trailers, &this.call.id);
                }
                frame
            };
            return Poll::Ready(frame.map(|frame| frame.map(complete)));
        }
        let Some((sleep, limit, class)) = &mut this.deadline else { return Poll::Pending };
        match sleep.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                this.has_ended = true;
                let mut trailers = HeaderMap::new();
                // Our own text and details fit into headers.
                let _ = deadlines::over(*limit, *class).add_header(&mut trailers);
                errors::complete_trailers(&mut trailers, &this.call.id);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
