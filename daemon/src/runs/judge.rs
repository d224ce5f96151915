//! From what a run has left to how it ended.

use std::fs;
use std::io;

use super::{End, Ended, Run};

/// The machine, as far as the end of a run has to do with it.
pub(super) struct Machine {
    pub(super) boot_id: String,
    /// Processes that it has killed for want of memory since it booted.
    pub(super) oom_kills: u64,
}

impl Machine {
    pub(super) fn here() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let statistics = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        let oom_kills = statistics.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        Ok(Self { boot_id, oom_kills: oom_kills.unwrap_or(0) })
    }
}

/// How `run` ended, which has left `notes`.
pub(super) fn judge(run: &Run, notes: &str, machine: &Machine) -> Ended {
    let panic = last_panic(notes);
    if let Some(ended) = &run.ended {
        let panic = if ended.panic.is_empty() { panic } else { ended.panic.clone() };
        return Ended { panic, ..ended.clone() };
    }
    let signal = last_line(notes).and_then(|line| line.strip_prefix("signal "));
    let (how, detail) = match signal {
        _ if run.boot_id != machine.boot_id => {
            (End::Power, "the machine stopped under it: a power cut, a reset or a crash".to_owned())
        }
        Some(signal) if ends_in_panic(notes) => (End::Panic, format!("it could not go on after it ({signal})")),
        Some(signal) => (End::Signal, signal.to_owned()),
        None => (End::Killed, killed(run, machine)),
    };
    Ended { how, detail, panic, at: None }
}

fn killed(run: &Run, machine: &Machine) -> String {
    match machine.oom_kills.saturating_sub(run.oom_kills) {
        0 => "SIGKILL".to_owned(),
        count => format!("SIGKILL; the machine has killed {count} process(es) for want of memory since it began"),
    }
}

/// What begins a panic in the notes; it ends with the next one or with a signal.
pub(super) const PANIC: &str = "panic ";

fn last_line(notes: &str) -> Option<&str> {
    notes.lines().next_back()
}

/// Whether nothing but the signal came after a panic that aborts: one while panicking, which says so itself.
fn ends_in_panic(notes: &str) -> bool {
    last_line(notes) == Some("signal SIGABRT") && notes.lines().any(|line| line.starts_with(PANIC))
}

fn last_panic(notes: &str) -> String {
    let mut panic = Vec::new();
    for line in notes.lines() {
        if let Some(first) = line.strip_prefix(PANIC) {
            panic = vec![first];
        } else if !panic.is_empty() && !line.starts_with("signal ") {
            panic.push(line);
        }
    }
    panic.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ended: Option<Ended>) -> Run {
        Run {
            number: 3,
            version: "0.1.0".to_owned(),
            pid: 1,
            boot_id: "boot".to_owned(),
            started_at: 1,
            oom_kills: 7,
            ended,
        }
    }

    fn judged(notes: &str, boot_id: &str, oom_kills: u64) -> (End, String, String) {
        let ended = judge(&run(None), notes, &Machine { boot_id: boot_id.to_owned(), oom_kills });
        (ended.how, ended.detail, ended.panic)
    }

    #[test]
    fn no_word_is_a_kill_or_the_machine() {
        assert_eq!(judged("", "boot", 7).0, End::Killed);
        let (how, detail, _) = judged("", "boot", 9);
        assert_eq!(how, End::Killed);
        assert!(detail.contains("2 process(es) for want of memory"), "{detail}");
        assert_eq!(judged("", "another", 0).0, End::Power);
        assert_eq!(
            judged("signal SIGSEGV\n", "another", 0).0,
            End::Power,
            "it went on after a signal that was handled"
        );
    }

    #[test]
    fn a_signal_is_the_end_and_a_panic_before_an_abort_its_cause() {
        let (how, detail, panic) = judged("signal SIGSEGV\n", "boot", 7);
        assert_eq!((how, detail.as_str(), panic.as_str()), (End::Signal, "SIGSEGV", ""));
        assert_eq!(judged("signal SIGABRT\n", "boot", 7).0, End::Signal);
        let notes = "panic one\n   0: main\npanic two\n   0: drop\n   1: main\nsignal SIGABRT\n";
        let (how, detail, panic) = judged(notes, "boot", 7);
        assert_eq!((how, panic.as_str()), (End::Panic, "two\n   0: drop\n   1: main"));
        assert!(detail.contains("SIGABRT"), "{detail}");
        let (how, _, panic) = judged("panic one\n   0: main\n", "boot", 7);
        assert_eq!((how, panic.as_str()), (End::Killed, "one\n   0: main"), "a panic that a task ended with");
    }

    #[test]
    fn what_it_said_itself_counts_most() {
        let said = Ended { how: End::Clean, detail: "SIGTERM".to_owned(), panic: String::new(), at: Some(5) };
        let machine = Machine { boot_id: "another".to_owned(), oom_kills: 0 };
        let ended = judge(&run(Some(said.clone())), "panic of a task\n", &machine);
        assert_eq!(ended, Ended { panic: "of a task".to_owned(), ..said });
    }
}
