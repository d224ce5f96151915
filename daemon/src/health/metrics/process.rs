//! The process, its runs and its reactors.

use std::fs;
use std::time::{Duration, SystemTime};

use reactor::Instant;

use super::text::{Family, Text, counter, gauge};
use crate::health::board::Board;
use crate::runs::{self, End};

/// Of the times in /proc: the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process is known by wherever there is Prometheus.
pub(super) fn write_process(text: &mut Text, started: SystemTime) {
    let since = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    text.single(gauge("process_start_time_seconds", "Start of the process since the Unix epoch."), since.as_secs_f64());
    if let Some(seconds) = cpu_seconds() {
        text.single(counter("process_cpu_seconds_total", "Processor time of all threads."), seconds);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        |key| status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(kib) = kib("VmRSS:") {
        text.single(gauge("process_resident_memory_bytes", "Memory in use."), kib << 10);
    }
    if let Some(kib) = kib("VmSize:") {
        text.single(gauge("process_virtual_memory_bytes", "Address space in use."), kib << 10);
    }
    if let Some(threads) = kib("Threads:") {
        text.single(gauge("process_threads", "Threads."), threads);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        text.single(gauge("process_open_fds", "Open file descriptors."), open.count().saturating_sub(1));
    }
    if let Some(limit) = most_descriptors() {
        text.single(gauge("process_max_fds", "File descriptors that may be open."), limit);
    }
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything: fields 14 and 15 (proc_pid_stat(5)).
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

fn most_descriptors() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The daemon, this run and the last one.
pub(super) fn write_runs(text: &mut Text, board: &Board, ready: bool, now: Instant) {
    let (about, family) = (&board.about, gauge("ashlar_build_info", "The version that runs, and its node."));
    text.family(family);
    text.sample(family, &[("version", env!("CARGO_PKG_VERSION")), ("node", &about.node)], 1);
    text.single(gauge("ashlar_ready", "Whether the API answers, as /readyz says."), u8::from(ready));
    let family = gauge("ashlar_last_run_end", "How the run before this one ended: 1 for the end that it was.");
    text.family(family);
    for word in End::WORDS {
        text.sample(family, &[("end", word)], u8::from(word == about.last_run.word()));
    }
    let starts = about.last_run.number + 1;
    text.single(counter("ashlar_starts_total", "Runs on this state directory, with this one."), starts);
    text.single(
        counter("ashlar_panics_total", "Panics of this run, also those that ended a task only."),
        runs::panics(),
    );
    if let Some(certificates) = &about.certificates {
        let help = "When the certificate in use ends, since the Unix epoch.";
        text.single(gauge("ashlar_certificate_not_after_seconds", help), certificates.not_after());
        let help = "Whether the certificate files hold something that is refused.";
        text.single(gauge("ashlar_certificate_reload_failed", help), u8::from(certificates.reload_failed()));
    }
    if board.facts.taken != Instant::default() {
        let help = "Age of what is told about states, replicas and stores.";
        text.single(gauge("ashlar_facts_age_seconds", help), (now - board.facts.taken).as_secs_f64());
    }
}

const BUSY: Family = counter("ashlar_reactor_busy_seconds_total", "Time at work: neither asleep nor spinning.");
const KERNEL: Family =
    counter("ashlar_reactor_kernel_seconds_total", "Time of it in system calls that start operations.");
const SPUN: Family = counter("ashlar_reactor_spin_seconds_total", "Time spent looking for work before a sleep.");
const TURNS: Family = counter("ashlar_reactor_turns_total", "Turns.");
const COMPLETIONS: Family = counter("ashlar_reactor_completions_total", "Operations that the kernel has completed.");
const STALLED: Family = gauge("ashlar_reactor_stalled", "Whether it has been at one step for seconds, or has ended.");

/// The reactors.
pub(super) fn write_reactors(text: &mut Text, board: &mut Board, now: Instant) {
    let seconds = |time: Duration| time.as_secs_f64();
    let rows: Vec<_> = (board.reactors.iter_mut())
        .map(|reactor| {
            let busy = reactor.busy(now);
            let stalled = reactor.stall().is_some() || reactor.has_ended();
            (reactor.name.clone(), reactor.pulse.clone(), busy, stalled)
        })
        .collect();
    let mut write = |family: Family, value: &dyn Fn(usize) -> f64| {
        text.family(family);
        for (index, (name, ..)) in rows.iter().enumerate() {
            text.sample(family, &[("reactor", name)], value(index));
        }
    };
    write(BUSY, &|index| seconds(rows[index].2));
    write(KERNEL, &|index| seconds(rows[index].1.stats().in_kernel()));
    write(SPUN, &|index| seconds(rows[index].1.stats().spun()));
    write(TURNS, &|index| rows[index].1.stats().turns() as f64);
    write(COMPLETIONS, &|index| rows[index].1.stats().completions() as f64);
    write(STALLED, &|index| f64::from(u8::from(rows[index].3)));
}
