//! Peers: who answers, under the right name, and whether their clocks agree with this one.

use std::time::{Duration, SystemTime};

use proto::v1::NodeInfoRequest;
use tokio::net::TcpStream;

use super::{Check, NodeConfig, PeerConfig};
use crate::client::answer;

const NAME: &str = "peers";
const SKEW: &str = "peers' clocks";
/// How long a peer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Answers are dated in whole seconds, and take their time.
const MOST_SKEW: Duration = Duration::from_secs(2);

pub(super) async fn checks(config: &NodeConfig) -> Vec<Check> {
    let mut checks = Vec::new();
    let (mut reached, mut skews) = (Vec::new(), Vec::new());
    for peer in &config.peers {
        let asked = tokio::time::timeout(PATIENCE, ask(config, peer)).await;
        match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()))) {
            Ok(skew) => {
                reached.push(peer.name.as_str());
                skews.extend(skew.map(|skew| (peer.name.as_str(), skew)));
            }
            Err(error) => checks.push(Check::warn(
                NAME,
                format!("{}: {}", peer.name, error.to_string().lines().next().unwrap_or_default()),
                "Is ashlard up there? Check `grpc` and `replica` under [[peers]] against what that node listens on, and firewalls.",
            )),
        }
    }
    match reached.is_empty() {
        true if config.peers.is_empty() => {
            checks.push(Check::ok(NAME, "none configured: replicas are on this node only"))
        }
        true => {}
        false => checks.push(Check::ok(NAME, format!("{} answer", reached.join(", ")))),
    }
    checks.extend(judge_skews(&skews));
    checks
}

/// How far the peer's clock is from this one; none if its answer is not dated.
async fn ask(config: &NodeConfig, peer: &PeerConfig) -> anyhow::Result<Option<Duration>> {
    let client = config.connect(peer.grpc).await?;
    let asked = SystemTime::now();
    let response = client.node().info(NodeInfoRequest {}).await;
    let date =
        response.as_ref().ok().and_then(|response| response.metadata().get("date")?.to_str().ok().map(str::to_owned));
    let info = answer(response)?;
    if info.name != peer.name {
        anyhow::bail!("the node at {} is called {}", peer.grpc, info.name);
    }
    TcpStream::connect(peer.replica).await.map_err(|error| anyhow::anyhow!("replicas at {}: {error}", peer.replica))?;
    Ok(date.and_then(|date| httpdate::parse_http_date(&date).ok()).map(|theirs| skew(asked, SystemTime::now(), theirs)))
}

/// How far `theirs`, cut to a second, is from the time between `asked` and `answered`.
fn skew(asked: SystemTime, answered: SystemTime, theirs: SystemTime) -> Duration {
    let early = asked.duration_since(theirs + Duration::from_secs(1)).unwrap_or_default();
    let late = theirs.duration_since(answered).unwrap_or_default();
    early.max(late)
}

fn judge_skews(skews: &[(&str, Duration)]) -> Option<Check> {
    let (node, worst) = skews.iter().max_by_key(|(_, skew)| *skew)?;
    if *worst <= MOST_SKEW {
        return Some(Check::ok(SKEW, format!("within {} s of this one", MOST_SKEW.as_secs())));
    }
    let found = format!("that of {node} differs by {} s", worst.as_secs());
    Some(Check::warn(SKEW, found, "Run a time service on all nodes: logs and events of several are read together."))
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, tests_config};
    use super::*;

    #[test]
    fn a_clock_is_off_by_what_seconds_and_the_way_do_not_explain() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000);
        let (asked, answered) = (at(100) + Duration::from_millis(900), at(101) + Duration::from_millis(100));
        assert_eq!(skew(asked, answered, at(100)), Duration::ZERO);
        assert_eq!(skew(asked, answered, at(101)), Duration::ZERO);
        assert_eq!(skew(asked, answered, at(95)), Duration::from_millis(4_900));
        assert_eq!(skew(asked, answered, at(110)), Duration::from_millis(8_900));
        assert_eq!(judge_skews(&[]), None);
        let verdict = |seconds| judge_skews(&[("b", Duration::from_secs(seconds))]).map(|check| check.verdict);
        assert_eq!([verdict(2), verdict(3)], [Some(Verdict::Ok), Some(Verdict::Warn)]);
    }

    #[tokio::test]
    async fn a_peer_that_is_down_is_a_warning_with_its_name() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|taken| taken.local_addr()).expect("a port");
        let peer = PeerConfig { name: "b".into(), grpc: nobody, replica: nobody };
        let found = checks(&NodeConfig { peers: vec![peer], ..tests_config() }).await;
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Warn), "{found:?}");
        assert!(found[0].found.starts_with("b: "), "{found:?}");
        assert_eq!(checks(&tests_config()).await[0].verdict, Verdict::Ok);
    }
}
