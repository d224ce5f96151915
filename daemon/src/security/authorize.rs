//! Lets calls through that the caller may make. It sees every call, whatever service it is for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tls::{Role, Who};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Status};
use tower_layer::Layer;

use super::Caller;
use super::methods::{Class, class_of};

/// Puts the check before all services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Authorize;

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized { inner }
    }
}

/// Services behind the check.
#[derive(Clone, Debug)]
pub(crate) struct Authorized<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for Authorized<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match check(request.extensions().get(), request.uri().path()) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

/// Whether the caller may call the method of this path.
fn check(caller: Option<&Caller>, path: &str) -> Result<(), Status> {
    let class = class_of(path);
    let (role, reason) = match caller {
        Some(Caller::Anybody) => return Ok(()),
        Some(Caller::Known(who)) if may(who, class) => return Ok(()),
        Some(Caller::Known(who)) => (who.to_string(), format!("{who} may not call it")),
        Some(Caller::Nobody(reason)) => ("none".to_owned(), reason.clone()),
        // Every connection has one.
        None => ("none".to_owned(), "nobody knows who calls".to_owned()),
    };
    let method = path.trim_start_matches('/');
    let needs = class.needs();
    let text = format!("{method} needs a certificate of {needs}: {reason} (docs/security.md)");
    let details = [("role", role.as_str()), ("method", method), ("needs", needs)];
    tracing::info!(%role, %method, %reason, "a call was refused");
    Err(proto::error::status(Code::PermissionDenied, &text, "ROLE", details))
}

fn may(who: &Who, class: Class) -> bool {
    match (who, class) {
        (Who::Role(Role::Admin), _) | (_, Class::Read) | (Who::Node(_), Class::Replica) => true,
        (Who::Role(Role::ReadOnly), Class::Replica) | (_, Class::Change) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "/ashlar.v1.VolumeService/List";
    const REPLICA: &str = "/ashlar.v1.ReplicaService/Create";
    const CHANGE: &str = "/ashlar.v1.VolumeService/Delete";

    fn allowed(caller: Option<Caller>) -> [bool; 3] {
        [READ, REPLICA, CHANGE].map(|path| check(caller.as_ref(), path).is_ok())
    }

    #[test]
    fn each_role_may_what_the_table_says() {
        let known = |who| Some(Caller::Known(who));
        assert_eq!(allowed(known(Who::Role(Role::Admin))), [true, true, true]);
        assert_eq!(allowed(known(Who::Role(Role::ReadOnly))), [true, false, false]);
        assert_eq!(allowed(known(Who::Node("b".into()))), [true, true, false]);
        assert_eq!(allowed(Some(Caller::Nobody("another domain".into()))), [false; 3]);
        assert_eq!(allowed(None), [false; 3]);
        assert_eq!(allowed(Some(Caller::Anybody)), [true; 3]);
    }

    #[test]
    fn a_refusal_says_to_programs_what_is_needed() {
        let caller = Caller::Known(Who::Role(Role::ReadOnly));
        let status = check(Some(&caller), CHANGE).expect_err("read-only");
        let info = proto::error::info(&status).expect("details");
        assert_eq!((status.code(), info.reason.as_str()), (Code::PermissionDenied, "ROLE"));
        assert_eq!(info.metadata["role"], "role read-only");
        assert_eq!(info.metadata["method"], "ashlar.v1.VolumeService/Delete");
    }
}
