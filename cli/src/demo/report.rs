//! What the demo says at its end.

use std::path::Path;
use std::time::Duration;

use nvmf_initiator::load::{Figures, Report};
use proto::v1::Volume;

use crate::output::{Fixed, Name, Table, Width};

/// What the loads measured.
pub(super) struct Outcome {
    pub(super) replica_killed: Report,
    pub(super) engine_killed: Report,
    pub(super) read_back: Report,
}

impl Outcome {
    pub(super) fn render(&self, volume: &Volume) -> String {
        let mut table = Table::new(&[Name("LOAD"), Fixed("IOPS"), Fixed("MEDIAN"), Fixed("P99"), Fixed("LONGEST")]);
        let loads = [
            ("while a replica was killed", &self.replica_killed),
            ("while the engine was killed", &self.engine_killed),
        ];
        for (what, report) in loads {
            for (kind, figures) in [("reads", &report.read), ("writes", &report.write)] {
                table.row(row(&format!("4 KiB {kind}, {what}"), figures));
            }
        }
        let mut text = format!(
            "\n{}\n{} I/Os without an error, {} blocks read back and compared: all as acknowledged.\n",
            table.render(Width::Narrow),
            [&self.replica_killed, &self.engine_killed]
                .iter()
                .map(|report| report.read.count + report.write.count)
                .sum::<u64>(),
            self.read_back.verify.checked,
        );
        if let Some(nvmf) = volume.engine.as_ref().and_then(|engine| engine.nvmf.as_ref()) {
            for (host, port) in nvmf.addresses.iter().filter_map(|address| address.rsplit_once(':')) {
                text += "\nA Linux host attaches such a volume with (this one while it runs: --keep)\n";
                text += &format!("  nvme connect -t tcp -a {host} -s {port} -n {}\n", nvmf.nqn);
            }
        }
        text + "\n"
    }
}

fn row(what: &str, figures: &Figures) -> Vec<String> {
    let latency = |nanoseconds| format!("{:.1?}", Duration::from_nanos(nanoseconds));
    vec![
        what.to_owned(),
        format!("{:.0}", figures.iops),
        latency(figures.latency.p50),
        latency(figures.latency.p99),
        latency(figures.latency.max),
    ]
}

/// How to reach and end what was kept running.
pub(super) fn still_running(folder: &Path, server: &str, pids: &[u32]) -> String {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    format!(
        "The daemons are still running, in {folder}.\n  look     ashlar --server {server} volume show demo\n  stop     \
         kill {pids}\n  remove   rm -r {folder}\n",
        folder = folder.display(),
        pids = pids.join(" "),
    )
}
