//! A load generator in fio's terms, over one connected [`Host`]: what `ashlar bench`, the demo and tests drive volumes with.
//! It knows no protocol: `nvmf-initiator` and `iscsi-initiator` are hosts.
//!
//! A [`Job`] says what to do; [`run`] does it and gives a [`Report`]. With [`Job::verify`], a [`Record`] holds what was
//! acknowledged for each block. It can be kept over several loads, reconnects and crashes of the target, and
//! [`check`] then reads back everything that was ever written and holds it against the record.
//!
//! One I/O in flight is a slot of a `Worker`, which takes its completion and starts the next one in its place:
//! there is no task, no future, no allocation and one reading of the clock per I/O.

#![forbid(unsafe_code)]

mod histogram;
mod host;
mod job;
mod offsets;
mod random;
mod record;
mod report;
mod seconds;
mod stamp;
mod statistics;
mod worker;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use reactor::JoinHandle;

pub use self::histogram::Histogram;
pub use self::host::{Geometry, Host, Io, IoError, Lane, Refused, Sink};
pub use self::job::{BLOCK_SIZE_MAX, Job, JobError, Pattern};
pub use self::record::{Fault, FaultKind, Record};
pub use self::report::{Figures, Latency, Report, Verified};

use self::job::Plan;
use self::worker::{Shared, Worker};

/// A record that several loads may share.
pub type SharedRecord = Rc<RefCell<Record>>;

/// An empty record for the region of a job on this host's device.
///
/// # Errors
/// The job does not fit the device.
pub fn new_record<H: Host>(host: &Rc<H>, job: &Job) -> Result<SharedRecord, JobError> {
    let plan = plan_for(&**host, job)?;
    let record = Record::new(reactor::random(), job.offset, plan.units, job.block_size, plan.geometry.block_size);
    Ok(Rc::new(RefCell::new(record)))
}

/// Runs a load to its end.
///
/// # Errors
/// The job does not fit the device or the record. Errors of I/Os are in the report.
pub async fn run<H: Host>(host: &Rc<H>, job: &Job, record: Option<SharedRecord>) -> Result<Report, JobError> {
    Ok(Load::start(host, job, record)?.finish().await)
}

/// Reads every unit that `record` knows a write of, `job.depth` at a time on each of `job.jobs` lanes, and checks it.
///
/// # Errors
/// The job does not fit the device or the record. Faults are in the report.
pub async fn check<H: Host>(host: &Rc<H>, job: &Job, record: &SharedRecord) -> Result<Report, JobError> {
    let job = Job {
        rw: Pattern::Read,
        verify: true,
        loops: Some(1),
        runtime: None,
        ramp: Duration::ZERO,
        flush_every: 0,
        ..job.clone()
    };
    let plan = Plan { only_written: true, ..plan_for(&**host, &job)? };
    Ok(Load::start_plan(host, plan, Some(Rc::clone(record)))?.finish().await)
}

/// A load that is running. Dropping it stops it.
pub struct Load<H: Host> {
    shared: Rc<Shared<H>>,
    /// Ends with the measurement.
    clock: JoinHandle<()>,
    /// Of a load with a rate.
    pacer: Option<JoinHandle<()>>,
}

/// How far a load is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Successful reads and writes since the start, ramp included.
    pub completed: u64,
    /// Failed commands.
    pub errors: u64,
    /// Reads with a wrong block.
    pub faults: u64,
    /// Commands in flight now.
    pub in_flight: u64,
}

impl<H: Host> Load<H> {
    /// Starts a load. With `job.verify` and no record it uses one of its own.
    ///
    /// # Errors
    /// The job does not fit the device or the record.
    pub fn start(host: &Rc<H>, job: &Job, record: Option<SharedRecord>) -> Result<Self, JobError> {
        let plan = plan_for(&**host, job)?;
        let record = match record {
            None if job.verify => Some(new_record(host, job)?),
            record => record.filter(|_| job.verify),
        };
        Self::start_plan(host, plan, record)
    }

    fn start_plan(host: &Rc<H>, plan: Plan, record: Option<SharedRecord>) -> Result<Self, JobError> {
        let job = &plan.job;
        let fits = |record: &SharedRecord| {
            record.borrow().fits(job.offset, plan.units, job.block_size, plan.geometry.block_size)
        };
        if record.as_ref().is_some_and(|record| !fits(record)) {
            return Err(JobError::OtherRecord);
        }
        let (jobs, depth) = (usize::from(job.jobs), usize::from(job.depth));
        if host.lanes() < jobs || (0..jobs).any(|number| host.lane(number).depth() < depth) {
            return Err(JobError::Lanes);
        }
        let shared = Shared::new(Rc::clone(host), plan, record);
        let workers: Vec<_> = (0..shared.plan.job.jobs).map(|number| Worker::new(&shared, number)).collect();
        workers.iter().for_each(|worker| worker.start());
        let pacer = shared.plan.job.rate.map(|_| reactor::spawn(worker::pace(workers)));
        let timing = Rc::clone(&shared);
        let clock = reactor::spawn(async move { timing.keep_time().await });
        Ok(Self { shared, clock, pacer })
    }

    /// Where the load is now.
    pub fn progress(&self) -> Progress {
        self.shared.progress()
    }

    /// Ends the load early: nothing new is started.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Waits for the end: all I/Os done, or the run time over and nothing in flight any more.
    pub async fn finish(mut self) -> Report {
        // The clock ends by itself; nothing aborts it while this waits.
        let _ = (&mut self.clock).await;
        self.shared.drained().await;
        self.shared.report()
    }
}

impl<H: Host> Drop for Load<H> {
    fn drop(&mut self) {
        self.shared.stop();
        self.clock.abort();
        if let Some(pacer) = &self.pacer {
            pacer.abort();
        }
    }
}

fn plan_for(host: &impl Host, job: &Job) -> Result<Plan, JobError> {
    Plan::new(job, &host.geometry().ok_or(JobError::NoDevice)?)
}
