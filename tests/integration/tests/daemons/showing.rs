//! Frontends that cannot be shown to hosts just then: why is told, and it is tried again with nobody asking for it.

use std::net::SocketAddr;

use cli::client::answer;
use integration::{Host, House, INITIATOR, Initiator, MIB, export_of, login_options, said, target_of};
use iscsi_target_protocol::initiator::login::Options;
use iscsi_target_protocol::wire::LoginStatus;
use proto::v1::{Engine, EngineState, ExportVolumeRequest, Frontend, UnexportVolumeRequest};

use crate::deletion::failpoints::Failpoints;
use crate::iscsi::{CONFLICT, reserve, write_at_once};

/// A daemon whose steps can be made to fail, with a volume `v` that is exported over NVMe/TCP.
async fn open() -> anyhow::Result<(House, Failpoints)> {
    let mut house = House::prepare(&["a"])?;
    let failpoints = Failpoints::of(&mut house, 0);
    house.cluster.start().await?;
    house.create_store(0, "main", 256 * MIB).await?;
    house.create_volume("v", 16 * MIB, &[]).await?;
    Ok((house, failpoints))
}

/// Shows it over iSCSI too. Returns how to log in.
async fn export_over_iscsi(house: &House) -> anyhow::Result<Options> {
    let frontend = Frontend::Iscsi.into();
    let request = ExportVolumeRequest { volume: "v".to_owned(), frontend, ..ExportVolumeRequest::default() };
    let volume = answer(house.client(0).await?.volumes().export(request).await)?;
    login_options(&target_of(&volume)?.iqn, INITIATOR)
}

fn doors(house: &House) -> (SocketAddr, SocketAddr) {
    let addresses = house.cluster.nodes()[0].addresses();
    (addresses.nvmf, addresses.portals[0])
}

fn in_trouble(engine: &Engine, frontend: &str) -> bool {
    engine.frontends_reason.starts_with(&format!("{frontend}: ")) && engine.frontends_reason.contains("a test asked")
}

#[tokio::test]
async fn a_target_that_cannot_be_shown_at_a_start_comes_by_itself_with_what_is_reserved() -> anyhow::Result<()> {
    let (mut house, failpoints) = open().await?;
    let options = export_over_iscsi(&house).await?;
    let ((nvmf, portal), host) = (doors(&house), Host::new()?);
    let nqn = export_of(&house.volume("v").await?)?.nqn.clone();

    // Nothing is reserved: hosts of the other frontend have the volume all the while.
    house.cluster.node(0).kill()?;
    failpoints.fail_only("a target is shown")?;
    house.cluster.node(0).start().await?;
    house.wait_for_engine("v", |engine| engine.state() == EngineState::Healthy && in_trouble(engine, "iscsi")).await?;
    let shown = said(&house.ashlar(0, &["volume", "show", "v"])?);
    assert!(shown.contains("tried again: iscsi: a target is shown failed"), "{shown}");
    host.write(nvmf, &nqn, 0, 1, 4096).await?;
    let refused = Initiator::login(portal, &options)?.err();
    assert_eq!(refused, Some(LoginStatus::Unavailable), "it shall come again");
    failpoints.disarm()?;
    let mut holder = Initiator::attach(portal, &options)?;
    assert_eq!(reserve(&mut holder, 0, 0, 0, 7)?, 0, "register");
    assert_eq!(reserve(&mut holder, 1, 1, 7, 0)?, 0, "reserve: write exclusive");
    drop(holder);

    // Something is (I38).
    house.cluster.node(0).kill()?;
    failpoints.fail_only("a target is shown")?;
    house.cluster.node(0).start().await?;
    house.wait_for_engine("v", |engine| engine.state() == EngineState::Healthy && in_trouble(engine, "iscsi")).await?;
    let refused = write_at_once(&host, nvmf, &nqn).await.expect_err("the path is inaccessible");
    assert!(refused.to_string().to_lowercase().contains("inaccessible"), "{refused:#}");
    failpoints.disarm()?;
    house.wait_for_engine("v", |engine| engine.frontends_reason.is_empty()).await?;
    let mut other = options.clone();
    other.isid[5] = 2;
    assert_eq!(Initiator::attach(portal, &other)?.write(0, &[1; 4096])?.status, CONFLICT, "it is reserved");
    Initiator::attach(portal, &options)?.write(0, &[1; 4096])?.good()?;
    let refused = write_at_once(&host, nvmf, &nqn).await.expect_err("the path is inaccessible");
    assert!(refused.to_string().to_lowercase().contains("inaccessible"), "{refused:#}");
    Ok(())
}

#[tokio::test]
async fn a_volume_that_cannot_be_exported_at_a_start_comes_by_itself() -> anyhow::Result<()> {
    let (mut house, failpoints) = open().await?;
    let options = export_over_iscsi(&house).await?;
    let ((nvmf, portal), host) = (doors(&house), Host::new()?);
    let nqn = export_of(&house.volume("v").await?)?.nqn.clone();
    house.cluster.node(0).kill()?;
    // The message to the reactor, so that there is nothing on it.
    failpoints.fail_only("data::engines::export")?;
    house.cluster.node(0).start().await?;
    let is_told = |engine: &Engine| engine.state() == EngineState::Starting && engine.reason.contains("a test asked");
    house.wait_for_engine("v", is_told).await?;
    let refused = Initiator::login(portal, &options)?.err();
    assert_eq!(refused, Some(LoginStatus::Unavailable), "it shall come again");
    failpoints.disarm()?;
    house.wait_until_healthy("v").await?;
    host.write(nvmf, &nqn, 0, 1, 4096).await?;
    Initiator::attach(portal, &options)?.read(0, 1)?.good()?;
    let strange = login_options("iqn.2026-01.org.example:nothing", INITIATOR)?;
    assert_eq!(Initiator::login(portal, &strange)?.err(), Some(LoginStatus::NotFound), "nothing is to come any more");
    Ok(())
}

#[tokio::test]
async fn what_an_export_or_its_end_could_not_do_is_done_by_itself() -> anyhow::Result<()> {
    let (house, failpoints) = open().await?;
    let (nvmf, portal) = doors(&house);
    failpoints.fail_only("a target is shown")?;
    let refused = export_over_iscsi(&house).await.expect_err("the target cannot be shown");
    assert!(refused.to_string().contains("a test asked"), "{refused:#}");
    let volume = house.wait_for_engine("v", |engine| in_trouble(engine, "iscsi")).await?;
    // On record it is exported.
    let options = login_options(&target_of(&volume)?.iqn, INITIATOR)?;
    failpoints.disarm()?;
    Initiator::attach(portal, &options)?.read(0, 1)?.good()?;
    house.wait_for_engine("v", |engine| engine.frontends_reason.is_empty()).await?;

    let nqn = export_of(&volume)?.nqn.clone();
    failpoints.fail_only("a subsystem ends")?;
    let request = UnexportVolumeRequest { volume: "v".to_owned(), frontend: Frontend::Nvmf.into() };
    answer(house.client(0).await?.volumes().unexport(request).await).expect_err("the subsystem cannot be ended");
    house.wait_for_engine("v", |engine| in_trouble(engine, "nvmf") && engine.nvmf.is_none()).await?;
    failpoints.disarm()?;
    house.wait_for_engine("v", |engine| engine.frontends_reason.is_empty()).await?;
    write_at_once(&Host::new()?, nvmf, &nqn).await.expect_err("it is not exported any more");

    // Nobody tries for a volume that is gone.
    failpoints.fail_only("a target is shown")?;
    house.ashlar(0, &["volume", "unexport", "v"])?;
    export_over_iscsi(&house).await.expect_err("the target cannot be shown");
    assert!(house.ashlar(0, &["volume", "delete", "v"])?.status.success());
    let count = failpoints.disarm()?.len();
    assert!(count > 0, "steps were passed");
    let refused = Initiator::login(portal, &options)?.err();
    assert_eq!(refused, Some(LoginStatus::NotFound), "nothing is to come any more");
    Ok(())
}
