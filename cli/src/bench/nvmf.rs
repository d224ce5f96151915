//! Over NVMe/TCP.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use host_load::Job;
use nvmf_initiator::{Controller, DiscoveryEntry, Options, Reconnect, SubsystemType, discover, load};

use super::{BenchArguments, Measured, drive};

/// Where a target listens unless it is told.
pub(super) const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 4420);

pub(super) async fn measure(arguments: &BenchArguments, address: SocketAddr, job: &Job) -> anyhow::Result<Measured> {
    let options = Options {
        header_digest: arguments.header_digest,
        data_digest: arguments.data_digest,
        reconnect: arguments.reconnect.map(Reconnect::within),
        ..load::options(job)
    };
    let (address, nqn) = match &arguments.target {
        Some(nqn) => (address, nqn.clone()),
        None => only_subsystem(address, &options).await?,
    };
    let controller = Controller::connect(address, &nqn, options)
        .await
        .with_context(|| format!("cannot connect to {nqn} at {address}"))?;
    let (load, check) = drive(&controller, job).await?;
    controller.disconnect().await;
    Ok(Measured { address, target: nqn, load, check })
}

/// The one subsystem of a target that was not named.
async fn only_subsystem(address: SocketAddr, options: &Options) -> anyhow::Result<(SocketAddr, String)> {
    let entries =
        discover(address, options).await.with_context(|| format!("cannot ask {address} for its subsystems"))?;
    choose(address, &entries)
}

fn choose(address: SocketAddr, entries: &[DiscoveryEntry]) -> anyhow::Result<(SocketAddr, String)> {
    let volumes = entries.iter().filter(|entry| entry.subsystem_type == SubsystemType::Nvm);
    let mut names: Vec<_> = volumes.clone().map(|entry| entry.subsystem_nqn.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    match names[..] {
        [] => bail!("{address} has no subsystem"),
        [name] => {
            // At the address that was asked, if it is there too.
            let mut addresses = volumes.map(|entry| entry.address);
            let first = addresses.clone().next().unwrap_or(address);
            let chosen = addresses.find(|found| *found == address).unwrap_or(first);
            Ok((chosen, name.to_owned()))
        }
        _ => bail!("{address} has several subsystems; choose one with --target:\n  {}", names.join("\n  ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(nqn: &str, port: u16, subsystem_type: SubsystemType) -> DiscoveryEntry {
        DiscoveryEntry {
            subsystem_type,
            port_id: 0,
            admin_queue_entries: 32,
            subsystem_nqn: nqn.into(),
            address: ([127, 0, 0, 1], port).into(),
        }
    }

    #[test]
    fn the_only_subsystem_needs_no_name() {
        let asked = ([127, 0, 0, 1], 4420).into();
        let (volume, discovery) = (SubsystemType::Nvm, SubsystemType::CurrentDiscovery);
        let one = [entry("nqn.d", 4420, discovery), entry("nqn.v", 4421, volume), entry("nqn.v", 4420, volume)];
        assert_eq!(choose(asked, &one).expect("one"), (asked, "nqn.v".to_owned()));
        let elsewhere = choose(asked, &one[..2]).expect("one");
        assert_eq!(elsewhere, (([127, 0, 0, 1], 4421).into(), "nqn.v".to_owned()));
        let two = [entry("nqn.v", 4420, volume), entry("nqn.w", 4420, volume)];
        let error = choose(asked, &two).expect_err("two").to_string();
        assert!(error.contains("nqn.v") && error.contains("nqn.w") && error.contains("--target"), "{error}");
        assert!(choose(asked, &one[..1]).is_err());
    }
}
