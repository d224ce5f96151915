//! Connections that are refused, lost, silent, and come back.

use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::{CommandError, ConnectError, ConnectionError, Options, Reconnect, Status};
use reactor::Slice;

use crate::fake::{BLOCK, Manner};
use crate::{Stage, address, connect, options};

fn patient() -> Options {
    Options { reconnect: Some(Reconnect::within(Duration::from_secs(60))), ..options() }
}

#[test]
fn nobody_listens() {
    let stage = Stage::new();
    stage.host(async {
        let error = nvmf_initiator::Controller::connect(([10, 0, 0, 1], 9).into(), "nqn.x", options()).await.err();
        assert!(matches!(error, Some(ConnectError::Connection(ConnectionError::Io(_)))), "{error:?}");
    });
}

#[test]
fn a_silent_machine_is_given_up_after_the_time_limit() {
    let stage = Stage::new();
    stage.host(async {
        let limit = Duration::from_secs(3);
        let start = reactor::now();
        let silent = ([10, 0, 0, 77], 4420).into();
        let options = Options { connect_timeout: limit, ..options() };
        let error = nvmf_initiator::Controller::connect(silent, "nqn.x", options).await.err();
        assert!(error.is_some());
        assert!(reactor::now() - start <= limit + Duration::from_millis(1));
    });
}

#[test]
fn a_refusal_is_told_by_name_and_leaves_nothing_behind() {
    let stage = Stage::new();
    stage.fake.refuse.set(Some(Status::ConnectInvalidHost));
    let before = stage.host(async { reactor::task_count() });
    stage.host(async {
        let error = connect(options()).await.err();
        assert_eq!(error, Some(ConnectError::Refused { status: Status::ConnectInvalidHost, result: 0 }));
        reactor::yield_now().await;
    });
    // I40
    assert_eq!(stage.host(async { reactor::task_count() }), before);
}

#[test]
fn without_reconnect_a_lost_connection_fails_what_is_in_flight_and_all_later() {
    let stage = Stage::new();
    *stage.fake.manner.borrow_mut() = Manner::Silent;
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let controller = connect(options()).await.expect("connected");
        let writing = controller.clone();
        let write = reactor::spawn(async move { writing.write(0, Slice::zeroes(BLOCK), false).await });
        reactor::sleep(Duration::from_secs(1)).await;
        fake.restart();
        assert_eq!(write.await.expect("ended well"), Err(CommandError::Lost));
        assert_eq!(controller.flush().await, Err(CommandError::Lost));
        assert!(!controller.is_live());
        assert!(matches!(controller.failure(), Some(ConnectError::Connection(_))), "{:?}", controller.failure());
    });
}

#[test]
fn commands_in_flight_are_sent_again_after_a_restart_of_the_target() {
    let stage = Stage::new();
    *stage.fake.manner.borrow_mut() = Manner::Silent;
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let controller = connect(patient()).await.expect("connected");
        let id = controller.id();
        let (writing, reading) = (controller.clone(), controller.clone());
        let data = Slice::from(&[7; BLOCK][..]);
        let write = reactor::spawn(async move { writing.write(0, data, false).await });
        let read = reactor::spawn(async move { reading.read(4 * BLOCK as u64, BLOCK).await });
        reactor::sleep(Duration::from_secs(1)).await;
        fake.refuse.set(Some(Status::ConnectInvalidParameters));
        fake.restart();
        reactor::sleep(Duration::from_secs(5)).await;
        assert!(!controller.is_live() && !write.is_finished());
        // Submitted while there is no connection.
        let late = controller.clone();
        let late = reactor::spawn(async move { late.flush().await });
        fake.refuse.set(None);
        *fake.manner.borrow_mut() = Manner::Proper;
        write.await.expect("ended well").expect("written after all");
        read.await.expect("ended well").expect("read after all");
        late.await.expect("ended well").expect("flushed after all");
        assert!(fake.disk.borrow()[..BLOCK].iter().all(|&byte| byte == 7));
        assert_eq!(controller.reconnects(), 1);
        assert_ne!(controller.id(), id);
    });
}

#[test]
fn commands_that_meet_a_passing_state_are_sent_again_if_asked_for() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        *fake.manner.borrow_mut() = Manner::Status(Status::AnaInaccessible);
        let impatient = connect(options()).await.expect("connected");
        let error = Err(CommandError::Status { status: Status::AnaInaccessible, result: 0 });
        assert_eq!(impatient.flush().await, error);

        let controller = connect(patient()).await.expect("connected");
        let waiting = controller.clone();
        let write = reactor::spawn(async move { waiting.write(0, Slice::zeroes(BLOCK), false).await });
        // Longer than a command may take, and through a lost connection.
        reactor::sleep(Duration::from_secs(20)).await;
        fake.restart();
        reactor::sleep(Duration::from_secs(20)).await;
        assert!(!write.is_finished());
        *fake.manner.borrow_mut() = Manner::Proper;
        write.await.expect("ended well").expect("written after all");

        // What does not pass is told at once.
        *fake.manner.borrow_mut() = Manner::Status(Status::CapacityExceeded);
        let start = reactor::now();
        assert!(controller.write(0, Slice::zeroes(BLOCK), false).await.is_err());
        assert!(reactor::now() - start < Duration::from_secs(1));

        // Patience ends.
        *fake.manner.borrow_mut() = Manner::Status(Status::AnaInaccessible);
        assert_eq!(controller.flush().await, error);
        assert!(reactor::now() - start >= Duration::from_secs(60));
        assert!(controller.is_live());
    });
}

#[test]
fn reconnecting_ends_with_its_time_limit_or_with_a_final_refusal() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        for status in [Status::ConnectInvalidParameters, Status::ConnectInvalidHost] {
            fake.refuse.set(None);
            let controller = connect(patient()).await.expect("connected");
            fake.refuse.set(Some(status));
            let start = reactor::now();
            fake.restart();
            reactor::sleep(Duration::from_millis(10)).await;
            assert_eq!(controller.flush().await, Err(CommandError::Lost));
            let took = reactor::now() - start;
            let (least, most) = if status.is_retryable() { (60, 75) } else { (0, 1) };
            assert!((Duration::from_secs(least)..Duration::from_secs(most)).contains(&took), "{status:?}: {took:?}");
            assert_eq!(controller.failure(), Some(ConnectError::Refused { status, result: 0 }));
        }
    });
}

#[test]
fn nothing_is_sent_to_another_namespace_that_took_the_name() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let controller = connect(patient()).await.expect("connected");
        fake.nguid.set([0x99; 16]);
        fake.restart();
        reactor::sleep(Duration::from_secs(1)).await;
        let data = Slice::from(&[7; BLOCK][..]);
        assert_eq!(controller.write(0, data, false).await, Err(CommandError::Lost));
        assert_eq!(controller.failure(), Some(ConnectError::IdentityChanged));
        assert!(fake.disk.borrow().iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_command_that_is_never_answered_ends_the_connection() {
    let stage = Stage::new();
    *stage.fake.manner.borrow_mut() = Manner::Silent;
    stage.host(async {
        let controller = connect(options()).await.expect("connected");
        let start = reactor::now();
        assert_eq!(controller.flush().await, Err(CommandError::Lost));
        assert_eq!(controller.failure(), Some(ConnectionError::TimedOut.into()));
        let took = reactor::now() - start;
        assert!(took >= Duration::from_secs(8) && took <= Duration::from_secs(12), "{took:?}");
    });
}

#[test]
fn keep_alives_are_sent_while_nothing_else_is() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let controller = connect(Options { keep_alive: Duration::from_secs(4), ..options() }).await.expect("connected");
        reactor::sleep(Duration::from_secs(60)).await;
        // At least every four seconds, at most every second.
        assert!((15..=60).contains(&fake.keep_alives.get()), "{}", fake.keep_alives.get());
        drop(controller);
        reactor::sleep(Duration::from_secs(1)).await;
        let before = fake.keep_alives.get();
        reactor::sleep(Duration::from_secs(60)).await;
        assert_eq!(fake.keep_alives.get(), before);
    });
}

#[test]
fn keep_alives_that_are_not_answered_do_not_pile_up() {
    let stage = Stage::new();
    stage.fake.deaf.set(true);
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let keep_alive = Duration::from_secs(4);
        let options = Options { keep_alive, command_timeout: Duration::from_secs(300), ..options() };
        let controller = connect(options).await.expect("connected");
        reactor::sleep(Duration::from_secs(200)).await;
        assert_eq!(fake.keep_alives.get(), 1);
        assert!(controller.is_live());
        reactor::sleep(Duration::from_secs(200)).await;
        assert_eq!(controller.failure(), Some(ConnectionError::TimedOut.into()));
    });
}

#[test]
fn a_target_that_falls_silent_is_noticed_by_the_keep_alive() {
    let stage = Stage::new();
    let target = stage.world.add_node([10, 0, 0, 9].into());
    let fake = Rc::clone(&stage.fake);
    stage.world.block_on(target, async move { fake.listen(([10, 0, 0, 9], 4420).into()) });
    let controller = stage.host(async {
        let address = ([10, 0, 0, 9], 4420).into();
        nvmf_initiator::Controller::connect(address, crate::fake::NQN, options()).await.expect("connected")
    });
    assert_ne!(address().ip().to_string(), "10.0.0.9");
    stage.world.power_cut(target);
    let waiting = controller.clone();
    stage.host(async move {
        reactor::sleep(Duration::from_secs(20)).await;
        assert!(!waiting.is_live());
    });
    drop(controller);
}
