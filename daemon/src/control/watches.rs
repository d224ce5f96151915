//! Lists and watches of the node itself, its stores, replicas and lvols, of snapshots, and of what belongs to nobody.

mod orphans;
mod snapshots;

use std::borrow::Cow;
use std::sync::{Arc, Weak};

use proto::v1;
use tokio::sync::watch;

use self::orphans::OrphanList;
use self::snapshots::SnapshotLists;
use super::error::ControlError;
use super::pages;
use super::request;
use super::streams::{ChangeStream, Told};
use super::versions::Change;
use super::watched::{Seen, Source, Watched};
use super::{Control, Lvols, Orphans, Replicas, Stores, Volumes};

/// What is looked at for those who follow.
pub(super) struct Watches {
    node: Arc<Watched<Node>>,
    stores: Arc<Watched<StoreList>>,
    replicas: Arc<Watched<ReplicaList>>,
    lvols: Arc<Watched<LvolList>>,
    orphans: Arc<Watched<OrphanList>>,
    snapshots: SnapshotLists,
    /// Sent to when something was asked of the node.
    asked: watch::Sender<()>,
}

impl Watches {
    pub(super) fn start(
        run: u64,
        node: Weak<Control>,
        stores: &Arc<Stores>,
        replicas: &Arc<Replicas>,
        lvols: &Arc<Lvols>,
        orphans: &Arc<Orphans>,
        volumes: &Arc<Volumes>,
    ) -> Self {
        let asked = watch::Sender::new(());
        Self {
            node: Watched::new(Node(node), run, asked.subscribe()),
            stores: Watched::new(StoreList(Arc::clone(stores)), run, asked.subscribe()),
            replicas: Watched::new(
                ReplicaList { stores: Arc::clone(stores), replicas: Arc::clone(replicas) },
                run,
                asked.subscribe(),
            ),
            lvols: Watched::new(
                LvolList { stores: Arc::clone(stores), lvols: Arc::clone(lvols) },
                run,
                asked.subscribe(),
            ),
            orphans: Watched::new(OrphanList(Arc::clone(orphans)), run, asked.subscribe()),
            snapshots: SnapshotLists::new(Arc::clone(volumes), run, asked.subscribe()),
            asked,
        }
    }

    /// Something was asked of the node that may have changed it.
    pub(super) fn tell(&self) {
        self.asked.send_replace(());
    }

    /// Ends all watches.
    pub(super) fn end(&self) {
        self.node.end();
        self.stores.end();
        self.replicas.end();
        self.lvols.end();
        self.orphans.end();
        self.snapshots.end();
    }
}

impl Control {
    /// Who this node is.
    pub(crate) async fn node_info(&self) -> Result<v1::NodeInfo, ControlError> {
        let (seen, resource_version) = self.watches.node.look().await?;
        let info = seen.objects.into_iter().next();
        let info = info.ok_or_else(|| ControlError::failed("STATE", "the node does not know itself"))?;
        Ok(v1::NodeInfo { resource_version, ..info })
    }

    /// The same, and what becomes of it.
    pub(crate) async fn watch_node(
        &self,
        request: v1::WatchNodeRequest,
    ) -> Result<ChangeStream<v1::NodeChange>, ControlError> {
        let message = |kind, node: Option<v1::NodeInfo>, resource_version: String| {
            let node = node.map(|node| v1::NodeInfo { resource_version: resource_version.clone(), ..node });
            v1::NodeChange { kind, node, resource_version }
        };
        let tell = move |change| told(change, |_| true, message);
        self.watches.node.watch(&request.resource_version, tell).await
    }

    /// A page of all stores, in order of their names.
    pub(crate) async fn list_stores(
        &self,
        request: v1::ListStoresRequest,
    ) -> Result<v1::ListStoresResponse, ControlError> {
        let (seen, resource_version) = self.watches.stores.look().await?;
        let wanted = pages::Wanted { size: request.page_size, token: request.page_token };
        let (stores, next_page_token) =
            pages::page("stores", seen.objects, |store| [&store.name, &store.uuid], &wanted)?;
        Ok(v1::ListStoresResponse { stores, next_page_token, resource_version })
    }

    /// The stores, and what becomes of them.
    pub(crate) async fn watch_stores(
        &self,
        request: v1::WatchStoresRequest,
    ) -> Result<ChangeStream<v1::StoreChange>, ControlError> {
        let only = Only::uuid("store_uuid", &request.store_uuid)?;
        let message = |kind, store, resource_version| v1::StoreChange { kind, store, resource_version };
        let tell = move |change| told(change, |store: &v1::Store| only.takes(&store.uuid), message);
        self.watches.stores.watch(&request.resource_version, tell).await
    }

    /// A page of all replicas, or those of one volume, in order of name and UUID; and the stores that could not be looked into (L2).
    pub(crate) async fn list_replicas(
        &self,
        request: v1::ListReplicasRequest,
    ) -> Result<v1::ListReplicasResponse, ControlError> {
        let only = Only::uuid("volume_uuid", &request.volume_uuid)?;
        self.stores.wait_until_opened().await;
        let (Seen { mut objects, unopened }, resource_version) = self.watches.replicas.look().await?;
        objects.retain(|replica| only.takes(&replica.volume_uuid));
        let list = format!("replicas of {}", request.volume_uuid);
        let wanted = pages::Wanted { size: request.page_size, token: request.page_token };
        let (replicas, next_page_token) =
            pages::page(&list, objects, |replica| [&replica.name, &replica.uuid], &wanted)?;
        Ok(v1::ListReplicasResponse { replicas, unopened, next_page_token, resource_version })
    }

    /// The replicas, and what becomes of them.
    pub(crate) async fn watch_replicas(
        &self,
        request: v1::WatchReplicasRequest,
    ) -> Result<ChangeStream<v1::ReplicaChange>, ControlError> {
        let only = Only::uuid("volume_uuid", &request.volume_uuid)?;
        self.stores.wait_until_opened().await;
        let message = |kind, replica, resource_version| v1::ReplicaChange { kind, replica, resource_version };
        let tell = move |change| told(change, |replica: &v1::Replica| only.takes(&replica.volume_uuid), message);
        self.watches.replicas.watch(&request.resource_version, tell).await
    }

    /// A page of all lvols, or those of one store, in order of store and name; and the stores that could not be looked into (L2).
    pub(crate) async fn list_lvols(
        &self,
        request: v1::ListLvolsRequest,
    ) -> Result<v1::ListLvolsResponse, ControlError> {
        let (Seen { objects, unopened }, resource_version) = match request.store.as_str() {
            "" => {
                self.stores.wait_until_opened().await;
                self.watches.lvols.look().await?
            }
            store => {
                let store = self.stores.open_store_soon(store).await?.uuid.to_string();
                let (objects, version) = self.watches.lvols.look_into(&store).await?;
                (Seen { objects, unopened: Vec::new() }, version)
            }
        };
        let list = format!("lvols in {}", request.store);
        let wanted = pages::Wanted { size: request.page_size, token: request.page_token };
        let (lvols, next_page_token) =
            pages::page(&list, objects, |lvol| [&lvol.store, &lvol.name, &lvol.uuid], &wanted)?;
        Ok(v1::ListLvolsResponse { lvols, unopened, next_page_token, resource_version })
    }

    /// The lvols, and what becomes of them.
    pub(crate) async fn watch_lvols(
        &self,
        request: v1::WatchLvolsRequest,
    ) -> Result<ChangeStream<v1::LvolChange>, ControlError> {
        let store = Only::uuid("store_uuid", &request.store_uuid)?;
        let volume = Only::uuid("volume_uuid", &request.volume_uuid)?;
        let only = Only::uuid("lvol_uuid", &request.lvol_uuid)?;
        self.stores.wait_until_opened().await;
        let is_wanted = move |lvol: &v1::Lvol| {
            store.takes(&lvol.store_uuid) && volume.takes(&lvol.volume_uuid) && only.takes(&lvol.uuid)
        };
        let message = |kind, lvol, resource_version| v1::LvolChange { kind, lvol, resource_version };
        let tell = move |change| told(change, &is_wanted, message);
        self.watches.lvols.watch(&request.resource_version, tell).await
    }
}

/// The UUID that is asked for, as objects have it; empty for all.
#[derive(Default)]
struct Only(String);

impl Only {
    fn uuid(field: &'static str, text: &str) -> Result<Self, ControlError> {
        let uuid = request::optional_uuid(field, text)?;
        Ok(Self(uuid.map_or_else(String::new, |uuid| uuid.to_string())))
    }

    fn takes(&self, uuid: &str) -> bool {
        self.0.is_empty() || self.0 == uuid
    }
}

/// The message for a change, if it is of an object that is wanted.
fn told<T, M>(
    change: Change<T>,
    is_wanted: impl Fn(&T) -> bool,
    message: impl Fn(i32, Option<T>, String) -> M,
) -> Told<M> {
    match change.object.as_ref().is_none_or(is_wanted) {
        true => Told::Message(message(change.kind.into(), change.object, change.version)),
        false => Told::Nothing,
    }
}

/// The node, a list of one.
struct Node(Weak<Control>);

#[tonic::async_trait]
impl Source for Node {
    type Object = v1::NodeInfo;

    const WHAT: &'static str = "the node";

    async fn look(&self) -> Result<Seen<v1::NodeInfo>, ControlError> {
        let control = self.0.upgrade();
        let control = control.ok_or_else(|| ControlError::unavailable("REACTOR", "the daemon is stopping"))?;
        Ok(Seen { objects: vec![control.describe().await?], unopened: Vec::new() })
    }

    fn key(node: &v1::NodeInfo) -> Cow<'_, str> {
        node.name.as_str().into()
    }

    fn lasting(mut node: v1::NodeInfo) -> v1::NodeInfo {
        for peer in &mut node.peers {
            let v1::Peer { name, grpc_address, replica_address, last_error, state, since_unix_ms, .. } =
                std::mem::take(peer);
            *peer = v1::Peer {
                name,
                grpc_address,
                replica_address,
                last_error,
                state,
                since_unix_ms,
                ..v1::Peer::default()
            };
        }
        node.pending_deletions.iter_mut().for_each(|pending| pending.attempts = 0);
        node
    }
}

struct StoreList(Arc<Stores>);

#[tonic::async_trait]
impl Source for StoreList {
    type Object = v1::Store;

    const WHAT: &'static str = "stores";

    async fn look(&self) -> Result<Seen<v1::Store>, ControlError> {
        Ok(Seen { objects: self.0.list().await?, unopened: Vec::new() })
    }

    fn key(store: &v1::Store) -> Cow<'_, str> {
        store.uuid.as_str().into()
    }

    fn lasting(store: v1::Store) -> v1::Store {
        v1::Store { work: None, ..store }
    }
}

struct ReplicaList {
    stores: Arc<Stores>,
    replicas: Arc<Replicas>,
}

#[tonic::async_trait]
impl Source for ReplicaList {
    type Object = v1::Replica;

    const WHAT: &'static str = "replicas";

    async fn look(&self) -> Result<Seen<v1::Replica>, ControlError> {
        let (objects, unopened) = self.stores.with_unopened(self.replicas.all()).await;
        Ok(Seen { objects: objects?, unopened })
    }

    fn key(replica: &v1::Replica) -> Cow<'_, str> {
        replica.uuid.as_str().into()
    }

    fn store_uuid(replica: &v1::Replica) -> &str {
        &replica.store_uuid
    }
}

struct LvolList {
    stores: Arc<Stores>,
    lvols: Arc<Lvols>,
}

#[tonic::async_trait]
impl Source for LvolList {
    type Object = v1::Lvol;

    const WHAT: &'static str = "lvols";

    async fn look(&self) -> Result<Seen<v1::Lvol>, ControlError> {
        let (objects, unopened) = self.stores.with_unopened(self.lvols.all()).await;
        Ok(Seen { objects: objects?, unopened })
    }

    async fn look_into(&self, store_uuid: &str) -> Result<Vec<v1::Lvol>, ControlError> {
        self.lvols.all_of(&self.stores.open_store(store_uuid)?).await
    }

    fn key(lvol: &v1::Lvol) -> Cow<'_, str> {
        lvol.uuid.as_str().into()
    }

    fn store_uuid(lvol: &v1::Lvol) -> &str {
        &lvol.store_uuid
    }
}
