//! `ashlar store`.

use proto::v1::{
    CreateStoreRequest, DeleteStoreRequest, GetStoreRequest, GrowStoreRequest, SetStoreLimitsRequest, Store,
    StoreState, UnopenedStore,
};

use super::scrub;
use crate::arguments::{CreateStore, SetLimits, StoreCommand};
use crate::client::{Client, answer};
use crate::output::{End, Fixed, Name, Output, Table, Wide, Width, look_on};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &StoreCommand, output: Output) -> anyhow::Result<()> {
    match command {
        StoreCommand::Create(options) => create(client, options, output).await,
        StoreCommand::List { watch } => {
            let fetch = async || Ok(client.list_stores().await?.into());
            let follow = async |_: &Vec<_>| client.follow_stores("").await.map(Some);
            look_on(*watch, output, fetch, follow, |stores: &Vec<_>, width| render_list(stores, width)).await
        }
        StoreCommand::Show { store, watch } => {
            let fetch =
                async || Ok(answer(client.stores().get(GetStoreRequest { store: store.clone() }).await)?.into());
            let follow = async |store: &Store| client.follow_stores(&store.uuid).await.map(Some);
            look_on(*watch, output, fetch, follow, |store, _| render(store)).await
        }
        StoreCommand::Grow { store, size } => {
            let request = GrowStoreRequest { store: store.clone(), size_bytes: size.map_or(0, |size| size.0) };
            show(&answer(client.stores().grow(request).await)?, output)
        }
        StoreCommand::SetLimits(SetLimits { store, overcommit, reserve }) => {
            let request = SetStoreLimitsRequest {
                store: store.clone(),
                overcommit_percent: *overcommit,
                reserve_bytes: reserve.map(|size| size.0),
            };
            show(&answer(client.stores().set_limits(request).await)?, output)
        }
        StoreCommand::Scrub { store, rate, wait } => {
            scrub::start(client, store, rate.map_or(0, |rate| rate.0), *wait, output).await
        }
        StoreCommand::CancelScrub { store } => scrub::stop(client, store, output).await,
        StoreCommand::Check(_) | StoreCommand::Dump(_) => unreachable!("run without a daemon, by `offline`"),
        StoreCommand::Delete { store, expected_uuid } => {
            let expected_uuid = expected_uuid.clone().unwrap_or_default();
            let request = DeleteStoreRequest { store: store.clone(), expected_uuid };
            let deleted = answer(client.stores().delete(request).await)?;
            output.print(&deleted, |_, _| {
                format!("store {store} is closed and forgotten; its content stays where it is\n")
            })
        }
    }
}

/// Which stores a list leaves out, beside the list: whoever reads that must not take it for all there is.
pub(super) fn unopened_notes(unopened: &[UnopenedStore], what: &str) -> Vec<String> {
    unopened.iter().map(|store| format!("{what} of store {} are not listed: {}", store.name, store.reason)).collect()
}

fn show(store: &Store, output: Output) -> anyhow::Result<()> {
    output.print(store, |store, _| render_space(store))
}

fn render(store: &Store) -> String {
    let mut text = format!("state        {}\nuuid         {}\n", state(store), store.uuid);
    if !store.reason.is_empty() {
        text.push_str(&format!("reason       {}\n", store.reason));
    }
    if store.is_volatile {
        text.push_str("kept         in memory: its content is gone when the daemon ends\n");
    }
    if store.state() != StoreState::Ready {
        return format!("store        {} (at {})\n{text}", store.name, store.path);
    }
    text = format!("{}{text}lvols        {}\n", render_space(store), store.lvols);
    if store.scrub.is_some() {
        text.push_str(&format!("\n{}", scrub::render(store)));
    }
    text
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
    output.print(&store, |store, _| {
        let (free, size) = (Size(store.free_bytes), Size(store.size_bytes));
        let text = format!("store {} is {}: {free} free of {size}\n", store.name, state(store));
        match store.is_volatile {
            true => text + "It lives in memory: its content is gone when the daemon ends.\n",
            false => text,
        }
    })
}

/// The daemon has a working folder of its own.
fn absolute(path: &str) -> anyhow::Result<String> {
    if path.starts_with("memory:") {
        return Ok(path.to_owned());
    }
    Ok(std::path::absolute(path)?.display().to_string())
}

fn render_list(stores: &[Store], width: Width) -> String {
    if stores.is_empty() {
        return "There are no stores. Make one with `ashlar store create NAME --path FILE --size 10GiB`.\n".to_owned();
    }
    let columns = [
        Name("NAME"),
        Fixed("STATE"),
        Fixed("SIZE"),
        Fixed("FREE"),
        Fixed("LVOLS"),
        Wide("PROVISIONED"),
        Wide("UUID"),
        End("PATH"),
    ];
    let mut table = Table::new(&columns);
    for store in stores {
        let open = store.state() == StoreState::Ready;
        let size = |bytes| if open { Size(bytes).to_string() } else { "-".to_owned() };
        table.row(vec![
            store.name.clone(),
            state(store),
            size(store.size_bytes),
            size(store.free_bytes),
            store.lvols.to_string(),
            size(store.provisioned_bytes),
            store.uuid.clone(),
            store.path.clone(),
        ]);
    }
    let reasons = stores.iter().filter(|store| !store.reason.is_empty());
    reasons.fold(table.render(width), |text, store| format!("{text}\n{}: {}\n", store.name, store.reason))
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
        assert_eq!(render_list(&[ready.clone(), failed.clone()], Width::Narrow), expected);
        let long = Store { name: "n".repeat(63), path: format!("/{}", "p".repeat(200)), uuid: "u".into(), ..ready };
        let text = render_list(&[long.clone(), failed], Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(render_list(std::slice::from_ref(&long), Width::Full).contains(&long.path));
    }

    #[test]
    fn a_store_is_shown_with_its_space_and_its_scrub_or_why_it_has_none() {
        let store = Store {
            name: "main".into(),
            state: StoreState::Ready.into(),
            overcommit_percent: 200,
            lvols: 3,
            scrub: Some(proto::v1::StoreScrub::default()),
            ..Store::default()
        };
        let text = render(&store);
        for part in ["at most 200 % of the size", "state        ready", "lvols        3", "scrub      none so far"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let failed = Store { state: StoreState::Failed.into(), reason: "no such file".into(), scrub: None, ..store };
        let text = render(&failed);
        assert!(text.contains("reason       no such file") && !text.contains("free"), "{text}");
    }
}
