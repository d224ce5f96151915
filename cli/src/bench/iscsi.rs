//! Over iSCSI.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use host_load::Job;
use iscsi_initiator::{DiscoveredTarget, LogicalUnit, Name, Options, Reconnect, discover, load};

use super::{BenchArguments, Measured, drive};

/// Where a portal listens unless it is told.
pub(super) const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 3260);

pub(super) async fn measure(arguments: &BenchArguments, address: SocketAddr, job: &Job) -> anyhow::Result<Measured> {
    let options = Options {
        lun: arguments.lun.map(encode_lun).transpose()?,
        header_digest: arguments.header_digest,
        data_digest: arguments.data_digest,
        reconnect: arguments.reconnect.map(Reconnect::within),
        ..load::options(job)
    };
    let (address, target) = match &arguments.target {
        Some(text) => (address, Name::parse(text).with_context(|| format!("{text:?} is no iSCSI name"))?),
        None => only_target(address, &options).await?,
    };
    let unit = LogicalUnit::connect(address, &target, options)
        .await
        .with_context(|| format!("cannot log in to {target} at {address}"))?;
    let (load, check) = drive(&unit, job).await?;
    unit.disconnect().await;
    Ok(Measured { address, target: target.to_string(), load, check })
}

/// A number as commands carry it: peripheral device addressing, or flat space addressing (SAM 4.7).
fn encode_lun(number: u16) -> anyhow::Result<u64> {
    match number {
        0..=0xff => Ok(u64::from(number) << 48),
        0x100..=0x3fff => Ok(u64::from(0x4000 | number) << 48),
        _ => bail!("--lun {number} is too large: 16383 at most"),
    }
}

/// The one target of a portal that was not named.
async fn only_target(address: SocketAddr, options: &Options) -> anyhow::Result<(SocketAddr, Name)> {
    let targets = discover(address, options).await.with_context(|| format!("cannot ask {address} for its targets"))?;
    choose(address, &targets)
}

fn choose(address: SocketAddr, targets: &[DiscoveredTarget]) -> anyhow::Result<(SocketAddr, Name)> {
    match targets {
        [] => bail!("{address} has no target"),
        [target] => {
            // At the address that was asked, if it is there too: others may be those of a network that is not ours.
            let chosen = if target.addresses.contains(&address) { Some(&address) } else { target.addresses.first() };
            Ok((*chosen.unwrap_or(&address), target.name.clone()))
        }
        _ => {
            let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
            bail!("{address} has several targets; choose one with --target:\n  {}", names.join("\n  "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, port: u16) -> DiscoveredTarget {
        let name = Name::parse(name).expect("a name");
        DiscoveredTarget { name, addresses: vec![([127, 0, 0, 1], port).into()] }
    }

    #[test]
    fn the_only_target_needs_no_name() {
        let asked = ([127, 0, 0, 1], 3260).into();
        let two = [target("iqn.2026-01.org:v", 3261), target("iqn.2026-01.org:w", 3260)];
        let (address, name) = choose(asked, &two[..1]).expect("one");
        assert_eq!((address, name.as_str()), (([127, 0, 0, 1], 3261).into(), "iqn.2026-01.org:v"));
        assert_eq!(choose(asked, &two[1..]).expect("one").0, asked);
        let error = choose(asked, &two).expect_err("two").to_string();
        assert!(error.contains(":v") && error.contains(":w") && error.contains("--target"), "{error}");
        assert!(choose(asked, &[]).is_err());
    }

    #[test]
    fn unit_numbers_as_commands_carry_them() {
        let encode = |number| encode_lun(number).ok();
        assert_eq!(encode(0), Some(0));
        assert_eq!(encode(1), Some(0x0001 << 48));
        assert_eq!(encode(300), Some(0x412c << 48));
        assert_eq!(encode(0x4000), None);
    }
}
