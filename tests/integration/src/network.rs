//! A network of a test's own: the test's thread, and each daemon, in a network namespace of its own, on one switch.
//!
//! ```text
//!   test (10.77.0.254) ──┬── switch, in the test's namespace
//!   node 0 (10.77.0.1) ──┤
//!   node 1 (10.77.0.2) ──┘   …
//! ```
//! Nothing of it has a name on the machine: a namespace lives as long as the process that holds it, and those end by themselves.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cli::cluster::Addresses;
use nix::sched::{CloneFlags, unshare};

/// Longer than any test, so that a test that is killed leaves nothing for long.
const LIFE: &str = "900";
/// Nobody has this address: what is sent to it is lost without a word.
const NOBODY: &str = "02:00:00:00:00:ff";

/// Namespaces for daemons, gone when it is dropped.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Child>,
}

impl Network {
    /// Moves this thread into a new network and mount namespace, with a place for each of `count` nodes. Threads and processes that it starts are in it too.
    /// None where that is not allowed, or needs programs that are not there; the reason is printed.
    pub fn enter(count: usize) -> anyhow::Result<Option<Self>> {
        for program in ["ip", "mkfs.ext4"] {
            if Command::new(program).arg("-V").output().is_err() {
                eprintln!("skipped: there is no `{program}` (packages iproute2 and e2fsprogs)");
                return Ok(None);
            }
        }
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
            eprintln!("skipped: no namespaces of our own: {error}");
            return Ok(None);
        }
        // What this test mounts, nobody else sees.
        run(Command::new("mount").args(["--make-rprivate", "/"]))?;
        ip("link set lo up")?;
        ip("link add switch type bridge")?;
        ip("addr add 10.77.0.254/24 dev switch")?;
        ip("link set switch up")?;
        let mut network = Self { nodes: Vec::new() };
        for index in 0..count {
            network.add_node(index)?;
        }
        Ok(Some(network))
    }

    fn add_node(&mut self, index: usize) -> anyhow::Result<()> {
        let holder = Command::new("unshare").args(["--net", "sleep", LIFE]).stdin(Stdio::null()).spawn()?;
        let pid = holder.id();
        self.nodes.push(holder);
        wait_for_namespace(pid)?;
        ip(&format!("link add port{index} type veth peer name eth0 netns {pid}"))?;
        ip(&format!("link set port{index} master switch up"))?;
        self.inside(index, "link set lo up")?;
        self.inside(index, &format!("addr add {}/24 dev eth0", address(index)))?;
        self.inside(index, "link set eth0 up")
    }

    /// Where the daemon of a node listens.
    pub fn addresses(index: usize) -> Addresses {
        let at = |port| SocketAddr::new(address(index), port);
        Addresses {
            grpc: at(9500),
            health: at(9501),
            replica: at(9600),
            nvmf: at(4420),
            discovery: at(8009),
            portals: [at(3260), at(3261)],
        }
    }

    /// What to put before a command so that it runs on a node.
    pub fn launcher(&self, index: usize) -> Vec<String> {
        ["nsenter", "--net", "--target"]
            .map(str::to_owned)
            .into_iter()
            .chain([self.nodes[index].id().to_string()])
            .collect()
    }

    /// From now on nothing that `from` sends to `to` arrives; the other way is as it was.
    pub fn cut_one_way(&self, from: usize, to: usize) -> anyhow::Result<()> {
        self.inside(from, &format!("neigh replace {} lladdr {NOBODY} nud permanent dev eth0", address(to)))
    }

    /// Takes [`Network::cut_one_way`] back.
    pub fn mend_one_way(&self, from: usize, to: usize) -> anyhow::Result<()> {
        self.inside(from, &format!("neigh del {} dev eth0", address(to)))
    }

    /// Cuts two nodes from each other, both ways; others reach both.
    pub fn cut(&self, one: usize, other: usize) -> anyhow::Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Takes [`Network::cut`] back.
    pub fn mend(&self, one: usize, other: usize) -> anyhow::Result<()> {
        self.mend_one_way(one, other)?;
        self.mend_one_way(other, one)
    }

    /// Pulls a node's plug: nobody reaches it, the test neither.
    pub fn unplug(&self, index: usize) -> anyhow::Result<()> {
        ip(&format!("link set port{index} down"))
    }

    /// Takes [`Network::unplug`] back.
    pub fn plug_in(&self, index: usize) -> anyhow::Result<()> {
        ip(&format!("link set port{index} up"))
    }

    /// Runs `ip` on a node.
    fn inside(&self, index: usize, arguments: &str) -> anyhow::Result<()> {
        let launcher = self.launcher(index);
        run(Command::new(&launcher[0]).args(&launcher[1..]).arg("ip").args(arguments.split(' ')))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Errors mean that it has ended already.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn address(index: usize) -> std::net::IpAddr {
    // Tests have a handful of nodes.
    [10, 77, 0, 1 + index as u8].into()
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Until a process that is to have a network of its own has it.
fn wait_for_namespace(pid: u32) -> anyhow::Result<()> {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    let ours = of("thread-self")?;
    let limit = Instant::now() + Duration::from_secs(20);
    while of(&pid.to_string()).is_ok_and(|theirs| theirs == ours) {
        if Instant::now() > limit {
            bail!("process {pid} got no network of its own");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
