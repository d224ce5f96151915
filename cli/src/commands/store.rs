//! `ashlar store`.

use proto::v1::{
    CreateStoreRequest, DeleteStoreRequest, GetStoreRequest, GrowStoreRequest, ListStoresResponse,
    SetStoreLimitsRequest, Store, StoreState, UnopenedStore,
};

use super::scrub;
use crate::arguments::{CreateStore, Output, StoreCommand};
use crate::client::{Client, answer};
use crate::output::{Table, print_json};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &StoreCommand, output: Output) -> anyhow::Result<()> {
    match command {
        StoreCommand::Create(options) => create(client, options, output).await,
        StoreCommand::List => list(client, output).await,
        StoreCommand::Grow { store, size } => {
            let request = GrowStoreRequest { store: store.clone(), size_bytes: size.map_or(0, |size| size.0) };
            show(&answer(client.stores().grow(request).await)?, output)
        }
        StoreCommand::Limits { store, overcommit: None, reserve: None } => {
            show(&answer(client.stores().get(GetStoreRequest { store: store.clone() }).await)?, output)
        }
        StoreCommand::Limits { store, overcommit, reserve } => {
            let request = SetStoreLimitsRequest {
                store: store.clone(),
                overcommit_percent: *overcommit,
                reserve_bytes: reserve.map(|size| size.0),
            };
            show(&answer(client.stores().set_limits(request).await)?, output)
        }
        StoreCommand::Scrub { store, show: true, .. } => {
            let request = GetStoreRequest { store: store.clone() };
            scrub::show(&answer(client.stores().get(request).await)?, output)
        }
        StoreCommand::Scrub { store, stop: true, .. } => scrub::stop(client, store, output).await,
        StoreCommand::Scrub { store, rate, wait, .. } => {
            scrub::start(client, store, rate.map_or(0, |rate| rate.0), *wait, output).await
        }
        StoreCommand::Check(_) | StoreCommand::Dump(_) => unreachable!("run without a daemon, by `offline`"),
        StoreCommand::Delete { store, uuid } => {
            let expected_uuid = uuid.clone().unwrap_or_default();
            let request = DeleteStoreRequest { store: store.clone(), expected_uuid };
            answer(client.stores().delete(request).await)?;
            if output == Output::Json {
                return print_json(&serde_json::json!({}));
            }
            println!("store {store} is closed and forgotten; its content stays where it is");
            Ok(())
        }
    }
}

/// Says which stores a list leaves out, beside the list: whoever reads that must not take it for all there is.
pub(super) fn warn_of_unopened(unopened: &[UnopenedStore], what: &str) {
    for store in unopened {
        eprintln!("ashlar: {what} of store {} are not listed: {}", store.name, store.reason);
    }
}

fn show(store: &Store, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return print_json(store);
    }
    print!("{}", render_space(store));
    Ok(())
}

fn render_space(store: &Store) -> String {
    let limit = match store.overcommit_percent {
        0 => "no limit".to_owned(),
        percent => format!("at most {percent} % of the size"),
    };
    format!(
        "store        {} ({} of {})\n\
         size         {}\n\
         free         {} ({} of it reserved)\n\
         provisioned  {} ({limit})\n\
         metadata     {} of {}\n",
        store.name,
        Size(store.disk_bytes),
        store.path,
        Size(store.size_bytes),
        Size(store.free_bytes),
        Size(store.reserve_bytes.min(store.free_bytes)),
        Size(store.provisioned_bytes),
        Size(store.metadata_bytes),
        Size(store.metadata_room_bytes),
    )
}

async fn create(client: &Client, options: &CreateStore, output: Output) -> anyhow::Result<()> {
    let request = CreateStoreRequest {
        name: options.name.clone(),
        path: absolute(&options.path)?,
        size_bytes: options.size.map_or(0, |size| size.0),
        cluster_size_bytes: options.cluster_size.map_or(Ok(0), |size| size.0.try_into())?,
        uuid: options.uuid.clone().unwrap_or_default(),
        overcommit_percent: options.overcommit,
        reserve_bytes: options.reserve.map(|size| size.0),
    };
    let store = answer(client.stores().create(request).await)?;
    if output == Output::Json {
        return print_json(&store);
    }
    println!(
        "store {} is {}: {} free of {}",
        store.name,
        state(&store),
        Size(store.free_bytes),
        Size(store.size_bytes)
    );
    if store.is_volatile {
        println!("It lives in memory: its content is gone when the daemon ends.");
    }
    Ok(())
}

/// The daemon has a working folder of its own.
fn absolute(path: &str) -> anyhow::Result<String> {
    if path.starts_with("memory:") {
        return Ok(path.to_owned());
    }
    Ok(std::path::absolute(path)?.display().to_string())
}

async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let response = ListStoresResponse { stores: client.list_stores().await?, ..Default::default() };
    if output == Output::Json {
        return print_json(&response.stores);
    }
    print!("{}", render(&response));
    Ok(())
}

fn render(response: &ListStoresResponse) -> String {
    if response.stores.is_empty() {
        return "There are no stores. Make one with `ashlar store create NAME --path FILE --size 10GiB`.\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "STATE", "SIZE", "FREE", "LVOLS", "PATH"]);
    for store in &response.stores {
        let open = store.state() == StoreState::Ready;
        let size = |bytes| if open { Size(bytes).to_string() } else { "-".to_owned() };
        table.row(vec![
            store.name.clone(),
            state(store),
            size(store.size_bytes),
            size(store.free_bytes),
            store.lvols.to_string(),
            store.path.clone(),
        ]);
    }
    let reasons = response.stores.iter().filter(|store| !store.reason.is_empty());
    reasons.fold(table.render(), |text, store| format!("{text}\n{}: {}\n", store.name, store.reason))
}

fn state(store: &Store) -> String {
    store.state().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_store_is_listed_with_its_reason() {
        let ready = Store {
            name: "main".into(),
            path: "/srv/main.img".into(),
            state: StoreState::Ready.into(),
            size_bytes: 4 << 30,
            free_bytes: 3 << 30,
            lvols: 2,
            ..Store::default()
        };
        let failed = Store {
            name: "old".into(),
            path: "/srv/old.img".into(),
            state: StoreState::Failed.into(),
            reason: "no such file".into(),
            ..Store::default()
        };
        let expected = "\
NAME  STATE   SIZE   FREE   LVOLS  PATH
main  ready   4 GiB  3 GiB  2      /srv/main.img
old   failed  -      -      0      /srv/old.img

old: no such file
";
        assert_eq!(render(&ListStoresResponse { stores: vec![ready, failed], ..Default::default() }), expected);
    }
}
