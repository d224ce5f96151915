//! Volumes as iSCSI targets: who gets in, what stays the same, and what one frontend means to the other.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use cli::client::answer;
use integration::{
    Host, House, INITIATOR, Initiator, MIB, export_of, login_options, said, target_of, unversioned, write_secret,
};
use iscsi_target_protocol::chap::{Algorithm, Credentials, Secret};
use iscsi_target_protocol::initiator::connection::Data;
use iscsi_target_protocol::initiator::login::{Chap, Options};
use iscsi_target_protocol::wire::LoginStatus;
use proto::v1::{
    ExportVolumeRequest, Frontend, GrowVolumeRequest, SnapshotVolumeRequest, UnexportVolumeRequest, Volume,
};

const SIZE: u64 = 64 * MIB;
pub(crate) const CONFLICT: u8 = 0x18;
const INITIATOR_SECRET: &str = "what only hosts know";
const TARGET_SECRET: &str = "what only volumes know";

/// A daemon with a volume `v` that is exported over iSCSI too.
async fn open() -> anyhow::Result<(House, SocketAddr, Options)> {
    let house = House::open(&["a"], 512 * MIB).await?;
    house.create_volume("v", SIZE, &[]).await?;
    let volume = export(&house, Frontend::Iscsi).await?;
    let portals = house.cluster.nodes()[0].addresses().portals;
    assert_eq!(target_of(&volume)?.portals, portals.map(|portal| portal.to_string()));
    let options = login_options(&target_of(&volume)?.iqn, INITIATOR)?;
    Ok((house, portals[0], options))
}

async fn export(house: &House, frontend: Frontend) -> anyhow::Result<Volume> {
    let request =
        ExportVolumeRequest { volume: "v".into(), frontend: frontend.into(), ..ExportVolumeRequest::default() };
    answer(house.client(0).await?.volumes().export(request).await)
}

async fn unexport(house: &House, frontend: Frontend) -> anyhow::Result<Volume> {
    let request = UnexportVolumeRequest { volume: "v".into(), frontend: frontend.into() };
    answer(house.client(0).await?.volumes().unexport(request).await)
}

/// Runs `ashlar volume export v --frontend iscsi …`.
fn export_with(house: &House, rest: &[&str]) -> anyhow::Result<(bool, String)> {
    let output = house.ashlar(0, &[&["volume", "export", "v", "--frontend", "iscsi"], rest].concat())?;
    Ok((output.status.success(), said(&output)))
}

fn refusal(portal: SocketAddr, options: &Options) -> anyhow::Result<Option<LoginStatus>> {
    Ok(Initiator::login(portal, options)?.err())
}

fn proving(options: &Options, initiator: &str, target: Option<&str>) -> anyhow::Result<Options> {
    let credentials = |name: &str, secret: &str| {
        let secret = Secret::new(secret.as_bytes()).map_err(|weak| anyhow::anyhow!("{weak}"))?;
        anyhow::Ok(Credentials { name: name.to_owned(), secret })
    };
    let chap = Chap {
        initiator: credentials("host", initiator)?,
        target: target.map(|secret| credentials("volumes", secret)).transpose()?,
        algorithms: Algorithm::ALL.to_vec(),
    };
    Ok(Options { chap: Some(Arc::new(chap)), ..options.clone() })
}

#[tokio::test]
async fn a_target_comes_back_from_a_kill_with_its_names_credentials_and_data() -> anyhow::Result<()> {
    // I37
    let (mut house, portal, options) = open().await?;
    let secret = house.folder().join("initiator-secret");
    let mutual = house.folder().join("target-secret");
    write_secret(&secret, &format!("{INITIATOR_SECRET}\n"))?;
    write_secret(&mutual, TARGET_SECRET)?;
    let (secret, mutual) = (secret.display().to_string(), mutual.display().to_string());
    let chap = ["--chap-user", "host", "--chap-secret-file", &secret];
    let (good, text) =
        export_with(&house, &[&chap[..], &["--mutual-user", "volumes", "--mutual-secret-file", &mutual]].concat())?;
    assert!(good && text.contains("chap     host, mutual: volumes (sha3-256 sha256 sha1 md5)"), "{text}");
    let good = proving(&options, INITIATOR_SECRET, Some(TARGET_SECRET))?;
    let mut initiator = Initiator::attach(portal, &good)?;
    initiator.write(7, &[0x5a; 4096])?.good()?;
    let identity = [initiator.page(0x80)?, initiator.page(0x83)?];
    let before = house.volume("v").await?;

    for kills in 0..2 {
        assert_eq!(refusal(portal, &options)?, Some(LoginStatus::AuthenticationFailure), "without proof");
        let wrong = proving(&options, "what only strangers know", None)?;
        assert_eq!(refusal(portal, &wrong)?, Some(LoginStatus::AuthenticationFailure), "a wrong secret");
        let deceived = proving(&options, INITIATOR_SECRET, Some("what no volume knows"))?;
        assert!(Initiator::login(portal, &deceived).is_err(), "a target that does not know the secret");
        if kills == 0 {
            house.cluster.node(0).kill()?;
            house.cluster.node(0).start().await?;
        }
    }
    let mut initiator = Initiator::attach(portal, &good)?;
    assert_eq!([initiator.page(0x80)?, initiator.page(0x83)?], identity);
    assert_eq!(initiator.read(7, 1)?.good()?, [0x5a; 4096]);
    assert_eq!(target_of(&house.wait_until_healthy("v").await?)?, target_of(&before)?);

    let state = house.cluster.nodes()[0].folder().join("state/engines");
    let record = state.join(format!("{}.json", before.uuid));
    assert_eq!(fs::metadata(&record)?.permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&record)?.contains(INITIATOR_SECRET));
    let shown = said(&house.ashlar(0, &["volume", "show", "v", "-o", "json"])?);
    let log = fs::read_to_string(house.cluster.nodes()[0].log())?;
    for secret in [INITIATOR_SECRET, TARGET_SECRET] {
        assert!(!log.contains(secret) && !shown.contains(secret));
    }
    let (open, text) = export_with(&house, &["--no-chap"])?;
    assert!(open && !text.contains("chap "), "{text}");
    assert_eq!(refusal(portal, &options)?, None);
    Ok(())
}

#[tokio::test]
async fn only_initiators_on_the_list_get_in() -> anyhow::Result<()> {
    let (mut house, portal, options) = open().await?;
    let stranger = "iqn.2026-01.org.example:stranger";
    let strange = login_options(options.target.as_ref().map_or("", |name| name.as_str()), stranger)?;
    let mut early = Initiator::attach(portal, &strange)?;
    let (good, text) = export_with(&house, &["--allow", INITIATOR])?;
    assert!(good && text.contains(&format!("hosts    {INITIATOR}")), "{text}");
    assert!(early.is_ended(), "it may not any more");
    for kills in 0..2 {
        assert_eq!(refusal(portal, &strange)?, Some(LoginStatus::AuthorizationFailure));
        assert_eq!(Initiator::discover(portal, stranger)?, "");
        let name = options.target.as_ref().map_or("", |name| name.as_str());
        let second = house.cluster.nodes()[0].addresses().portals[1];
        let told = format!("TargetName={name}\0TargetAddress={portal},1\0TargetAddress={second},1\0");
        assert_eq!(Initiator::discover(portal, INITIATOR)?, told);
        Initiator::attach(portal, &options)?.read(0, 1)?.good()?;
        if kills == 0 {
            house.cluster.node(0).kill()?;
            house.cluster.node(0).start().await?;
        }
    }
    let (good, text) = export_with(&house, &["--allow-any"])?;
    assert!(good && !text.contains("hosts "), "{text}");
    assert_eq!(refusal(portal, &strange)?, None);
    Ok(())
}

#[tokio::test]
async fn bad_credentials_and_lists_change_nothing() -> anyhow::Result<()> {
    let (house, portal, options) = open().await?;
    let before = house.volume("v").await?;
    let short = house.folder().join("short");
    write_secret(&short, "eleven char\n")?;
    let short = short.display().to_string();
    for (arguments, expected) in [
        (&["--chap-user", "host", "--chap-secret-file", &short][..], "at least 12 bytes"),
        (&["--allow", "host"], "not an iSCSI name"),
        (&["--chap-user", "host", "--chap-secret-file", "/absent"], "/absent"),
    ] {
        let (good, text) = export_with(&house, arguments)?;
        assert!(!good && text.contains(expected), "{arguments:?}: {text}");
        assert!(!text.contains("eleven"), "{text}");
    }
    assert_eq!(unversioned(house.volume("v").await?), unversioned(before));
    assert_eq!(refusal(portal, &options)?, None);
    Ok(())
}

#[tokio::test]
async fn a_volume_goes_from_one_frontend_to_the_other_and_back() -> anyhow::Result<()> {
    let (mut house, portal, options) = open().await?;
    let (host, address) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    let nqn = export_of(&house.volume("v").await?)?.nqn.clone();
    let again = export(&house, Frontend::Iscsi).await?;
    assert_eq!(unversioned(again), unversioned(house.volume("v").await?), "once more changes nothing");
    Initiator::attach(portal, &options)?.write(1, &[1; 4096])?.good()?;
    assert_eq!(host.read(address, &nqn, 4096, 4096).await?, [1; 4096]);

    let volume = unexport(&house, Frontend::Nvmf).await?;
    assert!(volume.engine.as_ref().is_some_and(|engine| engine.nvmf.is_none() && engine.iscsi.is_some()));
    assert_eq!(unversioned(unexport(&house, Frontend::Nvmf).await?), unversioned(volume));
    let commands = said(&house.ashlar(0, &["volume", "attach-command", "v"])?);
    assert!(commands.contains("iscsiadm -m node -T iqn.") && !commands.contains("nvme"), "{commands}");
    let refused = house.ashlar(0, &["volume", "attach-command", "v", "--frontend", "nvmf"])?;
    assert!(!refused.status.success(), "{}", said(&refused));
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let found = nvmf_initiator_finds(&host, address).await?;
    assert!(found.is_empty(), "{found:?}");
    let mut initiator = Initiator::attach(portal, &options)?;
    initiator.write(1, &[2; 4096])?.good()?;

    unexport(&house, Frontend::Unspecified).await?;
    assert!(initiator.is_ended());
    assert_eq!(refusal(portal, &options)?, Some(LoginStatus::NotFound));
    export(&house, Frontend::Nvmf).await?;
    assert_eq!(host.read(address, &nqn, 4096, 4096).await?, [2; 4096]);
    export(&house, Frontend::Iscsi).await?;
    assert_eq!(Initiator::attach(portal, &options)?.read(1, 1)?.good()?, [2; 4096]);
    Ok(())
}

async fn nvmf_initiator_finds(host: &Host, address: SocketAddr) -> anyhow::Result<Vec<String>> {
    host.run(move || async move {
        let entries = nvmf_initiator::discover(address, &nvmf_initiator::Options::default()).await?;
        Ok(entries.into_iter().map(|entry| entry.subsystem_nqn).collect())
    })
    .await
}

#[tokio::test]
async fn an_initiator_is_told_that_its_volume_has_grown() -> anyhow::Result<()> {
    // I39
    let (house, portal, options) = open().await?;
    let mut initiator = Initiator::attach(portal, &options)?;
    assert_eq!(initiator.blocks()?, SIZE / 4096);
    let request = GrowVolumeRequest { volume: "v".into(), size_bytes: 2 * SIZE };
    answer(house.client(0).await?.volumes().grow(request).await)?;
    assert_eq!(initiator.command(&[0], Data::None, &[])?.why()?, (6, 0x2a09), "capacity data has changed");
    assert_eq!(initiator.blocks()?, 2 * SIZE / 4096);
    initiator.write((SIZE / 4096) as u32, &[3; 4096])?.good()?;
    Ok(())
}

pub(crate) fn reserve(initiator: &mut Initiator, action: u8, kind: u8, key: u8, action_key: u8) -> anyhow::Result<u8> {
    let mut list = [0; 24];
    (list[7], list[15]) = (key, action_key);
    // APTPL
    list[20] = 1;
    Ok(initiator.command(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24], Data::Send(24), &list)?.status)
}

#[tokio::test]
async fn a_reservation_outlives_a_kill_and_ends_with_the_export() -> anyhow::Result<()> {
    // I38
    let (mut house, portal, options) = open().await?;
    let mut other = options.clone();
    other.isid[5] = 2;
    let mut holder = Initiator::attach(portal, &options)?;
    assert_eq!(reserve(&mut holder, 0, 0, 0, 7)?, 0, "register");
    assert_eq!(reserve(&mut holder, 1, 3, 7, 0)?, 0, "reserve: exclusive access");
    for kills in 0..2 {
        assert_eq!(Initiator::attach(portal, &other)?.read(0, 1)?.status, CONFLICT);
        holder = Initiator::attach(portal, &options)?;
        holder.write(0, &[1; 4096])?.good()?;
        if kills == 0 {
            house.cluster.node(0).kill()?;
            house.cluster.node(0).start().await?;
        }
    }
    unexport(&house, Frontend::Iscsi).await?;
    export(&house, Frontend::Iscsi).await?;
    Initiator::attach(portal, &other)?.read(0, 1)?.good()?;
    assert_eq!(reserve(&mut Initiator::attach(portal, &options)?, 1, 3, 7, 0)?, CONFLICT, "no longer registered");
    Ok(())
}

#[tokio::test]
async fn a_reservation_keeps_hosts_of_the_other_frontend_out() -> anyhow::Result<()> {
    // I38
    let (mut house, portal, options) = open().await?;
    let (host, address) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    let nqn = export_of(&house.volume("v").await?)?.nqn.clone();
    host.write(address, &nqn, 0, 1, 4096).await?;
    let mut holder = Initiator::attach(portal, &options)?;
    assert_eq!(reserve(&mut holder, 0, 0, 0, 7)?, 0, "register");
    assert_eq!(reserve(&mut holder, 1, 1, 7, 0)?, 0, "reserve: write exclusive");
    for kills in 0..2 {
        let refused = write_at_once(&host, address, &nqn).await.expect_err("the path is inaccessible");
        assert!(refused.to_string().to_lowercase().contains("inaccessible"), "{refused:#}");
        holder = Initiator::attach(portal, &options)?;
        assert_eq!(holder.read(0, 1)?.good()?, [1; 4096]);
        if kills == 0 {
            house.cluster.node(0).kill()?;
            house.cluster.node(0).start().await?;
        }
    }
    assert_eq!(reserve(&mut holder, 2, 1, 7, 0)?, 0, "release");
    host.write(address, &nqn, 0, 2, 4096).await?;
    assert_eq!(holder.read(0, 1)?.good()?, [2; 4096]);
    Ok(())
}

/// Writes as a host that does not try again.
pub(crate) async fn write_at_once(host: &Host, address: SocketAddr, nqn: &str) -> anyhow::Result<()> {
    let nqn = nqn.to_owned();
    host.run(move || async move {
        let options = nvmf_initiator::Options { reconnect: None, ..nvmf_initiator::Options::default() };
        let controller = nvmf_initiator::Controller::connect(address, &nqn, options).await?;
        let written = controller.write(0, reactor::Slice::from(&[2; 4096][..]), false).await;
        controller.disconnect().await;
        Ok(written?)
    })
    .await
}

/// The runs that GET LBA STATUS tells from a block on: the first, how many, and whether they have space.
fn lba_status(initiator: &mut Initiator, block: u64) -> anyhow::Result<Vec<(u64, u32, bool)>> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[12]) = (0x9e, 0x12, 16);
    cdb[2..10].copy_from_slice(&block.to_be_bytes());
    let data = initiator.command(&cdb, Data::Receive(4096), &[])?.good()?;
    let run = |bytes: &[u8]| {
        let (first, count) = (bytes[..8].try_into()?, bytes[8..12].try_into()?);
        anyhow::Ok((u64::from_be_bytes(first), u32::from_be_bytes(count), bytes[12] & 0xf == 0))
    };
    data[8..].chunks_exact(16).map(run).collect()
}

#[tokio::test]
async fn an_initiator_sees_which_blocks_have_space() -> anyhow::Result<()> {
    let (house, portal, options) = open().await?;
    let blocks = (SIZE / 4096) as u32;
    let mut initiator = Initiator::attach(portal, &options)?;
    assert_eq!(lba_status(&mut initiator, 0)?, [(0, blocks, false)]);
    initiator.write(10, &[1; 3 * 4096])?.good()?;
    assert_eq!(lba_status(&mut initiator, 0)?, [(0, 10, false), (10, 3, true), (13, blocks - 13, false)]);
    let request = SnapshotVolumeRequest { volume: "v".into(), ..SnapshotVolumeRequest::default() };
    answer(house.client(0).await?.volumes().snapshot(request).await)?;
    let mut list = [0; 24];
    // One descriptor: block 11.
    (list[1], list[3], list[15], list[19]) = (22, 16, 11, 1);
    initiator.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], Data::Send(24), &list)?.good()?;
    let runs = [(10, 1, true), (11, 1, false), (12, 1, true), (13, blocks - 13, false)];
    assert_eq!(lba_status(&mut initiator, 10)?, runs, "through a snapshot");
    assert_eq!(initiator.read(10, 3)?.good()?, [[1; 4096], [0; 4096], [1; 4096]].concat());
    Ok(())
}

/// The figures of the log page for provisioning, in units of 2048 blocks: available, used.
fn space(initiator: &mut Initiator) -> anyhow::Result<(u32, u32)> {
    let data = initiator.command(&[0x4d, 0, 0x4c, 0, 0, 0, 0, 1, 0], Data::Receive(256), &[])?.good()?;
    let figure = |at: usize| anyhow::Ok(u32::from_be_bytes(data[at..at + 4].try_into()?));
    Ok((figure(8)?, figure(20)?))
}

#[tokio::test]
async fn an_initiator_sees_what_space_there_is() -> anyhow::Result<()> {
    let (_house, portal, options) = open().await?;
    let mut initiator = Initiator::attach(portal, &options)?;
    let (available, used) = space(&mut initiator)?;
    assert!(available > 0, "of 512 MiB");
    // Two units are 16 MiB.
    for part in 0..16 {
        initiator.write(part * 256, &vec![1; 1 << 20])?.good()?;
    }
    let (left, more) = space(&mut initiator)?;
    assert!(
        (2..=3).contains(&(available - left)) && (2..=3).contains(&(more - used)),
        "{available} to {left}, {used} to {more}"
    );
    Ok(())
}
