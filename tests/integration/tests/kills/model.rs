//! What is asked of the daemon, at random, and what it has acknowledged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{Host, MIB, export_of};
use nvmf_initiator::{Controller, Options};
use proto::v1::{
    CloneVolumeRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, GetVolumeRequest,
    GrowVolumeRequest, RevertVolumeRequest, SnapshotVolumeRequest, Volume,
};
use reactor::Slice;
use reactor::simulated::Random;
use tonic::Code;
use uuid::Uuid;

use crate::tree::Tree;

/// The volume that is written all the time, and its size.
pub(crate) const MAIN: &str = "main";
pub(crate) const MAIN_SIZE: u64 = 64 * MIB;

/// Volumes besides, at most.
const OTHERS: usize = 5;

/// Snapshots of a volume, at most.
const SNAPSHOTS: usize = 30;

/// What volumes become larger by, and how often at most.
const GROWTH: u64 = MIB;
const LARGEST: u64 = MAIN_SIZE + 32 * GROWTH;

const BLOCK: u64 = 4096;

/// Blocks that are written besides the main volume's, and the bytes from one to the next: three share a cluster.
const PLACES: u64 = 16;
const SPACING: u64 = 5 * BLOCK;

/// What the blocks are full of.
pub(crate) type Content = [u8; PLACES as usize];

/// A content as it is read from the start of a volume.
pub(crate) fn bytes_of(content: &Content) -> Vec<u8> {
    let block = |value: &u8| [vec![*value; BLOCK as usize], vec![0; (SPACING - BLOCK) as usize]].concat();
    content.iter().flat_map(block).collect()
}

/// Something that is asked of the daemon.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create(CreateVolumeRequest),
    Clone(CloneVolumeRequest),
    Delete(DeleteVolumeRequest),
    Snapshot(SnapshotVolumeRequest),
    DeleteSnapshot(DeleteSnapshotRequest),
    Revert(RevertVolumeRequest),
    Grow(GrowVolumeRequest),
    /// A block of a volume becomes full of a value.
    Write(String, u64, u8),
}

/// A volume that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// What made it, with the size that it has now.
    made: Step,
    pub(crate) uuid: String,
    pub(crate) size: u64,
    created_at: i64,
    /// Unknown for the main volume and what comes from it: the load checks that one.
    pub(crate) content: Option<Content>,
    /// Oldest first.
    pub(crate) snapshots: Vec<Cut>,
}

/// A snapshot that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    request: SnapshotVolumeRequest,
    size: u64,
    content: Option<Content>,
}

impl Cut {
    pub(crate) fn uuid(&self) -> &str {
        &self.request.uuid
    }
}

/// How the daemon is reached, and whether it is being killed.
#[derive(Clone)]
pub(crate) struct Daemon {
    pub(crate) host: Arc<Host>,
    pub(crate) address: SocketAddr,
    pub(crate) killed: Arc<AtomicBool>,
}

/// All that the daemon has acknowledged.
pub(crate) struct Model {
    pub(crate) random: Random,
    daemon: Daemon,
    pub(crate) volumes: BTreeMap<String, Known>,
    pub(crate) tree: Tree,
    /// What was asked for and never answered.
    pub(crate) doubt: Option<Step>,
    /// Volumes made so far.
    pub(crate) count: u64,
    /// How often each kind of step was acknowledged.
    pub(crate) done: BTreeMap<&'static str, u64>,
}

impl Model {
    pub(crate) fn new(seed: u64, daemon: Daemon) -> Self {
        let (volumes, done) = (BTreeMap::new(), BTreeMap::new());
        Self { random: Random::new(seed), daemon, volumes, tree: Tree::default(), doubt: None, count: 0, done }
    }

    /// Asks for one thing after the other until the daemon is killed.
    pub(crate) async fn work(mut self, client: Client) -> anyhow::Result<Self> {
        loop {
            let step = self.choose();
            self.doubt = Some(step.clone());
            match self.perform(&client, step).await {
                Ok(()) => self.doubt = None,
                Err(error) if is_unreachable(&error) && self.daemon.killed.load(Ordering::SeqCst) => return Ok(self),
                Err(error) => return Err(error.context(format!("{:?}", self.doubt))),
            }
        }
    }

    fn choose(&mut self) -> Step {
        let others: Vec<String> = self.volumes.keys().filter(|name| *name != MAIN).cloned().collect();
        let step = match self.random.below(24) {
            0..=2 if others.len() < OTHERS => Some(self.create()),
            3..=5 if others.len() < OTHERS => self.clone_one(),
            6..=7 => self.pick(&others).map(|volume| self.delete(volume)),
            8..=12 => self.write_one(),
            13..=15 => self.delete_snapshot(),
            16..=17 => self.revert(),
            18 => self.grow(),
            _ => None,
        };
        step.unwrap_or_else(|| self.snapshot())
    }

    fn new_uuid(&mut self) -> String {
        Uuid::from_u128(u128::from(self.random.next_u64()) << 64 | 1).to_string()
    }

    fn new_name(&mut self) -> String {
        self.count += 1;
        format!("v{}", self.count)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.index(from.len())].clone())
    }

    /// A snapshot of one of the volumes for which `wanted` is true, and which volume that is.
    fn pick_snapshot(&mut self, wanted: impl Fn(&str) -> bool) -> Option<(String, Cut)> {
        let volumes = self.volumes.iter().filter(|(name, _)| wanted(name));
        let all: Vec<_> =
            volumes.flat_map(|(name, known)| known.snapshots.iter().map(|cut| (name.clone(), cut.clone()))).collect();
        self.pick(&all)
    }

    fn create(&mut self) -> Step {
        let (name, uuid) = (self.new_name(), self.new_uuid());
        let size_bytes = (1 + self.random.below(16)) * MIB;
        Step::Create(CreateVolumeRequest { name, size_bytes, uuid, ..CreateVolumeRequest::default() })
    }

    fn clone_one(&mut self) -> Option<Step> {
        let (volume, cut) = self.pick_snapshot(|_| true)?;
        let (name, uuid) = (self.new_name(), self.new_uuid());
        let (snapshot, size_bytes) = (cut.request.uuid, cut.size + self.random.below(2) * GROWTH);
        Some(Step::Clone(CloneVolumeRequest { volume, snapshot, name, size_bytes, nodes: Vec::new(), uuid }))
    }

    fn delete(&self, volume: String) -> Step {
        let expected_uuid = self.volumes[&volume].uuid.clone();
        Step::Delete(DeleteVolumeRequest { volume, expected_uuid })
    }

    fn write_one(&mut self) -> Option<Step> {
        let volumes: Vec<String> =
            self.volumes.iter().filter(|(_, known)| known.content.is_some()).map(|(name, _)| name.clone()).collect();
        let volume = self.pick(&volumes)?;
        Some(Step::Write(volume, self.random.below(PLACES), 1 + self.random.below(255) as u8))
    }

    fn delete_snapshot(&mut self) -> Option<Step> {
        let (volume, cut) = self.pick_snapshot(|_| true)?;
        Some(Step::DeleteSnapshot(DeleteSnapshotRequest { volume, snapshot: cut.request.uuid, ..Default::default() }))
    }

    /// Not of the main volume, which a host writes.
    fn revert(&mut self) -> Option<Step> {
        let (volume, cut) = self.pick_snapshot(|name| name != MAIN)?;
        Some(Step::Revert(RevertVolumeRequest { volume, snapshot: cut.request.uuid, discard_newer: true }))
    }

    fn grow(&mut self) -> Option<Step> {
        let small = self.volumes.iter().filter(|(_, known)| known.size < LARGEST);
        let volumes: Vec<_> = small.map(|(name, known)| (name.clone(), known.size)).collect();
        let (volume, size) = self.pick(&volumes)?;
        Some(Step::Grow(GrowVolumeRequest { volume, size_bytes: size + GROWTH }))
    }

    fn snapshot(&mut self) -> Step {
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        let volume = self.pick(&names).unwrap_or_else(|| MAIN.to_owned());
        let snapshots = &self.volumes[&volume].snapshots;
        if snapshots.len() >= SNAPSHOTS {
            let snapshot = snapshots[0].request.uuid.clone();
            return Step::DeleteSnapshot(DeleteSnapshotRequest { volume, snapshot, ..Default::default() });
        }
        let uuid = self.new_uuid();
        Step::Snapshot(SnapshotVolumeRequest { volume, name: format!("s-{uuid}"), uuid })
    }
}

/// Asking, and noting what was acknowledged.
impl Model {
    pub(crate) async fn perform(&mut self, client: &Client, step: Step) -> anyhow::Result<()> {
        let kind = match step {
            Step::Create(request) => {
                let volume = answer(client.volumes().create(request.clone()).await)?;
                ensure!(volume.uuid == request.uuid, "another volume was made: {volume:#?}");
                self.made(Step::Create(request), &volume, None)?;
                "volumes made"
            }
            Step::Clone(request) => {
                let volume = answer(client.volumes().create_clone(request.clone()).await)?;
                ensure!(volume.uuid == request.uuid, "another volume was made: {volume:#?}");
                let source = self.cut(&request.volume, &request.snapshot).cloned();
                self.made(Step::Clone(request), &volume, source)?;
                "clones"
            }
            Step::Delete(request) => {
                answer(client.volumes().delete(request.clone()).await)?;
                self.deleted(&request.volume);
                "volumes deleted"
            }
            Step::Snapshot(request) => {
                let snapshot = answer(client.volumes().snapshot(request.clone()).await)?;
                ensure!(snapshot.uuid == request.uuid, "another snapshot was taken: {snapshot:#?}");
                self.cut_off(request)?;
                "snapshots"
            }
            Step::DeleteSnapshot(request) => {
                answer(client.volumes().delete_snapshot(request.clone()).await)?;
                self.known(&request.volume)?.snapshots.retain(|cut| cut.request.uuid != request.snapshot);
                self.tree.delete(&request.snapshot);
                "snapshots deleted"
            }
            Step::Revert(request) => {
                answer(client.volumes().revert(request.clone()).await)?;
                self.reverted(&request)?;
                "reverts"
            }
            Step::Grow(request) => {
                let volume = answer(client.volumes().grow(request.clone()).await)?;
                ensure!(volume.size_bytes == request.size_bytes, "it has another size: {volume:#?}");
                self.known(&request.volume)?.set_size(request.size_bytes);
                "growths"
            }
            Step::Write(volume, place, value) => {
                self.write(client, &volume, place, value).await?;
                if let Some(content) = &mut self.known(&volume)?.content {
                    content[place as usize] = value;
                }
                "writes"
            }
        };
        *self.done.entry(kind).or_default() += 1;
        Ok(())
    }

    /// Asks again for everything: nothing is made twice.
    pub(crate) async fn repeat_all(&mut self, client: &Client) -> anyhow::Result<()> {
        let known: Vec<Known> = self.volumes.values().cloned().collect();
        for known in known {
            // One snapshot of each does: they are many.
            let snapshot = self.pick(&known.snapshots).map(|cut| Step::Snapshot(cut.request));
            for step in [Some(known.made), snapshot].into_iter().flatten() {
                let text = format!("again: {step:?}");
                self.perform(client, step).await.context(text)?;
            }
        }
        Ok(())
    }

    /// What a step makes of a volume's content.
    pub(crate) fn content_after(&self, step: &Step, volume: &str) -> Option<Content> {
        let mut content = self.volumes.get(volume)?.content?;
        match step {
            Step::Write(name, place, value) if name == volume => content[*place as usize] = *value,
            Step::Revert(request) if request.volume == volume => {
                content = self.cut(volume, &request.snapshot)?.content?
            }
            _ => {}
        }
        Some(content)
    }

    fn known(&mut self, volume: &str) -> anyhow::Result<&mut Known> {
        self.volumes.get_mut(volume).with_context(|| format!("{volume} is not known"))
    }

    fn cut(&self, volume: &str, snapshot: &str) -> Option<&Cut> {
        self.volumes.get(volume)?.snapshots.iter().find(|cut| cut.request.uuid == snapshot)
    }

    fn made(&mut self, made: Step, volume: &Volume, source: Option<Cut>) -> anyhow::Result<()> {
        let created_at = volume.created_at_unix_ms;
        if let Some(known) = self.volumes.get(&volume.name) {
            ensure!(known.created_at == created_at, "it was made again: {volume:#?}");
            return Ok(());
        }
        self.tree.create(&volume.uuid, source.as_ref().map(Cut::uuid));
        let content = match source {
            Some(source) => source.content,
            None => (volume.name != MAIN).then_some([0; PLACES as usize]),
        };
        let (uuid, size) = (volume.uuid.clone(), volume.size_bytes);
        self.volumes
            .insert(volume.name.clone(), Known { made, uuid, size, created_at, content, snapshots: Vec::new() });
        Ok(())
    }

    fn deleted(&mut self, volume: &str) {
        let Some(known) = self.volumes.remove(volume) else { return };
        self.tree.delete(&known.uuid);
        known.snapshots.iter().for_each(|cut| self.tree.delete(cut.uuid()));
    }

    fn cut_off(&mut self, request: SnapshotVolumeRequest) -> anyhow::Result<()> {
        let known = self.volumes.get_mut(&request.volume).context("a volume")?;
        if known.snapshots.iter().all(|cut| cut.request != request) {
            self.tree.snapshot(&known.uuid, &request.uuid);
            known.snapshots.push(Cut { request, size: known.size, content: known.content });
        }
        Ok(())
    }

    fn reverted(&mut self, request: &RevertVolumeRequest) -> anyhow::Result<()> {
        let known = self.volumes.get_mut(&request.volume).context("a volume")?;
        let place =
            known.snapshots.iter().position(|cut| cut.request.uuid == request.snapshot).context("a snapshot")?;
        known.content = known.snapshots[place].content;
        self.tree.revert(&known.uuid, &request.snapshot);
        known.snapshots.drain(place + 1..).for_each(|newer| self.tree.delete(newer.uuid()));
        Ok(())
    }

    async fn write(&self, client: &Client, volume: &str, place: u64, value: u8) -> anyhow::Result<()> {
        let request = GetVolumeRequest { volume: volume.to_owned() };
        let nqn = export_of(&answer(client.volumes().get(request).await)?)?.nqn.clone();
        let address = self.daemon.address;
        let io = self.daemon.host.run(move || async move {
            // No reconnecting: who works here ends with the daemon.
            let controller = Controller::connect(address, &nqn, Options::default()).await?;
            controller.write(place * SPACING, Slice::from(&[value; BLOCK as usize][..]), false).await?;
            controller.flush().await?;
            controller.disconnect().await;
            Ok(())
        });
        io.await
    }
}

impl Known {
    fn set_size(&mut self, size: u64) {
        self.size = size;
        match &mut self.made {
            Step::Create(request) => request.size_bytes = size,
            Step::Clone(request) => request.size_bytes = size,
            _ => {}
        }
    }
}

/// Whether nobody knows if what was asked for has happened.
fn is_unreachable(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<tonic::Status>();
    status.is_none_or(|status| matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled))
}
