//! Single lvols: stores prepared without a daemon, and calls that stories repeat.

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use block_device::{Request, execute};
use cli::client::answer;
use lvol::{CreateLvol, FormatOptions, LvolInfo, LvolKind, SnapshotSpec, Store};
use proto::v1::{GetLvolRequest, ListLvolsRequest, Lvol};
use reactor::{Disk, DiskOptions, Slice};
use tonic::Status;
use uuid::Uuid;

use crate::{Host, House, PATIENCE, POLL};

/// Bytes: what patterns are made of.
pub const BLOCK: u64 = 4096;
/// The most blocks that are written at once.
const RUN: usize = 256;

/// A store with a head over snapshots.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The store's UUID.
    pub store: Uuid,
    /// The names of the lvols, the oldest snapshot first, the head last.
    pub names: Vec<String>,
    /// What each of them reads.
    pub contents: Vec<Vec<u8>>,
}

/// Makes a store `main` in a new file, with an lvol of `size` bytes that is written in layers, and cut after each but the last. `written` says
/// which blocks of which layer.
pub async fn make_chain(
    host: &Host,
    path: &Path,
    names: &[&str],
    size: u64,
    written: fn(usize, u64) -> bool,
) -> anyhow::Result<Chain> {
    let path = path.to_owned();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let store = Uuid::new_v4();
    let chain = names.clone();
    let contents = host
        .run(move || async move {
            let disk =
                Disk::open(&path, &DiskOptions { create: Some(8 * size + (64 << 20)), ..DiskOptions::default() })?;
            Store::format(&disk, &FormatOptions::new(store, "main")).await?;
            let store = Store::open(disk).await?;
            let contents = write_layers(&store, &chain, size, written).await?;
            store.close().await?;
            Ok(contents)
        })
        .await?;
    Ok(Chain { store, names, contents })
}

/// Gives the snapshots of a store their hashes.
pub async fn hash_snapshots(host: &Host, path: &Path) -> anyhow::Result<()> {
    let path = path.to_owned();
    host.run(move || async move {
        let store = Store::open(Disk::open(&path, &DiskOptions::default())?).await?;
        store.set_hash_rate(u64::MAX);
        let lacks = |lvol: &LvolInfo| lvol.kind == LvolKind::Snapshot && store.internal_lvols(lvol.uuid).is_empty();
        while store.lvols().iter().any(lacks) {
            reactor::sleep(POLL / 10).await;
        }
        store.close().await?;
        Ok(())
    })
    .await
}

async fn write_layers(
    store: &Store,
    names: &[String],
    size: u64,
    written: fn(usize, u64) -> bool,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let (snapshots, head) = names.split_at(names.len() - 1);
    let uuid = Uuid::new_v4();
    let (block_size, attributes) = (4096, Default::default());
    store.create(&CreateLvol { uuid, name: head[0].clone(), size, block_size, attributes }).await?;
    let lvol = store.open_lvol(uuid).await?;
    let (mut content, mut contents) = (vec![0; size as usize], Vec::new());
    for layer in 0..names.len() {
        let mut index = 0;
        while index < size / BLOCK {
            let run = (index..size / BLOCK).take_while(|index| written(layer, *index)).take(RUN).count() as u64;
            let data: Vec<u8> = (index..index + run).flat_map(|index| pattern(layer, index)).collect();
            if run > 0 {
                content[(index * BLOCK) as usize..][..data.len()].copy_from_slice(&data);
                execute(&*lvol, Request::write(index * BLOCK, Slice::from(&data[..]))).await?;
            }
            index += run.max(1);
        }
        contents.push(content.clone());
        if let Some(name) = snapshots.get(layer) {
            let spec = SnapshotSpec { uuid: Uuid::new_v4(), name: name.clone(), attributes: Default::default() };
            store.snapshot(uuid, &spec).await?;
        }
    }
    Ok(contents)
}

/// What a layer writes to a block: never zeroes.
fn pattern(layer: usize, index: u64) -> Vec<u8> {
    vec![(index * 31 + layer as u64 * 7) as u8 % 251 + 1; BLOCK as usize]
}

impl House {
    /// An lvol of the first daemon.
    pub async fn lvol(&self, lvol: &str) -> Result<Lvol, Status> {
        let client = self.client(0).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = GetLvolRequest { lvol: lvol.to_owned(), with_usage: false };
        Ok(client.lvols().get(request).await?.into_inner())
    }

    /// All lvols of the first daemon, once all of its stores are open.
    pub async fn lvols(&self) -> anyhow::Result<Vec<Lvol>> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let list = answer(self.client(0).await?.lvols().list(ListLvolsRequest::default()).await)?;
            if list.unopened.is_empty() {
                return Ok(list.lvols);
            }
            ensure!(Instant::now() < limit, "not open: {:?}", list.unopened);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until an lvol is as wanted; none when it is gone.
    pub async fn wait_for_lvol(
        &self,
        lvol: &str,
        wanted: impl Fn(Option<&Lvol>) -> bool,
    ) -> anyhow::Result<Option<Lvol>> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let found = match self.lvol(lvol).await {
                Err(status) if status.code() == tonic::Code::NotFound => None,
                found => Some(found?),
            };
            if wanted(found.as_ref()) {
                return Ok(found);
            }
            ensure!(Instant::now() < limit, "lvol {lvol} stays {found:#?}\n{}", self.logs());
            tokio::time::sleep(POLL / 10).await;
        }
    }

    /// What an lvol of the first daemon has, by `ashlar lvol export`.
    pub fn exported(&self, lvol: &str) -> anyhow::Result<Vec<u8>> {
        let output = self.ashlar(0, &["lvol", "export", lvol, "-"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }
}
