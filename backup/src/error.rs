//! What can go wrong, by what becomes of it: outages are waited out, all else ends with advice.

use std::fmt;

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The name of the target does not resolve.
    Resolve,
    /// Nobody accepts a connection there, or a folder is not there.
    Connect,
    /// A folder is there without its mark: what should be mounted there is not.
    NotMounted,
    /// No answer in time.
    TimedOut,
    /// The target asks to come back later.
    Throttled,
    /// The target failed, or answered what makes no sense.
    Server,
    /// An answer or a request was cut short.
    Interrupted,
    /// The target is full.
    NoSpace,
    /// Another operation holds the volume's lock.
    Locked,
    /// Our lock ran out before the work was done.
    LockLost,
    /// The source or the device cannot be used now.
    SourceBusy,
    /// The target lists nothing at all, as a folder does that is not mounted.
    Empty,
    /// The credentials are refused.
    Auth,
    /// It is not there: a successful listing says so.
    NotFound,
    /// The content of a block is not what its name says.
    Checksum,
    /// A file of the store is not what it should be.
    Corrupt,
    /// The request makes no sense.
    Invalid,
    /// The folder with our own records fails.
    Local,
}

impl Kind {
    /// Whether trying again can help without anybody doing something about it.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Auth | Self::NotFound | Self::Checksum | Self::Corrupt | Self::Invalid | Self::Local)
    }

    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Resolve => "tried again until the name resolves: check DNS and the endpoint",
            Self::Connect => "tried again until it can be reached: check endpoint, network and mounts",
            Self::NotMounted => "tried again until its file system is mounted there",
            Self::TimedOut | Self::Server | Self::Interrupted => "tried again until the target answers well",
            Self::Throttled => "tried again more slowly",
            Self::NoSpace => "tried again until the target has room: delete backups or make it larger",
            Self::Locked => "tried again until the other operation is done",
            Self::LockLost => "tried again under a new lock",
            Self::SourceBusy => "tried again until a replica in sync can be used",
            Self::Empty => "tried again until the target shows its content: is the folder mounted?",
            Self::Auth => "give credentials that may list, read, write and delete there, then start it again",
            Self::NotFound => "choose one that exists: it was deleted, or never was",
            Self::Checksum => "verify this backup, and restore another one: the stored block is damaged",
            Self::Corrupt => "choose another backup: a file of this one is damaged",
            Self::Invalid => "correct the request",
            Self::Local => "check the disk that has the state directory, then start it again",
        }
    }

    /// Its name in messages and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::NotMounted => "not_mounted",
            Self::TimedOut => "timed_out",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Interrupted => "interrupted",
            Self::NoSpace => "no_space",
            Self::Locked => "locked",
            Self::LockLost => "lock_lost",
            Self::SourceBusy => "source_busy",
            Self::Empty => "empty",
            Self::Auth => "auth",
            Self::NotFound => "not_found",
            Self::Checksum => "checksum",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure: its kind, and what was being done to what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{context} ({kind})")]
pub struct Error {
    kind: Kind,
    context: String,
}

/// The result of most things here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Longest text of a failure: answers of servers are part of it.
const LONGEST: usize = 1000;

impl Error {
    /// A failure of this kind. `context` says what was tried and why it failed; it has no secrets.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        let mut context = context.into();
        if context.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|end| context.is_char_boundary(*end)).unwrap_or(0);
            context.truncate(end);
            context.push('…');
        }
        Self { kind, context }
    }

    /// What kind of failure it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether trying again can help without anybody doing something about it.
    pub const fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }

    /// What was tried and why it failed.
    pub fn reason(&self) -> &str {
        &self.context
    }

    /// The same with what it was part of.
    #[must_use]
    pub(crate) fn during(self, what: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{what}: {}", self.context))
    }
}

/// A failure of the folder with our own records.
pub(crate) fn local(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::new(Kind::Local, format!("{what}: {error}"))
}

/// A file of the store that is not what it should be.
pub(crate) fn corrupt(context: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, context)
}

/// A request that makes no sense.
pub(crate) fn invalid(context: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut_between_characters() {
        let error = Error::new(Kind::Server, "é".repeat(2000));
        assert!(error.reason().len() <= LONGEST + '…'.len_utf8());
        assert!(error.reason().ends_with('…'));
    }

    #[test]
    fn an_error_says_its_kind_and_what_it_was_part_of() {
        let error = Error::new(Kind::Auth, "403").during("listing");
        assert_eq!(error.to_string(), "listing: 403 (auth)");
        assert!(error.is_terminal() && !Kind::Resolve.is_terminal());
    }
}
