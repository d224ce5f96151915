//! How hosts find subsystems, come, go and come back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::{BlockDevice, Limiter};
use nvmf_target::{AnaState, Hosts, Limits, Listener, ListenerOptions, Subsystem, SubsystemOptions};
use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::wire::discovery::{ENTRY_SIZE, parse_discovery_entry, parse_discovery_header};
use nvmf_target_protocol::wire::fabrics::{CONTROLLER_ANY, DISCOVERY_NQN};
use nvmf_target_protocol::wire::log_page::{DISCOVERY, GetLogPage, Notice};
use nvmf_target_protocol::wire::{Status, feature};

use crate::util::{BLOCK, Client, HOST_NQN, SOON, Scripted, Stage, address, identity, pattern};

fn discovery_log(length: u64) -> Command {
    let log =
        GetLogPage { page: DISCOVERY, parameter: 0, retain_event: false, length, offset: 0, offset_is_index: false };
    Command::get_log_page(&log)
}

/// The discovery log as a host reads it: generation counter, NQNs and addresses.
async fn discover(host: &str) -> (u64, Vec<(String, std::net::SocketAddr)>) {
    let mut client = Client::open().await.unwrap();
    let answer = client.connect(DISCOVERY_NQN, host, 0, CONTROLLER_ANY, 0).await.unwrap();
    assert_eq!(answer.status(), Status::Success);
    client.enable().await.unwrap();
    read_log(&mut client).await
}

async fn read_log(client: &mut Client) -> (u64, Vec<(String, std::net::SocketAddr)>) {
    let header = client.command(&discovery_log(ENTRY_SIZE as u64), &[]).await.unwrap().data;
    let (generation, records) = parse_discovery_header(header.as_slice().try_into().unwrap());
    let whole = client.command(&discovery_log(ENTRY_SIZE as u64 * (1 + records)), &[]).await.unwrap().data;
    let entries = whole[ENTRY_SIZE..].chunks_exact(ENTRY_SIZE).map(|record| {
        let entry = parse_discovery_entry(record.try_into().unwrap()).expect("a valid entry");
        (entry.subsystem_nqn, entry.address)
    });
    (generation, entries.collect())
}

#[test]
fn a_host_discovers_what_it_may_connect_to() {
    let named = Hosts::Named([HOST_NQN.to_owned()].into());
    let stage = Stage::with_hosts(1, Scripted::new(), named);
    let (_, seen) = stage.host(discover(HOST_NQN));
    assert_eq!(seen, [(identity().nqn, address())]);
    let (_, seen) = stage.host(discover("nqn.2026-01.io.ashlar:stranger"));
    assert_eq!(seen, [], "not for strangers");
}

#[test]
fn a_change_of_the_discovery_log_is_told() {
    let stage = Stage::memory(2);
    let story = stage.world.spawn(stage.host, async {
        let mut client = Client::open().await.unwrap();
        client.connect(DISCOVERY_NQN, HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap();
        client.enable().await.unwrap();
        let events = Command::set_feature(feature::ASYNC_EVENT_CONFIGURATION, feature::event::DISCOVERY_CHANGED);
        assert_eq!(client.command(&events, &[]).await.unwrap().status(), Status::Success);
        let (before, _) = read_log(&mut client).await;
        let event = client.submit(&Command::async_event_request(), &[]);
        let told = client.answer(event).await.unwrap().completion.result;
        assert_eq!(Notice::from_result(told), Some(Notice::DiscoveryChanged));
        let (after, seen) = read_log(&mut client).await;
        assert!(after > before);
        assert_eq!(seen, []);
    });
    stage.world.run_for(SOON);
    let subsystem = Rc::clone(&stage.subsystem);
    stage.world.block_on(stage.target, async move { subsystem.stop().await });
    assert!(stage.world.run_until(|| story.is_done(), SOON));
}

#[test]
fn refused_connects_say_why_and_may_be_tried_again() {
    let named = Hosts::Named([HOST_NQN.to_owned()].into());
    let stage = Stage::with_hosts(3, Scripted::new(), named);
    stage.host(async {
        let mut client = Client::open().await.unwrap();
        let unknown = client.connect("nqn.2026-01.io.ashlar:none", HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap();
        assert_eq!(unknown.status(), Status::ConnectInvalidParameters);
        assert_eq!(unknown.completion.result, 0x1_0100, "SUBNQN");
        let nqn = identity().nqn;
        let stranger = client.connect(&nqn, "nqn.2026-01.io.ashlar:stranger", 0, CONTROLLER_ANY, 0).await.unwrap();
        assert_eq!(stranger.status(), Status::ConnectInvalidHost);
        let command = client.command(&Command::keep_alive(), &[]).await.unwrap();
        assert_eq!(command.status(), Status::CommandSequenceError);
        let answer = client.connect(&nqn, HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap();
        assert_eq!(answer.status(), Status::Success, "the same connection, and a name that exists");

        let mut stray = Client::open().await.unwrap();
        let no_controller = stray.connect(&nqn, HOST_NQN, 1, 0x7777, 0).await.unwrap();
        assert_eq!(no_controller.completion.result, 0x1_0010, "CNTLID");
    });
}

#[test]
fn a_host_that_may_not_any_more_is_disconnected() {
    let stage = Stage::memory(14);
    let story = stage.world.spawn(stage.host, async {
        let (mut admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        assert_eq!(io.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success);
        reactor::sleep(2 * SOON).await;
        assert!(io.command(&Command::flush(1), &[]).await.is_err());
        assert!(admin.command(&Command::keep_alive(), &[]).await.is_err());
        let mut again = Client::open().await.unwrap();
        let refused = again.connect(&identity().nqn, HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap();
        assert_eq!(refused.status(), Status::ConnectInvalidHost);
    });
    stage.world.run_for(SOON);
    stage.on_target(|subsystem| subsystem.set_hosts(Hosts::Named([HOST_NQN.to_owned()].into())));
    assert_eq!(stage.on_target(|subsystem| subsystem.controllers().len()), 1, "still allowed");
    stage.on_target(|subsystem| subsystem.set_hosts(Hosts::Named(["nqn.2026-01.io.ashlar:other".to_owned()].into())));
    assert!(stage.world.run_until(|| story.is_done(), 4 * SOON));
    assert_eq!(stage.on_target(|subsystem| subsystem.controllers()), []);
}

#[test]
fn controllers_and_queues_end_with_their_connections() {
    let stage = Stage::memory(4);
    stage.host(async {
        let (admin, id) = Client::admin(0).await.unwrap();
        let io = Client::io(1, id).await.unwrap();
        io.stream.close();
        reactor::sleep(SOON).await;
        let mut io = Client::io(1, id).await.unwrap();
        assert_eq!(io.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success, "queue 1 anew");
        admin.stream.close();
        reactor::sleep(SOON).await;
        assert!(io.command(&Command::flush(1), &[]).await.is_err(), "its queues go with the controller");
        let (_admin, next) = Client::admin(0).await.unwrap();
        assert_ne!(next, id, "identifiers are not used again");
    });
    stage.world.run_for(SOON);
    assert_eq!(stage.on_target(|subsystem| subsystem.controllers()), [], "the story's end closed the last one");
}

#[test]
fn a_silent_host_is_disconnected_and_a_busy_one_is_not() {
    let stage = Stage::memory(5);
    stage.host(async {
        let (mut admin, id) = Client::admin(5000).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        for _ in 0..10 {
            // Traffic on any queue counts.
            reactor::sleep(Duration::from_secs(4)).await;
            assert_eq!(io.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success);
        }
        reactor::sleep(Duration::from_secs(4)).await;
        assert_eq!(admin.command(&Command::keep_alive(), &[]).await.unwrap().status(), Status::Success);
        reactor::sleep(Duration::from_secs(8)).await;
        assert!(io.command(&Command::flush(1), &[]).await.is_err());
        assert!(admin.command(&Command::keep_alive(), &[]).await.is_err());
    });
    assert_eq!(stage.on_target(|subsystem| subsystem.controllers()), []);
}

/// I16: what a broken connection left at the device is over before its host can write again.
#[test]
fn a_host_that_comes_back_waits_for_what_it_left() {
    let device = Scripted::new();
    device.holds.set(true);
    let stage = Stage::new(6, Rc::clone(&device) as Rc<_>);
    stage.host(async {
        let (admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        io.submit(&Command::write(1, 0, 1, BLOCK, false), &pattern(BLOCK as usize, 1));
        io.stream.flush();
        reactor::sleep(SOON).await;
        drop((admin, io));
    });
    assert_eq!(device.held(), 1);
    let back = stage.world.spawn(stage.host, async { Client::admin(0).await.unwrap().1 });
    stage.world.run_for(Duration::from_secs(5));
    assert!(!back.is_done(), "the old write may still land");
    let script = Rc::clone(&device);
    stage.on_target(move |_| script.release());
    assert!(stage.world.run_until(|| back.is_done(), SOON));
}

#[test]
fn a_host_does_not_wait_for_ever_for_what_it_left() {
    let device = Scripted::new();
    device.holds.set(true);
    let stage = Stage::new(7, Rc::clone(&device) as Rc<_>);
    let status = stage.host(async {
        let (admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        io.submit(&Command::write(1, 0, 1, BLOCK, false), &pattern(BLOCK as usize, 1));
        io.stream.flush();
        reactor::sleep(SOON).await;
        drop((admin, io));
        let mut client = Client::open().await.unwrap();
        client.connect(&identity().nqn, HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap().status()
    });
    assert_eq!(status, Status::ConnectControllerBusy, "try again later");
}

/// What waits for the volume's limits has not begun, and never will.
#[test]
fn a_host_that_comes_back_does_not_wait_for_what_limits_held_back() {
    let device = Scripted::new();
    let stage = Stage::new(12, Rc::clone(&device) as Rc<_>);
    let behind = Rc::clone(&device) as Rc<dyn BlockDevice>;
    let limiter = stage.on_target(|subsystem| {
        let limits = block_device::Limits { iops: 10, ..block_device::Limits::default() };
        let limiter = Limiter::new(behind, limits, Arc::default());
        subsystem.attach(1, Rc::clone(&limiter) as Rc<dyn BlockDevice>, &identity(), AnaState::Optimized);
        limiter
    });
    let waiting = Rc::clone(&limiter);
    stage.host(async move {
        let (admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        for block in 0..30 {
            io.submit(&Command::write(1, block, 1, BLOCK, false), &pattern(BLOCK as usize, 1));
        }
        io.stream.flush();
        reactor::sleep(SOON / 10).await;
        assert_eq!(waiting.waiting(), 28);
        drop((admin, io));
    });
    let back = stage.world.spawn(stage.host, async { Client::admin(0).await.unwrap().1 });
    assert!(stage.world.run_until(|| back.is_done(), SOON), "it waits for limits");
    assert_eq!(limiter.waiting(), 0);
    stage.world.run_for(SOON * 40);
    assert_eq!(device.requests.borrow().len(), 2, "those that were within the limits");
}

#[test]
fn a_stopped_subsystem_has_answered_everything_and_is_unknown() {
    let device = Scripted::new();
    device.holds.set(true);
    let stage = Stage::new(8, Rc::clone(&device) as Rc<_>);
    let left = stage.world.spawn(stage.host, async {
        let (_admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        io.command(&Command::flush(1), &[]).await.is_err()
    });
    assert!(stage.world.run_until(|| device.held() == 1, SOON));
    let subsystem = Rc::clone(&stage.subsystem);
    let stopped = stage.world.spawn(stage.target, async move { subsystem.stop().await });
    assert!(stage.world.run_until(|| left.is_done(), Duration::from_secs(5)), "connections close at once");
    assert!(!stopped.is_done(), "the device still has a request");
    let script = Rc::clone(&device);
    stage.on_target(move |_| script.release());
    assert!(stage.world.run_until(|| stopped.is_done(), SOON));
    assert_eq!(stage.directory.subsystems(), Vec::<String>::new());
    let status = stage.host(async {
        let mut client = Client::open().await.unwrap();
        client.connect(&identity().nqn, HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap().status()
    });
    assert_eq!(status, Status::ConnectInvalidParameters);
    assert!(status.is_retryable(), "the volume may start again: a host must not give up for good");
}

#[test]
fn a_name_is_exported_once() {
    let stage = Stage::memory(9);
    let directory = stage.directory.clone();
    let again = stage.world.block_on(stage.target, async move {
        let options = SubsystemOptions { identity: identity(), hosts: Hosts::Any, limits: Limits::default() };
        Subsystem::start(&directory, options).map(|_| ()).map_err(|error| error.to_string())
    });
    assert_eq!(again, Err(format!("{} is exported already", identity().nqn)));
}

#[test]
fn a_listener_on_another_reactor_hands_connections_over() {
    let stage = Stage::memory(10);
    let directory = stage.directory.clone();
    let second = stage.world.start_reactor(stage.target);
    let discovery_port = (crate::util::TARGET, 8009).into();
    let bound = stage.world.wait_for(second.call(move || async move {
        let options = ListenerOptions { advertise_own: false, ..ListenerOptions::new(discovery_port) };
        let listener = Listener::bind(&directory, options).map_err(|error| error.to_string());
        // Kept for as long as the reactor lives.
        reactor::spawn(async move {
            let _listener = listener;
            std::future::pending::<()>().await
        });
    }));
    assert_eq!(bound, Ok(()));
    stage.host(async move {
        let mut client = Client::open_at(discovery_port).await.unwrap();
        let answer = client.connect(&identity().nqn, HOST_NQN, 0, CONTROLLER_ANY, 0).await.unwrap();
        assert_eq!(answer.status(), Status::Success);
        client.enable().await.unwrap();
        let mut io = Client::io(1, answer.completion.result as u16).await.unwrap();
        assert_eq!(io.command(&Command::read(1, 0, 1, BLOCK), &[]).await.unwrap().status(), Status::Success);
    });
    let (_, seen) = stage.host(discover(HOST_NQN));
    assert_eq!(seen, [(identity().nqn, address())], "the second port is for discovery only");
}

#[test]
fn a_closed_listener_takes_no_more_and_leaves_connections_alone() {
    let stage = Stage::memory(11);
    let client = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&client);
    stage.host(async move {
        let (admin, id) = Client::admin(0).await.unwrap();
        *kept.borrow_mut() = Some((admin, Client::io(1, id).await.unwrap()));
    });
    let listener = Rc::clone(&stage.listener);
    stage.world.block_on(stage.target, async move { drop(listener.take()) });
    stage.host(async move {
        assert!(Client::open().await.is_err());
        let (_admin, mut io) = client.take().expect("connected before");
        assert_eq!(io.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success);
    });
}
