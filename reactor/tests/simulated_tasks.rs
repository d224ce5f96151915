//! Tasks, timers, mailboxes and processes in a simulated world.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use reactor::simulated::{NodeId, World};
use reactor::{PostError, TurnEnd, at_turn_end, sleep, spawn, timeout};

fn world(seed: u64) -> (World, NodeId) {
    let world = World::new(seed);
    let node = world.add_node([10, 0, 0, 1].into());
    (world, node)
}

/// A run with tasks, timers, disk, network and chance, for comparing runs.
fn busy_run(seed: u64) -> (u64, Vec<String>) {
    let world = World::new(seed);
    world.keep_log(10_000);
    let (server, client) = (world.add_node([10, 0, 0, 1].into()), world.add_node([10, 0, 0, 2].into()));
    world.boot(server, || async {
        let listener = reactor::TcpListener::bind(([10, 0, 0, 1], 7000).into()).unwrap();
        loop {
            let stream = listener.accept().await.unwrap();
            spawn(async move {
                loop {
                    let Ok(chunk) = stream.receive().await else { return };
                    if chunk.is_empty() {
                        return;
                    }
                    stream.push_copy(&chunk);
                    stream.flush();
                }
            });
        }
    });
    let disk = reactor::DiskOptions { create: Some(1 << 20), ..Default::default() };
    world.block_on(client, async move {
        let disk = reactor::Disk::open("/disk".as_ref(), &disk).unwrap();
        let stream = reactor::TcpStream::connect(([10, 0, 0, 1], 7000).into()).await.unwrap();
        for round in 0..20 {
            let bytes: Vec<u8> = (0..512).map(|_| reactor::random() as u8).collect();
            stream.push_copy(&bytes);
            stream.flush();
            let mut echoed = Vec::new();
            while echoed.len() < bytes.len() {
                echoed.extend_from_slice(&stream.receive().await.unwrap());
            }
            assert_eq!(echoed, bytes);
            disk.write(round * 512, reactor::Slice::from(&echoed[..])).await.unwrap();
        }
    });
    world.power_cut(server);
    world.run_for(Duration::from_secs(1));
    (world.trace_hash(), world.log_lines())
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let (first, log) = busy_run(1);
    let (second, again) = busy_run(1);
    assert_eq!(log, again);
    assert_eq!(first, second);
    assert!(log.len() > 100);
    assert_ne!(first, busy_run(2).0);
}

#[test]
fn a_year_of_sleep_takes_no_time() {
    let (world, node) = world(1);
    let year = world.spawn(node, sleep_a_year());
    assert!(world.run_until(|| year.is_done(), Duration::from_secs(366 * 24 * 3600)));
    assert!(world.now().as_nanos() >= 365 * 24 * 3600 * 1_000_000_000);
}

async fn sleep_a_year() {
    for _ in 0..365 {
        let start = reactor::now();
        sleep(Duration::from_secs(24 * 3600)).await;
        assert!(reactor::now() - start >= Duration::from_secs(24 * 3600));
    }
}

#[test]
fn timers_fire_in_order_and_time_limits_hold() {
    let (world, node) = world(2);
    world.block_on(node, async {
        let fired = Rc::new(Cell::new(0));
        let tasks: Vec<_> = [30, 10, 20]
            .into_iter()
            .map(|milliseconds| {
                let fired = Rc::clone(&fired);
                spawn(async move {
                    sleep(Duration::from_millis(milliseconds)).await;
                    fired.set(fired.get() * 100 + milliseconds);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(fired.get(), 102_030);
        assert!(timeout(Duration::from_secs(1), std::future::pending::<()>()).await.is_err());
        assert_eq!(timeout(Duration::from_secs(1), async { 7 }).await, Ok(7));
    });
}

#[test]
fn calls_reach_reactors_of_a_node_from_each_other_and_from_the_test() {
    let (world, node) = world(3);
    let (first, second) = (world.start_reactor(node), world.start_reactor(node));
    assert_eq!(world.wait_for(second.call(|| async { 40 + 2 })), Ok(42));
    let answer = world.wait_for(first.call(move || async move {
        assert!(!second.is_current());
        second.call(|| async { sleep(Duration::from_secs(1)).await }).await?;
        second.call(|| async { reactor::handle().is_current() }).await
    }));
    assert_eq!(answer, Ok(Ok(true)));
}

#[test]
fn a_kill_drops_every_task_and_refuses_later_calls() {
    struct Dropped(Rc<Cell<u32>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            // What a task starts in its last moment has no effect and does no harm.
            let disk = reactor::DiskOptions { create: Some(4096), ..Default::default() };
            drop(spawn(async move { reactor::Disk::open("/late".as_ref(), &disk).map(drop) }));
            self.0.set(self.0.get() + 1);
        }
    }
    let (world, node) = world(4);
    let dropped = Rc::new(Cell::new(0));
    let handle = world.boot(node, || async {});
    for _ in 0..5 {
        let guard = Dropped(Rc::clone(&dropped));
        world.spawn(node, async move {
            sleep(Duration::from_secs(1 << 30)).await;
            drop(guard);
        });
    }
    world.run_for(Duration::from_secs(1));
    assert_eq!(dropped.get(), 0);
    world.kill(node);
    assert_eq!(dropped.get(), 5);
    assert!(!world.is_running(node));
    assert_eq!(handle.post(|| ()), Err(PostError::Stopped));
    assert_eq!(world.wait_for(handle.call(|| async {})), Err(PostError::Stopped));
}

#[test]
fn a_task_can_end_its_own_node() {
    let (world, node) = world(5);
    let observer = world.observer();
    let outcome = world.spawn(node, async move {
        sleep(Duration::from_millis(5)).await;
        observer.log("the end is near");
        observer.kill(node);
        sleep(Duration::ZERO).await;
        std::future::pending::<()>().await;
    });
    assert!(world.run_until(|| !world.is_running(node), Duration::from_secs(1)));
    assert!(!outcome.is_done());
    assert!(world.log_lines().iter().any(|line| line.ends_with("the end is near")));
}

#[test]
fn a_paused_process_stands_still_and_then_goes_on() {
    let (world, node) = world(6);
    let ticks = Rc::new(Cell::new(0));
    let counter = Rc::clone(&ticks);
    world.boot(node, move || async move {
        loop {
            sleep(Duration::from_millis(1)).await;
            counter.set(counter.get() + 1);
        }
    });
    world.run_for(Duration::from_millis(100));
    let before = ticks.get();
    assert!(before > 50);
    world.pause(node);
    world.run_for(Duration::from_secs(10));
    assert_eq!(ticks.get(), before);
    world.resume(node);
    world.run_for(Duration::from_millis(100));
    assert!(ticks.get() > before + 50);
}

#[test]
fn boot_id_changes_with_the_power_only() {
    let (world, node) = world(7);
    let boot_id = |world: &World| world.block_on(node, async { reactor::boot_id() });
    let first = boot_id(&world);
    world.kill(node);
    assert_eq!(boot_id(&world), first);
    world.power_cut(node);
    assert_ne!(boot_id(&world), first);
}

#[test]
fn wall_clocks_jump_and_monotonic_clocks_do_not() {
    let (world, node) = world(8);
    let clocks = |world: &World| world.block_on(node, async { (reactor::wall_clock(), reactor::now()) });
    let (wall, monotonic) = clocks(&world);
    world.jump_clock(node, -3600);
    let (earlier, later) = clocks(&world);
    assert!(earlier < wall && wall - earlier <= Duration::from_secs(3600));
    assert!(later >= monotonic && later - monotonic < Duration::from_secs(1));
}

#[test]
#[should_panic(expected = "seed 9: a task of node 0 panicked")]
fn a_panic_of_any_task_fails_the_test() {
    let (world, node) = world(9);
    world.boot(node, || async {
        sleep(Duration::from_secs(1)).await;
        panic!("on purpose");
    });
    world.run_for(Duration::from_secs(2));
}

#[test]
#[should_panic(expected = "seed 10: the task is stuck")]
fn waiting_for_ever_is_noticed() {
    let (world, node) = world(10);
    world.block_on(node, std::future::pending::<()>());
}

#[test]
fn a_task_that_never_rests_does_not_stop_time() {
    let (world, node) = world(11);
    world.boot(node, || async {
        loop {
            reactor::yield_now().await;
        }
    });
    world.run_for(Duration::from_millis(5));
    assert!(world.now().as_nanos() >= 5_000_000);
}

/// Counts how often a turn ended for it, and may ask for another end.
#[derive(Default)]
struct Ending {
    ended: Cell<u32>,
    again: Cell<bool>,
}

struct EndingOf(Rc<Ending>);

impl TurnEnd for EndingOf {
    fn turn_ends(&self) {
        self.0.ended.set(self.0.ended.get() + 1);
        if self.0.again.take() {
            at_turn_end(Rc::new(Self(Rc::clone(&self.0))));
        }
    }
}

#[test]
fn the_end_of_a_turn_comes_once_after_all_its_tasks() {
    let (world, node) = world(1);
    world.block_on(node, async {
        let ending = Rc::new(Ending::default());
        at_turn_end(Rc::new(EndingOf(Rc::clone(&ending))));
        let other = spawn({
            let ending = Rc::clone(&ending);
            async move { ending.ended.get() }
        });
        assert_eq!(ending.ended.get(), 0, "not before the task that asked is done");
        reactor::yield_now().await;
        assert_eq!(ending.ended.get(), 1);
        assert!(other.await.expect("no panic") <= 1);
        ending.again.set(true);
        at_turn_end(Rc::new(EndingOf(Rc::clone(&ending))));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(ending.ended.get(), 3, "what it left for later did not wait for anything else to happen");
    });
}
