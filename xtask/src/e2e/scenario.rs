//! The story that the end-to-end test tells, step by step.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::{HOST, Image, Machine};
use crate::report::Report;

/// Plays the scenario; each step is a check. `None` when one failed: the later ones need it.
pub(super) fn play(image: &Image, directory: &Path, report: &mut Report) -> Option<()> {
    let mut guest = report.check("e2e: boot the guest", || Machine::boot(image, directory))?;
    report.check("e2e: the guest has NVMe/TCP and reaches this machine", || reaches_us(&mut guest))
}

fn reaches_us(guest: &mut Machine) -> Result<()> {
    let said = guest.run(
        &format!("modprobe nvme-tcp; test -c /dev/nvme-fabrics; nvme version; ip route get {HOST}"),
        Duration::from_secs(60),
    )?;
    ensure!(said.contains("nvme version"), "{said}");
    Ok(())
}
