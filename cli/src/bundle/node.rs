//! What the daemon says of itself: its API, its probes, its metrics.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, anyhow, bail};
use proto::v1::{
    EventsRequest, GetLogRequest, ListLvolsRequest, ListOperationsRequest, ListReplicasRequest, ListSnapshotsRequest,
    NodeInfo, NodeInfoRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Collection, MOST_OF_A_PART, json};
use crate::client::{Client, answer};

/// Volumes whose snapshots are listed.
const MOST_VOLUMES: usize = 200;
const PAGES: [&str; 4] = ["livez", "readyz", "volumes", "metrics"];

/// Returns the node if it answers.
pub(super) async fn collect(
    collection: &mut Collection,
    server: &str,
    client: anyhow::Result<Client>,
) -> Option<NodeInfo> {
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            collection.add("node/info.json", async { Err(error) }).await;
            return None;
        }
    };
    let mut info = None;
    let asked = async {
        let found = answer(client.node().info(NodeInfoRequest {}).await)?;
        let text = json(&found)?;
        info = Some(found);
        Ok(text)
    };
    collection.add("node/info.json", asked).await;
    let get = async { json(&answer(client.node().get_log(GetLogRequest {}).await)?) };
    collection.add("node/log-filter.json", get).await;
    collection.add("node/events.jsonl", events(&client)).await;
    collection.add("node/stores.json", async { json(&client.list_stores().await?) }).await;
    collection.add("node/volumes.json", async { json(&client.list_volumes().await?) }).await;
    collection.add("node/engines.json", async { json(&client.list_engines().await?) }).await;
    let get = async { json(&client.list_operations(ListOperationsRequest::default()).await?) };
    collection.add("node/operations.json", get).await;
    let get = async { json(&client.list_replicas(ListReplicasRequest::default()).await?) };
    collection.add("node/replicas.json", get).await;
    let get = async { json(&client.list_lvols(ListLvolsRequest::default()).await?) };
    collection.add("node/lvols.json", get).await;
    collection.add("node/snapshots.json", snapshots(&client)).await;
    for page in PAGES {
        collection.add(&format!("health/{page}.txt"), fetch(server, info.as_ref(), page)).await;
    }
    info
}

async fn events(client: &Client) -> anyhow::Result<Vec<u8>> {
    let mut events = answer(client.node().events(EventsRequest::default()).await)?;
    let mut text = Vec::new();
    while let Some(event) = events.message().await? {
        serde_json::to_writer(&mut text, &event)?;
        text.push(b'\n');
    }
    Ok(text)
}

async fn snapshots(client: &Client) -> anyhow::Result<Vec<u8>> {
    let volumes = client.list_volumes().await?;
    let mut found = serde_json::Map::new();
    for volume in volumes.into_iter().take(MOST_VOLUMES) {
        let request = ListSnapshotsRequest { volume: volume.uuid, ..Default::default() };
        let value = match client.list_snapshots(request).await {
            Ok(snapshots) => serde_json::to_value(snapshots)?,
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        found.insert(volume.name, value);
    }
    json(&found)
}

/// A page of the health listener with its status line and headers.
async fn fetch(server: &str, info: Option<&NodeInfo>, page: &str) -> anyhow::Result<Vec<u8>> {
    let info = info.context("nobody says where the health listener is")?;
    let address = health_address(server, &info.health_address)?;
    let mut stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
    let request = format!("GET /{page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    stream.take(MOST_OF_A_PART as u64 + 1).read_to_end(&mut text).await?;
    Ok(text)
}

/// A listener on loopback is only that of the node where this runs there.
fn health_address(server: &str, address: &str) -> anyhow::Result<SocketAddr> {
    let address: SocketAddr = address.parse().with_context(|| format!("`{address}` is no address"))?;
    let host = server.split("://").nth(1).and_then(|rest| rest.rsplit_once(':')).map_or("", |(host, _)| host);
    let host: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let on_this_machine = host.is_some_and(is_of_this_machine);
    match (address.ip(), host) {
        (ip, _) if ip.is_loopback() && !on_this_machine => {
            bail!("it is on loopback of that node ({address}): run this there")
        }
        (ip, Some(host)) if ip.is_unspecified() => Ok(SocketAddr::new(host, address.port())),
        (ip, None) if ip.is_unspecified() => Err(anyhow!("{address} is any address, and the server is no address")),
        _ => Ok(address),
    }
}

/// Nobody can listen at an address of another machine.
fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_of_another_machine_is_not_taken_for_ours() {
        let address = |server: &str, health: &str| health_address(server, health).map(|address| address.to_string());
        assert_eq!(address("http://127.0.0.1:9500", "127.0.0.1:9501").ok().as_deref(), Some("127.0.0.1:9501"));
        assert_eq!(address("http://[::1]:9500", "[::]:9501").ok().as_deref(), Some("[::1]:9501"));
        assert_eq!(address("http://10.0.0.1:9500", "0.0.0.0:9501").ok().as_deref(), Some("10.0.0.1:9501"));
        assert_eq!(address("http://10.0.0.1:9500", "10.0.0.1:9501").ok().as_deref(), Some("10.0.0.1:9501"));
        // For documentation: no machine has it.
        assert!(address("https://192.0.2.1:9500", "127.0.0.1:9501").is_err());
        assert!(address("http://node-a:9500", "0.0.0.0:9501").is_err());
        assert!(address("http://127.0.0.1:9500", "").is_err());
    }
}
