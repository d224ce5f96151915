//! What a device's error means to a host.

use block_device::ErrorKind;
use nvmf_target_protocol::wire::Status;

/// The NVMe status of a failed request.
///
/// [`ErrorKind::Busy`] never gets here as long as the connection lives: such requests are tried again (I33).
pub(crate) fn status_of(kind: ErrorKind) -> Status {
    match kind {
        ErrorKind::InvalidRange => Status::LbaOutOfRange,
        ErrorKind::InvalidField => Status::InvalidField,
        // I32: not a generic error, and never a success.
        ErrorKind::NoSpace => Status::CapacityExceeded,
        ErrorKind::ReadFailed => Status::UnrecoveredReadError,
        ErrorKind::WriteFailed => Status::WriteFault,
        ErrorKind::CompareMismatch => Status::CompareFailure,
        ErrorKind::ReadOnly => Status::NamespaceWriteProtected,
        // Another engine serves the volume (I14), or none does now: the host looks for another path and tries again.
        ErrorKind::Fenced | ErrorKind::Unavailable => Status::AnaInaccessible,
        ErrorKind::Busy | ErrorKind::TimedOut => Status::CommandInterrupted,
        ErrorKind::Aborted => Status::AbortRequested,
        ErrorKind::Internal => Status::InternalError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stays_distinct_enough_to_act_on() {
        for kind in ErrorKind::ALL {
            let status = status_of(kind);
            assert_ne!(status, Status::Success, "{kind:?}");
            let passes = matches!(
                kind,
                ErrorKind::Fenced
                    | ErrorKind::Unavailable
                    | ErrorKind::Busy
                    | ErrorKind::TimedOut
                    | ErrorKind::Aborted
                    | ErrorKind::Internal
            );
            assert_eq!(status.is_retryable(), passes, "{kind:?}");
        }
    }
}
