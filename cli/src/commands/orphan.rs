//! `ashlar orphan`.

use std::time::{Duration, SystemTime};

use proto::v1::{AdoptOrphanRequest, DeleteOrphanRequest, ListOrphansResponse, Orphan, OrphanKind, OrphanState};

use super::store::unopened_notes;
use crate::arguments::{KindName, OrphanCommand};
use crate::client::{Client, answer};
use crate::output::{Fixed, Look, Name, Output, Table, Width, look_on};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &OrphanCommand, output: Output) -> anyhow::Result<()> {
    match command {
        OrphanCommand::List { watch } => {
            let render = |orphans: &Vec<_>, width| render(orphans, SystemTime::now(), width);
            let follow = async |_: &Vec<_>| client.follow_orphans().await.map(Some);
            look_on(*watch, output, async || list(client).await, follow, render).await
        }
        OrphanCommand::Adopt { which, name } => {
            let request = AdoptOrphanRequest {
                uuid: which.uuid.clone(),
                kind: kind(which.kind).into(),
                name: name.clone().unwrap_or_default(),
                without_nodes: which.without_node.clone(),
            };
            let adopted = answer(client.orphans().adopt(request).await)?;
            output.print(&adopted, |adopted, _| {
                format!("{} belongs to volume {} now: see `ashlar volume show`.\n", which.uuid, adopted.volume_uuid)
            })
        }
        OrphanCommand::Delete { which, volume } => {
            let request = DeleteOrphanRequest {
                uuid: which.uuid.clone(),
                kind: kind(which.kind).into(),
                expected_volume_uuid: volume.clone().unwrap_or_default(),
                without_nodes: which.without_node.clone(),
            };
            let deleted = answer(client.orphans().delete(request).await)?;
            output.print(&deleted, |_, _| format!("{} is deleted\n", which.uuid))
        }
    }
}

fn kind(name: Option<KindName>) -> OrphanKind {
    match name {
        None => OrphanKind::Unspecified,
        Some(KindName::Replica) => OrphanKind::Replica,
        Some(KindName::Remains) => OrphanKind::Remains,
        Some(KindName::Volume) => OrphanKind::Volume,
        Some(KindName::Engine) => OrphanKind::Engine,
        Some(KindName::Membership) => OrphanKind::Membership,
        Some(KindName::Deletion) => OrphanKind::Deletion,
        Some(KindName::Export) => OrphanKind::Export,
    }
}

async fn list(client: &Client) -> anyhow::Result<Look<Vec<Orphan>>> {
    let ListOrphansResponse { orphans, unopened, .. } = client.list_orphans().await?;
    Ok(Look { value: orphans, notes: unopened_notes(&unopened, "orphans") })
}

/// A table, then for each the whole UUID and why it is there: neither fits beside the rest.
fn render(orphans: &[Orphan], now: SystemTime, width: Width) -> String {
    if orphans.is_empty() {
        return "There are no orphans on this node.\n".to_owned();
    }
    let mut table =
        Table::new(&[Fixed("KIND"), Fixed("STATE"), Fixed("USED"), Fixed("AGE"), Name("STORE"), Name("VOLUME")]);
    for orphan in orphans {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        table.row(vec![
            orphan.kind().to_string(),
            orphan.state().to_string(),
            Size(orphan.used_bytes).to_string(),
            age(orphan.since_unix_ms, now),
            or_dash(&orphan.store),
            or_dash(&orphan.name),
        ]);
    }
    orphans.iter().fold(table.render(width), |mut text, orphan| {
        text.push_str(&format!("\n{} {}\n  {}\n", orphan.kind(), orphan.uuid, orphan.reason));
        let nodes = orphan.unasked_nodes.join(",");
        if orphan.state() == OrphanState::Unknown && !nodes.is_empty() {
            text.push_str(&format!("  If it will never come back: --without-node {nodes}\n"));
        }
        text
    })
}

/// How long ago, in its largest unit.
fn age(since_unix_ms: i64, now: SystemTime) -> String {
    let Some(since) = u64::try_from(since_unix_ms).ok().filter(|since| *since > 0) else { return "-".to_owned() };
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(since);
    // One that is of tomorrow is new.
    let seconds = now.duration_since(at).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_in_the_table_and_its_reason_below() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000);
        let orphan = Orphan {
            kind: OrphanKind::Replica.into(),
            state: OrphanState::Unknown.into(),
            uuid: "00000000-0000-0000-0000-000000000001".to_owned(),
            used_bytes: 1 << 20,
            since_unix_ms: 90_000_000,
            reason: "owner not reachable: node `b`: dead".to_owned(),
            unasked_nodes: vec!["b".to_owned()],
            ..Orphan::default()
        };
        let text = render(&[orphan], now, Width::Narrow);
        assert!(text.contains("replica  unknown  1 MiB  2h   -      -\n"), "{text}");
        assert!(text.contains("replica 00000000-0000-0000-0000-000000000001\n  owner not reachable"), "{text}");
        assert!(text.ends_with("--without-node b\n"), "{text}");
        assert_eq!(render(&[], now, Width::Narrow), "There are no orphans on this node.\n");
    }

    #[test]
    fn ages_have_one_unit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ages = [999_999, 999_000, 990_000, 500_000].map(|seconds: i64| age(seconds * 1000, now));
        assert_eq!(ages, ["1s", "16m", "2h", "5d"]);
        assert_eq!((age(0, now), age(2_000_000_000, now)), ("-".to_owned(), "0s".to_owned()));
    }
}
