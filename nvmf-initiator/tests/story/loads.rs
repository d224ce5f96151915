//! Loads: they do what a job says, and find what a target does wrong.

use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::load::{self, Job, JobError, Load, Pattern};
use nvmf_initiator::{Controller, Options, Reconnect, Status};

use crate::fake::{BLOCK, BLOCKS, Manner};
use crate::{Stage, connect};

/// Connects as a job needs it.
async fn connect_for(job: &Job) -> Rc<Controller> {
    connect(load::options(job)).await.expect("connected")
}

/// Of virtual time; long enough for hundreds of I/Os.
const RUNTIME: Duration = Duration::from_millis(100);

fn job(rw: Pattern) -> Job {
    Job { rw, depth: 8, runtime: Some(RUNTIME), ..Job::default() }
}

#[test]
fn patterns_do_what_their_names_say() {
    let stage = Stage::new();
    for rw in Pattern::ALL {
        let report = stage.host(async move {
            let job = Job { jobs: 2, ..job(rw) };
            load::run(&connect_for(&job).await, &job, None).await.expect("a good job")
        });
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.read.count > 0, rw.reads(), "{report}");
        assert_eq!(report.write.count > 0, rw.writes(), "{report}");
        assert_eq!(report.elapsed, RUNTIME);
        assert!(report.read.latency.min > 0 || !rw.reads());
        let (mixed, share) = (rw.reads() && rw.writes(), report.read.iops / report.iops());
        assert!(!mixed || (0.4..0.6).contains(&share), "{share}");
    }
}

#[test]
fn loops_cover_the_region_as_often_as_asked() {
    let stage = Stage::new();
    let report = stage.host(async {
        let job = Job { runtime: None, loops: Some(3), size: Some(100 * BLOCK as u64), jobs: 3, ..job(Pattern::Write) };
        load::run(&connect_for(&job).await, &job, None).await.expect("a good job")
    });
    assert_eq!(report.write.count, 300);
    assert_eq!(report.write.bytes, 300 * BLOCK as u64);
    let disk = stage.fake.disk.borrow();
    assert!(disk[..100 * BLOCK].chunks(BLOCK).all(|block| block.iter().any(|&byte| byte != 0)));
    assert!(disk[100 * BLOCK..].iter().all(|&byte| byte == 0));
}

#[test]
fn flushes_come_after_as_many_writes_as_asked() {
    let stage = Stage::new();
    let report = stage.host(async {
        let job = Job { runtime: None, loops: Some(1), flush_every: 10, ..job(Pattern::Write) };
        load::run(&connect_for(&job).await, &job, None).await.expect("a good job")
    });
    assert_eq!(report.write.count, BLOCKS);
    assert_eq!(report.flush.count, BLOCKS / 10);
    assert_eq!(u64::from(stage.fake.flushes.get()), BLOCKS / 10);
}

#[test]
fn a_rate_is_kept() {
    let stage = Stage::new();
    let report = stage.host(async {
        let job = Job { rate: Some(500), runtime: Some(Duration::from_secs(2)), ..job(Pattern::RandRead) };
        load::run(&connect_for(&job).await, &job, None).await.expect("a good job")
    });
    assert!((950..=1050).contains(&report.read.count), "{report}");
}

#[test]
fn the_ramp_is_not_counted() {
    let stage = Stage::new();
    let (with, without) = stage.host(async {
        let job = job(Pattern::RandRead);
        let controller = connect_for(&job).await;
        let without = load::run(&controller, &job, None).await.expect("a good job");
        let job = Job { ramp: 3 * RUNTIME, ..job };
        (load::run(&controller, &job, None).await.expect("a good job"), without)
    });
    assert_eq!(with.elapsed, without.elapsed);
    assert!((0.9..1.1).contains(&(with.iops() / without.iops())), "{with}{without}");
}

#[test]
fn a_load_can_be_watched_and_stopped() {
    let stage = Stage::new();
    let report = stage.host(async {
        let job = Job { runtime: Some(Duration::from_secs(3600)), ..job(Pattern::RandRead) };
        let controller = connect_for(&job).await;
        let load = Load::start(&controller, &job, None).expect("a good job");
        reactor::sleep(RUNTIME).await;
        let progress = load.progress();
        assert!(progress.completed > 100 && progress.in_flight == 8, "{progress:?}");
        load.stop();
        load.finish().await
    });
    assert!(report.elapsed < 2 * RUNTIME, "{report}");
}

#[test]
fn verified_loads_are_clean_on_a_good_target() {
    let stage = Stage::new();
    let report = stage.host(async {
        let job = Job { verify: true, block_size: 16 << 10, jobs: 2, ..job(Pattern::RandRw) };
        let controller = connect_for(&job).await;
        let record = load::new_record(&controller, &job).expect("a good job");
        let report = load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("a good job");
        assert!(report.is_clean() && report.verify.checked > 0, "{report}");
        let written = record.borrow().written_units();
        let checked = load::check(&controller, &job, &record).await.expect("a good job");
        assert_eq!(checked.verify.checked, written);
        checked
    });
    assert!(report.is_clean(), "{report}");
}

#[test]
fn acknowledged_writes_that_were_forgotten_are_found_one_by_one() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    let report = stage.host(async move {
        let job = Job { verify: true, loops: Some(1), runtime: None, ..job(Pattern::Write) };
        let controller = connect_for(&job).await;
        let record = load::new_record(&controller, &job).expect("a good job");
        load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("a good job");
        *fake.manner.borrow_mut() = Manner::Forgetful;
        let part = Job { size: None, offset: 0, rw: Pattern::Write, ..job.clone() };
        load::run(&controller, &part, Some(Rc::clone(&record))).await.expect("a good job");
        load::check(&controller, &job, &record).await.expect("a good job")
    });
    assert_eq!(report.verify.failed, BLOCKS, "{report}");
    assert!(report.verify.faults[0].contains("stale, generation 1 where 2 was acknowledged"), "{report}");
}

#[test]
fn misplaced_and_torn_blocks_are_found() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    let report = stage.host(async move {
        let job = Job { verify: true, loops: Some(2), runtime: None, ..job(Pattern::Write) };
        let controller = connect_for(&job).await;
        let record = load::new_record(&controller, &job).expect("a good job");
        load::run(&controller, &job, Some(Rc::clone(&record))).await.expect("a good job");
        {
            let mut disk = fake.disk.borrow_mut();
            disk.copy_within(5 * BLOCK..6 * BLOCK, 9 * BLOCK);
            disk[20 * BLOCK + 512..20 * BLOCK + 1024].fill(0);
        }
        load::check(&controller, &job, &record).await.expect("a good job")
    });
    assert_eq!(report.verify.failed, 2, "{report}");
    assert!(report.verify.faults.iter().any(|fault| fault.contains("block 9: holds what was written to block 5")));
    assert!(report.verify.faults.iter().any(|fault| fault.contains("block 20: damaged")));
}

#[test]
fn errors_are_counted_by_name_and_the_load_goes_on() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    let report = stage.host(async move {
        let job = job(Pattern::RandWrite);
        let controller = connect_for(&job).await;
        *fake.manner.borrow_mut() = Manner::Status(Status::CapacityExceeded);
        load::run(&controller, &job, None).await.expect("a good job")
    });
    assert_eq!(report.write.count, 0);
    assert!(report.errors["Capacity Exceeded (0h/81h)"] > 10, "{report}");
    assert_eq!(report.aborted, None);
}

#[test]
fn a_lost_connection_ends_a_load_early_and_says_why() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    let report = stage.host(async move {
        let job = job(Pattern::RandRead);
        let controller = connect_for(&job).await;
        let load = Load::start(&controller, &job, None).expect("a good job");
        reactor::sleep(RUNTIME / 2).await;
        fake.restart();
        load.finish().await
    });
    assert_eq!(report.errors["connection lost"], 8, "{report}");
    assert!(report.aborted.is_some() && report.elapsed < RUNTIME, "{report}");
}

#[test]
fn a_verified_load_survives_restarts_of_the_target_without_an_error() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    let report = stage.host(async move {
        let runtime = Some(Duration::from_secs(20));
        let job = Job { verify: true, rate: Some(200), runtime, ..job(Pattern::RandRw) };
        let reconnect = Some(Reconnect::within(Duration::from_secs(30)));
        let controller = connect(Options { reconnect, ..load::options(&job) }).await.expect("connected");
        let record = load::new_record(&controller, &job).expect("a good job");
        let load = Load::start(&controller, &job, Some(Rc::clone(&record))).expect("a good job");
        for _ in 0..3 {
            reactor::sleep(Duration::from_secs(3)).await;
            // Writes land, but are not acknowledged.
            *fake.manner.borrow_mut() = Manner::Hangup;
            reactor::sleep(Duration::from_millis(200)).await;
            *fake.manner.borrow_mut() = Manner::Proper;
        }
        let report = load.finish().await;
        assert!(report.is_clean() && report.reconnects >= 3, "{report}");
        load::check(&controller, &job, &record).await.expect("a good job")
    });
    assert!(report.is_clean() && report.verify.checked > 0, "{report}");
}

#[test]
fn jobs_that_do_not_fit_are_refused() {
    let stage = Stage::new();
    stage.host(async {
        let job = job(Pattern::RandRead);
        let controller = connect_for(&job).await;
        let deeper = Job { depth: 9, ..job.clone() };
        assert_eq!(Load::start(&controller, &deeper, None).err(), Some(JobError::Lanes));
        let record = load::new_record(&controller, &Job { size: Some(1 << 20), ..job.clone() }).expect("a good job");
        let verified = Job { verify: true, ..job.clone() };
        assert_eq!(Load::start(&controller, &verified, Some(record)).err(), Some(JobError::OtherRecord));
        let admin = connect(Options { io_queues: 0, ..Options::default() }).await.expect("connected");
        assert_eq!(Load::start(&admin, &job, None).err(), Some(JobError::NoDevice));
    });
}
