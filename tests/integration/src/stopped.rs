//! Threads of a process that are stopped while its others run on. SIGSTOP stops all of them, a debugger any.

use std::fs;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Stopped threads. They go on when it is dropped.
#[derive(Debug)]
pub struct Stopped {
    end: Option<mpsc::Sender<()>>,
    /// The kernel lets go of them when the thread that stopped them ends.
    tracer: Option<JoinHandle<()>>,
}

impl Stopped {
    /// Stops all threads of a process that have one of these names.
    pub fn threads(process: u32, names: &[&str]) -> anyhow::Result<Self> {
        let threads = threads_of(process, names)?;
        ensure!(!threads.is_empty(), "process {process} has no threads {names:?}");
        let (end, ended) = mpsc::channel();
        let (stopped, is_stopped) = mpsc::channel();
        let tracer = std::thread::spawn(move || {
            // An error means that nobody waits for the one or the other any more.
            let _ = stopped.send(threads.into_iter().try_for_each(stop));
            let _ = ended.recv();
        });
        let this = Self { end: Some(end), tracer: Some(tracer) };
        is_stopped.recv().context("the thread that stops others has ended")?.context("no ptrace here")?;
        Ok(this)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.end.take());
        // It does not panic.
        let _ = self.tracer.take().map(JoinHandle::join);
    }
}

fn stop(thread: Pid) -> nix::Result<()> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    waitpid(thread, Some(WaitPidFlag::__WALL)).map(drop)
}

fn threads_of(process: u32, names: &[&str]) -> anyhow::Result<Vec<Pid>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm"))?;
        if names.contains(&name.trim()) {
            let number = path.file_name().and_then(|name| name.to_str()).context("no thread")?;
            threads.push(Pid::from_raw(number.parse()?));
        }
    }
    Ok(threads)
}
