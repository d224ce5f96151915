//! Errors of control calls: for people a text that says what to do, for programs a code, a reason and details.

use std::fmt;

use proto::v1;
use tonic::{Code, Status};

use crate::state::StateError;

/// Why a control call failed. The reasons are part of the API: `ErrorReason` in `proto/ashlar/v1/errors.proto`.
#[derive(Clone, Debug)]
pub(crate) struct ControlError {
    code: Code,
    reason: &'static str,
    message: String,
    details: Vec<(String, String)>,
}

impl ControlError {
    fn new(code: Code, reason: &'static str, message: impl fmt::Display) -> Self {
        debug_assert!(v1::ErrorReason::from_str_name(reason).is_some(), "{reason} is not in errors.proto");
        Self { code, reason, message: message.to_string(), details: Vec::new() }
    }

    /// The request makes no sense, whatever the state of the node.
    pub(crate) fn invalid(field: &str, problem: impl fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, "INVALID_ARGUMENT", format!("{field}: {problem}")).with("field", field)
    }

    /// There is no such object.
    pub(crate) fn not_found(kind: &str, name: impl fmt::Display) -> Self {
        let text = format!("there is no {kind} `{name}` on this node");
        Self::new(Code::NotFound, "NOT_FOUND", text).with("kind", kind).with("name", name)
    }

    /// There is no such thing elsewhere; the text says where it was looked for.
    pub(crate) fn missing(kind: &str, text: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, "NOT_FOUND", text).with("kind", kind)
    }

    /// A backup in a target is not what it should be.
    pub(crate) fn damaged_backup(text: impl fmt::Display) -> Self {
        Self::new(Code::DataLoss, "BACKUP_DAMAGED", text)
    }

    /// An object of this name or UUID exists and differs (I30); each difference is (field, there, asked for).
    pub(crate) fn conflict(kind: &str, name: impl fmt::Display, differences: &[Difference]) -> Self {
        let list: Vec<_> = differences.iter().map(ToString::to_string).collect();
        let text = format!("{kind} `{name}` exists already and differs: {}", list.join("; "));
        let error = Self::new(Code::FailedPrecondition, "CONFLICT", text).with("kind", kind).with("name", name);
        differences.iter().fold(error, |error, difference| {
            error.with(difference.field, format!("is {}, asked for {}", difference.existing, difference.wanted))
        })
    }

    /// The object with this name is another one than the caller means (I42).
    pub(crate) fn other_uuid(kind: &str, name: impl fmt::Display, found: impl fmt::Display) -> Self {
        let text = format!("{kind} `{name}` has UUID {found}, not the expected one: nothing was changed");
        Self::new(Code::Aborted, "OTHER_UUID", text).with("kind", kind).with("uuid", found)
    }

    /// The object's state does not allow it.
    pub(crate) fn precondition(reason: &'static str, message: impl fmt::Display) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    /// Something that is needed cannot be reached now; worth a retry.
    pub(crate) fn unavailable(reason: &'static str, message: impl fmt::Display) -> Self {
        Self::new(Code::Unavailable, reason, message)
    }

    /// There is no room for it.
    pub(crate) fn exhausted(message: impl fmt::Display) -> Self {
        Self::new(Code::ResourceExhausted, "NO_SPACE", message)
    }

    /// The store's overcommit limit does not allow it.
    pub(crate) fn overcommitted(message: impl fmt::Display) -> Self {
        Self::new(Code::ResourceExhausted, "OVERCOMMITTED", message)
    }

    /// Bytes that came are others than were sent.
    pub(crate) fn checksum(message: impl fmt::Display) -> Self {
        Self::new(Code::DataLoss, "CHECKSUM", message)
    }

    /// Changes since then are not known any more.
    pub(crate) fn expired(version: &str) -> Self {
        let text = format!("changes since resource version {version} are not known any more: list again");
        Self::new(Code::OutOfRange, "EXPIRED", text).with("resource_version", version)
    }

    /// The backing or the state directory failed.
    pub(crate) fn failed(reason: &'static str, message: impl fmt::Display) -> Self {
        Self::new(Code::Internal, reason, message)
    }

    /// What another node answered, told as its answer.
    pub(crate) fn of_peer(node: &str, status: &Status) -> Self {
        let text = format!("node `{node}`: {}", status.message());
        let reason = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => "PEER_UNREACHABLE",
            _ => "PEER_REFUSED",
        };
        let error = Self::new(status.code(), reason, text).with("node", node);
        proto::error::info(status).into_iter().fold(error, |error, info| {
            let metadata = info.metadata.into_iter();
            metadata.fold(error.with("peer_reason", info.reason), |error, (key, value)| error.with(&key, value))
        })
    }

    /// Whether nothing was changed, for certain.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.code, Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted)
    }

    /// Whether there is no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// Whether what was meant is not there, but another one is in its place.
    pub(crate) fn is_of_another_object(&self) -> bool {
        self.code == Code::Aborted
    }

    /// Whether a replica could not be made because another volume has one of that UUID there.
    pub(crate) fn is_replica_of_another_volume(&self) -> bool {
        let has = |key: &str, wanted: Option<&str>| {
            self.details.iter().any(|(known, value)| known == key && wanted.is_none_or(|wanted| value == wanted))
        };
        self.code == Code::FailedPrecondition && has("kind", Some("replica")) && has("volume_uuid", None)
    }

    /// Adds a detail for programs.
    pub(crate) fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.details.push((key.to_owned(), value.to_string()));
        self
    }

    /// Says before the message what was being done.
    pub(crate) fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ControlError {}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        proto::error::status(error.code, &error.message, error.reason, error.details)
    }
}

impl From<StateError> for ControlError {
    fn from(error: StateError) -> Self {
        Self::failed("STATE_DIRECTORY", error)
    }
}

impl From<reactor::PostError> for ControlError {
    fn from(error: reactor::PostError) -> Self {
        Self::unavailable("REACTOR", error)
    }
}

/// One way in which an existing object is not the one asked for.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    field: &'static str,
    existing: String,
    wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} is {}, asked for {}", self.field, self.existing, self.wanted)
    }
}

/// Collects differences between what exists and what was asked for.
#[derive(Default)]
pub(crate) struct Comparison(Vec<Difference>);

impl Comparison {
    /// Notes a field that differs.
    pub(crate) fn field<T: PartialEq + fmt::Display>(mut self, field: &'static str, existing: T, wanted: T) -> Self {
        if existing != wanted {
            self.0.push(Difference { field, existing: existing.to_string(), wanted: wanted.to_string() });
        }
        self
    }

    /// The same for a field that need not be given.
    pub(crate) fn optional<T: PartialEq + fmt::Display>(
        self,
        field: &'static str,
        existing: T,
        wanted: Option<T>,
    ) -> Self {
        match wanted {
            Some(wanted) => self.field(field, existing, wanted),
            None => self,
        }
    }

    /// An error that names every difference, if there is one.
    pub(crate) fn finish(self, kind: &str, name: impl fmt::Display) -> Result<(), ControlError> {
        if self.0.is_empty() { Ok(()) } else { Err(ControlError::conflict(kind, name, &self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_each_difference() {
        let error = Comparison::default()
            .field("size_bytes", 1, 2)
            .field("name", "a", "a")
            .optional("block_size_bytes", 512, Some(4096))
            .optional("uuid", "x", None)
            .finish("volume", "v")
            .expect_err("two differences");
        let status = Status::from(error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        let expected = "volume `v` exists already and differs: its size_bytes is 1, asked for 2; \
                        its block_size_bytes is 512, asked for 4096";
        assert_eq!(status.message(), expected);
        let info = proto::error::info(&status).expect("details");
        assert_eq!(info.reason, "CONFLICT");
        assert_eq!(info.metadata["size_bytes"], "is 1, asked for 2");
        assert!(!info.metadata.contains_key("uuid"));
    }

    #[test]
    fn a_replica_of_another_volume_is_known_by_its_details_also_from_a_peer() {
        let of = |volume: u32, size: u32| {
            let there = Comparison::default().field("volume_uuid", 1, volume).field("size_bytes", 1, size);
            there.finish("replica", "r").expect_err("they differ")
        };
        for (error, is) in [(of(2, 1), true), (of(2, 2), true), (of(1, 2), false)] {
            assert_eq!(error.is_replica_of_another_volume(), is, "{error}");
            let told = ControlError::of_peer("b", &Status::from(error));
            assert_eq!(told.is_replica_of_another_volume(), is, "{told}");
        }
    }

    #[test]
    fn a_peers_refusal_keeps_its_code_and_details() {
        let theirs = Status::from(ControlError::exhausted("store `s` has no room").with("store", "s"));
        let status = Status::from(ControlError::of_peer("b", &theirs));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "node `b`: store `s` has no room");
        let info = proto::error::info(&status).expect("details");
        assert_eq!((info.reason.as_str(), info.metadata["peer_reason"].as_str()), ("PEER_REFUSED", "NO_SPACE"));
        assert_eq!(info.metadata["store"], "s");
    }
}
