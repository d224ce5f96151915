//! `ashlar lvol`.

mod export;
mod import;
mod render;

use std::time::Duration;

use anyhow::{bail, ensure};
use proto::v1::{
    CancelDeleteLvolRequest, CloneLvolRequest, CreateLvolRequest, DeleteLvolRequest, DeleteLvolResponse,
    GetLvolRequest, GrowLvolRequest, ListLvolsRequest, ListLvolsResponse, Lvol, RenameLvolRequest, RevertLvolRequest,
    SnapshotLvolRequest, WatchLvolsRequest,
};
use tonic::Code;

use self::render::{kind, render, render_list};
use super::store::unopened_notes;
use crate::arguments::{CreateLvol, LvolCommand};
use crate::client::{Client, answer};
use crate::output::{Look, Output, Progress, look_on};
use crate::size::Size;

/// Between two looks at a deletion.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn run(client: &Client, command: &LvolCommand, output: Output) -> anyhow::Result<()> {
    match command {
        LvolCommand::Create(options) => create(client, options, output).await,
        LvolCommand::List { store, watch } => {
            let store = store.clone().unwrap_or_default();
            let follow = async |lvols: &Vec<Lvol>| {
                // Of a store that is asked for by name and has nothing yet, whatever comes.
                let store_uuid = lvols.first().filter(|_| !store.is_empty()).map(|lvol| lvol.store_uuid.clone());
                let request = WatchLvolsRequest { store_uuid: store_uuid.unwrap_or_default(), ..Default::default() };
                client.follow_lvols(request).await.map(Some)
            };
            let fetch = async || list(client, &store).await;
            look_on(*watch, output, fetch, follow, |lvols, width| render_list(lvols, width)).await
        }
        LvolCommand::Show { lvol, watch } => {
            let fetch = async || {
                let request = GetLvolRequest { lvol: lvol.clone(), with_usage: true };
                Ok(answer(client.lvols().get(request).await)?.into())
            };
            let follow = async |lvol: &Lvol| {
                let request = WatchLvolsRequest { lvol_uuid: lvol.uuid.clone(), ..Default::default() };
                client.follow_lvols(request).await.map(Some)
            };
            look_on(*watch, output, fetch, follow, |lvol, _| render(lvol)).await
        }
        LvolCommand::Delete { lvol, expected_uuid, wait } => {
            delete(client, lvol, expected_uuid.as_deref(), *wait, output).await
        }
        LvolCommand::CancelDelete { lvol } => {
            let request = CancelDeleteLvolRequest { lvol: lvol.clone() };
            let lvol = answer(client.lvols().cancel_delete(request).await)?;
            output.print(&lvol, |lvol, _| format!("{} stays\n", told(lvol)))
        }
        LvolCommand::Snapshot { lvol, name, uuid } => {
            let request = SnapshotLvolRequest { lvol: lvol.clone(), name: name.clone(), uuid: optional(uuid) };
            let snapshot = answer(client.lvols().snapshot(request).await)?;
            output.print(&snapshot, |snapshot, _| format!("{} of {lvol}\n", told(snapshot)))
        }
        LvolCommand::Clone { snapshot, name, size, uuid } => {
            let request = CloneLvolRequest {
                snapshot: snapshot.clone(),
                name: name.clone(),
                size_bytes: size.map_or(0, |size| size.0),
                uuid: optional(uuid),
            };
            let clone = answer(client.lvols().create_clone(request).await)?;
            output.print(&clone, |clone, _| format!("{} begins as {snapshot}\n", told(clone)))
        }
        LvolCommand::Revert { lvol, snapshot } => {
            let request = RevertLvolRequest { lvol: lvol.clone(), snapshot: snapshot.clone() };
            let lvol = answer(client.lvols().revert(request).await)?;
            output.print(&lvol, |lvol, _| format!("{} reads as {snapshot} did\n", told(lvol)))
        }
        LvolCommand::Grow { lvol, size } => {
            let request = GrowLvolRequest { lvol: lvol.clone(), size_bytes: size.0 };
            let lvol = answer(client.lvols().grow(request).await)?;
            output.print(&lvol, |lvol, _| format!("{} has {}\n", told(lvol), Size(lvol.size_bytes)))
        }
        LvolCommand::Rename { lvol, name } => {
            let request = RenameLvolRequest { lvol: lvol.clone(), name: name.clone() };
            let renamed = answer(client.lvols().rename(request).await)?;
            output.print(&renamed, |renamed, _| format!("{lvol} is {} now\n", told(renamed)))
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
    output.print(&lvol, |lvol, _| format!("{}: {} in store {}\n", told(lvol), Size(lvol.size_bytes), lvol.store))
}

async fn list(client: &Client, store: &str) -> anyhow::Result<Look<Vec<Lvol>>> {
    let request = ListLvolsRequest { store: store.to_owned(), ..Default::default() };
    let ListLvolsResponse { lvols, unopened, .. } = client.list_lvols(request).await?;
    Ok(Look { value: lvols, notes: unopened_notes(&unopened, "lvols") })
}

async fn delete(client: &Client, lvol: &str, uuid: Option<&str>, wait: bool, output: Output) -> anyhow::Result<()> {
    let request = DeleteLvolRequest { lvol: lvol.to_owned(), expected_uuid: uuid.unwrap_or_default().to_owned() };
    let mut deleted = answer(client.lvols().delete(request).await)?;
    if let Some(remaining) = deleted.remaining.take_if(|_| wait) {
        wait_until_gone(client, remaining).await?;
    }
    output.print(&deleted, |DeleteLvolResponse { remaining }, _| match remaining {
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
    let mut progress = Progress::new("merged");
    loop {
        let Some(deletion) = &lvol.deletion else { bail!("the deletion of {} was taken back", told(&lvol)) };
        ensure!(
            lvol.children_uuids.len() < 2,
            "{} is to be deleted, and stays for now{}\nNothing more needs to be done here: it goes by itself then.",
            told(&lvol),
            waits(&lvol)
        );
        progress.show_with(total.saturating_sub(deletion.left_bytes), total, &deletion.waits_for);
        tokio::time::sleep(POLL).await;
        let found = client.lvols().get(GetLvolRequest { lvol: lvol.uuid.clone(), with_usage: false }).await;
        lvol = match found {
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            found => answer(found)?,
        };
    }
}

/// An lvol by kind, name and UUID.
fn told(lvol: &Lvol) -> String {
    format!("{} {} ({})", kind(lvol), lvol.name, lvol.uuid)
}

fn optional(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}
