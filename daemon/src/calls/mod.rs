//! What is done for every call of the API before and after it is served: docs/api-calls.md.
//!
//! ```text
//!                     no place: BUSY
//!                          ▲                            over: DEADLINE
//!   request ─▶ id, span ─▶ a place in its class ─▶ deadline ─▶ the service ─▶ every error gets its details ─▶ answer
//! ```
//!
//! What a call is about ([`Call`]) goes along with it, also into the task of a change that outlasts its caller ([`detached`]): that keeps
//! its place until it has ended.

mod body;
mod classes;
mod deadlines;
mod errors;

use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use proto::v1::ErrorReason;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tower_layer::Layer;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use uuid::Uuid;

use self::body::Held;
use self::classes::{Class, Place, Rooms};

/// Where a client says what to call its request, and where every answer says it.
const REQUEST_ID: &str = "x-request-id";
/// Characters of the longest id that is taken over.
const LONGEST_ID: usize = 128;

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// A call under way.
pub(crate) struct Call {
    id: String,
    span: Span,
    /// Given back when the last of those who work on the call has ended.
    place: Mutex<Option<Place>>,
}

impl Call {
    fn begin(headers: &HeaderMap, path: &str) -> Self {
        let id = request_id(headers);
        let method = path.trim_start_matches('/').trim_start_matches("ashlar.v1.");
        let span = tracing::info_span!("call", id = %id, method = %method, volume = Empty);
        Self { id, span, place: Mutex::new(None) }
    }

    fn take(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
}

/// The id that the client gave, if it can be shown and logged; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let fine = |id: &&str| (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    given.filter(fine).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Runs `work` as a task of its own, as part of the call that is served here.
pub(crate) fn detached<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    match CALL.try_with(Arc::clone) {
        Ok(call) => {
            let span = call.span.clone();
            tokio::spawn(CALL.scope(call, work).instrument(span))
        }
        Err(_) => tokio::spawn(work),
    }
}

/// Says which volume the call that is served here is about, for the lines that it logs.
pub(crate) fn about_volume(name: &str) {
    // An error means that nobody called.
    let _ = CALL.try_with(|call| {
        call.span.record("volume", tracing::field::display(name));
    });
}

/// A request to another node on behalf of the call that is served here, with how long it may take there.
pub(crate) fn to_peer<T>(message: T, limit: std::time::Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    let id = CALL.try_with(|call| call.id.parse().ok()).ok().flatten();
    if let Some(id) = id {
        request.metadata_mut().insert(REQUEST_ID, id);
    }
    request
}

/// Wraps the services of the API.
#[derive(Clone)]
pub(crate) struct Calls {
    rooms: Arc<Rooms>,
}

impl Calls {
    pub(crate) fn new() -> Self {
        Self { rooms: Arc::default() }
    }
}

impl<S> Layer<S> for Calls {
    type Service = Served<S>;

    fn layer(&self, inner: S) -> Served<S> {
        Served { inner, rooms: Arc::clone(&self.rooms) }
    }
}

/// A service as it is called.
#[derive(Clone)]
pub(crate) struct Served<S> {
    inner: S,
    rooms: Arc<Rooms>,
}

impl<S> Service<Request<Body>> for Served<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready serves; its clone gets ready for the next call.
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        let rooms = Arc::clone(&self.rooms);
        let call = Arc::new(Call::begin(request.headers(), request.uri().path()));
        let span = call.span.clone();
        Box::pin(async move { Ok(serve(inner, &rooms, request, call).await) }.instrument(span))
    }
}

async fn serve<S>(mut inner: S, rooms: &Rooms, request: Request<Body>, call: Arc<Call>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let begun = Instant::now();
    let class = Class::of(request.uri().path());
    let limit = deadlines::limit(request.headers(), class);
    // Beyond what a clock can say, nobody waits for it.
    let deadline = begun.checked_add(limit);
    let work = async {
        call.take(rooms.enter(class).await?);
        let Ok(response) = CALL.scope(Arc::clone(&call), inner.call(request)).await;
        Ok(response)
    };
    let answered = match deadline {
        Some(deadline) => {
            tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| Err(deadlines::over(limit, class)))
        }
        None => work.await,
    };
    let response = match answered {
        Ok(response) => errors::complete(response, &call.id),
        Err(status) => errors::complete(status.into_http(), &call.id),
    };
    log(&response, begun);
    let (mut parts, body) = response.into_parts();
    if let Ok(id) = HeaderValue::from_str(&call.id) {
        parts.headers.insert(REQUEST_ID, id);
    }
    Response::from_parts(parts, Body::new(Held::new(body, deadline.map(|deadline| (deadline, limit, class)), call)))
}

/// A line for each call; those that failed for reasons of ours are worth a look.
fn log(response: &Response<Body>, begun: Instant) {
    let took = begun.elapsed();
    match errors::code_of(response.headers()) {
        code @ (Code::Internal | Code::DataLoss | Code::Unknown) => tracing::warn!(?code, ?took, "the call failed"),
        code => tracing::debug!(?code, ?took, "the call was answered"),
    }
}

/// How the reasons of this module are called.
fn name_of(reason: ErrorReason) -> &'static str {
    reason.as_str_name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_can_be_shown_is_taken_over_and_others_are_replaced() {
        let id = |given: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).expect("a header"));
            request_id(&headers)
        };
        assert_eq!(id(b"job-7/step:3"), "job-7/step:3");
        for given in [&b""[..], b"two words", "\u{fc}".as_bytes(), &[b'x'; 129]] {
            let made = id(given);
            assert!(Uuid::try_parse(&made).is_ok(), "{made}");
        }
        assert!(Uuid::try_parse(&request_id(&HeaderMap::new())).is_ok());
    }

    /// A service that answers when it is told to; its calls run on as tasks if they are changes.
    #[derive(Clone)]
    struct Slow(Arc<tokio::sync::Notify>);

    impl Service<Request<Body>> for Slow {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let told = Arc::clone(&self.0);
            Box::pin(async move {
                let work = detached(async move { told.notified().await });
                let _ = work.await;
                Ok(Response::new(Body::empty()))
            })
        }
    }

    fn request(path: &str, timeout: &'static str) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().expect("a path");
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static(timeout));
        request
    }

    fn reason(response: &Response<Body>) -> String {
        let status = tonic::Status::from_header_map(response.headers()).expect("an error");
        proto::error::info(&status).expect("details").reason
    }

    #[tokio::test]
    async fn a_change_that_outlasts_its_deadline_goes_on_and_keeps_its_place() {
        let told = Arc::new(tokio::sync::Notify::new());
        let calls = Calls::new();
        let mut served = calls.layer(Slow(Arc::clone(&told)));
        let path = "/ashlar.v1.VolumeService/Create";
        let Ok(response) = served.call(request(path, "20m")).await;
        assert_eq!(reason(&response), "DEADLINE");
        assert!(Uuid::try_parse(response.headers()[REQUEST_ID].to_str().expect("text")).is_ok());
        drop(response);
        assert_eq!(calls.rooms.taken(Class::Change), 1, "the work goes on");
        told.notify_one();
        while calls.rooms.taken(Class::Change) > 0 {
            tokio::task::yield_now().await;
        }
    }
}
