//! Backups and restores, and the standbys.

use super::text::{Text, counter, gauge};
use crate::control::BackupFacts;

/// What the control threads said last.
pub(super) fn write(text: &mut Text, facts: &BackupFacts) {
    let family = gauge("ashlar_backup_newest_seconds", "When the snapshot of a volume's newest good backup was taken.");
    text.family(family);
    for (name, uuid, taken) in facts.newest.iter().take(super::MOST_VOLUMES) {
        text.sample(family, &[("volume", name), ("uuid", &uuid.to_string())], *taken);
    }
    let family = gauge("ashlar_backup_jobs", "Backups, restores, removals and verifications that have not ended.");
    text.family(family);
    for (work, (count, _)) in &facts.active {
        text.sample(family, &[("work", work)], *count);
    }
    let family = gauge("ashlar_backup_waiting", "Those of them that wait after a failed attempt.");
    text.family(family);
    for (work, (_, waiting)) in &facts.active {
        text.sample(family, &[("work", work)], *waiting);
    }
    let counts = &facts.counts;
    let family = counter("ashlar_backups_total", "Backups, restores, removals and verifications that succeeded.");
    text.family(family);
    for (work, count) in &counts.succeeded {
        text.sample(family, &[("work", work)], *count);
    }
    let family = counter("ashlar_backup_failures_total", "Those that failed for good, by the kind of failure.");
    text.family(family);
    for ((work, kind), count) in &counts.failed {
        text.sample(family, &[("work", work), ("kind", kind)], *count);
    }
    text.single(counter("ashlar_backup_stored_bytes_total", "Packed bytes that backups stored."), counts.stored);
    text.single(counter("ashlar_backup_restored_bytes_total", "Bytes of blocks that were restored."), counts.restored);
    let family = gauge("ashlar_standby_waiting", "Whether a standby waits after a failed attempt.");
    text.family(family);
    for (name, waits) in &facts.standbys {
        text.sample(family, &[("standby", name)], u64::from(*waits));
    }
}
