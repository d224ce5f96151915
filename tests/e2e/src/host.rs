//! The Linux host: what an administrator types in the guest to attach a volume and to use it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{HOST, Machine, Step};
use crate::wait::wait_until;

/// Enough for each command but the loads, under emulation on a machine that is busy otherwise.
const LIMIT: Duration = Duration::from_secs(120);

/// What a kernel says when I/O failed, or a file system is not what it was.
const IO_ERRORS: &str = "I/O error|failing I/O|critical .* error|Buffer I/O|lost async page write|EXT4-fs (error|warning)|\
    XFS .*(error|corrupt|shut)|Remounting filesystem read-only|hung_task|blocked for more than";

/// Compares the files that [`Host::write_files`] wrote.
pub(crate) const COMPARE_FILES: &str = "sha256sum --check --quiet /tmp/checksums";

/// A volume as the daemon describes it to hosts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Export {
    pub(crate) nqn: String,
    pub(crate) serial: String,
    pub(crate) nguid: String,
    pub(crate) uuid: String,
    pub(crate) size_bytes: u64,
}

/// Which digests a connection has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Digests {
    None,
    /// Of headers and of data.
    Both,
}

/// A load of fio that is running in the guest.
#[derive(Debug)]
pub(crate) struct Load {
    step: Step,
}

/// The guest, with NVMe/TCP loaded.
#[derive(Debug)]
pub(crate) struct Host {
    guest: Machine,
}

impl Host {
    pub(crate) fn new(mut guest: Machine) -> Result<Self> {
        guest.run("modprobe nvme-tcp\ntest -c /dev/nvme-fabrics\nmkdir -p /mnt", LIMIT)?;
        Ok(Self { guest })
    }

    /// Runs commands in the guest and returns what they say.
    pub(crate) fn run(&mut self, script: &str) -> Result<String> {
        self.guest.run(script, LIMIT)
    }

    /// Files of random content in /mnt, and their checksums where no reconnect can touch them.
    pub(crate) fn write_files(&mut self) -> Result<()> {
        self.run(
            "mkdir /mnt/files\n\
             for file in 1 2 3 4; do head -c 8M /dev/urandom >/mnt/files/$file; done\n\
             sync\n\
             sha256sum /mnt/files/* >/tmp/checksums",
        )?;
        Ok(())
    }

    /// What NVMe discovery offers at `port`.
    pub(crate) fn discover(&mut self, port: u16) -> Result<String> {
        self.run(&format!("nvme discover --transport=tcp --traddr={HOST} --trsvcid={port}"))
    }

    /// Attaches a volume and returns the path of its block device.
    ///
    /// After a loss of the connection it tries again each second, for ten minutes.
    pub(crate) fn connect(&mut self, nqn: &str, port: u16, digests: Digests) -> Result<String> {
        let digests = match digests {
            Digests::None => "",
            Digests::Both => "--hdr-digest --data-digest",
        };
        self.run(&format!(
            "nvme connect --transport=tcp --traddr={HOST} --trsvcid={port} --nqn={nqn} \
             --reconnect-delay=1 --ctrl-loss-tmo=600 --keep-alive-tmo=5 {digests}"
        ))?;
        let find = format!(
            "for subsystem in /sys/class/nvme-subsystem/*; do\n\
             [ \"$(cat $subsystem/subsysnqn)\" != {nqn} ] || ls $subsystem | grep -E '^nvme[0-9]+n[0-9]+$' || true\n\
             done"
        );
        let name = wait_until("the block device appears", LIMIT, || {
            Ok(Some(self.run(&find)?.trim().to_owned()).filter(|name| !name.is_empty()))
        })?;
        self.run("udevadm settle")?;
        Ok(format!("/dev/{name}"))
    }

    /// Detaches a volume.
    pub(crate) fn disconnect(&mut self, nqn: &str) -> Result<()> {
        // udev looks into a device that was written to; reads of its that find the device gone are told as errors.
        let said = self.run(&format!("udevadm settle\nnvme disconnect --nqn={nqn}"))?;
        ensure!(said.contains("disconnected 1 controller"), "{said}");
        Ok(())
    }

    /// What the host reads from the controller and the namespace of `device`, as nvme-cli shows it.
    pub(crate) fn identify(&mut self, device: &str) -> Result<Export> {
        let listed = self.run("nvme list")?;
        ensure!(listed.contains(device), "nvme list does not show {device}:\n{listed}");
        let controller = self.json(&format!("nvme id-ctrl {device} --output-format=json"))?;
        let namespace = self.json(&format!("nvme id-ns {device} --output-format=json"))?;
        let cache = controller["vwc"].as_u64().unwrap_or_default();
        ensure!(cache & 1 == 1, "the controller says it has no volatile write cache, and so hosts never flush");
        let block = self.number(&format!("blockdev --getss {device}"))?;
        Ok(Export {
            nqn: text(&controller, "subnqn")?,
            serial: text(&controller, "sn")?,
            nguid: text(&namespace, "nguid")?,
            uuid: self.run(&format!("cat /sys/block/{}/uuid", name(device)))?.trim().to_owned(),
            size_bytes: namespace["nsze"].as_u64().context("id-ns: no nsze")? * block,
        })
    }

    /// Starts writing `megabytes` at random places of a file in /mnt, at a rate that leaves time to break something
    /// meanwhile, and then reading all back and comparing.
    pub(crate) fn start_load(&mut self, megabytes: u32, written_mib_per_second: u32) -> Result<Load> {
        let script = format!(
            "fio --name=load --directory=/mnt --size={megabytes}m --rw=randwrite --bs=16k --ioengine=libaio \
             --iodepth=16 --direct=1 --fsync=64 --rate=,{written_mib_per_second}m --verify=crc32c --verify_fatal=1"
        );
        Ok(Load { step: self.guest.start(&script, Duration::from_secs(300))? })
    }

    /// Waits until `megabytes` more were written to `device` since `written_before`, and makes sure that the load is
    /// still in the middle of its work.
    pub(crate) fn in_the_middle_of(
        &mut self,
        load: &Load,
        device: &str,
        written_before: u64,
        megabytes: u64,
    ) -> Result<()> {
        wait_until("the load has written", LIMIT, || {
            if self.guest.has_ended(&load.step) {
                return Ok(Some(()));
            }
            Ok((self.written_bytes(device)? >= written_before + (megabytes << 20)).then_some(()))
        })?;
        ensure!(!self.guest.has_ended(&load.step), "the load ended too early:\n{}", self.guest.output(&load.step));
        Ok(())
    }

    /// Waits for the load's end; an error of fio, of I/O or of comparison, fails.
    pub(crate) fn finish_load(&mut self, load: &Load) -> Result<()> {
        let said = self.guest.wait(&load.step)?;
        ensure!(said.contains("err= 0"), "{said}");
        Ok(())
    }

    /// What was written to `device` since it appeared, in bytes.
    pub(crate) fn written_bytes(&mut self, device: &str) -> Result<u64> {
        // The 7th field counts sectors of 512 bytes (Documentation/block/stat.rst).
        Ok(self.number(&format!("awk '{{ print $7 }}' /sys/block/{}/stat", name(device)))? * 512)
    }

    /// Fails with what the kernel has said about failed I/O, if anything.
    pub(crate) fn no_io_errors(&mut self) -> Result<()> {
        let said = self.run(&format!("dmesg | grep -E '{IO_ERRORS}' || true"))?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    }

    fn number(&mut self, script: &str) -> Result<u64> {
        let said = self.run(script)?;
        said.trim().parse().with_context(|| format!("{script}: {said}"))
    }

    fn json(&mut self, script: &str) -> Result<Value> {
        let said = self.run(script)?;
        serde_json::from_str(&said).with_context(|| format!("{script}: {said}"))
    }
}

fn name(device: &str) -> &str {
    device.trim_start_matches("/dev/")
}

fn text(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("no {key}"))?.trim().to_owned())
}
