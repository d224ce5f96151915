//! Tasks, wakers and messages on real reactors: what happens when they end early, late or badly.

mod support;

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use reactor::{Config, PostError, Reactor, TaskEnded, TurnEnd, at_turn_end, spawn, yield_now};
use tokio::sync::oneshot;

use support::run;

/// Sets its flag when dropped.
struct Noticed(Arc<AtomicBool>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn start() -> Reactor {
    Reactor::start(Config::default()).expect("a reactor")
}

#[test]
fn join_handles_tell_how_a_task_ended() {
    run(async {
        assert_eq!(spawn(async { 7 }).await, Ok(7));
        assert_eq!(spawn(async { panic!("on purpose") }).await, Err::<(), _>(TaskEnded));
        let aborted = spawn(pending::<()>());
        aborted.abort();
        assert_eq!(aborted.await, Err(TaskEnded));
        let late = spawn(async { 8 });
        yield_now().await;
        assert!(late.is_finished());
        assert_eq!(late.await, Ok(8), "the output waits");
    });
}

#[test]
fn a_task_goes_on_without_its_handle() {
    run(async {
        let (sender, receiver) = oneshot::channel();
        drop(spawn(async move {
            yield_now().await;
            sender.send(5)
        }));
        assert_eq!(receiver.await, Ok(5));
    });
}

#[test]
fn an_abort_drops_the_future_and_whoever_it_holds() {
    run(async {
        let dropped = Arc::new(AtomicBool::new(false));
        let noticed = Noticed(Arc::clone(&dropped));
        let task = spawn(async move {
            let _noticed = noticed;
            pending::<()>().await;
        });
        yield_now().await;
        task.abort();
        assert!(dropped.load(Ordering::SeqCst), "at once, as the task does not run");
        let count = reactor::task_count();
        task.abort();
        assert_eq!(reactor::task_count(), count, "again is nothing");
    });
}

#[test]
fn a_task_may_abort_itself() {
    run(async {
        let own: Rc<RefCell<Option<reactor::JoinHandle<()>>>> = Rc::default();
        let handle = Rc::clone(&own);
        let polls = Rc::new(Cell::new(0));
        let count = Rc::clone(&polls);
        *own.borrow_mut() = Some(spawn(poll_fn(move |context| {
            count.set(count.get() + 1);
            handle.borrow().as_ref().expect("set before the first poll").abort();
            context.waker().wake_by_ref();
            Poll::Pending
        })));
        for _ in 0..3 {
            yield_now().await;
        }
        assert_eq!(polls.get(), 1, "the last poll is the one that aborted");
        assert!(own.borrow().as_ref().expect("still here").is_finished());
    });
}

#[test]
fn panics_end_their_task_and_nothing_else() {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("on purpose, in drop");
        }
    }
    struct PanicsAtTurnEnd;
    impl TurnEnd for PanicsAtTurnEnd {
        fn turn_ends(&self) {
            panic!("on purpose, at the end of a turn");
        }
    }
    struct Counts(Cell<u32>);
    impl TurnEnd for Counts {
        fn turn_ends(&self) {
            self.0.set(self.0.get() + 1);
        }
    }
    run(async {
        let bystander = spawn(async {
            for _ in 0..10 {
                yield_now().await;
            }
            "unharmed"
        });
        let counts = Rc::new(Counts(Cell::new(0)));
        at_turn_end(Rc::new(PanicsAtTurnEnd));
        at_turn_end(Rc::clone(&counts) as Rc<dyn TurnEnd>);
        let task = spawn(async {
            let _guard = PanicsInDrop;
            pending::<()>().await;
        });
        yield_now().await;
        task.abort();
        assert_eq!(task.await, Err(TaskEnded));
        reactor::handle().post(|| panic!("on purpose, in a job")).expect("posted");
        assert_eq!(bystander.await, Ok("unharmed"));
        assert_eq!(counts.0.get(), 1, "what else was left for that turn's end was done");
    });
}

#[test]
#[should_panic(expected = "the main future's own words")]
fn a_panic_of_the_main_future_is_passed_on() {
    run(async { panic!("the main future's own words") });
}

#[test]
fn wakers_work_from_any_thread() {
    run(async {
        for round in 0..200 {
            let (sender, receiver) = oneshot::channel();
            let waking = thread::spawn(move || sender.send(round));
            assert_eq!(receiver.await, Ok(round));
            waking.join().expect("no panic").expect("received");
        }
    });
}

#[test]
fn a_waker_may_outlive_its_task_and_its_reactor() {
    let kept: Arc<parking_lot::Mutex<Option<Waker>>> = Arc::default();
    let keep = Arc::clone(&kept);
    run(async move {
        let store = Arc::clone(&keep);
        let task = spawn(poll_fn::<(), _>(move |context| {
            *store.lock() = Some(context.waker().clone());
            Poll::Pending
        }));
        yield_now().await;
        task.abort();
        // Takes the place of the aborted one; the old waker must not wake it.
        let polls = Rc::new(Cell::new(0));
        let count = Rc::clone(&polls);
        let _successor = spawn(poll_fn::<(), _>(move |_| {
            count.set(count.get() + 1);
            Poll::Pending
        }));
        yield_now().await;
        keep.lock().as_ref().expect("stored").wake_by_ref();
        yield_now().await;
        assert_eq!(polls.get(), 1);
    });
    let waker = kept.lock().take().expect("stored");
    waker.wake_by_ref();
    thread::spawn(move || waker.wake()).join().expect("no panic");
}

#[test]
fn calls_return_the_output_of_a_future_that_cannot_cross_threads() {
    let reactor = start();
    let output = wait_for(reactor.handle().call(|| async {
        let local = Rc::new(Cell::new(1));
        let other = Rc::clone(&local);
        spawn(async move { other.set(2) }).await.expect("no panic");
        local.get()
    }));
    assert_eq!(output, Ok(2));
    reactor.stop().expect("a clean end");
}

#[test]
fn a_call_runs_on_when_its_caller_has_gone() {
    let reactor = start();
    let (sender, receiver) = mpsc::channel();
    drop(reactor.handle().call(move || async move { sender.send(()) }));
    receiver.recv().expect("it ran");
}

#[test]
fn stopping_drops_tasks_and_answers_callers() {
    let reactor = start();
    let handle = reactor.handle();
    let dropped = Arc::new(AtomicBool::new(false));
    let noticed = Noticed(Arc::clone(&dropped));
    let call = handle.call(move || async move {
        let _noticed = noticed;
        pending::<()>().await;
    });
    reactor.stop().expect("a clean end");
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(wait_for(call), Err(PostError::Stopped));
    assert_eq!(handle.post(|| ()), Err(PostError::Stopped));
}

#[test]
fn a_task_may_drop_its_own_reactor() {
    let reactor = start();
    let handle = reactor.handle();
    let (sender, receiver) = mpsc::channel();
    handle
        .post(move || {
            drop(reactor);
            sender.send(()).expect("the test waits");
        })
        .expect("posted");
    receiver.recv().expect("no deadlock");
    while handle.post(|| ()) != Err(PostError::Stopped) {
        thread::yield_now();
    }
}

#[test]
fn a_full_mailbox_refuses_and_loses_nothing() {
    let reactor = start();
    let handle = reactor.handle();
    let (release, held) = mpsc::channel::<()>();
    let ran = Arc::new(AtomicUsize::new(0));
    handle.post(move || held.recv().expect("released")).expect("posted");
    let mut posted = 0;
    loop {
        let count = Arc::clone(&ran);
        let job = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        match handle.post(job) {
            Ok(()) => posted += 1,
            Err(error) => {
                assert_eq!(error, PostError::Full);
                break;
            }
        }
        assert!(posted < 100_000, "the mailbox is bounded");
    }
    release.send(()).expect("the job waits");
    while ran.load(Ordering::SeqCst) < posted {
        thread::yield_now();
    }
    handle.post(|| ()).expect("room again");
}

#[test]
fn timers_fire_in_order_and_cancelled_ones_never() {
    run(async {
        let order: Rc<RefCell<Vec<u64>>> = Rc::default();
        let mut tasks = Vec::new();
        for milliseconds in [30, 10, 20] {
            let order = Rc::clone(&order);
            tasks.push(spawn(async move {
                reactor::sleep(Duration::from_millis(milliseconds)).await;
                order.borrow_mut().push(milliseconds);
            }));
        }
        let fired = Rc::clone(&order);
        let cancelled = spawn(async move {
            reactor::sleep(Duration::from_millis(15)).await;
            fired.borrow_mut().push(15);
        });
        yield_now().await;
        cancelled.abort();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(*order.borrow(), [10, 20, 30]);
    });
}

#[test]
fn one_thread_may_have_one_reactor_after_the_other() {
    for round in 0..20 {
        assert_eq!(run(async move { spawn(async move { round }).await }), Ok(round));
    }
}

#[test]
fn a_core_that_is_not_there_is_refused() {
    let error = Reactor::start(Config { core: Some(100_000), ..Config::default() }).expect_err("refused");
    assert!(error.to_string().contains("100000"), "{error}");
}

#[test]
fn a_pinned_reactor_works() {
    let reactor = Reactor::start(Config { core: Some(0), ..Config::default() }).expect("a reactor");
    assert_eq!(wait_for(reactor.handle().call(|| async { 1 })), Ok(1));
}

/// Waits on the test's own thread, which has no reactor.
fn wait_for<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
