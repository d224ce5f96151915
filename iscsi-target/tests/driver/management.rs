//! Task management: what is aborted is not answered, and has no effect after the function is.

use std::cell::Cell;
use std::rc::Rc;

use iscsi_target_protocol::initiator::connection::Data;
use iscsi_target_protocol::wire::request::TaskFunction;

use crate::util::{BLOCK, Client, Limited, SOON, Scripted, Stage};

const COMPLETE: u8 = 0;

/// I15: the answer waits for the device.
#[test]
fn an_abort_is_answered_when_the_device_is_done() {
    let device = Scripted::new();
    let stage = Stage::new(1, Rc::clone(&device) as Rc<_>);
    device.holds.set(true);
    let story = stage.world.spawn(stage.host, async {
        let mut client = Client::ready(1).await;
        let write = client.submit_write(0, &vec![1; BLOCK as usize]);
        let abort = client.submit_management(TaskFunction::AbortTask, Some(write));
        assert_eq!(client.managed(abort).await.unwrap(), COMPLETE);
        client.command(&[0], Data::None, &[]).await.unwrap().good();
    });
    stage.world.run_for(SOON);
    assert_eq!(device.held(), 1);
    assert!(!story.is_done());
    device.release();
    stage.world.run_for(SOON);
    assert!(story.is_done());
}

#[test]
fn a_reset_ends_the_commands_of_all_and_tells_them() {
    for function in [TaskFunction::LogicalUnitReset, TaskFunction::TargetWarmReset] {
        let device = Scripted::new();
        let stage = Stage::new(2, Rc::clone(&device) as Rc<_>);
        let (mut one, mut other) = stage.host(async { (Client::ready(1).await, Client::ready(2).await) });
        device.holds.set(true);
        let story = stage.world.spawn(stage.host, async move {
            one.submit_write(0, &vec![1; BLOCK as usize]);
            other.submit_write(1, &vec![2; BLOCK as usize]);
            reactor::sleep(SOON / 4).await;
            assert_eq!(one.manage(function, None).await.unwrap(), COMPLETE);
            for client in [&mut one, &mut other] {
                assert_eq!(client.command(&[0], Data::None, &[]).await.unwrap().why(), (6, 0x2903));
                client.command(&[0], Data::None, &[]).await.unwrap().good();
            }
        });
        stage.world.run_for(SOON);
        assert_eq!(device.held(), 2, "{function:?}");
        device.release();
        stage.world.run_for(SOON);
        assert!(story.is_done(), "{function:?}");
    }
}

#[test]
fn a_cold_reset_closes_the_sessions() {
    let stage = Stage::memory(3);
    stage.host(async {
        let mut client = Client::ready(1).await;
        assert_eq!(client.manage(TaskFunction::TargetColdReset, None).await.unwrap(), COMPLETE);
        assert!(client.turn().await.is_err());
        let mut again = Client::ready(1).await;
        again.read(0, 1).await.unwrap().good();
    });
}

#[test]
fn clearing_the_task_set_is_told_to_the_others() {
    let stage = Stage::memory(4);
    stage.host(async {
        let (mut one, mut other) = (Client::ready(1).await, Client::ready(2).await);
        assert_eq!(one.manage(TaskFunction::ClearTaskSet, None).await.unwrap(), COMPLETE);
        assert_eq!(one.manage(TaskFunction::AbortTaskSet, None).await.unwrap(), COMPLETE);
        one.command(&[0], Data::None, &[]).await.unwrap().good();
        assert_eq!(other.command(&[0], Data::None, &[]).await.unwrap().why(), (6, 0x2f00));
        // Not supported: there is no ACA condition.
        assert_eq!(one.manage(TaskFunction::ClearAca, None).await.unwrap(), 5);
    });
}

/// Data for an aborted command may still be on its way; nothing of it is written.
#[test]
fn a_command_that_waits_for_data_is_gone_at_once() {
    let device = Scripted::new();
    let stage = Stage::new(5, Rc::clone(&device) as Rc<_>);
    stage.host(async {
        let mut client = Client::ready(1).await;
        // More than comes unasked: the target asks for the rest, and this initiator aborts meanwhile.
        let write = client.submit_write(0, &vec![1; 200 * BLOCK as usize]);
        assert_eq!(client.manage(TaskFunction::AbortTask, Some(write)).await.unwrap(), COMPLETE);
        client.command(&[0], Data::None, &[]).await.unwrap().good();
        client.read(0, 1).await.unwrap().good();
    });
    assert_eq!(device.writes.get(), 0);
}

/// What waits for the volume's limits has not begun, and is not waited for.
#[test]
fn commands_that_wait_for_limits_are_aborted_before_they_begin() {
    let device = Scripted::new();
    let limited = Limited::new(Rc::clone(&device) as Rc<_>);
    let stage = Stage::new(6, Rc::clone(&limited) as Rc<_>);
    let (mut one, mut other) = stage.host(async { (Client::ready(1).await, Client::ready(2).await) });
    let waiting = Rc::clone(&limited);
    let told = Rc::<Cell<bool>>::default();
    let done = Rc::clone(&told);
    stage.world.spawn(stage.host, async move {
        let writes: Vec<_> = (0..6).map(|block| one.submit_write(block, &vec![1; BLOCK as usize])).collect();
        other.submit_write(9, &vec![2; BLOCK as usize]);
        reactor::sleep(SOON / 10).await;
        assert_eq!(waiting.waiting(), 5);
        assert_eq!(one.manage(TaskFunction::AbortTask, Some(writes[4])).await.unwrap(), COMPLETE);
        assert_eq!(waiting.waiting(), 4);
        assert_eq!(one.manage(TaskFunction::LogicalUnitReset, None).await.unwrap(), COMPLETE);
        assert_eq!(waiting.waiting(), 0);
        for client in [&mut one, &mut other] {
            assert_eq!(client.command(&[0], Data::None, &[]).await.unwrap().why(), (6, 0x2903));
            client.command(&[0], Data::None, &[]).await.unwrap().good();
        }
        done.set(true);
        reactor::sleep(SOON * 60).await;
    });
    stage.world.run_for(SOON / 2);
    assert!(told.get(), "it waits for the limits");
    stage.world.run_for(SOON * 20);
    assert_eq!(device.writes.get(), 2, "those that were within the limits");
}

#[test]
fn a_session_that_ends_takes_its_waiting_commands_along() {
    let device = Scripted::new();
    let limited = Limited::new(Rc::clone(&device) as Rc<_>);
    let stage = Stage::new(7, Rc::clone(&limited) as Rc<_>);
    stage.host(async {
        let mut client = Client::ready(1).await;
        for block in 0..30 {
            client.submit_write(block, &vec![1; BLOCK as usize]);
        }
        client.stream.flush();
        reactor::sleep(SOON / 10).await;
        client.stream.close();
        let mut again = Client::ready(1).await;
        again.read(0, 1).await.unwrap().good();
    });
    assert_eq!(limited.waiting(), 0);
    assert_eq!(device.writes.get(), 2, "those that were within the limits");
}
