//! Hosts of NVMe/TCP that may attach, and those that may not. For initiators see `iscsi.rs`.

use anyhow::{Context, ensure};
use integration::{Host, House, MIB, export_of, said};
use nvmf_initiator::{ConnectError, Controller, Options, Status, discover};

const FRIEND: &str = "nqn.2026-01.org.example:friend";
const STRANGER: &str = "nqn.2026-01.org.example:stranger";

fn named(name: &str) -> Options {
    Options { host_nqn: Some(name.to_owned()), ..Options::default() }
}

#[tokio::test]
async fn only_hosts_on_the_list_attach_and_see_the_volume() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    let (addresses, nqn) = (house.cluster.nodes()[0].addresses(), export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let connect = |name: &'static str| {
        let nqn = nqn.clone();
        host.run(move || async move {
            let connected = Controller::connect(addresses.nvmf, &nqn, named(name)).await;
            Ok(connected.map(drop))
        })
    };
    let sees = |name: &'static str| {
        host.run(move || async move { Ok(discover(addresses.discovery, &named(name)).await?.len()) })
    };
    ensure!(connect(STRANGER).await?.is_ok() && sees(STRANGER).await? == 1, "anybody at first");

    let output = house.ashlar(0, &["volume", "export", "v", "--frontend", "nvmf", "--allow", FRIEND])?;
    ensure!(output.status.success(), "{}", said(&output));
    for restarted in [false, true] {
        if restarted {
            house.cluster.node(0).kill()?;
            house.cluster.node(0).start().await?;
            house.wait_until_healthy("v").await?;
        }
        let refused = connect(STRANGER).await?.err().context("a stranger attaches")?;
        ensure!(matches!(refused, ConnectError::Refused { status: Status::ConnectInvalidHost, .. }), "{refused}");
        ensure!(sees(STRANGER).await? == 0 && sees(FRIEND).await? == 1);
        connect(FRIEND).await??;
    }
    let output = house.ashlar(0, &["volume", "export", "v", "--frontend", "nvmf", "--allow-any"])?;
    ensure!(output.status.success(), "{}", said(&output));
    ensure!(connect(STRANGER).await?.is_ok());
    Ok(())
}
