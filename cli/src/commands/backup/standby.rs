//! `ashlar standby`.

use std::fmt::Write;

use proto::v1::{
    ActivateStandbyRequest, CreateStandbyRequest, DeleteStandbyRequest, GetStandbyRequest, Standby, StandbyState,
};

use super::render::or_dash;
use crate::arguments::StandbyCommand;
use crate::client::{Client, answer};
use crate::commands::utc;
use crate::output::{Fixed, Name, Output, Table, Wide, Width, duration, look_on};
use crate::size::Size;

pub(in crate::commands) async fn run(client: &Client, command: &StandbyCommand, output: Output) -> anyhow::Result<()> {
    match command {
        StandbyCommand::Create { name, target, follow, interval, placement, uuid } => {
            let request = CreateStandbyRequest {
                name: name.clone(),
                target: target.clone(),
                backup_volume: follow.clone(),
                interval_seconds: *interval,
                nodes: placement.nodes.clone(),
                replica_count: placement.replica_count,
                store: placement.store.clone().unwrap_or_default(),
                uuid: uuid.clone().unwrap_or_default(),
            };
            show(&answer(client.standbys().create(request).await)?, output)
        }
        StandbyCommand::List { watch } => {
            let fetch = async || Ok(client.list_standbys().await?.into());
            let follow = async |_: &Vec<_>| client.follow_standbys("").await.map(Some);
            look_on(*watch, output, fetch, follow, |standbys: &Vec<_>, width| render_list(standbys, width)).await
        }
        StandbyCommand::Show { standby, watch } => {
            let request = GetStandbyRequest { standby: standby.clone() };
            let fetch = async || Ok(answer(client.standbys().get(request.clone()).await)?.into());
            let follow = async |standby: &Standby| client.follow_standbys(&standby.uuid).await.map(Some);
            look_on(*watch, output, fetch, follow, |standby, _| render(standby)).await
        }
        StandbyCommand::Activate { standby } => {
            let request = ActivateStandbyRequest { standby: standby.clone() };
            show(&answer(client.standbys().activate(request).await)?, output)
        }
        StandbyCommand::Delete { standby, uuid } => {
            let expected_uuid = uuid.clone().unwrap_or_default();
            let request = DeleteStandbyRequest { standby: standby.clone(), expected_uuid };
            let deleted = answer(client.standbys().delete(request).await)?;
            output.print(&deleted, |_, _| format!("standby {standby} is deleted\n"))
        }
    }
}

fn show(standby: &Standby, output: Output) -> anyhow::Result<()> {
    output.print(standby, |standby, _| render(standby))
}

/// A table; what each waits for, in lines of its own below.
fn render_list(standbys: &[Standby], width: Width) -> String {
    if standbys.is_empty() {
        return "There are no standbys on this node. Make one with `ashlar standby create`.\n".to_owned();
    }
    let columns =
        [Name("NAME"), Fixed("STATE"), Fixed("DONE"), Name("HAS"), Name("FOLLOWS"), Wide("TARGET"), Wide("UUID")];
    let mut table = Table::new(&columns);
    for standby in standbys {
        table.row(vec![
            standby.name.clone(),
            standby.state().to_string(),
            percent(standby),
            or_dash(&standby.complete),
            standby.backup_volume.clone(),
            standby.target.clone(),
            standby.uuid.clone(),
        ]);
    }
    let waiting = standbys.iter().filter(|standby| standby.state() == StandbyState::Waiting);
    waiting.fold(table.render(width), |text, standby| format!("{text}\n{}\n  {}\n", standby.name, waits(standby)))
}

fn percent(standby: &Standby) -> String {
    match (standby.done_bytes, standby.total_bytes) {
        (Some(done), Some(total)) if total > 0 => format!("{}%", u128::from(done) * 100 / u128::from(total)),
        _ => "-".to_owned(),
    }
}

fn waits(standby: &Standby) -> String {
    let next = standby.next_try_unix_ms.map_or(String::new(), |next| format!(", next try at {}", utc(next)));
    format!("{} ({}), attempt {}{next}", standby.reason, standby.failure, standby.attempt)
}

fn render(standby: &Standby) -> String {
    let mut text = String::new();
    let is_waiting = standby.state() == StandbyState::Waiting;
    let progress = match (standby.done_bytes, standby.total_bytes) {
        (Some(done), Some(total)) => format!("{} of {} ({})", Size(done), Size(total), percent(standby)),
        _ => String::new(),
    };
    let next = match standby.next_try_unix_ms {
        Some(next) if !is_waiting => utc(next),
        _ => String::new(),
    };
    for (name, value) in [
        ("standby", standby.name.clone()),
        ("uuid", standby.uuid.clone()),
        ("target", standby.target.clone()),
        ("follows", standby.backup_volume.clone()),
        ("looks", format!("every {}", duration(u64::from(standby.interval_seconds) * 1000))),
        ("state", standby.state().to_string()),
        ("has", or_dash(&standby.complete)),
        ("restores", standby.restoring.clone()),
        ("done", progress),
        ("waits", if is_waiting { waits(standby) } else { String::new() }),
        ("next look", next),
        ("created", utc(standby.created_at_unix_ms)),
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

    fn standby() -> Standby {
        Standby {
            name: "database-dr".to_owned(),
            target: "main".to_owned(),
            backup_volume: "database".to_owned(),
            interval_seconds: 300,
            state: StandbyState::Waiting.into(),
            complete: "backup-1".to_owned(),
            reason: "listing: s3.example: server misbehaving".to_owned(),
            failure: "resolve".to_owned(),
            attempt: 4,
            next_try_unix_ms: Some(1_709_164_800_000),
            ..Standby::default()
        }
    }

    #[test]
    fn a_wait_is_told_with_its_reason_and_the_next_try() {
        let expected = "listing: s3.example: server misbehaving (resolve), attempt 4, next try at 2024-02-29T00:00:00Z";
        for text in [render(&standby()), render_list(&[standby()], Width::Narrow)] {
            assert!(text.contains(expected) && text.contains("waiting") && text.contains("backup-1"), "{text}");
        }
        let idle = Standby { state: StandbyState::Idle.into(), ..standby() };
        let text = render(&idle);
        assert!(text.contains("next look 2024-02-29T00:00:00Z") && !text.contains("misbehaving"), "{text}");
        assert!(text.contains("looks     every 5 min 00 s"), "{text}");
    }

    #[test]
    fn the_table_fits_80_columns() {
        let long = Standby {
            name: "n".repeat(63),
            backup_volume: "v".repeat(63),
            state: StandbyState::Restoring.into(),
            done_bytes: Some(1 << 20),
            total_bytes: Some(4 << 20),
            ..standby()
        };
        let text = render_list(std::slice::from_ref(&long), Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("25%") && text.contains("restoring"), "{text}");
        assert!(render(&long).contains("1 MiB of 4 MiB (25%)"));
        assert!(render_list(&[], Width::Narrow).contains("standby create"));
    }
}
