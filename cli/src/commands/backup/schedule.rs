//! `ashlar schedule`.

use std::fmt::Write;

use proto::v1::{BackupSchedule, CreateBackupScheduleRequest, DeleteBackupScheduleRequest, GetBackupScheduleRequest};

use super::render::{labels, or_dash};
use crate::arguments::{CreateSchedule, ScheduleCommand};
use crate::client::{Client, answer};
use crate::commands::utc;
use crate::output::{Fixed, Name, Output, Table, Wide, Width, look_on};

pub(in crate::commands) async fn run(client: &Client, command: &ScheduleCommand, output: Output) -> anyhow::Result<()> {
    match command {
        ScheduleCommand::Create(options) => show(&answer(client.schedules().create(create(options)).await)?, output),
        ScheduleCommand::List { watch } => {
            let fetch = async || Ok(client.list_schedules().await?.into());
            let follow = async |_: &Vec<_>| client.follow_schedules("").await.map(Some);
            look_on(*watch, output, fetch, follow, |schedules: &Vec<_>, width| render_list(schedules, width)).await
        }
        ScheduleCommand::Show { schedule, watch } => {
            let request = GetBackupScheduleRequest { schedule: schedule.clone() };
            let fetch = async || Ok(answer(client.schedules().get(request.clone()).await)?.into());
            let follow = async |schedule: &BackupSchedule| client.follow_schedules(&schedule.uuid).await.map(Some);
            look_on(*watch, output, fetch, follow, |schedule, _| render(schedule)).await
        }
        ScheduleCommand::Delete { schedule, uuid } => {
            let expected_uuid = uuid.clone().unwrap_or_default();
            let request = DeleteBackupScheduleRequest { schedule: schedule.clone(), expected_uuid };
            let deleted = answer(client.schedules().delete(request).await)?;
            output.print(&deleted, |_, _| format!("schedule {schedule} is deleted; what it has made stays\n"))
        }
    }
}

fn create(options: &CreateSchedule) -> CreateBackupScheduleRequest {
    CreateBackupScheduleRequest {
        name: options.name.clone(),
        volume: options.volume.clone(),
        cron: options.cron.clone(),
        target: options.target.clone().unwrap_or_default(),
        retain: options.keep,
        labels: options.labels.iter().cloned().collect(),
        backup_volume: options.backup_volume.clone().unwrap_or_default(),
        compression: options.blocks.compression.map_or(String::new(), |compression| compression.word().to_owned()),
        block_size_bytes: options.blocks.block_size.0,
        uuid: options.uuid.clone().unwrap_or_default(),
    }
}

fn show(schedule: &BackupSchedule, output: Output) -> anyhow::Result<()> {
    output.print(schedule, |schedule, _| render(schedule))
}

/// A table; why a last run failed, in lines of its own below.
fn render_list(schedules: &[BackupSchedule], width: Width) -> String {
    if schedules.is_empty() {
        return "There are no schedules on this node. Make one with `ashlar schedule create`.\n".to_owned();
    }
    let columns = [
        Name("NAME"),
        Name("VOLUME"),
        Name("CRON"),
        Fixed("KEEP"),
        Name("TARGET"),
        Fixed("NEXT"),
        Wide("LAST"),
        Wide("UUID"),
    ];
    let mut table = Table::new(&columns);
    for schedule in schedules {
        table.row(vec![
            schedule.name.clone(),
            schedule.volume.clone(),
            schedule.cron.clone(),
            schedule.retain.to_string(),
            or_dash(&schedule.target),
            time(schedule.next_due_unix_ms),
            time(schedule.last_due_unix_ms),
            schedule.uuid.clone(),
        ]);
    }
    let failed = schedules.iter().filter(|schedule| !schedule.last_error.is_empty());
    failed.fold(table.render(width), |text, schedule| format!("{text}\n{}\n  {}\n", schedule.name, schedule.last_error))
}

fn time(unix_ms: Option<i64>) -> String {
    unix_ms.map_or("-".to_owned(), utc)
}

fn render(schedule: &BackupSchedule) -> String {
    let mut text = String::new();
    let what = if schedule.target.is_empty() { "snapshots" } else { "backups" };
    for (name, value) in [
        ("schedule", schedule.name.clone()),
        ("uuid", schedule.uuid.clone()),
        ("volume", format!("{} ({})", schedule.volume, schedule.volume_uuid)),
        ("cron", format!("{} (UTC)", schedule.cron)),
        ("keeps", format!("{} {what}", schedule.retain)),
        ("target", schedule.target.clone()),
        ("stored as", schedule.backup_volume.clone()),
        ("labels", labels(&schedule.labels)),
        ("next", time(schedule.next_due_unix_ms)),
        ("last", time(schedule.last_due_unix_ms)),
        ("operation", schedule.last_operation.clone()),
        ("error", schedule.last_error.clone()),
        ("created", utc(schedule.created_at_unix_ms)),
    ] {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<9} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> BackupSchedule {
        BackupSchedule {
            name: "nightly".to_owned(),
            volume: "database".to_owned(),
            volume_uuid: "u".to_owned(),
            cron: "30 2 * * 1-5".to_owned(),
            target: "main".to_owned(),
            retain: 7,
            next_due_unix_ms: Some(1_709_164_800_000),
            ..BackupSchedule::default()
        }
    }

    #[test]
    fn schedules_fit_80_columns_and_say_why_a_run_failed() {
        let failed = BackupSchedule {
            name: "n".repeat(63),
            volume: "v".repeat(63),
            target: String::new(),
            last_error: "the volume is deleted".to_owned(),
            ..schedule()
        };
        let text = render_list(&[schedule(), failed], Width::Narrow);
        assert!(text.lines().take(3).all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("30 2 * * 1-5") && text.contains("2024-02-29T00:00:00Z"), "{text}");
        assert!(text.ends_with("  the volume is deleted\n"), "{text}");
        assert!(render_list(&[], Width::Narrow).contains("schedule create"));
    }

    #[test]
    fn one_in_full_says_what_it_keeps() {
        let text = render(&schedule());
        assert!(text.contains("keeps     7 backups") && text.contains("cron      30 2 * * 1-5 (UTC)"), "{text}");
        let text = render(&BackupSchedule { target: String::new(), next_due_unix_ms: None, ..schedule() });
        assert!(text.contains("keeps     7 snapshots") && text.contains("next      -"), "{text}");
    }
}
