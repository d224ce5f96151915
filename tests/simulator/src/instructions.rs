//! A fixed amount of work on the whole path of a command, whose instructions are counted: host, NVMe/TCP, target, engine, one local
//! replica, store, disk; and a second replica on another node, if asked for. Nothing here depends on time or the machine, so that two counts of the same code are the same.

use std::rc::Rc;
use std::str::FromStr;

use block_device::{BlockDevice, Buffer, Request, execute};
use engine::{Engine, EngineConfig, FileRegistry, NewReplica, Registry, VolumeRecord};
use lvol::{FormatOptions, Store};
use nvmf_initiator::{Controller, Options};
use nvmf_target::identity::NAMESPACE_ID;
use nvmf_target::{
    AnaState, Directory, Hosts, Identity, Limits, Listener, ListenerOptions, Subsystem, SubsystemOptions,
};
use reactor::simulated::{NodeId, World};
use reactor::{Disk, DiskOptions};
use replica::{ReplicaListener, ReplicaServer, ReplicaSpec};
use uuid::Uuid;

const ADDRESS: ([u8; 4], u16) = ([10, 0, 0, 1], 4420);
const SECOND_ADDRESS: ([u8; 4], u16) = ([10, 0, 0, 3], 4421);
const DISK: &str = "/store";
const DISK_SIZE: u64 = 64 << 20;
const SIZE: u64 = 8 << 20;
const BLOCK_SIZE: u32 = 4096;
const VOLUME: Uuid = Uuid::from_u128(1);
const REPLICA: Uuid = Uuid::from_u128(2);
const SECOND: Uuid = Uuid::from_u128(4);

/// Commands under way at one time.
const DEPTH: u64 = 32;

/// Commands of each kind before those that count.
const WARM_UP: u64 = 256;

/// What the commands do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read 4 KiB.
    Reads,
    /// Write 4 KiB over what was written.
    Writes,
    /// The same to a volume with a second replica, on another node.
    ReplicatedWrites,
}

impl Work {
    fn is_replicated(self) -> bool {
        self == Self::ReplicatedWrites
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "reads" => Ok(Self::Reads),
            "writes" => Ok(Self::Writes),
            "replicated-writes" => Ok(Self::ReplicatedWrites),
            _ => Err(format!("{text} is neither reads nor writes nor replicated-writes")),
        }
    }
}

/// Does so many commands of one kind. What counts happens within `counted`.
pub fn run(work: Work, commands: u64) {
    let world = World::new(1);
    let (target, host) = (world.add_node(ADDRESS.0.into()), world.add_node([10, 0, 0, 2].into()));
    world.add_disk(target, DISK, DISK_SIZE, BLOCK_SIZE);
    if work.is_replicated() {
        let second = world.add_node(SECOND_ADDRESS.0.into());
        world.add_disk(second, DISK, DISK_SIZE, BLOCK_SIZE);
        world.block_on(second, serve_second());
    }
    let served = world.spawn(target, serve(work.is_replicated()));
    assert!(world.run_until(|| served.is_done(), std::time::Duration::from_secs(60)), "the volume is not served");
    let controller = world.block_on(host, async {
        let identity = Identity::of_volume(VOLUME);
        Controller::connect(ADDRESS.into(), &identity.nqn, Options::default()).await.expect("the target serves")
    });
    all(&world, host, &controller, work, WARM_UP);
    counted(&world, host, &controller, work, commands);
    world.block_on(host, async move { drop(controller) });
}

/// The instructions from its beginning to its end count: the profiler knows it by its name.
#[inline(never)]
fn counted(world: &World, host: NodeId, controller: &Rc<Controller>, work: Work, commands: u64) {
    all(world, host, controller, work, commands);
}

fn all(world: &World, host: NodeId, controller: &Rc<Controller>, work: Work, commands: u64) {
    let workers: Vec<_> = (0..DEPTH)
        .map(|worker| {
            let controller = Rc::clone(controller);
            world.spawn(host, async move {
                for command in (worker..commands).step_by(DEPTH as usize) {
                    one(&controller, work, command).await;
                }
            })
        })
        .collect();
    let done = || workers.iter().all(|worker| worker.is_done());
    assert!(world.run_until(done, std::time::Duration::from_secs(600)), "the commands do not end");
}

async fn one(controller: &Controller, work: Work, command: u64) {
    let block = u64::from(BLOCK_SIZE);
    // All over the volume, each place as often as another.
    let offset = command * 7919 % (SIZE / block) * block;
    match work {
        Work::Reads => {
            controller.read(offset, BLOCK_SIZE as usize).await.expect("the disk is sound");
        }
        Work::Writes | Work::ReplicatedWrites => {
            let mut data = Buffer::new(BLOCK_SIZE as usize);
            data.fill(command as u8);
            controller.write(offset, data.freeze(), false).await.expect("the disk is sound");
        }
    }
}

/// Exports a volume of one replica, or of two, all of it written, for as long as the machine runs.
async fn serve(replicated: bool) {
    let server = new_replica(REPLICA, &replica::Directory::new()).await;
    let registry = FileRegistry::new("/registry");
    let mut replicas = vec![NewReplica { replica: REPLICA, node: "a".into(), address: ([10, 0, 0, 1], 1).into() }];
    if replicated {
        replicas.push(NewReplica { replica: SECOND, node: "b".into(), address: SECOND_ADDRESS.into() });
    }
    registry.store(None, &VolumeRecord::new(VOLUME, SIZE, BLOCK_SIZE, replicas)).await.expect("files are sound");
    let config = EngineConfig { local: vec![(REPLICA, server)], ..EngineConfig::new(VOLUME) };
    let engine = Engine::start(config, Rc::new(registry)).await.expect("the volume is new");
    engine.ready().await.expect("its replica is here");
    fill(&*engine).await;
    let (directory, identity) = (Directory::new(), Identity::of_volume(VOLUME));
    let options = SubsystemOptions { identity: identity.clone(), hosts: Hosts::Any, limits: Limits::default() };
    let subsystem = Subsystem::start(&directory, options).expect("the only one");
    subsystem.attach(NAMESPACE_ID, engine, &identity, AnaState::Optimized);
    let listener = Listener::bind(&directory, ListenerOptions::new(ADDRESS.into())).expect("the port is free");
    keep((subsystem, listener));
}

/// Lets engines of other nodes have the second replica, for as long as the machine runs.
async fn serve_second() {
    let directory = replica::Directory::new();
    let server = new_replica(SECOND, &directory).await;
    keep((server, ReplicaListener::bind(SECOND_ADDRESS.into(), &directory, "b").expect("the port is free")));
}

/// An empty replica in a new store.
async fn new_replica(replica: Uuid, directory: &replica::Directory) -> ReplicaServer {
    let disk = Disk::open(DISK.as_ref(), &DiskOptions::default()).expect("the disk is there");
    Store::format(&disk, &FormatOptions::new(Uuid::from_u128(3), "store")).await.expect("the disk is empty");
    let server = ReplicaServer::new(Store::open(disk).await.expect("just formatted"), directory);
    let spec = ReplicaSpec { replica, volume: VOLUME, name: "v".into(), size: SIZE, block_size: BLOCK_SIZE };
    server.create(&spec).await.expect("the store is empty");
    server
}

/// Keeps something for as long as the machine runs.
fn keep<T: 'static>(something: T) {
    reactor::spawn(async move {
        let _kept = something;
        std::future::pending::<()>().await;
    });
}

/// Writes all of it, so that every read is of the disk and every write over something.
async fn fill(device: &dyn BlockDevice) {
    let mut data = Buffer::new(1 << 20);
    data.fill(0x5a);
    let data = data.freeze();
    for offset in (0..SIZE).step_by(data.len()) {
        execute(device, Request::write(offset, data.clone())).await.expect("the store has room");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_done_to_its_end() {
        run(Work::Reads, 64);
        run(Work::Writes, 64);
        run(Work::ReplicatedWrites, 64);
    }
}
