//! `ashlar volume`.

use std::fmt::Write;
use std::time::Duration;

use anyhow::bail;
use proto::v1::{
    AddReplicaRequest, CloneVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, Engine, EngineState,
    GetVolumeRequest, GrowVolumeRequest, Member, MemberState, RebuildProgress, RebuildSettings, RecoverVolumeRequest,
    RemoveReplicaRequest, ReplaceReplicaRequest, RevertVolumeRequest, SetLimitsRequest, SetRebuildRequest,
    StartVolumeRequest, Volume, VolumeLimits, VolumeState,
};

use super::{export, snapshot};
use crate::arguments::{CreateVolume, LimitVolume, RebuildCommand, VolumeCommand};
use crate::client::{Client, answer};
use crate::output::{End, Fixed, Name, Output, Progress, Table, Wide, Width, duration, look_on};
use crate::size::Size;

/// Between two looks at a rebuild.
const POLL: Duration = Duration::from_millis(500);

pub(super) async fn run(client: &Client, command: &VolumeCommand, output: Output) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Create(options) => create(client, options, output).await,
        VolumeCommand::List { watch } => {
            let fetch = async || Ok(client.list_volumes().await?.into());
            let follow = async |_: &Vec<_>| client.follow_volumes("").await.map(Some);
            look_on(*watch, output, fetch, follow, |volumes: &Vec<_>, width| render_list(volumes, width)).await
        }
        VolumeCommand::Show { volume, watch } => {
            let follow = async |volume: &Volume| client.follow_volumes(&volume.uuid).await.map(Some);
            look_on(*watch, output, async || Ok(get(client, volume).await?.into()), follow, render).await
        }
        VolumeCommand::Start { volume } => {
            let request = StartVolumeRequest { volume: volume.clone() };
            show(&answer(client.volumes().start(request).await)?, output)
        }
        VolumeCommand::Wait { volume } => show(&wait(client, volume, None).await?, output),
        VolumeCommand::Snapshot { volume, name, uuid } => {
            snapshot::create(client, volume, name.as_deref(), uuid.as_deref(), output).await
        }
        VolumeCommand::Clone { volume, snapshot, name, size, nodes, uuid } => {
            let request = CloneVolumeRequest {
                volume: volume.clone(),
                snapshot: snapshot.clone(),
                name: name.clone(),
                size_bytes: size.map_or(0, |size| size.0),
                nodes: nodes.clone(),
                uuid: uuid.clone().unwrap_or_default(),
            };
            show(&answer(client.volumes().create_clone(request).await)?, output)
        }
        VolumeCommand::Grow { volume, size } => {
            let request = GrowVolumeRequest { volume: volume.clone(), size_bytes: size.0 };
            show(&answer(client.volumes().grow(request).await)?, output)
        }
        VolumeCommand::Revert { volume, snapshot, discard_newer } => {
            let (volume, snapshot) = (volume.clone(), snapshot.clone());
            let request = RevertVolumeRequest { volume, snapshot, discard_newer: *discard_newer };
            show(&answer(client.volumes().revert(request).await)?, output)
        }
        VolumeCommand::AddReplica { volume, node, uuid, wait: to_the_end } => {
            let uuid = uuid.clone().unwrap_or_default();
            let request = AddReplicaRequest { volume: volume.clone(), node: node.clone(), uuid };
            let mut changed = answer(client.volumes().add_replica(request).await)?;
            if *to_the_end {
                changed = wait(client, volume, Some(node)).await?;
            }
            show(&changed, output)
        }
        VolumeCommand::RemoveReplica { volume, node, expected_uuid } => {
            let expected_uuid = expected_uuid.clone().unwrap_or_default();
            let request = RemoveReplicaRequest { volume: volume.clone(), node: node.clone(), expected_uuid };
            show(&answer(client.volumes().remove_replica(request).await)?, output)
        }
        VolumeCommand::ReplaceReplica { volume, node, by, expected_uuid, uuid, wait: to_the_end } => {
            let request = ReplaceReplicaRequest {
                volume: volume.clone(),
                node: node.clone(),
                by_node: by.clone(),
                expected_uuid: expected_uuid.clone().unwrap_or_default(),
                uuid: uuid.clone().unwrap_or_default(),
            };
            let mut changed = answer(client.volumes().replace_replica(request).await)?;
            if *to_the_end {
                wait(client, volume, Some(by)).await?;
                changed = wait_until_left(client, volume, node).await?;
            }
            show(&changed, output)
        }
        VolumeCommand::Rebuild(command) => {
            show(&answer(client.volumes().set_rebuild(rebuild_request(command)).await)?, output)
        }
        VolumeCommand::Limit(options) => {
            show(&answer(client.volumes().set_limits(limits_request(options)).await)?, output)
        }
        VolumeCommand::Export(options) => show(&export::export(client, options).await?, output),
        VolumeCommand::Unexport { volume, frontend } => {
            show(&export::unexport(client, volume, *frontend).await?, output)
        }
        VolumeCommand::AttachCommand { volume, frontend } => {
            export::attach_command(client, volume, *frontend, output).await
        }
        VolumeCommand::Recover { volume, node, force } => recover(client, volume, node, *force, output).await,
        VolumeCommand::Delete { volume, expected_uuid } => {
            delete(client, volume, expected_uuid.as_deref(), output).await
        }
    }
}

async fn create(client: &Client, options: &CreateVolume, output: Output) -> anyhow::Result<()> {
    let request = CreateVolumeRequest {
        name: options.name.clone(),
        size_bytes: options.size.0,
        block_size_bytes: options.block_size,
        nodes: options.nodes.clone(),
        replica_count: if options.nodes.is_empty() { options.replica_count } else { 0 },
        store: options.store.clone().unwrap_or_default(),
        uuid: options.uuid.clone().unwrap_or_default(),
    };
    let volume = answer(client.volumes().create(request).await)?;
    show(&volume, output)
}

async fn get(client: &Client, volume: &str) -> anyhow::Result<Volume> {
    answer(client.volumes().get(GetVolumeRequest { volume: volume.to_owned() }).await)
}

/// Waits until the replica on a node, or all of them, are in sync, and shows how far they are.
async fn wait(client: &Client, volume: &str, node: Option<&str>) -> anyhow::Result<Volume> {
    let mut progress = Progress::new(node.map_or("rebuilt".to_owned(), |node| format!("rebuilt on {node}")));
    loop {
        let found = get(client, volume).await?;
        let Some(engine) = &found.engine else { bail!("volume {volume} is not made yet: {}", state(&found)) };
        if engine.state() == EngineState::Failed {
            bail!("volume {volume} is not served: {}", engine.reason);
        }
        if let Some(node) = node
            && !found.replicas.iter().any(|replica| replica.node == node)
        {
            bail!("volume {volume} has no replica on node {node} any more");
        }
        let members: Vec<_> =
            engine.members.iter().filter(|member| node.is_none_or(|node| member.node == node)).collect();
        if !members.is_empty() && members.iter().all(|member| member.state() == MemberState::InSync) {
            return Ok(found);
        }
        let (done, total) = rebuilt(&members);
        progress.show_with(done, total, &what_waits(&members));
        tokio::time::sleep(POLL).await;
    }
}

/// Bytes done and in all, of all that are copied to.
fn rebuilt(members: &[&Member]) -> (u64, u64) {
    let away = members.iter().filter(|member| member.state() != MemberState::InSync);
    away.fold((0, 0), |(done, total), member| (done + member.rebuilt_bytes, total + member.rebuild_total_bytes))
}

/// Why a replica is not copied to now.
fn what_waits(members: &[&Member]) -> String {
    let away = members.iter().find(|member| member.state() == MemberState::OutOfSync);
    let copied =
        members.iter().find_map(|member| member.rebuild.as_ref().filter(|rebuild| !rebuild.waiting.is_empty()));
    match (away, copied) {
        (Some(member), _) => format!("{} is out of sync: {}", member.node, member.reason),
        (None, Some(rebuild)) => waiting(rebuild),
        (None, None) => String::new(),
    }
}

async fn wait_until_left(client: &Client, volume: &str, node: &str) -> anyhow::Result<Volume> {
    loop {
        let found = get(client, volume).await?;
        if !found.replicas.iter().any(|replica| replica.node == node) {
            return Ok(found);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn rebuild_request(command: &RebuildCommand) -> SetRebuildRequest {
    let (volume, paused, rate) = match command {
        RebuildCommand::Pause { volume } => (volume, Some(true), None),
        RebuildCommand::Resume { volume } => (volume, Some(false), None),
        RebuildCommand::Limit { volume, rate } => (volume, None, Some(rate.0)),
    };
    SetRebuildRequest { volume: volume.clone(), paused, bytes_per_second: rate }
}

fn limits_request(options: &LimitVolume) -> SetLimitsRequest {
    let none = options.unlimited.then_some(0);
    SetLimitsRequest {
        volume: options.volume.clone(),
        iops: options.iops.or(none),
        bytes_per_second: options.bytes_per_second.map(|size| size.0).or(none),
        burst_ms: options.burst_ms.or(none),
    }
}

async fn delete(client: &Client, volume: &str, uuid: Option<&str>, output: Output) -> anyhow::Result<()> {
    let request = DeleteVolumeRequest { volume: volume.to_owned(), expected_uuid: uuid.unwrap_or_default().to_owned() };
    let deleted = answer(client.volumes().delete(request).await)?;
    output.print(&deleted, |deleted, _| match deleted.pending_nodes.join(", ") {
        none if none.is_empty() => format!("volume {volume} is deleted\n"),
        nodes => format!(
            "volume {volume} is deleted\nNot reachable now: {nodes}. The replicas there are deleted when they are back.\n"
        ),
    })
}

async fn recover(client: &Client, volume: &str, node: &str, force: bool, output: Output) -> anyhow::Result<()> {
    let request = |force| RecoverVolumeRequest { volume: volume.to_owned(), node: node.to_owned(), force };
    if output.is_data() {
        return output.print(&answer(client.volumes().recover(request(force)).await)?, |_, _| String::new());
    }
    // What may be lost is said before anything is done.
    println!("{}", answer(client.volumes().recover(request(false)).await)?.consequence);
    if !force {
        println!("Nothing was changed. Send it again with --force to go on all the same.");
        return Ok(());
    }
    answer(client.volumes().recover(request(true)).await)?;
    println!("The volume goes on with the replica on node {node}.");
    Ok(())
}

fn show(volume: &Volume, output: Output) -> anyhow::Result<()> {
    output.print(volume, render)
}

fn render_list(volumes: &[Volume], width: Width) -> String {
    if volumes.is_empty() {
        return "There are no volumes. Make one with `ashlar volume create NAME --size 1GiB`.\n".to_owned();
    }
    let columns = [
        Name("NAME"),
        Fixed("SIZE"),
        Fixed("STATE"),
        Fixed("IN SYNC"),
        Fixed("EPOCH"),
        Wide("FRONTENDS"),
        Wide("NODES"),
        Wide("UUID"),
    ];
    let mut table = Table::new(&columns);
    for volume in volumes {
        table.row(vec![
            volume.name.clone(),
            Size(volume.size_bytes).to_string(),
            state(volume),
            in_sync(volume),
            volume.engine.as_ref().map_or("-".to_owned(), |engine| engine.epoch.to_string()),
            frontends(volume),
            volume.replicas.iter().map(|replica| replica.node.as_str()).collect::<Vec<_>>().join(","),
            volume.uuid.clone(),
        ]);
    }
    table.render(width)
}

fn frontends(volume: &Volume) -> String {
    let engine = volume.engine.as_ref();
    let nvmf = engine.and_then(|engine| engine.nvmf.as_ref()).map(|_| "nvmf");
    let iscsi = engine.and_then(|engine| engine.iscsi.as_ref()).map(|_| "iscsi");
    match nvmf.into_iter().chain(iscsi).collect::<Vec<_>>().join(",") {
        none if none.is_empty() => "-".to_owned(),
        some => some,
    }
}

/// How the volume's engine is, or that it has none yet.
fn state(volume: &Volume) -> String {
    match (volume.state(), &volume.engine) {
        (VolumeState::Created, Some(engine)) => engine.state().to_string(),
        (state, _) => state.to_string(),
    }
}

fn in_sync(volume: &Volume) -> String {
    let members = volume.engine.as_ref().map_or(&[][..], |engine| &engine.members);
    let good = members.iter().filter(|member| member.state() == MemberState::InSync).count();
    format!("{good}/{}", volume.replicas.len())
}

fn render(volume: &Volume, width: Width) -> String {
    let mut text = format!(
        "volume   {} ({}, blocks of {} bytes)\nuuid     {}\nstate    {}\n",
        volume.name,
        Size(volume.size_bytes),
        volume.block_size_bytes,
        volume.uuid,
        state(volume),
    );
    if !volume.reason.is_empty() {
        push(&mut text, format_args!("reason   {}\n", volume.reason));
    }
    if let Some(source) = &volume.source {
        push(&mut text, format_args!("source   snapshot {} of volume {}\n", source.snapshot, source.volume));
    }
    if let Some(engine) = &volume.engine {
        push_engine(&mut text, engine, width);
        // Of these the reason says when hosts may have them.
        if !matches!(volume.state(), VolumeState::Standby | VolumeState::Restoring) {
            export::push_frontends(&mut text, engine);
        }
    }
    text
}

fn push_engine(text: &mut String, engine: &Engine, width: Width) {
    if !engine.reason.is_empty() && engine.state() != EngineState::Healthy {
        push(text, format_args!("reason   {}\n", engine.reason));
    }
    push(text, format_args!("epoch    {}\n", engine.epoch));
    if let Some(settings) = engine.rebuild.filter(|settings| *settings != RebuildSettings::default()) {
        push(text, format_args!("rebuild  {}\n", rebuild_settings(settings)));
    }
    if let Some(limits) = engine.limits.filter(|limits| *limits != VolumeLimits::default()) {
        push(text, format_args!("limits   {}\n", limits_of(limits)));
    }
    let mut table = Table::new(&[Name("REPLICA ON"), Fixed("STATE"), Name("ADDRESS"), End("NOTE")]);
    for member in &engine.members {
        let state = member.state().to_string();
        table.row(vec![member.node.clone(), state, member.address.clone(), note(member)]);
    }
    push(text, format_args!("\n{}", table.render(width)));
    engine.members.iter().filter_map(details).for_each(|line| text.push_str(&line));
}

fn limits_of(limits: VolumeLimits) -> String {
    let iops = (limits.iops > 0).then(|| format!("{} IOPS", limits.iops));
    let bytes = (limits.bytes_per_second > 0).then(|| format!("{}/s", Size(limits.bytes_per_second)));
    let burst = (limits.burst_ms > 0).then(|| format!("burst of {} ms", limits.burst_ms));
    iops.into_iter().chain(bytes).chain(burst).collect::<Vec<_>>().join(", ")
}

fn note(member: &Member) -> String {
    match member.state() {
        MemberState::InSync => damage(member),
        MemberState::Rebuilding | MemberState::Settling if member.rebuild_total_bytes > 0 => rebuild_note(member),
        _ => member.reason.clone(),
    }
}

/// How far a copy is, and how long it may take: short, for the table.
fn rebuild_note(member: &Member) -> String {
    let percent = member.rebuilt_bytes as f64 * 100.0 / member.rebuild_total_bytes as f64;
    let mut text = format!("{percent:.0} %");
    let Some(rebuild) = &member.rebuild else { return text };
    if !rebuild.waiting.is_empty() {
        text.push_str(", waits");
    } else if rebuild.bytes_per_second > 0 {
        push(&mut text, format_args!(", {}/s", Size(rebuild.bytes_per_second)));
    }
    if let Some(remaining) = rebuild.remaining_ms {
        push(&mut text, format_args!(", {} left", duration(remaining)));
    }
    text
}

/// Why a replica is away, or its copy does not go on, and what becomes of it next: in full, which no table has room for.
fn details(member: &Member) -> Option<String> {
    let mut parts = Vec::new();
    if !member.reason.is_empty() {
        parts.push(member.reason.clone());
    }
    if member.departures > 1 {
        parts.push(format!("left {} times", member.departures));
    }
    match (&member.rebuild, member.next_try_ms) {
        (Some(rebuild), _) if !rebuild.waiting.is_empty() => parts.push(format!("its copy {}", waiting(rebuild))),
        (_, Some(next)) => parts.push(format!("next try in {}", duration(next))),
        (_, None) => {}
    }
    let told = member.state() != MemberState::InSync && !parts.is_empty();
    told.then(|| format!("replica on {}: {}\n", member.node, parts.join("; ")))
}

fn waiting(rebuild: &RebuildProgress) -> String {
    match rebuild.waiting.as_str() {
        "paused" => "is paused".to_owned(),
        waiting => waiting.to_owned(),
    }
}

fn rebuild_settings(settings: RebuildSettings) -> String {
    let paused = if settings.paused { "paused" } else { "not paused" };
    match settings.bytes_per_second {
        0 => paused.to_owned(),
        rate => format!("{paused}, at most {}/s", Size(rate)),
    }
}

/// What a replica in sync has lost and got back.
fn damage(member: &Member) -> String {
    match (member.repaired, member.unrepaired) {
        (0, 0) => "-".to_owned(),
        (repaired, 0) => format!("{repaired} damaged places mended"),
        (0, unrepaired) => format!("{unrepaired} damaged places, no good copy"),
        (repaired, unrepaired) => format!("{repaired} damaged places mended, {unrepaired} more have no good copy"),
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{NvmfExport, ReplicaPlacement};

    fn volume() -> Volume {
        let member = |node: &str, state: MemberState, reason: &str| Member {
            node: node.into(),
            address: format!("10.0.0.1{}:9600", node.len()),
            state: state.into(),
            reason: reason.into(),
            rebuilt_bytes: 256 << 20,
            rebuild_total_bytes: 1 << 30,
            rebuild: Some(RebuildProgress {
                bytes_per_second: 64 << 20,
                remaining_ms: Some(199_001),
                ..RebuildProgress::default()
            }),
            ..Member::default()
        };
        let members = vec![
            member("a", MemberState::InSync, ""),
            member("b", MemberState::Rebuilding, ""),
            member("c", MemberState::OutOfSync, "connection refused"),
        ];
        let nvmf = NvmfExport {
            nqn: "nqn.2026-11.example:v".into(),
            addresses: vec!["127.0.0.1:4420".into()],
            discovery_addresses: vec!["[::1]:8009".into()],
            ..NvmfExport::default()
        };
        let engine = Engine {
            state: EngineState::Degraded.into(),
            reason: "2 of 3 replicas are not in sync".into(),
            epoch: 7,
            members,
            nvmf: Some(nvmf),
            rebuild: Some(RebuildSettings { paused: false, bytes_per_second: 64 << 20 }),
            ..Engine::default()
        };
        Volume {
            uuid: "00000000-0000-0000-0000-000000000001".into(),
            name: "v".into(),
            size_bytes: 1 << 30,
            block_size_bytes: 4096,
            state: VolumeState::Created.into(),
            replicas: vec![ReplicaPlacement::default(); 3],
            engine: Some(engine),
            ..Volume::default()
        }
    }

    #[test]
    fn a_volume_shows_its_replicas_and_how_to_attach() {
        let expected = "\
volume   v (1 GiB, blocks of 4096 bytes)
uuid     00000000-0000-0000-0000-000000000001
state    degraded
reason   2 of 3 replicas are not in sync
epoch    7
rebuild  not paused, at most 64 MiB/s

REPLICA ON  STATE        ADDRESS         NOTE
a           in sync      10.0.0.11:9600  -
b           rebuilding   10.0.0.11:9600  25 %, 64 MiB/s, 3 min 20 s left
c           out of sync  10.0.0.11:9600  connection refused
replica on c: connection refused

nqn      nqn.2026-11.example:v

Attach it to a Linux host:
  nvme discover -t tcp -a ::1 -s 8009
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.example:v
";
        assert_eq!(render(&volume(), Width::Narrow), expected);
    }

    #[test]
    fn a_standby_says_when_hosts_may_have_it_and_not_how() {
        let reason = "it follows backups: activate the standby to use it";
        let standby = Volume { state: VolumeState::Standby.into(), reason: reason.to_owned(), ..volume() };
        let text = render(&standby, Width::Narrow);
        assert!(text.contains(reason) && !text.contains("export") && !text.contains("nvme connect"), "{text}");
    }

    #[test]
    fn a_replica_in_sync_says_what_was_mended_and_what_could_not_be() {
        let member = |repaired, unrepaired| {
            note(&Member { state: MemberState::InSync.into(), repaired, unrepaired, ..Member::default() })
        };
        assert_eq!(member(0, 0), "-");
        assert_eq!(member(3, 0), "3 damaged places mended");
        assert_eq!(member(0, 2), "2 damaged places, no good copy");
        assert_eq!(member(3, 2), "3 damaged places mended, 2 more have no good copy");
    }

    #[test]
    fn a_rebuild_that_waits_says_why() {
        let mut volume = volume();
        let engine = volume.engine.as_mut().expect("it has one");
        engine.rebuild = Some(RebuildSettings { paused: true, bytes_per_second: 0 });
        let waiting = Some(RebuildProgress { waiting: "paused".into(), ..RebuildProgress::default() });
        engine.members[1].rebuild = waiting.clone();
        engine.members[2].rebuild = waiting;
        let text = render(&volume, Width::Narrow);
        assert!(text.contains("rebuild  paused\n"), "{text}");
        assert!(text.contains("  25 %, waits\n"), "{text}");
        assert!(text.contains("replica on b: its copy is paused\n"), "{text}");
        assert!(text.contains("replica on c: connection refused; its copy is paused\n"), "{text}");
    }

    #[test]
    fn limits_are_shown_where_there_are_some() {
        let mut volume = volume();
        assert!(!render(&volume, Width::Narrow).contains("limits"));
        let engine = volume.engine.as_mut().expect("it has one");
        engine.limits = Some(VolumeLimits { iops: 1000, bytes_per_second: 50 << 20, burst_ms: 2000 });
        let text = render(&volume, Width::Narrow);
        assert!(text.contains("limits   1000 IOPS, 50 MiB/s, burst of 2000 ms\n"), "{text}");
    }

    #[test]
    fn a_replica_that_comes_and_goes_shows_when_it_is_tried_again() {
        let away = Member { node: "c".into(), reason: "no answer".into(), departures: 1, ..Member::default() };
        assert_eq!(details(&away).as_deref(), Some("replica on c: no answer\n"));
        let away = Member { departures: 3, next_try_ms: Some(1_500), ..away };
        assert_eq!(details(&away).as_deref(), Some("replica on c: no answer; left 3 times; next try in 2 s\n"));
        let here = Member { state: MemberState::InSync.into(), ..away };
        assert_eq!(details(&here), None);
    }

    #[test]
    fn the_list_counts_replicas_in_sync() {
        let expected = "NAME  SIZE   STATE     IN SYNC  EPOCH\nv     1 GiB  degraded  1/3      7\n";
        assert_eq!(render_list(&[volume()], Width::Narrow), expected);
        let long = Volume { name: "v".repeat(63), size_bytes: (1 << 40) - 1, ..volume() };
        let text = render_list(&[long], Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let wide = render_list(&[volume()], Width::Full);
        assert!(wide.contains("nvmf") && wide.contains(&volume().uuid), "{wide}");
    }

    #[test]
    fn the_table_of_replicas_fits_a_terminal_whatever_the_names() {
        let mut volume = volume();
        let engine = volume.engine.as_mut().expect("it has one");
        for member in &mut engine.members {
            member.node = "n".repeat(63);
            member.address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:9600".into();
            member.reason = "why ".repeat(50);
        }
        let text = render(&volume, Width::Narrow);
        let (_, table) = text.split_once("REPLICA ON").expect("a table");
        assert!(table.lines().take(4).all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_wait_says_how_far_all_copies_are_and_who_is_away() {
        let engine = volume().engine.expect("it has one");
        let members: Vec<_> = engine.members.iter().collect();
        assert_eq!(rebuilt(&members[..2]), (256 << 20, 1 << 30));
        assert_eq!(what_waits(&members), "c is out of sync: connection refused");
        assert_eq!(what_waits(&members[..2]), "");
    }
}
