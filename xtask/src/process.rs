//! Running other programs: with their output in a log, a limit on their time, and an end that leaves nothing behind.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Runs `command` and returns what it wrote to its standard output.
///
/// Fails if it cannot be started or does not exit with 0; the error then ends with what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} wrote something that is not text"))
}

/// Runs `command` with its whole output in the file `log`, handing each line to `each_line` as it comes.
///
/// A command that is not done after `limit` is killed with all its descendants, and that is an error.
pub(crate) fn run_logged(
    command: &mut Command,
    log: &Path,
    limit: Duration,
    mut each_line: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    // The command keeps our end of the pipe open until it gets new ones; without this we would wait for ourselves.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                log.write_all(&line)?;
                log.write_all(b"\n")?;
                each_line(&String::from_utf8_lossy(&line));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
            Err(RecvTimeoutError::Timeout) => {
                kill_with_descendants(&mut child);
                let message = format!("not done after {} s, killed", limit.as_secs());
                writeln!(log, "{message}")?;
                bail!(message);
            }
        }
    }
}

/// Runs `command` like [`run_logged`]; what it says is told only if it fails.
pub(crate) fn run_quietly(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    const TOLD_LINES: usize = 40;
    let mut told = Vec::new();
    let status = run_logged(command, log, limit, |line| {
        let word = line.split_whitespace().next().unwrap_or_default();
        if !matches!(word, "Compiling" | "Checking" | "Documenting") && told.len() < TOLD_LINES {
            told.push(line.to_owned());
        }
    })?;
    ensure!(status.success(), "{}\n({status}, all of it in {})", told.join("\n"), log.display());
    Ok(())
}

/// A command that runs beside others with the lowest priority, its output in a log.
pub(crate) struct Beside {
    child: Child,
    log: PathBuf,
}

impl Beside {
    /// Starts it.
    pub(crate) fn start(command: &Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
        nice.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = nice.spawn().with_context(|| format!("cannot run {nice:?}"))?;
        Ok(Self { child, log })
    }

    /// Waits for its end; what it said is handed on line by line.
    pub(crate) fn end(mut self, each_line: impl FnMut(&str)) -> Result<()> {
        let status = self.child.wait()?;
        let said = std::fs::read_to_string(&self.log)?;
        said.lines().for_each(each_line);
        ensure!(status.success(), "{status}: {}", self.log.display());
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Nothing to be done when it has ended, or cannot be.
        let _ = self.child.kill();
    }
}

/// Kills `child` and whatever it started, by their process ids, and waits for it.
fn kill_with_descendants(child: &mut Child) {
    let descendants = descendants(child.id());
    // It may just have ended by itself; wait() tells in both cases.
    let _ = child.kill();
    let _ = child.wait();
    for pid in descendants {
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
    }
}

/// The processes that `pid` started, directly or not.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{parent}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("xtask-process-{}-{name}.log", std::process::id()))
    }

    #[test]
    fn lines_of_both_streams_arrive_and_are_logged() -> Result<()> {
        let log = log("lines");
        let mut lines = Vec::new();
        let status = run_logged(
            Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]),
            &log,
            Duration::from_secs(30),
            |line| lines.push(line.to_owned()),
        )?;
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(std::fs::read_to_string(&log)?, "one\ntwo\n");
        std::fs::remove_file(log)?;
        Ok(())
    }

    #[test]
    fn a_command_out_of_time_is_killed_with_what_it_started() -> Result<()> {
        let log = log("limit");
        let mut grandchild = String::new();
        let result = run_logged(
            Command::new("sh").args(["-c", "sleep 600 & echo $!; wait"]),
            &log,
            Duration::from_secs(1),
            |line| line.clone_into(&mut grandchild),
        );
        assert!(result.is_err());
        // The signal is on its way: the process is gone soon, or a zombie that nobody has waited for yet.
        let is_alive = || {
            let state = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(" Z ")
        };
        let give_up = Instant::now() + Duration::from_secs(30);
        while is_alive() {
            assert!(Instant::now() < give_up, "{grandchild} is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::remove_file(log)?;
        Ok(())
    }

    #[test]
    fn a_quiet_command_speaks_when_it_fails() -> Result<()> {
        let log = log("quiet");
        let run = |script: &str| run_quietly(Command::new("sh").args(["-c", script]), &log, Duration::from_secs(30));
        assert!(run("echo all is well").is_ok());
        let error = run("echo '  Compiling x'; echo 'error: y'; exit 1");
        assert!(error.is_err_and(|error| error.to_string().starts_with("error: y\n(exit status: 1")));
        std::fs::remove_file(log)?;
        Ok(())
    }

    #[test]
    fn an_error_carries_what_the_command_wrote() {
        let error = output(Command::new("sh").args(["-c", "echo no such volume >&2; exit 1"]));
        assert!(error.is_err_and(|error| error.to_string().contains("no such volume")));
    }
}
