//! What a run does, made from its seed before it begins: the cluster, the work of its hosts, and a course of faults and
//! administrative acts. A plan is a list, so that a failure shrinks by leaving parts of it out.

mod generate;
mod limits;
mod races;

use std::fmt;
use std::time::Duration;

use block_device::Limits;

pub(crate) use self::generate::generate;
pub(crate) use self::races::races;
use crate::Without;

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// By node: the unit in bytes that its disk never tears.
    pub(crate) sectors: Vec<u32>,
    pub(crate) volumes: Vec<VolumePlan>,
    pub(crate) timing: Timing,
    pub(crate) steps: Vec<Step>,
}

/// A volume and the work of its host.
#[derive(Clone, Debug)]
pub(crate) struct VolumePlan {
    /// What the run calls it.
    pub(crate) number: usize,
    /// The nodes of its replicas.
    pub(crate) replicas: Vec<usize>,
    /// Where its engine runs first.
    pub(crate) engine: usize,
    /// 512 or 4096.
    pub(crate) block: u32,
    /// Bytes.
    pub(crate) size: u64,
    /// Requests in flight at once.
    pub(crate) workers: u32,
    /// Most requests go to this many blocks.
    pub(crate) hot: u64,
    /// From one of these to the next, in blocks: those of a wide volume are all over it.
    pub(crate) stride: u64,
    /// Regions that its engine notes at most.
    pub(crate) noted: usize,
    pub(crate) mix: Mix,
    /// What its requests follow from.
    pub(crate) seed: u64,
    /// What its host may do in a second at first.
    pub(crate) limits: Limits,
}

/// What a host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Everything, of any length, now and then anywhere.
    Everything,
    /// Reads and writes of a few hot blocks. What is written becomes durable when the plan says so.
    Writes,
    /// These, and flushes.
    Flushes,
    /// Writes, and as many reads.
    Reads,
}

/// The time limits of engines.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub(crate) deadline: Duration,
    pub(crate) open_wait: Duration,
    pub(crate) open_limit: Duration,
    pub(crate) ping: Duration,
    pub(crate) silence: Duration,
    /// For how long after a confirmation reads are answered.
    pub(crate) lease: Duration,
}

/// One step of the course: hosts get work, time passes, then something happens.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) number: usize,
    /// Requests that each volume's host begins with.
    pub(crate) work: u32,
    pub(crate) after: Duration,
    pub(crate) act: Act,
}

/// What happens. Durations are those until it is over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    /// Only the work.
    Nothing,
    /// A process is killed, and started again.
    Kill { node: usize, down: Duration },
    /// A machine loses its power, and gets it back.
    PowerCut { node: usize, down: Duration },
    /// All machines lose their power at once; each gets it back within this time.
    Blackout { down: Duration },
    /// A process is stopped and goes on (SIGSTOP, SIGCONT).
    Pause { node: usize, lasts: Duration },
    /// Nothing passes between two nodes, in one direction or both.
    Partition { from: usize, to: usize, both: bool, lasts: Duration },
    /// Nothing passes between a node and the others, in one direction or both; the registry is out of its reach too.
    Isolate { node: usize, inbound: bool, outbound: bool, lasts: Duration },
    /// All connections between two nodes end.
    Reset { one: usize, other: usize },
    /// What passes between two nodes is late, by up to this much.
    Delay { one: usize, other: usize, delay: Duration, lasts: Duration },
    /// A node does not reach the registry.
    RegistryAway { node: usize, lasts: Duration },
    /// The registry does what it is asked, and its answers are lost now and then.
    RegistryMute { lasts: Duration },
    /// The registry loses its record of a volume, unless a replica has no copy of it yet.
    LoseRecord { volume: usize },
    /// The nodes of all replicas of a volume that are in sync are lost, and a person makes one count that left before. They are back after
    /// this.
    Force { volume: usize, down: Duration },
    /// So many places of a node's disk that a volume wrote to cannot be read until they are written anew.
    LosePlaces { volume: usize, node: usize, count: usize, lasts: Duration },
    /// So many places of snapshots of a volume change by themselves, with a replica chosen by this number, and are found by a scrub.
    Rot { volume: usize, pick: usize, count: usize },
    /// Something is wrong with a node's disk.
    Disk { node: usize, trouble: Trouble, lasts: Duration },
    /// A node's wall clock jumps.
    ClockJump { node: usize, seconds: i64 },
    /// The host of a volume flushes it.
    Flush { volume: usize },
    /// This many snapshots of a volume at once.
    Snapshot { volume: usize, count: u32 },
    /// A snapshot of a volume is deleted, chosen by this number.
    Delete { volume: usize, pick: usize },
    /// A volume goes back to a snapshot.
    Revert { volume: usize, pick: usize },
    /// A snapshot is cloned, on every node with a replica in sync.
    CloneOf { volume: usize, pick: usize },
    /// A volume becomes larger, to so many times its first size in eighths.
    Grow { volume: usize, eighths: u64 },
    /// A volume gets a replica on a node more.
    Add { volume: usize, node: usize },
    /// A volume lets go of a replica, chosen by this number.
    Remove { volume: usize, pick: usize },
    /// Nothing, until all replicas of a volume are in sync, or for so long.
    Whole { volume: usize, limit: Duration },
    /// A volume has other limits, or none.
    Limit { volume: usize, limits: Limits },
    /// The connection of a volume's host breaks, and the host connects again to the same engine.
    Disconnect { volume: usize },
    /// A volume's host takes back what it has sent, as far as it has not begun.
    Abort { volume: usize },
    /// A volume's engine is stopped in order; later one is started on another node.
    Move { volume: usize, to: usize, off: Duration },
    /// An engine is started on a node, whatever there was before: a fail-over, or a second engine.
    TakeOver { volume: usize, to: usize },
}

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    FailReads,
    FailWrites,
    FailSyncs,
    Hang,
    /// Every operation takes this much longer.
    Slow(Duration),
    /// Writes take up to this long.
    SlowWrites(Duration),
    /// Reads do.
    SlowReads(Duration),
    /// Syncs end well and do nothing.
    LoseSyncs,
    /// No block more can be allocated.
    Full,
}

impl Plan {
    /// The same without parts of it.
    pub(crate) fn without(mut self, without: &Without) -> Self {
        self.steps.retain(|step| !without.step(step.number));
        self.volumes.retain(|volume| !without.volume(volume.number));
        if self.volumes.is_empty() {
            // A cluster without volumes is none.
            self.steps.clear();
        }
        for step in &mut self.steps {
            step.work >>= without.halvings;
        }
        if without.limits {
            self.volumes.iter_mut().for_each(|volume| volume.limits = Limits::default());
            self.steps.retain(|step| !matches!(step.act, Act::Limit { .. }));
        }
        let volumes: Vec<usize> = self.volumes.iter().map(|volume| volume.number).collect();
        self.steps.retain(|step| step.act.volume().is_none_or(|volume| volumes.contains(&volume)));
        self
    }

    /// The numbers of its steps.
    pub(crate) fn step_numbers(&self) -> Vec<usize> {
        self.steps.iter().map(|step| step.number).collect()
    }

    /// Whether a person may have a say in what a volume holds.
    pub(crate) fn forces(&self, number: usize) -> bool {
        self.steps.iter().any(|step| matches!(step.act, Act::Force { volume, .. } if volume == number))
    }

    /// Whether any volume has limits at any time.
    pub(crate) fn has_limits(&self) -> bool {
        let limits = |step: &Step| matches!(step.act, Act::Limit { limits, .. } if limits.are_set());
        self.volumes.iter().any(|volume| volume.limits.are_set()) || self.steps.iter().any(limits)
    }

    /// Whether a volume's host comes to the engine through an export, as in the daemon. The others are with the engine itself: one device
    /// less between a fault and what it does.
    pub(crate) fn exports(&self, volume: &VolumePlan) -> bool {
        let is_for_exports = |act: &Act| match act {
            Act::Limit { volume, .. } | Act::Disconnect { volume } | Act::Abort { volume } => Some(*volume),
            _ => None,
        };
        volume.limits.are_set() || self.steps.iter().any(|step| is_for_exports(&step.act) == Some(volume.number))
    }

    /// Whether anything happens on a node.
    pub(crate) fn uses(&self, node: usize) -> bool {
        let volume = |volume: &VolumePlan| volume.replicas.contains(&node) || volume.engine == node;
        self.volumes.iter().any(volume) || self.steps.iter().any(|step| step.act.nodes().contains(&node))
    }
}

impl Act {
    fn volume(&self) -> Option<usize> {
        match self {
            Self::LoseRecord { volume }
            | Self::Force { volume, .. }
            | Self::LosePlaces { volume, .. }
            | Self::Rot { volume, .. }
            | Self::Flush { volume }
            | Self::Snapshot { volume, .. }
            | Self::Delete { volume, .. }
            | Self::Revert { volume, .. }
            | Self::CloneOf { volume, .. }
            | Self::Grow { volume, .. }
            | Self::Add { volume, .. }
            | Self::Remove { volume, .. }
            | Self::Whole { volume, .. }
            | Self::Limit { volume, .. }
            | Self::Disconnect { volume }
            | Self::Abort { volume }
            | Self::Move { volume, .. }
            | Self::TakeOver { volume, .. } => Some(*volume),
            _ => None,
        }
    }

    fn nodes(&self) -> Vec<usize> {
        match *self {
            Self::Kill { node, .. }
            | Self::PowerCut { node, .. }
            | Self::Pause { node, .. }
            | Self::Isolate { node, .. }
            | Self::RegistryAway { node, .. }
            | Self::Disk { node, .. }
            | Self::LosePlaces { node, .. }
            | Self::Add { node, .. }
            | Self::ClockJump { node, .. } => vec![node],
            Self::Partition { from: one, to: other, .. }
            | Self::Reset { one, other }
            | Self::Delay { one, other, .. } => vec![one, other],
            Self::Move { to, .. } | Self::TakeOver { to, .. } => vec![to],
            Self::Nothing
            | Self::Blackout { .. }
            | Self::RegistryMute { .. }
            | Self::LoseRecord { .. }
            | Self::Force { .. }
            | Self::Rot { .. }
            | Self::Flush { .. }
            | Self::Snapshot { .. }
            | Self::Delete { .. }
            | Self::Revert { .. }
            | Self::CloneOf { .. }
            | Self::Grow { .. }
            | Self::Remove { .. }
            | Self::Limit { .. }
            | Self::Disconnect { .. }
            | Self::Abort { .. }
            | Self::Whole { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = (0..self.sectors.len()).filter(|&node| self.uses(node));
        let nodes: Vec<_> = used.map(|node| format!("n{node} ({} B sectors)", self.sectors[node])).collect();
        writeln!(f, "nodes: {}", nodes.join(", "))?;
        for volume in &self.volumes {
            let replicas: Vec<_> = volume.replicas.iter().map(|node| format!("n{node}")).collect();
            write!(
                f,
                "volume v{}: replicas on {}, engine on n{}, {} KiB in blocks of {}, {} workers, {} hot blocks with stride {}, {} regions, {:?}",
                volume.number,
                replicas.join(" "),
                volume.engine,
                volume.size >> 10,
                volume.block,
                volume.workers,
                volume.hot,
                volume.stride,
                volume.noted,
                volume.mix
            )?;
            match volume.limits.are_set() {
                true => writeln!(f, ", at most {}", Told(volume.limits))?,
                false => writeln!(f)?,
            }
        }
        let Timing { deadline, open_wait, silence, lease, .. } = self.timing;
        writeln!(f, "limits: deadline {deadline:?}, open wait {open_wait:?}, silence {silence:?}, lease {lease:?}")?;
        for step in &self.steps {
            writeln!(f, "step {:>2}: {:>3} requests, {:>9.3?}, {}", step.number, step.work, step.after, step.act)?;
        }
        Ok(())
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing"),
            Self::Kill { node, down } => write!(f, "kill n{node}, back after {down:.3?}"),
            Self::PowerCut { node, down } => write!(f, "power cut of n{node}, back after {down:.3?}"),
            Self::Blackout { down } => write!(f, "power cut of all nodes, each back within {down:.3?}"),
            Self::Pause { node, lasts } => write!(f, "n{node} is stopped for {lasts:.3?}"),
            Self::Partition { from, to, both, lasts } => {
                let arrow = if *both { "<->" } else { "->" };
                write!(f, "partition n{from} {arrow} n{to} for {lasts:.3?}")
            }
            Self::Isolate { node, inbound, outbound, lasts } => {
                let ways = match (inbound, outbound) {
                    (true, false) => "inbound",
                    (false, true) => "outbound",
                    _ => "both ways",
                };
                write!(f, "n{node} is cut off ({ways}) for {lasts:.3?}")
            }
            Self::Reset { one, other } => write!(f, "connections n{one} - n{other} are reset"),
            Self::Delay { one, other, delay, lasts } => {
                write!(f, "n{one} - n{other} is late by up to {delay:.3?} for {lasts:.3?}")
            }
            Self::RegistryAway { node, lasts } => write!(f, "n{node} does not reach the registry for {lasts:.3?}"),
            Self::RegistryMute { lasts } => write!(f, "the registry's answers are lost now and then for {lasts:.3?}"),
            Self::LoseRecord { volume } => write!(f, "the registry loses its record of v{volume}"),
            Self::Force { volume, down } => {
                write!(f, "all that are in sync of v{volume} are lost for {down:.3?}, and another one counts by force")
            }
            Self::LosePlaces { volume, node, count, lasts } => {
                write!(f, "{count} places of v{volume} on n{node} cannot be read for {lasts:.3?}")
            }
            Self::Rot { volume, pick, count } => write!(f, "{count} places of v{volume} rot with its replica {pick}"),
            Self::Disk { node, trouble, lasts } => write!(f, "disk of n{node}: {trouble:?} for {lasts:.3?}"),
            Self::ClockJump { node, seconds } => write!(f, "the wall clock of n{node} jumps by {seconds} s"),
            Self::Flush { volume } => write!(f, "v{volume} is flushed"),
            Self::Snapshot { volume, count } => write!(f, "{count} snapshot(s) of v{volume}"),
            Self::Delete { volume, pick } => write!(f, "snapshot {pick} of v{volume} is deleted"),
            Self::Revert { volume, pick } => write!(f, "v{volume} goes back to its snapshot {pick}"),
            Self::CloneOf { volume, pick } => write!(f, "a clone of snapshot {pick} of v{volume}"),
            Self::Grow { volume, eighths } => write!(f, "v{volume} grows to {eighths}/8"),
            Self::Add { volume, node } => write!(f, "v{volume} gets a replica on n{node}"),
            Self::Remove { volume, pick } => write!(f, "v{volume} loses its replica {pick}"),
            Self::Whole { volume, limit } => write!(f, "until v{volume} is whole, at most {limit:.3?}"),
            Self::Limit { volume, limits } => write!(f, "v{volume} may do {}", Told(*limits)),
            Self::Disconnect { volume } => write!(f, "the connection of v{volume} breaks"),
            Self::Abort { volume } => write!(f, "the host of v{volume} takes back what has not begun"),
            Self::Move { volume, to, off } => {
                write!(f, "engine of v{volume} is stopped in order, and started on n{to} after {off:.3?}")
            }
            Self::TakeOver { volume, to } => write!(f, "an engine of v{volume} is started on n{to}"),
        }
    }
}

/// Limits in words.
struct Told(Limits);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { iops, bytes_per_second, burst } = self.0;
        match (iops, bytes_per_second) {
            (0, 0) => return write!(f, "anything"),
            (iops, 0) => write!(f, "{iops} commands a second")?,
            (0, bytes) => write!(f, "{} KiB a second", bytes >> 10)?,
            (iops, bytes) => write!(f, "{iops} commands and {} KiB a second", bytes >> 10)?,
        }
        write!(f, " with a burst of {burst:.3?}")
    }
}
