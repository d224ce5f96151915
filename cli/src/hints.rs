//! What to try next, by the reason of an error.

use tonic::{Code, Status};

use crate::client::{CANCELLED, ENDED};

/// Reasons of `google.rpc.ErrorInfo` (docs/api.md has them all), and what helps.
const HINTS: &[(&str, &str)] = &[
    (
        "NOT_FOUND",
        "List what there is with `ashlar … list`. A volume is known to the node that it was created on: --server names one.",
    ),
    ("UNIMPLEMENTED", "The daemon is of another version than this command: `ashlar node show` tells which."),
    ("MALFORMED", "Client and daemon may be of different versions: `ashlar node show` tells which the daemon is."),
    ("TOO_LARGE", "Ask for less at a time."),
    ("DEADLINE", "The daemon may still be working on it: sending the same command again is safe."),
    ("EXPIRED", "Send the same command again: it begins with a new list."),
    ("TRANSPORT", "Sending the same command again is safe. The daemon's log may tell more."),
    ("CONFLICT", "Nothing was changed. Choose another name, or delete the existing one first."),
    ("EXISTS", "Nothing was changed. Choose another name, or delete the existing one first."),
    (
        "OTHER_UUID",
        "Look at it with `show`: it is another object of that name. Leave out --expected-uuid only if you mean this one.",
    ),
    ("AMBIGUOUS", "Give the UUID instead of the name: `ashlar lvol list -o wide` has them."),
    ("REPLICA_LVOL", "Commands that change it are `ashlar volume …` and `ashlar snapshot …`, on the volume's node."),
    ("INTERNAL_LVOL", "Change the lvol that it belongs to instead."),
    ("INCOMPLETE", "Import it again with the same command, or delete it."),
    ("MERGING", "`ashlar lvol show` tells how far it is."),
    (
        "LVOL_DAMAGED",
        "`ashlar lvol show` tells what is wrong; docs/operations.md, \"A store that is damaged\", what can be done.",
    ),
    ("CHECKSUM", "Send the same command again; if it stays so, look at the machines."),
    ("BUSY", "Send the same command again in a while."),
    ("DELETING", "Wait until it is gone (`show --watch`), or send the delete again."),
    ("IN_USE", "End what uses it first."),
    ("STORE_NOT_EMPTY", "`ashlar replica list` and `ashlar lvol list` tell what is in it."),
    ("NO_STORE", "Make one on that node: `ashlar store create NAME --path FILE --size 10GiB`."),
    ("UNKNOWN_NODE", "`ashlar node show` lists the peers; others are added under [[peers]] in the configuration."),
    ("NO_SUCH_PATH", "For a new file give --size; a device has to be there."),
    ("PATH_IN_USE", "`ashlar store list` tells whether another store has it; `fuser PATH` which process."),
    ("PATH_FAILED", "Look at the path's permissions for the daemon's user, and at the kernel's log."),
    ("NO_DIRECT_IO", "Choose a file system with O_DIRECT, such as ext4 or XFS, or a block device."),
    ("OTHER_SIZE", "Leave --size out to take the file as it is."),
    (
        "NOT_EMPTY",
        "Nothing was changed. If its content is of no use to anybody, empty its first 128 KiB (`wipefs`, `blkdiscard`).",
    ),
    ("STORE_EXISTS", "Take it in with --uuid and the UUID that the message names."),
    ("OTHER_STORE", "Check path and UUID: there is another store than the one asked for."),
    ("NOT_A_STORE", "Check the path. `ashlar store check PATH` tells what is there."),
    ("STORE_DAMAGED", "`ashlar store check PATH` tells what is wrong, and what a repair would cost."),
    ("STORE_FORMAT", "A newer version wrote it: docs/compatibility.md."),
    ("STORE_FAILED", "`ashlar store list` has the reason. When the cause is gone, send its `store create` again."),
    ("STORE_OPENING", "Send the same command again in a while; `ashlar store list --watch` shows when it is open."),
    ("STORE_CLOSED", "`ashlar store list` tells which stores are open."),
    ("ENGINE_STARTING", "`ashlar volume show` tells what it waits for."),
    ("REACTOR", "`ashlar node show` and /readyz tell whether the daemon stops or hangs."),
    ("REGISTRY", "Look at the daemon's log and the disk of its state directory."),
    ("NO_MEMBERSHIP", "`ashlar volume show` tells which replicas it waits for."),
    ("ENGINE", "`ashlar volume show` tells the state of its replicas."),
    ("NOT_CREATED", "Send the `create` again: it goes on where it stopped."),
    ("LEAVING", "`ashlar volume show --watch` tells when it is gone."),
    ("NOT_WAITING", "`ashlar volume show` tells the state of its replicas: nothing needs to be forced."),
    ("NO_PORTALS", "Add `iscsi = [\"ADDRESS:3260\"]` to the configuration and restart the daemon."),
    ("DRAINING", "Send the same command again."),
    ("NEWER_SNAPSHOTS", "--discard-newer deletes them."),
    ("NO_SOURCE", "`ashlar volume show` tells which replicas are in sync, and where."),
    ("ALREADY_EXPORTED", "`ashlar volume show` tells where hosts find it."),
    ("NOT_CANCELLABLE", "`ashlar operation show` tells what it waits for."),
    ("ENDED", "`ashlar operation show` tells how it ended."),
    ("NOT_AN_ORPHAN", "`ashlar volume show` tells whose it is."),
    (
        "OWNER_UNKNOWN",
        "Start the nodes that are named and try again; only if they are gone for good name them to the command.",
    ),
    ("NOT_ADOPTABLE", "Delete it, or leave it as it is."),
    ("NO_SPACE", "`ashlar store list` tells what is free: `store grow`, delete snapshots, or choose another store."),
    ("OVERCOMMITTED", "`ashlar store show` tells the limit; `store set-limits --overcommit` changes it."),
    ("VOLATILE", "Choose a store in a file or on a device."),
    (
        "PEER_UNREACHABLE",
        "`ashlar node show` tells the last error of each peer. What was begun goes on when the command is sent again.",
    ),
    ("PEER_REFUSED", "The reason is that node's: ask it with --server."),
    ("TARGET_CHECK", "Mend what the step says, or keep the target as it is with --unchecked."),
    ("TARGET_UNREACHABLE", "`ashlar backup-target check` tells which step fails. What was begun goes on by itself."),
    ("TARGET_REFUSED", "Put keys that may list, read, write and delete there into the target's file of credentials."),
    ("CREDENTIALS", "Lines of NAME=value, as in AWS_ACCESS_KEY_ID=…, in a file that only the daemon's user may read."),
    (
        "BACKUP_DAMAGED",
        "`ashlar backup list` tells which others there are; `ashlar backup verify` whether they are whole.",
    ),
    ("RESTORING", "`ashlar operation list` tells how far it is; `ashlar standby activate` ends a standby's following."),
    ("EXPORTED", "`ashlar volume unexport` takes it from its hosts; then send the same command again."),
    ("NO_BACKUP", "`ashlar standby show` tells what it waits for."),
    ("ROLE", "Ask with another certificate: --tls-cert and --tls-key."),
    ("STATE_DIRECTORY", "Look at the daemon's log, and at space and permissions of its state directory."),
    ("STORE", "Look at the daemon's log and at the disk."),
    ("STATE", "`ashlar support-bundle` collects what helps to find out why."),
    ("PANIC", "A mistake of ours: `ashlar support-bundle` collects what helps to find it."),
];

/// What tonic says of an answer that is not HTTP/2, such as an alert of TLS.
const NO_HTTP2: &str = "h2 protocol error";

/// What to try next, if it is known.
pub(crate) fn hint(status: &Status) -> Option<&'static str> {
    // A daemon that refuses a certificate does so after the client believes itself connected: with the first call.
    if [ENDED, CANCELLED].contains(&status.message()) {
        return Some("It stopped, or it refuses your certificate; its log says why. Sending the same again is safe.");
    }
    if status.message().starts_with(NO_HTTP2) {
        return Some("Does it speak TLS? Then name it with https:// and a certificate (docs/security.md).");
    }
    let reason = proto::error::info(status).map(|info| info.reason);
    let known = reason.and_then(|reason| HINTS.iter().find(|(known, _)| *known == reason));
    known.map(|(_, hint)| *hint).or_else(|| of_code(status.code()))
}

fn of_code(code: Code) -> Option<&'static str> {
    match code {
        Code::Unimplemented => {
            Some("The daemon is of another version than this command: `ashlar node show` tells which.")
        }
        Code::DeadlineExceeded | Code::Cancelled => {
            Some("The daemon may still be working on it: sending the same command again is safe.")
        }
        Code::Unavailable => {
            Some("Is the daemon up? `ashlar node show`, or its log, tells. Sending the command again is safe.")
        }
        Code::PermissionDenied | Code::Unauthenticated => Some("Another identity may be allowed to: docs/security.md."),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reasons in the table of the document, those that speak for themselves left out.
    #[test]
    fn each_documented_reason_has_a_hint_and_the_other_way_round() {
        let document = include_str!("../../docs/api.md");
        let (_, table) = document.split_once("| reason | code | meaning |\n").expect("the table of reasons");
        let rows = table.lines().take_while(|line| line.starts_with('|')).skip(1);
        let reasons: Vec<&str> =
            rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        assert!(reasons.len() > 40, "{reasons:?}");
        for reason in &reasons {
            // The text of one names the part of the request that is wrong, and how; the other is of tests.
            let speaks_for_itself = ["INVALID_ARGUMENT", "FAILPOINT"].contains(reason);
            assert_ne!(HINTS.iter().any(|(known, _)| known == reason), speaks_for_itself, "{reason}");
        }
        for (known, _) in HINTS {
            assert!(reasons.contains(known), "{known} is in no document");
        }
    }

    #[test]
    fn a_reason_goes_before_a_code() {
        let status = |reason| proto::error::status(Code::Unavailable, "m", reason, [("a", "b")]);
        assert!(hint(&status("STORE_OPENING")).is_some_and(|hint| hint.contains("store list --watch")));
        assert_eq!(hint(&status("UNHEARD_OF")), of_code(Code::Unavailable));
        assert_eq!(hint(&Status::internal("broken")), None);
    }
}
