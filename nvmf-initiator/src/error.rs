//! What can go wrong, by who has to act on it.

use std::fmt;
use std::io;

use nvmf_target_protocol::wire::Status;
use nvmf_target_protocol::wire::pdu::FatalError;

/// Why one command did not succeed. Small and `Copy`: it is made on the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The controller answered with an error status.
    #[error("{}", StatusName(*.status))]
    Status {
        /// Which.
        status: Status,
        /// Dwords 0 and 1 of the completion; what they mean depends on command and status.
        result: u64,
    },
    /// The connection is gone for good, and with it the answer: a write may have landed or not (I10).
    #[error("connection lost")]
    Lost,
    /// The controller answered a read with success but not with all of its data.
    #[error("the controller sent less data than was asked for")]
    ShortData,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The system said so.
    #[error("{0}")]
    Io(String),
    /// The controller closed the connection.
    #[error("closed by the controller")]
    Closed,
    /// The controller broke the protocol; it was told with H2CTermReq.
    #[error("the controller broke the protocol: {}", FatalName(*.0))]
    Protocol(FatalError),
    /// The controller ended the connection with C2HTermReq.
    #[error("ended by the controller: {}", FatalName(*.0))]
    Terminated(FatalError),
    /// A command was not answered within its time limit.
    #[error("no answer to a command in time")]
    TimedOut,
    /// Ended by [`crate::Controller::disconnect`] or by dropping the controller.
    #[error("disconnected")]
    Disconnected,
}

/// Why no connection to a controller came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A connection failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// It was not established within the time limit.
    #[error("no connection within the time limit")]
    TimedOut,
    /// Connect was refused.
    #[error("connect was refused: {}{}", StatusName(*.status), parameter(*.result))]
    Refused {
        /// Its status.
        status: Status,
        /// Dword 0 of the completion: where the invalid parameter is.
        result: u64,
    },
    /// A command that the start-up needs failed.
    #[error("{command} failed: {error}")]
    Command {
        /// Which.
        command: &'static str,
        /// How.
        error: CommandError,
    },
    /// The controller did not become ready, or says that it has failed.
    #[error("the controller did not become ready: CSTS is {status:#x}")]
    NotReady {
        /// Its status property.
        status: u32,
    },
    /// It gives fewer I/O queues than asked for.
    #[error("the controller gives {granted} I/O queues, not {asked}")]
    TooFewQueues {
        /// Options.
        asked: u16,
        /// What there is.
        granted: u32,
    },
    /// Its queues hold fewer commands than asked for.
    #[error("the controller's queues have {entries} entries, too few for {depth} commands in flight")]
    QueuesTooShort {
        /// Options.
        depth: u16,
        /// Maximum Queue Entries Supported (MQES).
        entries: u32,
    },
    /// It wants authentication, which this host cannot do.
    #[error("the controller asks for authentication")]
    AuthenticationRequired,
    /// What the controller says about itself makes no sense.
    #[error("the controller's answer to {0} makes no sense")]
    Nonsense(&'static str),
    /// The subsystem has no namespace of this number, or none at all.
    #[error("no namespace to use")]
    NoNamespace,
    /// After a reconnect another namespace is there than before: nothing must be sent to it.
    #[error("another namespace than before answers under this name")]
    IdentityChanged,
}

impl ConnectError {
    /// Whether trying again may help. Refusals that the specification calls final are not repeated, but "invalid
    /// parameters" is: it is also what a volume answers that has not been started again yet.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connection(_) | Self::TimedOut | Self::NotReady { .. } => true,
            Self::Refused { status, .. } => status.is_retryable(),
            Self::Command { error: CommandError::Status { status, .. }, .. } => status.is_retryable(),
            Self::Command { .. } => true,
            // Namespaces appear once their volume is up.
            Self::NoNamespace => true,
            Self::TooFewQueues { .. }
            | Self::QueuesTooShort { .. }
            | Self::AuthenticationRequired
            | Self::Nonsense(_)
            | Self::IdentityChanged => false,
        }
    }
}

impl ConnectionError {
    pub(crate) fn io(error: &io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// A status in words: the specification's name, its type and code.
pub struct StatusName(pub Status);

impl fmt::Display for StatusName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Status::Other { .. } => f.write_str("Unnamed Status")?,
            named => write_words(f, &format!("{named:?}"))?,
        }
        write!(f, " ({:x}h/{:02x}h)", self.0.code_type(), self.0.code())
    }
}

/// A termination reason in words.
struct FatalName(FatalError);

impl fmt::Display for FatalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            FatalError::InvalidHeaderField(offset) => write!(f, "Invalid Header Field at byte {offset}"),
            FatalError::UnsupportedParameter(offset) => write!(f, "Unsupported Parameter at byte {offset}"),
            FatalError::HeaderDigestError(_) => f.write_str("Header Digest Error"),
            FatalError::Other(code) => write!(f, "reason {code:#x}"),
            named => write_words(f, &format!("{named:?}")),
        }
    }
}

/// Writes "CapacityExceeded" as "Capacity Exceeded".
fn write_words(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_uppercase() {
            f.write_str(" ")?;
        }
        write!(f, "{letter}")?;
    }
    Ok(())
}

/// Where the parameter of Connect Invalid Parameters stands.
fn parameter(result: u64) -> String {
    match (result & 0xffff, result >> 16 & 1) {
        (0, 0) => String::new(),
        (offset, 1) => format!(", byte {offset} of its data"),
        (offset, _) => format!(", byte {offset} of the command"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_the_specifications_names() {
        let text = |status| CommandError::Status { status, result: 0 }.to_string();
        assert_eq!(text(Status::CapacityExceeded), "Capacity Exceeded (0h/81h)");
        assert_eq!(text(Status::Other { code_type: 7, code: 0xff }), "Unnamed Status (7h/ffh)");
    }

    #[test]
    fn a_refused_connect_names_the_field() {
        let refused = ConnectError::Refused { status: Status::ConnectInvalidParameters, result: 0x1_0100 };
        assert_eq!(
            refused.to_string(),
            "connect was refused: Connect Invalid Parameters (1h/82h), byte 256 of its data"
        );
        assert!(refused.is_retryable());
        assert!(!ConnectError::Refused { status: Status::ConnectInvalidHost, result: 0 }.is_retryable());
    }

    #[test]
    fn who_ended_a_connection_is_told() {
        let terminated = ConnectionError::Terminated(FatalError::InvalidHeaderField(10));
        assert_eq!(terminated.to_string(), "ended by the controller: Invalid Header Field at byte 10");
        let broke = ConnectionError::Protocol(FatalError::SequenceError);
        assert_eq!(broke.to_string(), "the controller broke the protocol: Sequence Error");
    }
}
