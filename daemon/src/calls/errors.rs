//! Every error says its reason: also those that something below the services makes, which has no details to give.

use proto::v1::ErrorReason;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::{Code, Status};

use super::name_of;

const REQUEST: &str = "request_id";

/// How a call ended, as far as its headers say: one that has begun to stream has not failed yet.
pub(super) fn code_of(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// Completes the details of an answer that is an error.
pub(super) fn complete(response: Response<Body>, request: &str) -> Response<Body> {
    if code_of(response.headers()) == Code::Ok {
        return response;
    }
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    completed(&status, request).into_http()
}

/// Completes the details in the trailers of a stream.
pub(super) fn complete_trailers(trailers: &mut HeaderMap, request: &str) {
    if code_of(trailers) == Code::Ok {
        return;
    }
    if let Some(status) = Status::from_header_map(trailers) {
        // Text and details that came out of headers go into headers again.
        let _ = completed(&status, request).add_header(trailers);
    }
}

/// The same error, with a reason and the id of its request.
fn completed(status: &Status, request: &str) -> Status {
    let (reason, mut metadata) = match proto::error::info(status) {
        Some(info) => (info.reason, info.metadata),
        None => (name_of(reason_of(status)).to_owned(), Default::default()),
    };
    metadata.insert(REQUEST.to_owned(), request.to_owned());
    proto::error::status(status.code(), status.message(), &reason, metadata)
}

/// Why a call failed that none of our services answered.
fn reason_of(status: &Status) -> ErrorReason {
    match status.code() {
        Code::Unimplemented => ErrorReason::Unimplemented,
        Code::Internal | Code::InvalidArgument => ErrorReason::Malformed,
        Code::OutOfRange | Code::ResourceExhausted => ErrorReason::TooLarge,
        Code::DeadlineExceeded => ErrorReason::Deadline,
        Code::NotFound => ErrorReason::NotFound,
        _ => ErrorReason::Transport,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(status: &Status) -> proto::error::ErrorInfo {
        proto::error::info(status).expect("details")
    }

    #[test]
    fn an_error_without_details_gets_them() {
        for (code, reason) in [
            (Code::Unimplemented, "UNIMPLEMENTED"),
            (Code::Internal, "MALFORMED"),
            (Code::OutOfRange, "TOO_LARGE"),
            (Code::Unavailable, "TRANSPORT"),
        ] {
            let response = complete(Status::new(code, "it failed").into_http(), "id-1");
            let status = Status::from_header_map(response.headers()).expect("an error");
            let info = info(&status);
            assert_eq!((status.code(), status.message()), (code, "it failed"));
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str(), info.metadata[REQUEST].as_str()),
                (reason, "ashlar", "id-1")
            );
        }
    }

    #[test]
    fn an_error_with_details_keeps_them_and_gets_the_id() {
        let status = proto::error::status(Code::NotFound, "there is none", "NOT_FOUND", [("kind", "volume")]);
        let response = complete(status.into_http(), "id-2");
        let info = info(&Status::from_header_map(response.headers()).expect("an error"));
        assert_eq!((info.reason.as_str(), info.metadata["kind"].as_str()), ("NOT_FOUND", "volume"));
        assert_eq!(info.metadata[REQUEST], "id-2");
    }

    #[test]
    fn trailers_of_a_stream_are_completed_in_place() {
        let mut trailers = HeaderMap::new();
        Status::internal("it cannot be encoded").add_header(&mut trailers).expect("headers");
        complete_trailers(&mut trailers, "id-3");
        let status = Status::from_header_map(&trailers).expect("an error");
        assert_eq!(info(&status).metadata[REQUEST], "id-3");
        let mut good = HeaderMap::new();
        good.insert("grpc-status", "0".parse().expect("a header"));
        complete_trailers(&mut good, "id-4");
        assert_eq!(good.len(), 1);
    }
}
