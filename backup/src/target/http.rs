//! HTTP for object stores: each failure has its kind here, where it is still known, and not guessed from texts later.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector as StoreConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Clock, Settings};
use crate::error::{Kind, Result, invalid};

/// Resolves names.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// The addresses of a name.
    fn resolve(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// Resolves names as the system does.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// Slowest upload that is waited for.
const SLOWEST_UPLOAD: u64 = 256 << 10;

/// Longest text of an error that is read from a server.
const LONGEST_ERROR: usize = 4096;

/// Largest page of a listing.
const LARGEST_LISTING: usize = 16 << 20;

/// What went wrong with a request, by its kind. It travels inside of the errors of the store's client.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Fault {}

impl Fault {
    fn http(kind: Kind, text: impl Into<String>) -> HttpError {
        // No kind that the store's client would try again by itself.
        HttpError::new(HttpErrorKind::Unknown, Self { kind, text: text.into() })
    }
}

/// A name that did not resolve.
#[derive(Debug)]
struct Unresolved(String);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Unresolved {}

/// The resolver in the form that hyper asks for.
#[derive(Clone, Debug)]
struct Names {
    resolver: Arc<dyn Resolve>,
    timeout: Duration,
}

impl tower_service::Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Unresolved;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unresolved>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unresolved>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (timeout, resolving) = (self.timeout, self.resolver.resolve(name.as_str().to_owned()));
        Box::pin(async move {
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            let found = tokio::time::timeout(timeout, resolving).await.map_err(late).and_then(|found| found);
            let addresses = found.map_err(|error| Unresolved(format!("{}: {error}", name.as_str())))?;
            if addresses.is_empty() {
                return Err(Unresolved(format!("{}: no address", name.as_str())));
            }
            Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

type HyperClient = Client<HttpsConnector<HttpConnector<Names>>, HttpRequestBody>;

/// Makes clients for stores.
#[derive(Clone)]
pub(super) struct Connector {
    client: HyperClient,
    timeout: Duration,
    clock: Clock,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Connector {
    /// A client that also trusts the certificates of `pem`.
    pub(super) fn new(settings: &Settings, pem: Option<&str>, tls: bool, clock: &Clock) -> Result<Self> {
        let names = Names { resolver: Arc::clone(&settings.resolver), timeout: settings.connect_timeout };
        let mut tcp = HttpConnector::new_with_resolver(names);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(settings.connect_timeout));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(pem, tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(https);
        Ok(Self { client, timeout: settings.answer_timeout, clock: clock.clone() })
    }
}

fn tls_config(pem: Option<&str>, tls: bool) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    if tls {
        // What is no certificate among the system's is the system's matter.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for certificate in CertificateDer::pem_slice_iter(pem.unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|error| invalid(format!("AWS_CERT: {error:?}")))?;
        roots.add(certificate).map_err(|error| invalid(format!("AWS_CERT: {error}")))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(format!("TLS: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl StoreConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let upload = Duration::from_secs(request.body().content_length() as u64 / SLOWEST_UPLOAD);
        let what = format!("{} {}", request.method(), request.uri().path());
        let lists = request.method() == http::Method::GET && request.uri().query().is_some_and(is_listing);
        let late = |_| Fault::http(Kind::TimedOut, format!("{what}: no answer"));
        let answer = tokio::time::timeout(self.timeout + upload, self.client.request(request)).await.map_err(late)?;
        let answer = answer.map_err(|error| Fault::http(kind_of(&error), format!("{what}: {}", texts(&error))))?;
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
            self.clock.saw(date);
        }
        let (parts, body) = answer.into_parts();
        let body = with_limit(body, self.timeout);
        if parts.status.is_success() && lists {
            return Ok(HttpResponse::from_parts(parts, whole_listing(body, &what).await?));
        }
        if is_answer(parts.status) && !lists {
            return Ok(HttpResponse::from_parts(parts, body));
        }
        let busy = parts.headers.contains_key(header::RETRY_AFTER);
        let text = beginning(body).await;
        // "Not found" of a listing found no bucket, or something that is no store: it says nothing about objects.
        let nothing = lists && parts.status == StatusCode::NOT_FOUND;
        let kind = if nothing { Kind::Empty } else { kind_of_status(parts.status, busy, &text) };
        Err(Fault::http(kind, format!("{what}: {} {}", parts.status, text.trim())))
    }
}

/// Whether a query asks for a listing, of S3 and Google or of Azure.
fn is_listing(query: &str) -> bool {
    query.split('&').any(|pair| pair.starts_with("list-type=") || pair == "comp=list")
}

/// The body of a listing, if it is one, and whole. The store's client takes any XML without entries, such as a portal's page, for a
/// listing of nothing; and what is not listed may be taken for gone.
async fn whole_listing(body: HttpResponseBody, what: &str) -> Result<HttpResponseBody, HttpError> {
    let mut bytes = Vec::new();
    let mut parts = body.bytes_stream();
    while let Some(part) = parts.next().await {
        bytes.extend_from_slice(&part?);
        if bytes.len() > LARGEST_LISTING {
            return Err(Fault::http(Kind::Server, format!("{what}: a listing that does not end")));
        }
    }
    if is_whole_listing(&String::from_utf8_lossy(&bytes)) {
        Ok(bytes.into())
    } else {
        Err(Fault::http(Kind::Server, format!("{what}: the answer is no whole listing")))
    }
}

fn is_whole_listing(text: &str) -> bool {
    let is = |root: &str| text.contains(&format!("<{root}")) && text.trim_end().ends_with(&format!("</{root}>"));
    is("ListBucketResult") || is("EnumerationResults")
}

/// Whether the store's client knows what a status means.
fn is_answer(status: StatusCode) -> bool {
    let known =
        [StatusCode::NOT_FOUND, StatusCode::CONFLICT, StatusCode::PRECONDITION_FAILED, StatusCode::NOT_MODIFIED];
    status.is_success() || known.contains(&status)
}

/// What a status means that is no answer.
fn kind_of_status(status: StatusCode, busy: bool, text: &str) -> Kind {
    let says = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    match status.as_u16() {
        429 => Kind::Throttled,
        _ if says(&["SlowDown", "TooManyRequests", "ServerBusy", "RequestLimitExceeded"]) => Kind::Throttled,
        503 if busy => Kind::Throttled,
        507 => Kind::NoSpace,
        _ if says(&["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"]) => Kind::NoSpace,
        401 | 403 => Kind::Auth,
        400 if says(&["ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed", "InvalidAccessKeyId"]) => {
            Kind::Auth
        }
        400 if says(&["RequestTimeout"]) => Kind::TimedOut,
        408 => Kind::TimedOut,
        501 => Kind::Invalid,
        301 | 308 | 400..=499 => Kind::Invalid,
        _ => Kind::Server,
    }
}

/// What kind of failure a request ended with that has no answer.
fn kind_of(error: &hyper_util::client::legacy::Error) -> Kind {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause.is::<Unresolved>() {
            return Kind::Resolve;
        }
        source = cause.source();
    }
    if error.is_connect() { Kind::Connect } else { Kind::Interrupted }
}

/// An error and all that caused it.
fn texts(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// The body, each part of which has to come in time.
fn with_limit(body: hyper::body::Incoming, timeout: Duration) -> HttpResponseBody {
    let parts = futures_util::stream::unfold(Some(body.into_data_stream()), move |parts| async move {
        let mut parts = parts?;
        match tokio::time::timeout(timeout, parts.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(part))) => Some((Ok(hyper::body::Frame::data(part)), Some(parts))),
            Ok(Some(Err(error))) => Some((Err(Fault::http(Kind::Interrupted, texts(&error))), None)),
            Err(_) => Some((Err(Fault::http(Kind::TimedOut, "the rest of an answer did not come")), None)),
        }
    });
    // A body may be asked again after its end.
    HttpResponseBody::new(StreamBody::new(parts.fuse()))
}

/// The beginning of a body, as far as it comes.
async fn beginning(body: HttpResponseBody) -> String {
    let mut text = Vec::new();
    let mut parts = body.bytes_stream();
    while let Some(Ok(part)) = parts.next().await {
        let part: Bytes = part;
        text.extend_from_slice(&part[..part.len().min(LONGEST_ERROR - text.len())]);
        if text.len() == LONGEST_ERROR {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_kind() {
        let kind =
            |status: u16, text: &str| kind_of_status(StatusCode::from_u16(status).expect("a status"), false, text);
        for (status, text, expected) in [
            (500, "", Kind::Server),
            (502, "<html>", Kind::Server),
            (503, "", Kind::Server),
            (503, "<Code>SlowDown</Code>", Kind::Throttled),
            (429, "", Kind::Throttled),
            (403, "<Code>AccessDenied</Code>", Kind::Auth),
            (401, "", Kind::Auth),
            (400, "<Code>ExpiredToken</Code>", Kind::Auth),
            (400, "<Code>RequestTimeout</Code>", Kind::TimedOut),
            (400, "", Kind::Invalid),
            (301, "", Kind::Invalid),
            (307, "", Kind::Server),
            (507, "", Kind::NoSpace),
        ] {
            assert_eq!(kind(status, text), expected, "{status} {text}");
        }
        assert_eq!(kind_of_status(StatusCode::SERVICE_UNAVAILABLE, true, ""), Kind::Throttled);
    }

    #[test]
    fn only_a_whole_listing_is_one() {
        let good = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name></ListBucketResult>\n";
        assert!(is_whole_listing(good));
        assert!(is_whole_listing("<EnumerationResults><Blobs/></EnumerationResults>"));
        for bad in ["", "<html>Please log in</html>", &good[..good.len() - 3], "<Error><Code>X</Code></Error>"] {
            assert!(!is_whole_listing(bad), "{bad}");
        }
        assert!(is_listing("list-type=2&prefix=a") && is_listing("restype=container&comp=list"));
        assert!(!is_listing("prefix=list-type"));
    }

    #[test]
    fn a_certificate_that_is_none_is_refused() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(tls_config(Some(pem), false).is_err());
        assert!(tls_config(None, false).is_ok());
    }
}
