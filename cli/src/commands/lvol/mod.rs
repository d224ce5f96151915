//! `ashlar lvol`.

mod export;
mod import;
mod progress;
mod render;

use std::time::Duration;

use anyhow::{bail, ensure};
use proto::v1::{
    CancelDeleteLvolRequest, CloneLvolRequest, CreateLvolRequest, DeleteLvolRequest, DeleteLvolResponse,
    GetLvolRequest, GrowLvolRequest, ListLvolsRequest, ListLvolsResponse, Lvol, RenameLvolRequest, RevertLvolRequest,
    SnapshotLvolRequest,
};
use tonic::Code;

use self::progress::Progress;
use self::render::{kind, render, render_list};
use super::store::warn_of_unopened;
use crate::arguments::{CreateLvol, LvolCommand, Output};
use crate::client::{Client, answer};
use crate::output::print_json;
use crate::size::Size;

/// Between two looks at a deletion.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn run(client: &Client, command: &LvolCommand, output: Output) -> anyhow::Result<()> {
    match command {
        LvolCommand::Create(options) => create(client, options, output).await,
        LvolCommand::List { store } => list(client, store.as_deref(), output).await,
        LvolCommand::Get { lvol } => {
            let request = GetLvolRequest { lvol: lvol.clone(), with_usage: true };
            let lvol = answer(client.lvols().get(request).await)?;
            print_or_json(&lvol, output, render)
        }
        LvolCommand::Delete { lvol, uuid, wait } => delete(client, lvol, uuid.as_deref(), *wait, output).await,
        LvolCommand::CancelDelete { lvol } => {
            let request = CancelDeleteLvolRequest { lvol: lvol.clone() };
            let lvol = answer(client.lvols().cancel_delete(request).await)?;
            print_or_json(&lvol, output, |lvol| format!("{} stays\n", told(lvol)))
        }
        LvolCommand::Snapshot { lvol, name, uuid } => {
            let request = SnapshotLvolRequest { lvol: lvol.clone(), name: name.clone(), uuid: optional(uuid) };
            let snapshot = answer(client.lvols().snapshot(request).await)?;
            print_or_json(&snapshot, output, |snapshot| format!("{} of {lvol}\n", told(snapshot)))
        }
        LvolCommand::Clone { snapshot, name, size, uuid } => {
            let request = CloneLvolRequest {
                snapshot: snapshot.clone(),
                name: name.clone(),
                size_bytes: size.map_or(0, |size| size.0),
                uuid: optional(uuid),
            };
            let clone = answer(client.lvols().create_clone(request).await)?;
            print_or_json(&clone, output, |clone| format!("{} begins as {snapshot}\n", told(clone)))
        }
        LvolCommand::Revert { lvol, snapshot } => {
            let request = RevertLvolRequest { lvol: lvol.clone(), snapshot: snapshot.clone() };
            let lvol = answer(client.lvols().revert(request).await)?;
            print_or_json(&lvol, output, |lvol| format!("{} reads as {snapshot} did\n", told(lvol)))
        }
        LvolCommand::Grow { lvol, size } => {
            let request = GrowLvolRequest { lvol: lvol.clone(), size_bytes: size.0 };
            let lvol = answer(client.lvols().grow(request).await)?;
            print_or_json(&lvol, output, |lvol| format!("{} has {}\n", told(lvol), Size(lvol.size_bytes)))
        }
        LvolCommand::Rename { lvol, name } => {
            let request = RenameLvolRequest { lvol: lvol.clone(), name: name.clone() };
            let renamed = answer(client.lvols().rename(request).await)?;
            print_or_json(&renamed, output, |renamed| format!("{lvol} is {} now\n", told(renamed)))
        }
        LvolCommand::Export { lvol, file } => export::run(client, lvol, file, output).await,
        LvolCommand::Import(options) => import::run(client, options, output).await,
    }
}

async fn create(client: &Client, options: &CreateLvol, output: Output) -> anyhow::Result<()> {
    let request = CreateLvolRequest {
        name: options.name.clone(),
        store: options.store.clone(),
        size_bytes: options.size.0,
        block_size_bytes: options.block_size,
        uuid: optional(&options.uuid),
    };
    let lvol = answer(client.lvols().create(request).await)?;
    print_or_json(&lvol, output, |lvol| format!("{}: {} in store {}\n", told(lvol), Size(lvol.size_bytes), lvol.store))
}

async fn list(client: &Client, store: Option<&str>, output: Output) -> anyhow::Result<()> {
    let request = ListLvolsRequest { store: store.unwrap_or_default().to_owned(), ..Default::default() };
    let ListLvolsResponse { lvols, unopened, .. } = client.list_lvols(request).await?;
    warn_of_unopened(&unopened, "lvols");
    print_or_json(&lvols, output, |lvols| render_list(lvols))
}

async fn delete(client: &Client, lvol: &str, uuid: Option<&str>, wait: bool, output: Output) -> anyhow::Result<()> {
    let request = DeleteLvolRequest { lvol: lvol.to_owned(), expected_uuid: uuid.unwrap_or_default().to_owned() };
    let mut deleted = answer(client.lvols().delete(request).await)?;
    if let Some(remaining) = deleted.remaining.take_if(|_| wait) {
        wait_until_gone(client, remaining).await?;
    }
    print_or_json(&deleted, output, |DeleteLvolResponse { remaining }| match remaining {
        None => format!("lvol {lvol} is deleted\n"),
        Some(remaining) => format!(
            "lvol {lvol} is to be deleted: what others read of it is on its way to them, {} left{}\n",
            Size(remaining.deletion.as_ref().map_or(0, |deletion| deletion.left_bytes)),
            waits(remaining),
        ),
    })
}

/// What a deletion waits for, in brackets.
fn waits(lvol: &Lvol) -> String {
    match &lvol.deletion {
        Some(deletion) if !deletion.waits_for.is_empty() => format!(" (it waits: {})", deletion.waits_for),
        _ => String::new(),
    }
}

async fn wait_until_gone(client: &Client, mut lvol: Lvol) -> anyhow::Result<()> {
    let total = lvol.deletion.as_ref().map_or(0, |deletion| deletion.left_bytes);
    let mut progress = Progress::new("deleted", total);
    loop {
        let Some(deletion) = &lvol.deletion else { bail!("the deletion of {} was taken back", told(&lvol)) };
        ensure!(
            lvol.children_uuids.len() < 2,
            "{} is to be deleted, and stays for now{}\nNothing more needs to be done here: it goes by itself then.",
            told(&lvol),
            waits(&lvol)
        );
        progress.show(total.saturating_sub(deletion.left_bytes));
        tokio::time::sleep(POLL).await;
        let found = client.lvols().get(GetLvolRequest { lvol: lvol.uuid.clone(), with_usage: false }).await;
        lvol = match found {
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            found => answer(found)?,
        };
    }
}

fn print_or_json<T: serde::Serialize + ?Sized>(
    value: &T,
    output: Output,
    render: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if output == Output::Json {
        return print_json(&value);
    }
    print!("{}", render(value));
    Ok(())
}

/// An lvol by kind, name and UUID.
fn told(lvol: &Lvol) -> String {
    format!("{} {} ({})", kind(lvol), lvol.name, lvol.uuid)
}

fn optional(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}
