//! The window, task management, pings, text, logouts, messages.

use iscsi_target_protocol::initiator::login::Options;
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::TargetRecord;
use iscsi_target_protocol::target::connection::{Limits, Scope, Silent};
use iscsi_target_protocol::wire::pdu::{RESERVED_TAG, RequestNumbers};
use iscsi_target_protocol::wire::request::{LogoutReason, NopOut, TaskFunction};
use iscsi_target_protocol::wire::response::{AsyncEvent, LogoutOutcome, NopIn, TaskManagementOutcome};

use crate::util::{Pair, SECOND, Setting, name, numbered, options, pattern, write};

#[test]
fn a_busy_target_closes_the_window_and_opens_it_again() {
    let limits = Limits { commands: 4, ..Limits::default() };
    let mut pair = Pair::open(Setting { limits, ..Setting::default() });
    pair.hold = true;
    for number in 0..4 {
        assert!(pair.submit(0, &numbered(number), &[]).is_some());
    }
    assert!(pair.submit(0, &numbered(4), &[]).is_none(), "the window is closed");
    pair.run();
    assert_eq!(pair.target.in_flight(), 4);
    let (first, _) = pair.links[0].pending.first_key_value().unwrap();
    pair.execute(0, *first);
    assert!(pair.submit(0, &numbered(4), &[]).is_none(), "the initiator has not heard of it");
    pair.run();
    assert!(pair.submit(0, &numbered(4), &[]).is_some());
    assert!(pair.submit(0, &numbered(5), &[]).is_none());
    // An immediate command needs no place.
    let mut urgent = numbered(6);
    urgent.immediate = true;
    assert!(pair.submit(0, &urgent, &[]).is_some());
    pair.run();
    assert_eq!(pair.links[0].target.in_flight(), 5);
    assert_eq!(pair.begun, [0, 1, 2, 3, 4, 6]);
}

#[test]
fn too_many_immediate_commands_are_rejected_one_by_one() {
    let mut pair = Pair::open(Setting::default());
    pair.hold = true;
    let mut urgent = numbered(0);
    urgent.immediate = true;
    for _ in 0..9 {
        pair.submit(0, &urgent, &[]).unwrap();
    }
    pair.run();
    assert_eq!(pair.links[0].pending.len(), 8);
    assert!(pair.links[0].heard[0].starts_with("Rejected { reason: 6"), "{:?}", pair.links[0].heard);
    let held: Vec<usize> = pair.links[0].pending.keys().copied().collect();
    held.into_iter().for_each(|task| pair.execute(0, task));
    pair.run();
    assert!(pair.submit(0, &urgent, &[]).is_some());
    pair.run();
    assert_eq!(pair.links[0].pending.len(), 1);
}

#[test]
fn an_aborted_task_is_answered_by_nobody_and_its_late_data_is_dropped() {
    let offer = Parameters { initial_r2t: true, immediate_data: false, ..Parameters::target() };
    let mut pair = Pair::open(Setting { offer, ..Setting::default() });
    pair.hold = true;
    let data = pattern(8192, 1);
    let waiting = pair.submit(0, &write(0, 8192), &data).unwrap();
    let executing = pair.submit(0, &numbered(1), &[]).unwrap();
    // The R2T is out, and the data for it on its way when the abort comes.
    pair.deliver_to_target(0).unwrap();
    pair.deliver_to_initiator(0).unwrap();
    let data_on_its_way = std::mem::take(&mut pair.links[0].to_target);
    let mut requests = Vec::new();
    for task in [waiting, executing] {
        let link = &mut pair.links[0];
        let request =
            link.initiator.manage(&mut pair.initiator, TaskFunction::AbortTask, 0, Some(task), &mut link.to_target);
        requests.push(request.unwrap());
    }
    pair.deliver_to_target(0).unwrap();
    assert_eq!(pair.links[0].asked, ["AbortTask 0 true 3", "AbortTask 0 true 3"]);
    let held: Vec<usize> = pair.links[0].pending.keys().copied().collect();
    for slot in pair.links[0].managed.clone() {
        let link = &mut pair.links[0];
        let aborted = link.target.abort(&mut pair.target, Scope::Everything, Some(3));
        let gone = aborted.iter().filter(|task| !task.executing).count();
        assert!(aborted.is_empty() || (aborted.len(), gone) == (2, 1), "{aborted:?}");
        link.target.respond_task_management(
            &mut pair.target,
            slot,
            TaskManagementOutcome::Complete,
            &mut link.to_initiator,
        );
    }
    pair.links[0].to_target = data_on_its_way;
    pair.run();
    // What the device returns goes nowhere.
    let returned =
        held.into_iter().find(|task| pair.links[0].pending[task].data.is_empty() && *task == executing.index());
    pair.execute(0, returned.expect("at the device"));
    pair.run();
    let link = &pair.links[0];
    assert_eq!((link.replies.len(), pair.target.in_flight(), link.target.in_flight()), (0, 0, 0));
    assert_eq!(link.heard.len(), 2, "{:?}", link.heard);
    assert!(link.heard.iter().all(|event| event.starts_with("TaskManaged") && event.ends_with("response: 0 }")));
    assert!(pair.disk.iter().all(|byte| *byte == 0));
}

#[test]
fn task_management_of_nothing_is_answered_without_asking() {
    let mut pair = Pair::open(Setting::default());
    let done = pair.submit(0, &numbered(0), &[]).unwrap();
    pair.run();
    let link = &mut pair.links[0];
    for function in [TaskFunction::AbortTask, TaskFunction::TaskReassign] {
        link.initiator.manage(&mut pair.initiator, function, 0, Some(done), &mut link.to_target).unwrap();
    }
    pair.run();
    let link = &mut pair.links[0];
    assert_eq!(link.asked, [""; 0]);
    let responses: Vec<&str> = link.heard.iter().map(|event| event.split_once("response: ").unwrap().1).collect();
    assert_eq!(responses, ["1 }", "4 }"], "no such task; no reassignment");
    // A reset concerns the tasks before it, on its logical unit.
    pair.hold = true;
    let mut other = numbered(1);
    other.lun = 1 << 48;
    pair.submit(0, &numbered(0), &[]).unwrap();
    pair.submit(0, &other, &[]).unwrap();
    pair.run();
    let link = &mut pair.links[0];
    let before = pair.initiator.next_cmd_sn();
    assert_eq!(link.target.abort(&mut pair.target, Scope::LogicalUnit(0), Some(before - 2)), []);
    assert_eq!(link.target.abort(&mut pair.target, Scope::LogicalUnit(0), Some(before)).len(), 1);
    assert_eq!(link.target.abort(&mut pair.target, Scope::LogicalUnit(0), None), [], "once");
    assert_eq!(link.target.abort(&mut pair.target, Scope::Everything, None).len(), 1);
}

#[test]
fn pings_are_answered_both_ways_with_their_data() {
    let mut pair = Pair::open(Setting::default());
    let data = pattern(5000, 3);
    let link = &mut pair.links[0];
    link.initiator.ping(&mut pair.initiator, &data, &mut link.to_target).unwrap();
    link.initiator.ping(&mut pair.initiator, &[], &mut link.to_target).unwrap();
    pair.run();
    let pongs = &pair.links[0].heard;
    assert_eq!(pongs.len(), 2);
    assert!(pongs[0].contains(&format!("data: {data:?}")) && pongs[1].ends_with("data: [] }"));
    // The target's: only when nothing else was heard, and the answer is enough.
    let link = &mut pair.links[0];
    assert_eq!(link.target.tick(&pair.target, 14 * SECOND, &mut link.to_initiator), Ok(15 * SECOND));
    assert!(link.to_initiator.is_empty());
    assert_eq!(link.target.tick(&pair.target, 15 * SECOND, &mut link.to_initiator), Ok(30 * SECOND));
    assert_eq!(link.target.tick(&pair.target, 16 * SECOND, &mut link.to_initiator), Ok(30 * SECOND), "one ping");
    pair.now_ns = 20 * SECOND;
    pair.run();
    let link = &mut pair.links[0];
    assert_eq!(link.target.tick(&pair.target, 30 * SECOND, &mut link.to_initiator), Ok(35 * SECOND));
    assert_eq!(link.target.tick(&pair.target, 35 * SECOND, &mut link.to_initiator), Ok(50 * SECOND));
    assert_eq!(link.target.tick(&pair.target, 50 * SECOND, &mut link.to_initiator), Err(Silent));
}

#[test]
fn a_ping_with_a_number_of_its_own_leaves_the_window_open() {
    let limits = Limits { commands: 1, ..Limits::default() };
    let offer = Parameters { digests: Default::default(), ..Parameters::target() };
    let mut pair = Pair::open(Setting { limits, offer, ..Setting::default() });
    let numbers = RequestNumbers { immediate: false, cmd_sn: 1, expected_stat_sn: 0 };
    let ping = NopOut { lun: 0, task_tag: 5, transfer_tag: RESERVED_TAG, numbers };
    pair.links[0].to_target.extend(ping.encode());
    pair.deliver_to_target(0).unwrap();
    let answer: &[u8; 48] = pair.links[0].to_initiator.first_chunk().unwrap();
    let NopIn { task_tag, numbers, .. } = NopIn::parse(answer);
    assert_eq!((task_tag, numbers.expected_cmd_sn, numbers.max_cmd_sn), (5, 2, 2));
}

#[test]
fn discovery_tells_all_targets_in_as_many_parts_as_it_takes() {
    let offer = Parameters { receive_segment: 512, ..Parameters::target() };
    let mut pair = Pair::open_as(Setting::default(), Options { target: None, offer, ..options() });
    let link = &mut pair.links[0];
    link.initiator.send_text(&mut pair.initiator, b"SendTargets=All\0", &mut link.to_target).unwrap();
    pair.deliver_to_target(0).unwrap();
    let link = &mut pair.links[0];
    assert_eq!(link.asked, ["SendTargets(All)"]);
    let names: Vec<_> = (0..20).map(|number| name(&format!("iqn.2026-01.io.ashlar:volume{number}"))).collect();
    let addresses = ["192.0.2.1:3260,1".to_owned(), "[2001:db8::1]:3260,1".to_owned()];
    let records: Vec<_> = names.iter().map(|name| TargetRecord { name, addresses: &addresses }).collect();
    link.target.answer_targets(&pair.target, &records, &mut link.to_initiator);
    let mut text = Vec::new();
    loop {
        let mut input = std::mem::take(&mut link.to_initiator);
        let event = link.initiator.receive(&mut pair.initiator, &mut &input[..], &mut link.to_target).unwrap().unwrap();
        let iscsi_target_protocol::initiator::connection::Event::Text { slot, text: part, more } = event else {
            panic!("{event:?}")
        };
        assert!(part.len() <= 512);
        text.extend(part);
        let Some(tag) = more else { break };
        link.initiator.continue_text(&pair.initiator, slot, tag, &mut link.to_target);
        input.clear();
        let bytes = std::mem::take(&mut link.to_target);
        assert_eq!(link.target.receive(&mut pair.target, 0, &mut &bytes[..], &mut link.to_initiator), Ok(None));
    }
    let text = String::from_utf8(text).unwrap();
    let pairs: Vec<&str> = text.split_terminator('\0').collect();
    assert_eq!(pairs.len(), 60);
    assert_eq!(
        pairs[57..],
        [
            "TargetName=iqn.2026-01.io.ashlar:volume19",
            "TargetAddress=192.0.2.1:3260,1",
            "TargetAddress=[2001:db8::1]:3260,1"
        ]
    );
    assert_eq!(link.initiator.in_flight(), 0);
}

#[test]
fn text_in_a_session_changes_what_may_change() {
    let mut pair = Pair::open(Setting::default());
    let link = &mut pair.links[0];
    let text = b"MaxRecvDataSegmentLength=1024\0MaxBurstLength=512\0SendTargets=All\0X-unknown=1\0";
    link.initiator.send_text(&mut pair.initiator, text, &mut link.to_target).unwrap();
    pair.run();
    assert_eq!(pair.links[0].target.parameters().send_segment, 1024);
    let expected =
        format!("text: {:?}", b"MaxBurstLength=NotUnderstood\0SendTargets=Reject\0X-unknown=NotUnderstood\0");
    assert!(pair.links[0].heard[0].contains(&expected), "{:?}", pair.links[0].heard);
    let link = &mut pair.links[0];
    link.initiator.send_text(&mut pair.initiator, b"SendTargets=\0", &mut link.to_target).unwrap();
    pair.run();
    assert_eq!(pair.links[0].asked, ["SendTargets(Own)"]);
}

#[test]
fn logouts_are_for_the_driver_but_for_those_that_cannot_be() {
    let mut pair = Pair::open(Setting::default());
    let link = &mut pair.links[0];
    link.initiator.logout(&mut pair.initiator, LogoutReason::Recovery, 0, &mut link.to_target).unwrap();
    link.initiator.logout(&mut pair.initiator, LogoutReason::CloseSession, 0, &mut link.to_target).unwrap();
    pair.run();
    let link = &mut pair.links[0];
    assert_eq!(link.heard, ["LoggedOut { response: 2 }"]);
    assert_eq!(link.asked, ["Logout { reason: CloseSession, cid: 0 }"]);
    link.target.respond_logout(&pair.target, LogoutOutcome::Closed, &mut link.to_initiator);
    pair.run();
    assert_eq!(pair.links[0].heard[1], "LoggedOut { response: 0 }");
}

#[test]
fn messages_come_in_the_order_of_their_numbers() {
    let mut pair = Pair::open(Setting::default());
    let events = [AsyncEvent::Scsi { lun: 0 }, AsyncEvent::LogoutWanted { within_seconds: 3 }];
    for event in events {
        let link = &mut pair.links[0];
        link.target.write_async(&pair.target, event, &[0x70, 0, 6], &mut link.to_initiator);
    }
    pair.run();
    let heard: Vec<String> = events.iter().map(|event| format!("Async(Some({event:?}))")).collect();
    assert_eq!(pair.links[0].heard, heard);
    assert_eq!(pair.command(&numbered(0), &[]).status, 0, "StatSN goes on behind them");
}

#[test]
fn a_connection_that_is_gone_gives_its_places_back() {
    let mut pair = Pair::open(Setting::default());
    pair.join(1);
    pair.hold = true;
    for number in 0..6 {
        pair.submit(usize::from(number) % 2, &numbered(number), &[]).unwrap();
    }
    pair.run();
    assert_eq!(pair.target.in_flight(), 6);
    let gone = pair.links.pop().unwrap();
    let aborted = gone.target.abandon(&mut pair.target);
    assert_eq!((aborted.len(), pair.target.in_flight()), (3, 3));
    assert!(aborted.iter().all(|task| task.executing), "the device has them still");
}
