//! States as words: `in sync`, not `MEMBER_STATE_IN_SYNC`.

use std::fmt;

use serde::Serializer;

use crate::v1::{
    ChangeKind, EngineState, EventSubject, LvolState, MemberState, OperationKind, OperationState, OrphanKind,
    OrphanState, PeerState, ReplicaState, RunEnd, StandbyState, StoreState, VolumeState,
};

/// Writes an enumeration's constant in lower case, with spaces, without the prefix the style of .proto files asks for.
fn write_words(constant: &str, prefix: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let words = constant.strip_prefix(prefix).unwrap_or(constant);
    f.write_str(&words.to_ascii_lowercase().replace('_', " "))
}

macro_rules! words {
    ($($state:ident, $prefix:literal, $serialize:ident;)*) => {$(
        impl fmt::Display for $state {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_words(self.as_str_name(), $prefix, f)
            }
        }

        /// A number that this version does not know reads as `unspecified`.
        pub(crate) fn $serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(&$state::try_from(*value).unwrap_or_default())
        }
    )*};
}

words! {
    EventSubject, "EVENT_SUBJECT_", event_subject;
    RunEnd, "RUN_END_", run_end;
    StoreState, "STORE_STATE_", store_state;
    LvolState, "LVOL_STATE_", lvol_state;
    ReplicaState, "REPLICA_STATE_", replica_state;
    MemberState, "MEMBER_STATE_", member_state;
    EngineState, "ENGINE_STATE_", engine_state;
    VolumeState, "VOLUME_STATE_", volume_state;
    ChangeKind, "CHANGE_KIND_", change_kind;
    OperationKind, "OPERATION_KIND_", operation_kind;
    OperationState, "OPERATION_STATE_", operation_state;
    PeerState, "PEER_STATE_", peer_state;
    OrphanKind, "ORPHAN_KIND_", orphan_kind;
    OrphanState, "ORPHAN_STATE_", orphan_state;
    StandbyState, "STANDBY_STATE_", standby_state;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_words() {
        assert_eq!(MemberState::OutOfSync.to_string(), "out of sync");
        assert_eq!(StoreState::Ready.to_string(), "ready");
        assert_eq!(VolumeState::Unspecified.to_string(), "unspecified");
    }
}
