//! Names: whether they resolve when one name server is gone (lesson L4), and what the peers' names resolve to.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use super::machine::Machine;
use super::{Check, PeerConfig};

const NAME: &str = "name servers";
const PEERS: &str = "peers' names";
/// How long a name server or the resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
const PORT: u16 = 53;

pub(super) fn checks(machine: &Machine, peers: &[PeerConfig]) -> Vec<Check> {
    let servers = servers(machine);
    let answering: Vec<IpAddr> = answering(&servers, PORT);
    let mut checks = vec![judge(&servers, &answering)];
    checks.extend((!peers.is_empty()).then(|| peer_names(peers, resolve)));
    checks
}

/// The name servers that are asked in the end: behind the stub of systemd-resolved are others.
fn servers(machine: &Machine) -> BTreeSet<IpAddr> {
    let of = |path| -> BTreeSet<IpAddr> {
        let text = machine.read(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        // A zone behind an address of a link says nothing here.
        lines.filter_map(|line| line.trim().split('%').next()?.parse().ok()).collect()
    };
    let listed = of("/etc/resolv.conf");
    let stub = listed.iter().all(|server| matches!(server, IpAddr::V4(ip) if ip.octets()[..3] == [127, 0, 0]));
    let behind = of("/run/systemd/resolve/resolv.conf");
    if stub && !behind.is_empty() { behind } else { listed }
}

/// Those that answer, all asked at once.
fn answering(servers: &BTreeSet<IpAddr>, port: u16) -> Vec<IpAddr> {
    let asked: Vec<_> = servers
        .iter()
        .map(|&server| (server, std::thread::spawn(move || answers(SocketAddr::new(server, port)))))
        .collect();
    asked.into_iter().filter_map(|(server, thread)| thread.join().ok()?.then_some(server)).collect()
}

/// Whether a name server says anything to a question for the root's name servers (RFC 1035, section 4).
fn answers(server: SocketAddr) -> bool {
    /// An identifier, recursion desired, one question: the root, NS, IN.
    const QUESTION: [u8; 17] = [0xa5, 0x14, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&QUESTION)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        // A response with the same identifier, whatever it says.
        Ok(length >= 12 && answer[..2] == QUESTION[..2] && answer[2] & 0x80 != 0)
    };
    ask().unwrap_or(false)
}

fn judge(servers: &BTreeSet<IpAddr>, answering: &[IpAddr]) -> Check {
    let told = |list: &mut dyn Iterator<Item = &IpAddr>| list.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let silent = told(&mut servers.iter().filter(|server| !answering.contains(server)));
    let advice = "Two that answer keep backups and names of hosts working when one is gone. Replicas and hosts are \
                  reached by address: no I/O depends on names.";
    match (servers.len(), answering.len()) {
        (0, _) => Check::warn(NAME, "none in /etc/resolv.conf", advice),
        (_, 0) => Check::warn(NAME, format!("no answer from {silent}"), advice),
        (1, _) => Check::warn(NAME, format!("only {}", told(&mut servers.iter())), advice),
        (all, some) if all > some => {
            let found = format!("{} answer, no answer from {silent}", told(&mut answering.iter()));
            Check::warn(NAME, found, advice)
        }
        _ => Check::ok(NAME, format!("{} answer", told(&mut servers.iter()))),
    }
}

/// Peers are reached by the addresses of the configuration. A name that leads elsewhere leads people astray.
fn peer_names(peers: &[PeerConfig], resolve: impl Fn(&str) -> Vec<IpAddr>) -> Check {
    let mut unknown = Vec::new();
    for peer in peers {
        let found = resolve(&peer.name);
        if !found.is_empty() && !found.contains(&peer.grpc.ip()) {
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            return Check::warn(
                PEERS,
                format!("{} is {}, configured is {}", peer.name, found.join(", "), peer.grpc.ip()),
                "Check `grpc` under [[peers]] against the name, or the name against the machine.",
            );
        }
        if found.is_empty() {
            unknown.push(peer.name.as_str());
        }
    }
    match unknown.as_slice() {
        [] => Check::ok(PEERS, "lead to the configured addresses"),
        unknown => Check::ok(PEERS, format!("{} resolve to nothing; peers are reached by address", unknown.join(", "))),
    }
}

/// What the system makes of a name; nothing if that takes too long.
fn resolve(name: &str) -> Vec<IpAddr> {
    let (sender, found) = mpsc::channel();
    let name = name.to_owned();
    // The resolver cannot be interrupted; a thread that is late ends with the process.
    std::thread::spawn(move || {
        let addresses = (name.as_str(), 0).to_socket_addrs().map(|list| list.map(|address| address.ip()).collect());
        sender.send(addresses.unwrap_or_default()).ok()
    });
    found.recv_timeout(PATIENCE).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::Fake;
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn those_behind_a_stub_count() {
        let stub = ("/etc/resolv.conf", "# by systemd\nnameserver 127.0.0.53\noptions edns0\n");
        let behind = ("/run/systemd/resolve/resolv.conf", "nameserver 10.0.0.1\nnameserver fe80::1%eth0\n");
        let found = |files: &[(&str, &str)]| servers(&Fake::new(files).machine()).into_iter().collect::<Vec<_>>();
        assert_eq!(found(&[stub, behind]), [ip("10.0.0.1"), ip("fe80::1")]);
        assert_eq!(found(&[stub]), [ip("127.0.0.53")]);
        assert_eq!(found(&[("/etc/resolv.conf", "nameserver 10.0.0.9\n"), behind]), [ip("10.0.0.9")]);
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn two_have_to_answer() {
        let servers: BTreeSet<_> = [ip("10.0.0.1"), ip("10.0.0.2")].into();
        let all: Vec<_> = servers.iter().copied().collect();
        assert_eq!(judge(&servers, &all).verdict, Verdict::Ok);
        let one = judge(&servers, &all[..1]);
        assert!(one.verdict == Verdict::Warn && one.found.contains("no answer from 10.0.0.2"), "{one:?}");
        assert_eq!(judge(&servers, &[]).verdict, Verdict::Warn);
        assert_eq!(judge(&[ip("10.0.0.1")].into(), &all[..1]).verdict, Verdict::Warn);
        assert_eq!(judge(&BTreeSet::new(), &[]).verdict, Verdict::Warn);
    }

    #[test]
    fn a_server_is_asked_and_one_that_is_gone_is_not_waited_for_long() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = server.local_addr().expect("it has one");
        let serve = std::thread::spawn(move || {
            let mut question = [0; 512];
            let (length, from) = server.recv_from(&mut question).expect("a question");
            question[2] |= 0x80;
            // Not for us: an answer all the same.
            question[3] = 5;
            server.send_to(&question[..length], from).expect("sent")
        });
        assert!(answers(address));
        serve.join().expect("it answered");
        assert!(!answers(address), "the port is closed");
    }

    #[test]
    fn names_of_peers_lead_nowhere_else() {
        let peer = |name: &str, address: &str| PeerConfig {
            name: name.into(),
            grpc: address.parse().expect("an address"),
            replica: address.parse().expect("an address"),
        };
        let peers = [peer("b", "10.0.0.2:9500"), peer("c", "10.0.0.3:9500")];
        let all = |name: &str| if name == "b" { vec![ip("10.0.0.2")] } else { vec![ip("::1"), ip("10.0.0.3")] };
        assert_eq!(peer_names(&peers, all), Check::ok(PEERS, "lead to the configured addresses"));
        let none = peer_names(&peers, |_| Vec::new());
        assert!(none.verdict == Verdict::Ok && none.found.starts_with("b, c resolve to nothing"), "{none:?}");
        let other = peer_names(&peers, |_| vec![ip("10.0.0.2")]);
        assert!(other.verdict == Verdict::Warn && other.found.contains("c is 10.0.0.2"), "{other:?}");
        assert!(resolve("localhost").iter().all(IpAddr::is_loopback));
    }
}
