//! Machine-readable details of an error status: `google.rpc.ErrorInfo` inside `google.rpc.Status`, the
//! `grpc-status-details-bin` trailer of the gRPC richer error model.
//!
//! The two messages (and `google.protobuf.Any`) are written out here with the field numbers of their public definitions
//! (google/rpc/status.proto, google/rpc/error_details.proto, google/protobuf/any.proto): three small messages are not
//! worth a dependency.

use std::collections::HashMap;

use prost::Message;
use tonic::{Code, Status};

/// The domain of every reason given by Ashlar.
pub const DOMAIN: &str = "ashlar";

const ERROR_INFO_TYPE: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// `google.rpc.ErrorInfo`: the cause of an error, for programs.
#[derive(Clone, PartialEq, Message)]
pub struct ErrorInfo {
    /// The cause, in upper snake case; constant within a domain.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Who defines the reason: [`DOMAIN`].
    #[prost(string, tag = "2")]
    pub domain: String,
    /// More about this occurrence.
    #[prost(map = "string, string", tag = "3")]
    pub metadata: HashMap<String, String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct StatusMessage {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// A status whose details carry `reason` and `metadata` in the domain of Ashlar.
pub fn status<K, V>(code: Code, message: &str, reason: &str, metadata: impl IntoIterator<Item = (K, V)>) -> Status
where
    K: Into<String>,
    V: Into<String>,
{
    let info = ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: metadata.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
    };
    let details = StatusMessage {
        code: code.into(),
        message: message.to_owned(),
        details: vec![AnyMessage { type_url: ERROR_INFO_TYPE.to_owned(), value: info.encode_to_vec() }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The first `ErrorInfo` among the details of a status; none if there is none or they are malformed.
pub fn info(status: &Status) -> Option<ErrorInfo> {
    let details = StatusMessage::decode(status.details()).ok()?.details;
    let info = details.into_iter().find(|detail| detail.type_url == ERROR_INFO_TYPE)?;
    ErrorInfo::decode(&info.value[..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out() {
        let status = status(Code::FailedPrecondition, "another size", "CONFLICT", [("size_bytes", "1 is not 2")]);
        let info = info(&status).expect("the details are well formed");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("CONFLICT", "ashlar"));
        assert_eq!(info.metadata["size_bytes"], "1 is not 2");
    }

    /// The bytes that other implementations of the richer error model send, put together by hand from the definitions.
    #[test]
    fn the_encoding_is_that_of_google_rpc() {
        let status = status(Code::NotFound, "m", "R", [("k", "v")]);
        let type_url = b"type.googleapis.com/google.rpc.ErrorInfo";
        let info = b"\x0a\x01R\x12\x06ashlar\x1a\x06\x0a\x01k\x12\x01v";
        let mut expected = b"\x08\x05\x12\x01m\x1a".to_vec();
        expected.push((2 + type_url.len() + 2 + info.len()) as u8);
        expected.extend([0x0a, type_url.len() as u8]);
        expected.extend(type_url);
        expected.extend([0x12, info.len() as u8]);
        expected.extend(info);
        assert_eq!(status.details(), &expected[..]);
    }

    #[test]
    fn malformed_details_are_no_details() {
        let status = Status::with_details(Code::Internal, "m", b"\x1a\xff\xff\xff".to_vec().into());
        assert_eq!(info(&status), None);
        assert_eq!(info(&Status::internal("no details")), None);
    }
}
