//! What can go wrong, by who has to act on it.

use std::fmt;
use std::io;

use iscsi_target_protocol::Violation;
use iscsi_target_protocol::wire::LoginStatus;

use crate::sense::Sense;

/// SCSI statuses (SAM 5.3.1).
pub(crate) mod status {
    pub(crate) const GOOD: u8 = 0x00;
    pub(crate) const CHECK_CONDITION: u8 = 0x02;
    pub(crate) const CONDITION_MET: u8 = 0x04;
    pub(crate) const BUSY: u8 = 0x08;
    pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;
    pub(crate) const TASK_SET_FULL: u8 = 0x28;
    pub(crate) const TASK_ABORTED: u8 = 0x40;
}

/// Why one command did not succeed. Small and `Copy`: it is made on the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The unit ended it with CHECK CONDITION.
    #[error("{0}")]
    Check(Sense),
    /// It ended with another status, or with CHECK CONDITION without sense data.
    #[error("{}", StatusName(*.0))]
    Status(u8),
    /// The connection is gone for good, and with it the answer: a write may have landed or not (I10).
    #[error("connection lost")]
    Lost,
    /// The target answered a read with success but not with all of its data.
    #[error("the target sent less data than was asked for")]
    ShortData,
    /// Data came with a digest that is not theirs.
    #[error("data arrived damaged")]
    Damaged,
}

impl CommandError {
    /// Whether what the command met passes by itself, so that a host sends it again.
    pub(crate) fn is_passing(self) -> bool {
        match self {
            Self::Check(sense) => sense.is_passing(),
            Self::Status(status) => matches!(status, status::BUSY | status::TASK_SET_FULL),
            Self::Damaged => true,
            Self::Lost | Self::ShortData => false,
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The system said so.
    #[error("{0}")]
    Io(String),
    /// The target closed the connection.
    #[error("closed by the target")]
    Closed,
    /// The target broke the protocol.
    #[error("the target broke the protocol: {0}")]
    Protocol(Violation),
    /// The target rejected a PDU (RFC 7143, 11.17).
    #[error("the target rejected a PDU: reason {0:#04x}")]
    Rejected(u8),
    /// The target asked for a logout, or said that it drops the session (RFC 7143, 11.9).
    #[error("the target asked to leave")]
    AskedToLeave,
    /// A command or ping was not answered within its time limit.
    #[error("no answer to a command in time")]
    TimedOut,
    /// Ended by [`crate::LogicalUnit::disconnect`] or by dropping the unit.
    #[error("disconnected")]
    Disconnected,
}

/// Why no session with a target came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A connection failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// It was not established within the time limit.
    #[error("no connection within the time limit")]
    TimedOut,
    /// The login was refused.
    #[error("login was refused: {}", LoginStatusName(*.0))]
    Refused(LoginStatus),
    /// The target was moved, but not to where one can go.
    #[error("login was redirected to {0:?}")]
    Redirected(String),
    /// The target did not prove who it is, or answered what nobody offered.
    #[error("the target did not prove who it is, or answered what nobody offered")]
    Distrusted,
    /// A command that the start-up needs failed.
    #[error("{command} failed: {error}")]
    Command {
        /// Which.
        command: &'static str,
        /// How.
        error: CommandError,
    },
    /// The target has no such logical unit, or none that is a disk.
    #[error("no disk with logical unit number {0:#x}")]
    NoUnit(u64),
    /// What the unit says about itself makes no sense.
    #[error("the target's answer to {0} makes no sense")]
    Nonsense(&'static str),
    /// The options ask for what no session has.
    #[error("a session has 1 to {queues_max} queues of 1 to {depth_max} commands", queues_max = crate::connect::QUEUES_MAX, depth_max = crate::connect::DEPTH_MAX)]
    Queues,
    /// After a reconnect another unit is there than before: nothing must be sent to it.
    #[error("another logical unit than before answers under this name")]
    IdentityChanged,
}

impl ConnectError {
    /// Whether trying again may help. Not found is: a volume that has not been started again yet answers so.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connection(_) | Self::TimedOut | Self::NoUnit(_) | Self::Command { .. } => true,
            Self::Refused(status) => matches!(
                status,
                LoginStatus::NotFound
                    | LoginStatus::TargetError
                    | LoginStatus::Unavailable
                    | LoginStatus::OutOfResources
                    | LoginStatus::TooManyConnections
                    | LoginStatus::NoSession
            ),
            Self::Redirected(_) | Self::Distrusted | Self::Nonsense(_) | Self::Queues | Self::IdentityChanged => false,
        }
    }
}

impl ConnectionError {
    pub(crate) fn io(error: &io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// A status in words.
struct StatusName(u8);

impl fmt::Display for StatusName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            status::GOOD => "Good",
            status::CHECK_CONDITION => "Check Condition",
            status::CONDITION_MET => "Condition Met",
            status::BUSY => "Busy",
            status::RESERVATION_CONFLICT => "Reservation Conflict",
            status::TASK_SET_FULL => "Task Set Full",
            status::TASK_ABORTED => "Task Aborted",
            _ => "Unnamed Status",
        };
        write!(f, "{name} ({:02x}h)", self.0)
    }
}

/// A login status in words.
struct LoginStatusName(LoginStatus);

impl fmt::Display for LoginStatusName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, letter) in format!("{:?}", self.0).char_indices() {
            if at > 0 && letter.is_uppercase() {
                f.write_str(" ")?;
            }
            write!(f, "{letter}")?;
        }
        write!(f, " ({:04x}h)", self.0 as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_words() {
        let refused = ConnectError::Refused(LoginStatus::AuthenticationFailure);
        assert_eq!(refused.to_string(), "login was refused: Authentication Failure (0201h)");
        assert!(!refused.is_retryable());
        assert!(ConnectError::Refused(LoginStatus::Unavailable).is_retryable());
        assert_eq!(CommandError::Status(0x18).to_string(), "Reservation Conflict (18h)");
        assert_eq!(CommandError::Check(Sense { key: 7, code: 0x2707 }).to_string(), "Data Protect (27h/07h)");
    }
}
