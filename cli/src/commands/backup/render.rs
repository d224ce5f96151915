//! Backups and volumes of a target, for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use proto::v1::{Backup, BackupVolume};

use crate::output::{Fixed, Name, Table, Wide, Width};
use crate::size::Size;

/// The backups of a volume; what cannot be read, and why, in lines of its own below.
pub(super) fn backups(target: &str, volume: &str, backups: &[Backup], width: Width) -> String {
    if backups.is_empty() {
        return format!("Target {target} has no backups of volume {volume}.\n");
    }
    let columns = [
        Name("BACKUP"),
        Fixed("STATE"),
        Fixed("SIZE"),
        Fixed("STORED"),
        Fixed("SNAPSHOT TAKEN"),
        Wide("CREATED"),
        Wide("SNAPSHOT"),
        Wide("COMPRESSION"),
    ];
    let mut table = Table::new(&columns);
    for backup in backups {
        table.row(vec![
            backup.name.clone(),
            state(backup).to_owned(),
            Size(backup.size_bytes).to_string(),
            Size(backup.uploaded_bytes).to_string(),
            or_dash(&backup.snapshot_created_at),
            or_dash(&backup.created_at),
            or_dash(&backup.snapshot),
            or_dash(&backup.compression),
        ]);
    }
    let broken = backups.iter().filter(|backup| !backup.error.is_empty());
    broken.fold(table.render(width), |text, backup| format!("{text}\n{}\n  {}\n", backup.name, backup.error))
}

/// The volumes that a target has.
pub(super) fn volumes(target: &str, volumes: &[BackupVolume], width: Width) -> String {
    if volumes.is_empty() {
        return format!("Target {target} has no volumes. Back one up with `ashlar backup create`.\n");
    }
    let columns = [
        Name("VOLUME"),
        Fixed("SIZE"),
        Name("NEWEST BACKUP"),
        Fixed("SNAPSHOT TAKEN"),
        Wide("BLOCKS"),
        Wide("COMPRESSION"),
        Wide("CREATED"),
    ];
    let mut table = Table::new(&columns);
    for volume in volumes {
        table.row(vec![
            volume.name.clone(),
            Size(volume.size_bytes).to_string(),
            or_dash(&volume.last_backup),
            or_dash(&volume.last_backup_at),
            volume.blocks.to_string(),
            or_dash(&volume.compression),
            or_dash(&volume.created_at),
        ]);
    }
    let broken = volumes.iter().filter(|volume| !volume.error.is_empty());
    broken.fold(table.render(width), |text, volume| format!("{text}\n{}\n  {}\n", volume.name, volume.error))
}

/// One backup in full.
pub(super) fn backup(backup: &Backup) -> String {
    let mut text = String::new();
    let blocks = format!("{} of {}", backup.blocks, Size(backup.block_size_bytes));
    let (size, stored) = (Size(backup.size_bytes).to_string(), Size(backup.uploaded_bytes).to_string());
    let labels = labels(&backup.labels);
    let lines: [(&str, &str); 15] = [
        ("backup", &backup.name),
        ("volume", &backup.backup_volume),
        ("target", &backup.target),
        ("state", state(backup)),
        ("error", &backup.error),
        ("created", &backup.created_at),
        ("snapshot", &backup.snapshot),
        ("taken", &backup.snapshot_created_at),
        ("size", &size),
        ("blocks", &blocks),
        ("stored", &stored),
        ("kind", if backup.incremental { "incremental" } else { "full" }),
        ("packed", &backup.compression),
        ("uuid", &backup.uuid),
        ("labels", &labels),
    ];
    for (name, value) in lines {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<9} {value}");
        }
    }
    text
}

fn state(backup: &Backup) -> &'static str {
    match (backup.error.is_empty(), backup.complete) {
        (false, _) => "unreadable",
        (true, true) => "complete",
        (true, false) => "in progress",
    }
}

pub(super) fn labels(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.join(" ")
}

pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Backup {
        Backup {
            name: "backup-6f1c3c1e00004000".to_owned(),
            backup_volume: "database".to_owned(),
            target: "main".to_owned(),
            complete: true,
            created_at: "2026-11-20T12:56:25Z".to_owned(),
            snapshot_created_at: "2026-11-20T12:55:25Z".to_owned(),
            size_bytes: 3 << 30,
            uploaded_bytes: 1 << 20,
            blocks: 1536,
            block_size_bytes: 2 << 20,
            compression: "lz4".to_owned(),
            incremental: true,
            labels: [("team".to_owned(), "blue".to_owned())].into(),
            ..Backup::default()
        }
    }

    #[test]
    fn backups_fit_80_columns_and_say_what_cannot_be_read() {
        let broken = Backup {
            name: "b".repeat(100),
            complete: false,
            error: "no JSON at byte 7".to_owned(),
            ..Backup::default()
        };
        let text = backups("main", "database", &[example(), broken], Width::Narrow);
        let (table, below) = text.split_once("\n\n").expect("two parts");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(table.contains("complete") && table.contains("unreadable") && table.contains("3 GiB"), "{text}");
        assert!(below.contains("no JSON at byte 7"), "{text}");
        assert!(backups("main", "v", &[], Width::Narrow).contains("no backups of volume v"));
        assert!(backups("main", "v", &[example()], Width::Full).contains("COMPRESSION"));
    }

    #[test]
    fn volumes_fit_80_columns() {
        let volume = BackupVolume {
            name: "v".repeat(63),
            size_bytes: 1 << 40,
            last_backup: "backup-6f1c3c1e00004000".to_owned(),
            last_backup_at: "2026-11-20T12:55:25Z".to_owned(),
            ..BackupVolume::default()
        };
        let text = volumes("main", &[volume], Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("1 TiB") && text.contains("2026-11-20T12:55:25Z"), "{text}");
        assert!(volumes("main", &[], Width::Narrow).contains("ashlar backup create"));
    }

    #[test]
    fn one_in_full_says_what_it_is_made_of() {
        let text = backup(&example());
        for line in ["state     complete", "blocks    1536 of 2 MiB", "kind      incremental", "labels    team=blue"] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("error") && !text.contains("uuid"), "{text}");
    }
}
