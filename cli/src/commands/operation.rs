//! `ashlar operation`.

use std::fmt::Write;

use anyhow::bail;
use proto::v1::{
    CancelOperationRequest, ChangeKind, GetOperationRequest, ListOperationsRequest, Operation, OperationChange,
    OperationState, WatchOperationsRequest,
};

use super::utc;
use crate::arguments::OperationCommand;
use crate::client::{CallError, Client, answer};
use crate::output::{Fixed, Name, Output, Table, Width, duration, look_on};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &OperationCommand, output: Output) -> anyhow::Result<()> {
    match command {
        OperationCommand::List { active, volume, watch } => {
            let volume_uuid = volume.clone().unwrap_or_default();
            let request = ListOperationsRequest { volume_uuid, only_active: *active, ..Default::default() };
            let fetch = async || Ok(client.list_operations(request.clone()).await?.into());
            let follow = async |_: &Vec<_>| client.follow_operations("").await.map(Some);
            look_on(*watch, output, fetch, follow, |operations: &Vec<_>, width| render_list(operations, width)).await
        }
        OperationCommand::Show { operation, watch } => {
            let request = GetOperationRequest { id: operation.clone() };
            let fetch = async || Ok(answer(client.operations().get(request.clone()).await)?.into());
            let follow = async |operation: &Operation| client.follow_operations(&operation.id).await.map(Some);
            look_on(*watch, output, fetch, follow, |operation, _| render(operation)).await
        }
        OperationCommand::Watch { operation } => watch(client, operation.as_deref().unwrap_or_default(), output).await,
        OperationCommand::Cancel { operation } => {
            let request = CancelOperationRequest { id: operation.clone() };
            show(&answer(client.operations().cancel(request).await)?, output)
        }
    }
}

async fn watch(client: &Client, id: &str, output: Output) -> anyhow::Result<()> {
    let request = WatchOperationsRequest { id: id.to_owned(), ..Default::default() };
    let mut changes = answer(client.patient_operations().watch(request).await)?;
    let mut last = None;
    while let Some(change) = changes.message().await.map_err(CallError)? {
        let OperationChange { operation: Some(operation), .. } = &change else { continue };
        output.print_one_of_many(&change, |change| format!("{}\n", line(change.kind(), operation)))?;
        last = Some(operation.clone());
    }
    match last {
        Some(operation) if !id.is_empty() && operation.state() != OperationState::Succeeded => {
            bail!("operation {id} {}: {}", operation.state(), operation.reason)
        }
        _ => Ok(()),
    }
}

/// Prints one.
pub(super) fn show(operation: &Operation, output: Output) -> anyhow::Result<()> {
    output.print(operation, |operation, _| render(operation))
}

fn render_list(operations: &[Operation], width: Width) -> String {
    if operations.is_empty() {
        return "No long work is under way on this node.\n".to_owned();
    }
    let mut table = Table::new(&[Fixed("STATE"), Fixed("DONE"), Name("ABOUT"), Fixed("OPERATION")]);
    for operation in operations {
        table.row(vec![operation.state().to_string(), percent(operation), about(operation), operation.id.clone()]);
    }
    table.render(width)
}

/// What it is about, in a word or two.
fn about(operation: &Operation) -> String {
    let words = [&operation.volume, &operation.backup, &operation.store, &operation.node];
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).map(String::as_str).collect();
    words.join(" ")
}

fn percent(operation: &Operation) -> String {
    match (operation.done_bytes, operation.total_bytes) {
        (Some(done), Some(total)) if total > 0 => format!("{}%", u128::from(done) * 100 / u128::from(total)),
        (Some(done), _) if done > 0 => Size(done).to_string(),
        _ => "-".to_owned(),
    }
}

fn line(kind: ChangeKind, operation: &Operation) -> String {
    let gone = if kind == ChangeKind::Deleted { " (not listed any more)" } else { "" };
    let mut line = format!("{}  {}  {}{gone}", operation.id, operation.state(), percent(operation));
    if !operation.reason.is_empty() {
        let _ = write!(line, "  {}", operation.reason);
    }
    line
}

fn render(operation: &Operation) -> String {
    let mut text = String::new();
    let progress = match (operation.done_bytes, operation.total_bytes) {
        (Some(done), Some(total)) => format!("{} of {} ({})", Size(done), Size(total), percent(operation)),
        (Some(done), None) => Size(done).to_string(),
        (None, _) => String::new(),
    };
    for (name, value) in [
        ("operation", operation.id.clone()),
        ("kind", operation.kind().to_string()),
        ("state", operation.state().to_string()),
        ("reason", operation.reason.clone()),
        ("failure", operation.failure.clone()),
        ("next try", operation.next_try_unix_ms.map_or(String::new(), utc)),
        ("done", progress),
        ("left", operation.remaining_ms.map_or(String::new(), duration)),
        ("volume", named(&operation.volume, &operation.volume_uuid)),
        ("snapshot", operation.snapshot_uuid.clone()),
        ("target", operation.target.clone()),
        ("stored as", operation.backup_volume.clone()),
        ("backup", operation.backup.clone()),
        ("replica", operation.replica_uuid.clone()),
        ("node", operation.node.clone()),
        ("store", named(&operation.store, &operation.store_uuid)),
        ("lvol", operation.lvol_uuid.clone()),
    ] {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<10} {value}");
        }
    }
    if operation.can_cancel {
        let _ = writeln!(text, "{:<10} ashlar operation cancel {}", "cancel", operation.id);
    }
    text
}

fn named(name: &str, uuid: &str) -> String {
    match (name, uuid) {
        ("", uuid) => uuid.to_owned(),
        (name, "") => name.to_owned(),
        (name, uuid) => format!("{name} ({uuid})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation() -> Operation {
        Operation {
            id: "merge-6f1c3c1e-0000-4000-8000-000000000001".to_owned(),
            state: OperationState::Running.into(),
            done_bytes: Some(1 << 20),
            total_bytes: Some(4 << 20),
            store: "main".to_owned(),
            can_cancel: true,
            ..Operation::default()
        }
    }

    #[test]
    fn operations_are_a_table_of_80_columns() {
        let text = render_list(&[operation(), Operation { total_bytes: None, ..operation() }], Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("25%") && text.contains("1 MiB") && text.contains("running"), "{text}");
        assert!(render_list(&[], Width::Narrow).contains("No long work"));
    }

    #[test]
    fn one_in_full_says_how_to_cancel_it() {
        let text = render(&operation());
        assert!(text.contains("done       1 MiB of 4 MiB (25%)"), "{text}");
        assert!(text.contains("ashlar operation cancel merge-6f1c"), "{text}");
        assert!(!render(&Operation { can_cancel: false, ..operation() }).contains("cancel"));
    }

    #[test]
    fn one_that_waits_says_until_when() {
        let (reason, failure) = ("listing: no answer".to_owned(), "timed_out".to_owned());
        let next_try_unix_ms = Some(1_709_164_800_000);
        let waiting = Operation { reason, failure, next_try_unix_ms, remaining_ms: Some(61_000), ..operation() };
        let text = render(&waiting);
        for line in [
            "reason     listing: no answer",
            "failure    timed_out",
            "next try   2024-02-29T00:00:00Z",
            "left       1 min 01 s",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_change_is_a_line() {
        let waiting = Operation { state: OperationState::Waiting.into(), reason: "paused".to_owned(), ..operation() };
        let expected = "merge-6f1c3c1e-0000-4000-8000-000000000001  waiting  25%  paused";
        assert_eq!(line(ChangeKind::Changed, &waiting), expected);
        assert!(line(ChangeKind::Deleted, &waiting).contains("not listed"));
    }
}
