//! Ports: free, or those of the daemon that runs already.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use proto::v1::{NodeInfo, NodeInfoRequest};

use super::{Check, NodeConfig};

const NAME: &str = "ports";
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The daemon of this configuration, if it runs.
pub(super) async fn running(config: &NodeConfig) -> Option<NodeInfo> {
    let ask = async {
        let client = config.connect(reachable(config.grpc)).await.ok()?;
        Some(client.node().info(NodeInfoRequest {}).await.ok()?.into_inner())
    };
    let info = tokio::time::timeout(PATIENCE, ask).await.ok()??;
    (info.name == config.node).then_some(info)
}

/// Where a listener on any address can be reached from here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One check for each address that cannot be used; one for all if there is none.
pub(super) fn checks(config: &NodeConfig, running: Option<&NodeInfo>) -> Vec<Check> {
    let ours = running.map(addresses).unwrap_or_default();
    let wanted = wanted(config);
    let problems: Vec<Check> = wanted
        .iter()
        .filter(|(_, address)| !ours.contains(&address.to_string()))
        .filter_map(|(key, address)| judge(key, *address, TcpListener::bind(address).err()?))
        .collect();
    if !problems.is_empty() {
        return problems;
    }
    let found = match running {
        Some(info) => format!("{} in use by ashlard, process {}", wanted.len(), info.pid),
        None => format!("{} free", wanted.len()),
    };
    vec![Check::ok(NAME, found)]
}

fn wanted(config: &NodeConfig) -> Vec<(&'static str, SocketAddr)> {
    let single = [("grpc", config.grpc), ("health", config.health), ("replica", config.replica)];
    let lists = [("nvmf", &config.nvmf), ("iscsi", &config.iscsi), ("discovery", &config.discovery)];
    let lists = lists.into_iter().flat_map(|(key, list)| list.iter().map(move |address| (key, *address)));
    single.into_iter().chain(lists).collect()
}

fn addresses(info: &NodeInfo) -> HashSet<String> {
    let single = [&info.grpc_address, &info.replica_address, &info.health_address];
    let lists = [&info.nvmf_addresses, &info.discovery_addresses, &info.iscsi_addresses];
    single.into_iter().chain(lists.into_iter().flatten()).cloned().collect()
}

fn judge(key: &str, address: SocketAddr, error: io::Error) -> Option<Check> {
    let (found, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("{address} ({key}) is in use by somebody else"),
            format!("`ss -ltnp 'sport = :{}'` says who. End that, or set `{key}` to another port.", address.port()),
        ),
        io::ErrorKind::AddrNotAvailable => (
            format!("{address} ({key}) is no address of this machine"),
            format!("`ip address` lists them. Set `{key}` to one of these."),
        ),
        io::ErrorKind::PermissionDenied => (
            format!("{address} ({key}) may not be used by this user"),
            format!("Set `{key}` to a port from 1024 on, or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE."),
        ),
        _ => (format!("{address} ({key}): {error}"), format!("Set `{key}` to an address that works.")),
    };
    Some(Check::fail(NAME, found, advice))
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, tests_config};
    use super::*;

    #[test]
    fn a_port_is_free_ours_or_somebody_elses() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("it has one");
        let config = NodeConfig { grpc: address, ..tests_config() };
        let found = checks(&config, None);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].verdict == Verdict::Fail && found[0].found.contains("somebody else"), "{found:?}");
        let running = NodeInfo { grpc_address: address.to_string(), pid: 7, ..NodeInfo::default() };
        let found = checks(&config, Some(&running));
        assert_eq!((found[0].verdict, found.len()), (Verdict::Ok, 1), "{found:?}");
        assert!(found[0].found.contains("process 7"), "{found:?}");
    }

    #[test]
    fn an_address_of_another_machine_is_told_so() {
        // For documentation: nobody has it (RFC 5737).
        let config = NodeConfig { replica: "192.0.2.1:9600".parse().expect("an address"), ..tests_config() };
        let found = checks(&config, None);
        assert!(found[0].found.contains("no address of this machine"), "{found:?}");
    }

    #[test]
    fn a_listener_on_any_address_is_reached_on_loopback() {
        let reached = |address: &str| reachable(address.parse().expect("an address")).to_string();
        assert_eq!(reached("0.0.0.0:9500"), "127.0.0.1:9500");
        assert_eq!(reached("[::]:9500"), "[::1]:9500");
        assert_eq!(reached("10.0.0.1:9500"), "10.0.0.1:9500");
    }
}
