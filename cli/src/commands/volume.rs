//! `ashlar volume`.

use std::fmt::Write;

use proto::v1::{
    AddReplicaRequest, CloneVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, Engine, EngineState,
    GetVolumeRequest, GrowVolumeRequest, Member, MemberState, RebuildProgress, RebuildSettings, RecoverVolumeRequest,
    RemoveReplicaRequest, ReplaceReplicaRequest, RevertVolumeRequest, SetRebuildRequest, StartVolumeRequest, Volume,
    VolumeState,
};

use super::{export, snapshot};
use crate::arguments::{CreateVolume, Output, RebuildCommand, VolumeCommand};
use crate::client::{Client, answer};
use crate::output::{Table, print_json};
use crate::size::Size;

pub(super) async fn run(client: &Client, command: &VolumeCommand, output: Output) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Create(options) => create(client, options, output).await,
        VolumeCommand::List => {
            let volumes = client.list_volumes().await?;
            if output == Output::Json {
                return print_json(&volumes);
            }
            print!("{}", render_list(&volumes));
            Ok(())
        }
        VolumeCommand::Show { volume } => {
            let volume = answer(client.volumes().get(GetVolumeRequest { volume: volume.clone() }).await)?;
            show(&volume, output)
        }
        VolumeCommand::Start { volume } => {
            let request = StartVolumeRequest { volume: volume.clone() };
            show(&answer(client.volumes().start(request).await)?, output)
        }
        VolumeCommand::Snapshot { volume, name, uuid } => {
            snapshot::create(client, volume, name.as_deref(), uuid.as_deref(), output).await
        }
        VolumeCommand::Clone { volume, snapshot, name, size, replicas, uuid } => {
            let request = CloneVolumeRequest {
                volume: volume.clone(),
                snapshot: snapshot.clone(),
                name: name.clone(),
                size_bytes: size.map_or(0, |size| size.0),
                nodes: replicas.clone(),
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
        VolumeCommand::AddReplica { volume, node } => {
            let request = AddReplicaRequest { volume: volume.clone(), node: node.clone() };
            show(&answer(client.volumes().add_replica(request).await)?, output)
        }
        VolumeCommand::RemoveReplica { volume, node } => {
            let request = RemoveReplicaRequest { volume: volume.clone(), node: node.clone(), ..Default::default() };
            show(&answer(client.volumes().remove_replica(request).await)?, output)
        }
        VolumeCommand::ReplaceReplica { volume, node, by } => {
            let (volume, node, by_node) = (volume.clone(), node.clone(), by.clone());
            let request = ReplaceReplicaRequest { volume, node, by_node };
            show(&answer(client.volumes().replace_replica(request).await)?, output)
        }
        VolumeCommand::Rebuild(command) => {
            show(&answer(client.volumes().set_rebuild(rebuild_request(command)).await)?, output)
        }
        VolumeCommand::Export(options) => show(&export::export(client, options).await?, output),
        VolumeCommand::Unexport { volume, frontend } => {
            show(&export::unexport(client, volume, *frontend).await?, output)
        }
        VolumeCommand::AttachCommand { volume, frontend } => {
            export::attach_command(client, volume, *frontend, output).await
        }
        VolumeCommand::Recover { volume, node, force } => recover(client, volume, node, *force, output).await,
        VolumeCommand::Delete { volume, uuid } => delete(client, volume, uuid.as_deref(), output).await,
    }
}

async fn create(client: &Client, options: &CreateVolume, output: Output) -> anyhow::Result<()> {
    let request = CreateVolumeRequest {
        name: options.name.clone(),
        size_bytes: options.size.0,
        block_size_bytes: options.block_size,
        nodes: options.replicas.clone(),
        replica_count: if options.replicas.is_empty() { options.replica_count } else { 0 },
        store: options.store.clone().unwrap_or_default(),
        uuid: options.uuid.clone().unwrap_or_default(),
    };
    let volume = answer(client.volumes().create(request).await)?;
    show(&volume, output)
}

fn rebuild_request(command: &RebuildCommand) -> SetRebuildRequest {
    let (volume, paused, rate) = match command {
        RebuildCommand::Pause { volume } => (volume, Some(true), None),
        RebuildCommand::Resume { volume } => (volume, Some(false), None),
        RebuildCommand::Limit { volume, rate } => (volume, None, Some(rate.0)),
    };
    SetRebuildRequest { volume: volume.clone(), paused, bytes_per_second: rate }
}

async fn delete(client: &Client, volume: &str, uuid: Option<&str>, output: Output) -> anyhow::Result<()> {
    let request = DeleteVolumeRequest { volume: volume.to_owned(), expected_uuid: uuid.unwrap_or_default().to_owned() };
    let pending = answer(client.volumes().delete(request).await)?.pending_nodes;
    if output == Output::Json {
        return print_json(&serde_json::json!({ "pending_nodes": pending }));
    }
    println!("volume {volume} is deleted");
    if !pending.is_empty() {
        println!("Not reachable now: {}. The replicas there are deleted when they are back.", pending.join(", "));
    }
    Ok(())
}

async fn recover(client: &Client, volume: &str, node: &str, force: bool, output: Output) -> anyhow::Result<()> {
    let request = |force| RecoverVolumeRequest { volume: volume.to_owned(), node: node.to_owned(), force };
    if output == Output::Json {
        return print_json(&answer(client.volumes().recover(request(force)).await)?);
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
    if output == Output::Json {
        return print_json(volume);
    }
    print!("{}", render(volume));
    Ok(())
}

fn render_list(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "There are no volumes. Make one with `ashlar volume create NAME --size 1GiB`.\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "SIZE", "STATE", "IN SYNC", "EPOCH"]);
    for volume in volumes {
        table.row(vec![
            volume.name.clone(),
            Size(volume.size_bytes).to_string(),
            state(volume),
            in_sync(volume),
            volume.engine.as_ref().map_or("-".to_owned(), |engine| engine.epoch.to_string()),
        ]);
    }
    table.render()
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

fn render(volume: &Volume) -> String {
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
        push_engine(&mut text, engine);
    }
    text
}

fn push_engine(text: &mut String, engine: &Engine) {
    if !engine.reason.is_empty() && engine.state() != EngineState::Healthy {
        push(text, format_args!("reason   {}\n", engine.reason));
    }
    push(text, format_args!("epoch    {}\n", engine.epoch));
    if let Some(settings) = engine.rebuild.filter(|settings| *settings != RebuildSettings::default()) {
        push(text, format_args!("rebuild  {}\n", rebuild_settings(settings)));
    }
    let mut table = Table::new(&["REPLICA ON", "STATE", "ADDRESS", "NOTE"]);
    for member in &engine.members {
        let state = member.state().to_string();
        table.row(vec![member.node.clone(), state, member.address.clone(), note(member)]);
    }
    push(text, format_args!("\n{}", table.render()));
    engine.members.iter().filter_map(details).for_each(|line| text.push_str(&line));
    export::push_frontends(text, engine);
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

/// `2 h 05 min`, `3 min 20 s`, `12 s`.
fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds.div_ceil(1000);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
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
        assert_eq!(render(&volume()), expected);
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
        let text = render(&volume);
        assert!(text.contains("rebuild  paused\n"), "{text}");
        assert!(text.contains("  25 %, waits\n"), "{text}");
        assert!(text.contains("replica on b: its copy is paused\n"), "{text}");
        assert!(text.contains("replica on c: connection refused; its copy is paused\n"), "{text}");
        assert_eq!([duration(1), duration(7_500_000)], ["1 s", "2 h 05 min"]);
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
        assert_eq!(render_list(&[volume()]), expected);
    }
}
