//! What a device's error means to an initiator.

use block_device::ErrorKind;
use scsi_protocol::sense::Sense;

/// How a failed request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// BUSY: the initiator tries again.
    Busy,
}

/// The answer to a failed request.
///
/// [`ErrorKind::Busy`] never gets here as long as the connection lives: such requests are tried again (I33).
pub(crate) fn failure_of(kind: ErrorKind) -> Failure {
    Failure::Check(match kind {
        ErrorKind::InvalidRange => Sense::LBA_OUT_OF_RANGE,
        ErrorKind::InvalidField => Sense::INVALID_FIELD_IN_CDB,
        // I32: not a generic error, and never a success.
        ErrorKind::NoSpace => Sense::SPACE_ALLOCATION_FAILED,
        ErrorKind::ReadFailed => Sense::UNRECOVERED_READ_ERROR,
        ErrorKind::WriteFailed => Sense::WRITE_ERROR,
        ErrorKind::CompareMismatch => Sense::MISCOMPARE,
        ErrorKind::ReadOnly => Sense::WRITE_PROTECTED,
        // Another engine serves the volume (I14), or none does now: the host looks for another path and tries again.
        ErrorKind::Fenced | ErrorKind::Unavailable => Sense::PORT_UNAVAILABLE,
        ErrorKind::Busy | ErrorKind::TimedOut => return Failure::Busy,
        ErrorKind::Aborted => Sense::ABORTED,
        ErrorKind::Internal => Sense::INTERNAL_TARGET_FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use scsi_protocol::sense::Key;

    use super::*;

    /// What a host tries again is what may pass by itself.
    #[test]
    fn every_kind_stays_distinct_enough_to_act_on() {
        for kind in ErrorKind::ALL {
            let passes = match failure_of(kind) {
                Failure::Busy => true,
                Failure::Check(sense) => matches!(sense.key, Key::NotReady | Key::AbortedCommand),
            };
            let expected = matches!(
                kind,
                ErrorKind::Fenced | ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::Aborted
            );
            assert_eq!(passes, expected, "{kind:?}");
        }
    }
}
