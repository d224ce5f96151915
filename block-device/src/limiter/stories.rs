//! The limiter in virtual time: hosts that always have something to do, and what they get.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use reactor::simulated::{NodeId, World};
use reactor::{Instant, now, sleep, spawn};

use super::{Limiter, Limits, MOST_WAITING};
use crate::{
    BlockDevice, Completions, ErrorKind, Geometry, Meter, NullDevice, Reply, ReplySink, Request, Slice, execute,
};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// A null device that remembers what came to it, and when.
struct Recorder {
    device: NullDevice,
    seen: RefCell<Vec<(Instant, Request)>>,
}

impl Recorder {
    fn count(&self) -> u64 {
        self.seen.borrow().len() as u64
    }

    fn bytes(&self) -> u64 {
        self.seen.borrow().iter().map(|(_, request)| request.transfer()).sum()
    }

    fn offsets(&self) -> Vec<u64> {
        let seen = self.seen.borrow();
        let offset = |request: &Request| match request {
            Request::Read { range } => range.offset,
            Request::Flush => u64::MAX,
            other => panic!("nobody sends {other:?}"),
        };
        seen.iter().map(|(_, request)| offset(request)).collect()
    }
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.seen.borrow_mut().push((now(), request.clone()));
        self.device.submit(request, reply);
    }
}

/// A volume with limits.
#[derive(Clone)]
struct Volume {
    limiter: Rc<Limiter>,
    recorder: Rc<Recorder>,
    meter: Arc<Meter>,
}

impl Volume {
    fn new(limits: Limits) -> Self {
        let geometry = Geometry::new(1 << 40, 4096).expect("a good size");
        let recorder = Rc::new(Recorder { device: NullDevice::new(geometry), seen: RefCell::default() });
        let meter = Arc::new(Meter::default());
        let device = Rc::clone(&recorder) as Rc<dyn BlockDevice>;
        Self { limiter: Limiter::new(device, limits, Arc::clone(&meter)), recorder, meter }
    }

    /// A host that has `depth` requests in flight until `end`; how many were answered.
    fn load(&self, depth: u64, end: Instant, request: impl Fn(u64) -> Request + 'static) -> Rc<Cell<u64>> {
        let (answered, request) = (Rc::new(Cell::new(0)), Rc::new(request));
        for _ in 0..depth {
            let (volume, answered, request) = (self.clone(), Rc::clone(&answered), Rc::clone(&request));
            spawn(async move {
                while now() < end {
                    execute(&*volume.limiter, request(answered.get())).await.expect("a null device does not fail");
                    answered.set(answered.get() + 1);
                }
            });
        }
        answered
    }

    /// The same for so long from now, and nothing else meanwhile: how many.
    async fn loaded(&self, depth: u64, time: Duration, request: impl Fn(u64) -> Request + 'static) -> u64 {
        let answered = self.load(depth, now() + time, request);
        sleep(time).await;
        answered.get()
    }
}

fn in_a_world<F: Future<Output = ()> + 'static>(story: impl FnOnce() -> F + 'static) {
    let (world, node) = world();
    world.block_on(node, async move { story().await });
}

fn world() -> (World, NodeId) {
    let world = World::new(7);
    let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1).into());
    (world, node)
}

fn block(_: u64) -> Request {
    Request::read(0, BLOCK)
}

const fn iops(iops: u64) -> Limits {
    Limits { iops, bytes_per_second: 0, burst: Duration::ZERO }
}

const fn bandwidth(bytes_per_second: u64) -> Limits {
    Limits { iops: 0, bytes_per_second, burst: Duration::ZERO }
}

#[track_caller]
fn assert_within_5_percent(measured: u64, expected: u64) {
    let allowed = expected / 20;
    assert!(measured.abs_diff(expected) <= allowed, "{measured} instead of {expected}");
}

#[test]
fn commands_a_second_are_exact_at_any_rate_and_depth() {
    for (rate, depth, seconds) in [(10, 1, 60), (137, 4, 10), (1_000, 1, 10), (1_000, 64, 10), (20_000, 32, 1)] {
        in_a_world(move || async move {
            let volume = Volume::new(iops(rate));
            let passed = volume.loaded(depth, SECOND * seconds, block).await;
            assert_within_5_percent(passed, rate * u64::from(seconds));
        });
    }
}

#[test]
fn bytes_a_second_are_exact_at_any_size() {
    for (size, rate, seconds) in [(BLOCK, MIB, 10), (128 << 10, 10 * MIB, 10), (MIB, 3 * MIB, 40)] {
        in_a_world(move || async move {
            let volume = Volume::new(bandwidth(rate));
            let data = Slice::from(vec![7; size as usize].as_slice());
            volume.loaded(8, SECOND * seconds, move |_| Request::write(0, data.clone())).await;
            assert_within_5_percent(volume.recorder.bytes(), rate * u64::from(seconds));
        });
    }
}

/// Small and large ones, reads and writes together: of two limits the one that is reached first holds.
#[test]
fn a_mix_of_sizes_keeps_both_limits() {
    let mixed = |number: u64| match number % 4 {
        0 => Request::read(0, 256 << 10),
        1 => Request::write(0, Slice::zeroes(BLOCK as usize)),
        _ => Request::read(0, BLOCK),
    };
    // Four commands are 268 KiB.
    let four = (256 << 10) + 3 * BLOCK;
    in_a_world(move || async move {
        let volume = Volume::new(Limits { bytes_per_second: 100 * MIB, ..iops(400) });
        volume.loaded(16, SECOND * 10, mixed).await;
        assert_within_5_percent(volume.recorder.count(), 4_000);
        let volume = Volume::new(Limits { bytes_per_second: 10 * MIB, ..iops(4_000) });
        volume.loaded(16, SECOND * 10, mixed).await;
        assert_within_5_percent(volume.recorder.bytes(), 100 * MIB);
        assert_within_5_percent(volume.recorder.count(), 100 * MIB * 4 / four);
    });
}

/// Whatever the host does: in no time more is passed on than the limit, the burst, and one.
#[test]
fn no_window_has_more_than_the_limit_and_the_burst() {
    const RATE: u64 = 500;
    let (world, node) = world();
    let mut random = world.random();
    world.block_on(node, async move {
        let volume = Volume::new(Limits { burst: Duration::from_millis(700), ..iops(RATE) });
        for _ in 0..40 {
            volume.load(1 + random.below(40), now() + Duration::from_millis(random.below(400)), block);
            sleep(Duration::from_millis(random.below(900))).await;
        }
        let seen = volume.recorder.seen.borrow();
        let times: Vec<_> = seen.iter().map(|(at, _)| at.as_nanos()).collect();
        assert!(times.len() > 3_000, "{}", times.len());
        let burst = RATE * 700 / 1_000 + 1;
        for (first, from) in times.iter().enumerate() {
            for (last, to) in times.iter().enumerate().skip(first) {
                let allowed = (to - from) * RATE / 1_000_000_000 + 1 + burst;
                assert!((last - first) as u64 <= allowed, "{} in {} ns", last - first, to - from);
            }
        }
    });
}

#[test]
fn what_was_not_used_is_a_burst_later() {
    in_a_world(|| async {
        let volume = Volume::new(Limits { burst: SECOND * 3, ..iops(1_000) });
        sleep(SECOND * 60).await;
        assert_within_5_percent(volume.loaded(32, SECOND, block).await, 4_000);
        assert_within_5_percent(volume.loaded(32, SECOND, block).await, 1_000);
        sleep(SECOND).await;
        assert_within_5_percent(volume.loaded(32, SECOND, block).await, 2_000);
    });
}

#[test]
fn other_limits_hold_at_once_under_load() {
    in_a_world(|| async {
        let volume = Volume::new(iops(1_000));
        volume.load(64, now() + SECOND * 30, block);
        let count = |seconds| {
            let volume = volume.clone();
            async move {
                let before = volume.recorder.count();
                sleep(SECOND * seconds).await;
                volume.recorder.count() - before
            }
        };
        assert_within_5_percent(count(5).await, 5_000);
        volume.limiter.set_limits(iops(100));
        assert_within_5_percent(count(5).await, 500);
        volume.limiter.set_limits(bandwidth(500 * BLOCK));
        assert_within_5_percent(count(5).await, 2_500);
        volume.limiter.set_limits(iops(4_000));
        assert_within_5_percent(count(5).await, 20_000);
    });
}

/// A process that gets no processor now and then, or a reactor that is busy with others.
#[test]
fn a_reactor_that_is_late_makes_up_for_it() {
    let (world, node) = world();
    let volume = world.block_on(node, async { Volume::new(iops(1_000)) });
    let loading = volume.clone();
    world.block_on(node, async move { drop(loading.load(64, now() + SECOND * 60, block)) });
    for _ in 0..50 {
        world.run_for(Duration::from_millis(150));
        world.pause(node);
        world.run_for(Duration::from_millis(50));
        world.resume(node);
    }
    assert_within_5_percent(volume.recorder.count(), 10_000);
}

#[test]
fn volumes_do_not_feel_each_other() {
    in_a_world(|| async {
        let volumes = [Volume::new(iops(100)), Volume::new(iops(3_000))];
        volumes.iter().for_each(|volume| drop(volume.load(64, now() + SECOND * 5, block)));
        sleep(SECOND * 5).await;
        assert_within_5_percent(volumes[0].recorder.count(), 500);
        assert_within_5_percent(volumes[1].recorder.count(), 15_000);
    });
}

#[test]
fn connections_of_one_depth_get_the_same_and_a_single_command_its_turn() {
    in_a_world(|| async {
        let volume = Volume::new(iops(1_000));
        let end = now() + SECOND * 10;
        let (one, other) = (volume.load(32, end, block), volume.load(32, end, block));
        let single = volume.load(1, end, block);
        sleep(SECOND * 10).await;
        assert_within_5_percent(one.get(), other.get());
        // A round of all is 65 commands.
        assert_within_5_percent(single.get(), 10_000 / 65);
    });
}

#[test]
fn commands_wait_in_order_and_a_flush_does_not_wait() {
    in_a_world(|| async {
        let volume = Volume::new(iops(100));
        let completions = Completions::new();
        let submit = |request, token| volume.limiter.submit(request, Reply::new(completions.clone(), token));
        (0..5).for_each(|number| submit(Request::read(number * BLOCK, BLOCK), number));
        submit(Request::Flush, 9);
        assert_eq!((volume.limiter.waiting(), volume.meter.limited().waiting), (4, 4));
        assert_eq!(volume.recorder.offsets(), [0, u64::MAX]);
        sleep(SECOND).await;
        let expected = [0, u64::MAX, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK];
        assert_eq!(volume.recorder.offsets(), expected);
        let limited = volume.meter.limited();
        assert_eq!((limited.waiting, limited.waited), (0, 4));
        // The second owes, so it goes at once; then 10, 20 and 30 ms.
        assert!(limited.time.abs_diff(Duration::from_millis(60)) < Duration::from_millis(1), "{:?}", limited.time);
        assert_eq!((volume.meter.in_flight(), volume.meter.oldest()), (0, None), "they are not under way");
    });
}

#[test]
fn what_is_cancelled_never_reaches_the_device() {
    in_a_world(|| async {
        let volume = Volume::new(iops(10));
        let (gone, stays) = (Completions::new(), Completions::new());
        for number in 0..6 {
            let of = if number % 2 == 0 { &gone } else { &stays };
            let reply = Reply::new(Rc::clone(of) as Rc<dyn ReplySink>, number);
            volume.limiter.submit(Request::read(number * BLOCK, BLOCK), reply);
        }
        let sink = |of: &Rc<Completions>| Rc::clone(of) as Rc<dyn ReplySink>;
        volume.limiter.cancel(&sink(&stays), Some(3));
        volume.limiter.cancel(&sink(&stays), Some(4));
        volume.limiter.cancel(&sink(&gone), None);
        let told = |of: &Rc<Completions>| {
            let mut done = Vec::new();
            of.take(&mut done);
            done.into_iter()
                .map(|(token, outcome)| (token, outcome.err().map(|error| error.kind())))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&gone), [(0, None), (2, Some(ErrorKind::Aborted)), (4, Some(ErrorKind::Aborted))]);
        assert_eq!(told(&stays), [(3, Some(ErrorKind::Aborted))]);
        sleep(SECOND).await;
        assert_eq!(told(&stays), [(1, None), (5, None)]);
        assert_eq!(volume.recorder.offsets(), [0, BLOCK, 5 * BLOCK]);
        assert_eq!(volume.meter.limited().waiting, 0);
        assert!(volume.recorder.seen.borrow()[2].0 - volume.recorder.seen.borrow()[0].0 < Duration::from_millis(250));
    });
}

#[test]
fn all_that_waits_goes_when_the_limits_are_lifted() {
    in_a_world(|| async {
        let volume = Volume::new(iops(10));
        let completions = Completions::new();
        for number in 0..100 {
            volume.limiter.submit(Request::read(number * BLOCK, BLOCK), Reply::new(completions.clone(), number));
        }
        volume.limiter.lift();
        assert_eq!(volume.recorder.offsets(), (0..100).map(|number| number * BLOCK).collect::<Vec<_>>());
        assert_eq!(volume.limiter.waiting(), 0);
        let before = reactor::task_count();
        drop(volume);
        sleep(SECOND).await;
        assert_eq!(reactor::task_count(), before - 1, "the timer has ended with it");
    });
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    in_a_world(|| async {
        let volume = Volume::new(iops(10));
        let completions = Completions::new();
        for number in 0..MOST_WAITING as u64 + 2 {
            volume.limiter.submit(block(number), Reply::new(completions.clone(), number));
        }
        let mut done = Vec::new();
        completions.take(&mut done);
        let busy =
            done.iter().filter(|(_, outcome)| outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy));
        assert_eq!((done.len(), busy.count(), volume.limiter.waiting()), (2, 1, MOST_WAITING));
        volume.limiter.lift();
    });
}
