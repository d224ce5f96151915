//! The controller's life, and everything that hosts ask of it.

use nvmf_target_protocol::host::command::{Command, Data};
use nvmf_target_protocol::wire::fabrics::CONTROLLER_ANY;
use nvmf_target_protocol::wire::identify::{
    CSI_NVM, IDENTIFY_SIZE, IdentifyController, IdentifyNamespace, cns, find_uuid, parse_namespace_list,
};
use nvmf_target_protocol::wire::log_page::{self, AnaState, GetLogPage, Health, Notice, parse_ana};
use nvmf_target_protocol::wire::property::{self, Capabilities, Configuration, csts};
use nvmf_target_protocol::wire::{Status, Submission, feature, opcode};

use crate::util::{BLOCK, Pair, Reply, SECOND, Setting, World, namespace};

fn page(reply: &Reply) -> &[u8; IDENTIFY_SIZE] {
    reply.data.as_slice().try_into().expect("Identify returns 4096 bytes")
}

fn log(page: u8, length: u64) -> GetLogPage {
    GetLogPage { page, parameter: 0, retain_event: false, length, offset: 0, offset_is_index: false }
}

fn get_log(request: GetLogPage) -> Command {
    Command::get_log_page(&request)
}

#[test]
fn a_host_walks_through_the_whole_bring_up() {
    let mut world = World::new();
    let mut admin = Pair::open(Setting::default(), &mut world);
    let connected = admin.connect(0, CONTROLLER_ANY, 32, Setting::default(), &mut world);
    assert_eq!(connected.completion.result, 1, "CNTLID");

    let mut value = |command: &Command| admin.command(command, &[], &mut world).completion.result;
    let capabilities = Capabilities::parse(value(&Command::get_property(property::CAP, 8)));
    assert_eq!(capabilities.max_queue_entries, 1024);
    assert_eq!(value(&Command::get_property(property::VS, 4)), 0x0002_0000);
    assert_eq!(value(&Command::get_property(property::CSTS, 4)), 0);
    value(&Command::set_property(property::CC, Configuration::enable(true).0));
    assert_eq!(value(&Command::get_property(property::CC, 4)), 0x0046_0061);
    assert_eq!(value(&Command::get_property(property::CSTS, 4)), u64::from(csts::READY));
    let queues = value(&Command::set_feature(feature::NUMBER_OF_QUEUES, 0x00ff_00ff));
    assert_eq!(feature::parse_queue_count(queues as u32), Some(128));
    assert_eq!(value(&Command::keep_alive()), 0);

    let controller = admin.command(&Command::identify(cns::CONTROLLER, 0), &[], &mut world);
    let controller = IdentifyController::parse(page(&controller));
    assert_eq!(controller.model, "Ashlar Volume");
    assert_eq!(controller.serial, "0123456789abcdef0123");
    assert_eq!(controller.controller_id, 1);
    assert_eq!(1 << (12 + controller.max_transfer_shift), 1 << 20, "MDTS");
    assert_eq!(controller.command_capsule_16 * 16, 64 + (16 << 10), "IOCCSZ");
    assert_ne!(controller.keep_alive_granularity_100ms, 0, "Linux refuses controllers without Keep Alive");

    let namespaces = admin.command(&Command::identify(cns::ACTIVE_NAMESPACES, 0), &[], &mut world);
    assert_eq!(parse_namespace_list(page(&namespaces)), [1]);
    let identified = admin.command(&Command::identify(cns::NAMESPACE, 1), &[], &mut world);
    let identified = IdentifyNamespace::parse(page(&identified)).expect("active");
    assert_eq!((identified.blocks, identified.used_blocks, identified.block_shift), (1024, 7, 12));
    let descriptors = admin.command(&Command::identify(cns::NAMESPACE_DESCRIPTORS, 1), &[], &mut world);
    assert_eq!(find_uuid(page(&descriptors)), Some([0x22; 16]));
    for structure in [cns::COMMAND_SET_NAMESPACE, cns::COMMAND_SET_CONTROLLER, cns::INDEPENDENT_NAMESPACE] {
        let reply = admin.command(&Command::identify(structure, 1), &[], &mut world);
        assert_eq!(reply.status(), Status::Success, "CNS {structure:02x}h");
    }

    let mut io = Pair::io(1, 128, Setting::default(), &mut world);
    assert_eq!(io.command(&Command::read(1, 0, 1, BLOCK), &[], &mut world).status(), Status::Success);
}

#[test]
fn commands_before_connect_and_before_enable_are_out_of_sequence() {
    let mut world = World::new();
    let mut admin = Pair::open(Setting::default(), &mut world);
    assert_eq!(admin.command(&Command::keep_alive(), &[], &mut world).status(), Status::CommandSequenceError);
    admin.connect(0, CONTROLLER_ANY, 32, Setting::default(), &mut world);
    let identify = Command::identify(cns::CONTROLLER, 0);
    assert_eq!(admin.command(&identify, &[], &mut world).status(), Status::CommandSequenceError);
    let mut io = Pair::open(Setting::default(), &mut world);
    assert_eq!(io.connect(1, 1, 32, Setting::default(), &mut world).status(), Status::CommandSequenceError);

    admin.command(&Command::set_property(property::CC, Configuration::enable(false).0), &[], &mut world);
    assert_eq!(admin.command(&identify, &[], &mut world).status(), Status::Success);
    let again = admin.connect(0, CONTROLLER_ANY, 32, Setting::default(), &mut world);
    assert_eq!(again.status(), Status::CommandSequenceError, "connected already");
}

#[test]
fn connects_that_name_what_cannot_be() {
    let mut world = World::new();
    let _admin = Pair::admin(Setting::default(), &mut world);
    let mut connect = |queue_id, controller_id, entries| {
        let mut pair = Pair::open(Setting::default(), &mut world);
        pair.connect(queue_id, controller_id, entries, Setting::default(), &mut world)
    };
    let refused = |reply: Reply, offset: u64| {
        assert_eq!(reply.status(), Status::ConnectInvalidParameters);
        assert_eq!(reply.completion.result, offset, "{reply:?}");
    };
    refused(connect(0, 7, 32), 0x1_0010);
    refused(connect(129, 1, 32), 42);
    refused(connect(1, 1, 1025), 44);
    refused(connect(1, 1, 1), 44);
    assert_eq!(connect(3, 1, 1024).status(), Status::Success);
    assert_eq!(connect(3, 1, 1024).status(), Status::CommandSequenceError, "queue 3 is taken");
    world.controllers.get_mut(&1).unwrap().disconnect_queue(3);
    assert_eq!(connect_again(&mut world), Status::Success);
}

fn connect_again(world: &mut World) -> Status {
    Pair::open(Setting::default(), world).connect(3, 1, 1024, Setting::default(), world).status()
}

#[test]
fn enabling_with_what_is_not_supported_fails_the_controller() {
    for configuration in [0x0046_0001 | 1 << 7, 0x0046_0001 | 1 << 11, 0x0046_0011] {
        let mut world = World::new();
        let mut admin = Pair::open(Setting::default(), &mut world);
        admin.connect(0, CONTROLLER_ANY, 32, Setting::default(), &mut world);
        admin.command(&Command::set_property(property::CC, configuration), &[], &mut world);
        let status = admin.command(&Command::get_property(property::CSTS, 4), &[], &mut world).completion.result;
        assert_eq!(status, u64::from(csts::FATAL), "CC {configuration:08x}h");
        assert!(!world.controllers[&1].is_ready());
    }
}

#[test]
fn shutdown_completes_and_a_reset_forgets() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    admin.command(&Command::set_feature(feature::VOLATILE_WRITE_CACHE, 0), &[], &mut world);
    assert!(!world.controllers[&1].write_cache_enabled());
    let _io = Pair::io(1, 8, Setting::default(), &mut world);

    let configuration = Configuration::enable(true);
    admin.command(&Command::set_property(property::CC, configuration.with_shutdown().0), &[], &mut world);
    let status = Command::get_property(property::CSTS, 4);
    let shut_down = u64::from(csts::READY | csts::SHUTDOWN_COMPLETE);
    assert_eq!(admin.command(&status, &[], &mut world).completion.result, shut_down);

    admin.command(&Command::set_property(property::CC, 0), &[], &mut world);
    assert_eq!(admin.command(&status, &[], &mut world).completion.result, 0);
    assert!(world.controllers[&1].write_cache_enabled(), "features are back at their defaults");
    admin.command(&Command::set_property(property::CC, configuration.0), &[], &mut world);
    let _io = Pair::io(1, 8, Setting::default(), &mut world);
}

#[test]
fn features_are_set_read_and_refused() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let mut run = |command: &Command| admin.command(command, &[], &mut world);
    let changed: &[(u8, u32)] = &[
        (feature::ARBITRATION, 3),
        (feature::TEMPERATURE_THRESHOLD, 0x0157),
        (feature::ERROR_RECOVERY, 9),
        (feature::VOLATILE_WRITE_CACHE, 0),
        (feature::WRITE_ATOMICITY, 1),
        (feature::ASYNC_EVENT_CONFIGURATION, 0x900),
        (feature::KEEP_ALIVE_TIMER, 7000),
    ];
    for (id, value) in changed {
        assert_eq!(run(&Command::set_feature(*id, *value)).status(), Status::Success, "feature {id:02x}h");
        assert_eq!(run(&Command::get_feature(*id)).completion.result, u64::from(*value), "feature {id:02x}h");
    }
    for (id, value, status) in [
        (feature::POWER_MANAGEMENT, 1, Status::InvalidField),
        (feature::COMMAND_SET_PROFILE, 1, Status::CommandSetCombinationRejected),
        (feature::TEMPERATURE_THRESHOLD, 0x0001_0157, Status::InvalidField),
        (feature::ASYNC_EVENT_CONFIGURATION, 1 << 31, Status::InvalidField),
        (feature::NUMBER_OF_QUEUES, 0xffff, Status::InvalidField),
        (feature::HOST_IDENTIFIER, 1, Status::CommandSequenceError),
        (0xc0, 0, Status::InvalidField),
    ] {
        assert_eq!(run(&Command::set_feature(id, value)).status(), status, "feature {id:02x}h");
    }
    let mut save = Command::set_feature(feature::ARBITRATION, 0);
    save.entry.set_dword(10, u32::from(feature::ARBITRATION) | 1 << 31);
    assert_eq!(run(&save).status(), Status::FeatureNotSaveable);

    let mut select = |id: u8, select: u32| {
        let mut command = Command::get_feature(id);
        command.entry.set_dword(10, u32::from(id) | select << 8);
        run(&command)
    };
    assert_eq!(select(feature::VOLATILE_WRITE_CACHE, 1).completion.result, 1, "the default");
    assert_eq!(select(feature::VOLATILE_WRITE_CACHE, 3).completion.result, 4, "changeable");
    assert_eq!(select(feature::VOLATILE_WRITE_CACHE, 4).status(), Status::InvalidField);

    let mut host_id = Command { data: Data::Receive(16), ..Command::get_feature(feature::HOST_IDENTIFIER) };
    host_id.entry.set_dword(11, 1);
    assert_eq!(run(&host_id).data, [0x77; 16]);
}

#[test]
fn the_number_of_queues_is_granted_kept_and_then_fixed() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let set = Command::set_feature(feature::NUMBER_OF_QUEUES, 0x0001_0001);
    assert_eq!(admin.command(&set, &[], &mut world).completion.result, 0x0001_0001);
    let mut third = Pair::open(Setting::default(), &mut world);
    let refused = third.connect(3, 1, 32, Setting::default(), &mut world);
    assert_eq!(refused.status(), Status::ConnectInvalidParameters);
    let _second = Pair::io(2, 32, Setting::default(), &mut world);
    assert_eq!(admin.command(&set, &[], &mut world).status(), Status::CommandSequenceError);
}

#[test]
fn log_pages_hold_what_happened() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let mut io = Pair::io(1, 8, Setting::default(), &mut world);
    world.health = Health { bytes_read: 1 << 20, read_commands: 5, ..Health::default() };
    io.command(&Command::read(1, 5000, 1, BLOCK), &[], &mut world);

    let errors = admin.command(&get_log(log(log_page::ERROR, 128)), &[], &mut world);
    assert_eq!(errors.data[..10], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0], "error 1, on queue 1");
    assert_eq!(errors.data[12..14], [0x00, 0x81], "LBA Out of Range, Do Not Retry");
    assert_eq!(errors.data[16..18], 5000u16.to_le_bytes());
    assert_eq!(errors.data[64..], [0; 64], "and no other");

    let health = admin.command(&get_log(log(log_page::HEALTH, 512)), &[], &mut world);
    assert_eq!((health.data[32], health.data[64], health.data[176]), (3, 5, 1));
    let firmware = admin.command(&get_log(log(log_page::FIRMWARE, 512)), &[], &mut world);
    assert_eq!(firmware.data[8..16], *b"0.1.0   ");
    let effects = admin.command(&get_log(log(log_page::EFFECTS, 4096)), &[], &mut world);
    assert_eq!(effects.data[1024 + 4 * usize::from(opcode::WRITE)], 0b11);
    let ana = admin.command(&get_log(log(log_page::ANA, 52)), &[], &mut world);
    let (change_count, groups) = parse_ana(&ana.data).expect("a whole page");
    assert_eq!((change_count, groups.len()), (0, 1));
    assert_eq!((groups[0].state, &groups[0].namespaces[..]), (AnaState::Optimized, &[1][..]));
}

#[test]
fn log_pages_are_cut_where_asked_and_bounded() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let mut run = |request: GetLogPage| admin.command(&get_log(request), &[], &mut world);
    let whole = run(log(log_page::FIRMWARE, 512)).data;
    let tail = run(GetLogPage { offset: 8, ..log(log_page::FIRMWARE, 16) }).data;
    assert_eq!(tail, whole[8..24]);
    let past = run(GetLogPage { offset: 508, ..log(log_page::FIRMWARE, 16) }).data;
    assert_eq!(past, [0; 16], "zeros beyond the end");
    let status = |reply: Reply| reply.status();
    assert_eq!(status(run(GetLogPage { offset: 516, ..log(log_page::FIRMWARE, 4) })), Status::InvalidField);
    assert_eq!(status(run(GetLogPage { offset: 2, ..log(log_page::FIRMWARE, 4) })), Status::InvalidField);
    assert_eq!(status(run(GetLogPage { offset_is_index: true, ..log(log_page::FIRMWARE, 4) })), Status::InvalidField);
    assert_eq!(status(run(log(log_page::FIRMWARE, 2 << 20))), Status::InvalidField, "no host makes us allocate more");
    assert_eq!(status(run(log(0x0d, 4))), Status::InvalidLogPage);
    assert_eq!(status(run(log(log_page::DISCOVERY, 1024))), Status::InvalidLogPage, "not a discovery controller");
    let short = Command { data: Data::Receive(8), ..get_log(log(log_page::FIRMWARE, 512)) };
    assert_eq!(admin.command(&short, &[], &mut world).status(), Status::DataSglLengthInvalid);
}

#[test]
fn identify_of_what_is_not_there() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let mut run = |structure, namespace| admin.command(&Command::identify(structure, namespace), &[], &mut world);
    assert_eq!(run(cns::NAMESPACE, 2).data, vec![0; IDENTIFY_SIZE], "inactive: all zero");
    for namespace in [0, 33, u32::MAX] {
        assert_eq!(run(cns::NAMESPACE, namespace).status(), Status::InvalidNamespaceOrFormat);
    }
    assert_eq!(run(cns::NAMESPACE_DESCRIPTORS, 2).status(), Status::InvalidNamespaceOrFormat);
    assert_eq!(run(cns::ACTIVE_NAMESPACES, u32::MAX).status(), Status::InvalidNamespaceOrFormat);
    assert_eq!(run(0x7f, 0).status(), Status::InvalidField);
    let mut zoned = Command::identify(cns::COMMAND_SET_CONTROLLER, 0);
    zoned.entry.set_dword(11, u32::from(CSI_NVM + 2) << 24);
    assert_eq!(admin.command(&zoned, &[], &mut world).status(), Status::InvalidField);
    let short = Command { data: Data::Receive(4092), ..Command::identify(cns::CONTROLLER, 0) };
    assert_eq!(admin.command(&short, &[], &mut world).status(), Status::DataSglLengthInvalid);
}

#[test]
fn a_change_is_told_once_until_its_page_is_read() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let first = admin.host.submit(&Command::async_event_request(), &[]);
    let second = admin.host.submit(&Command::async_event_request(), &[]);
    admin.run(&mut world);
    let change = |admin: &mut Pair, world: &mut World| {
        world.controllers.get_mut(&1).unwrap().notify(Notice::NamespaceChanged, 1);
        admin.target.drain_events(world);
        admin.run(world);
    };
    change(&mut admin, &mut world);
    assert!(admin.host.replies.is_empty(), "not enabled yet");
    let events = Command::set_feature(feature::ASYNC_EVENT_CONFIGURATION, feature::event::NAMESPACE_CHANGED);
    admin.command(&events, &[], &mut world);
    let told = admin.host.replies.remove(&first).expect("told as soon as enabled");
    assert_eq!(Notice::from_result(told.completion.result), Some(Notice::NamespaceChanged));

    change(&mut admin, &mut world);
    assert!(admin.host.replies.is_empty(), "masked until the page is read");
    let retained = GetLogPage { retain_event: true, ..log(log_page::CHANGED_NAMESPACES, 4096) };
    assert_eq!(admin.command(&get_log(retained), &[], &mut world).data[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(admin.host.replies.is_empty(), "still masked");
    admin.command(&get_log(log(log_page::CHANGED_NAMESPACES, 4096)), &[], &mut world);
    assert!(admin.host.replies.is_empty(), "the page told of both changes");
    change(&mut admin, &mut world);
    assert!(admin.host.replies.remove(&second).is_some(), "a new change is told");
}

#[test]
fn event_requests_are_limited_and_can_be_aborted() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let held: Vec<_> = (0..8).map(|_| admin.host.submit(&Command::async_event_request(), &[])).collect();
    let ninth = admin.command(&Command::async_event_request(), &[], &mut world);
    assert_eq!(ninth.status(), Status::AsyncEventLimitExceeded);
    assert_eq!(admin.target.connection.in_flight(), 8);

    let aborted = admin.command(&Command::abort(0, held[3].tag()), &[], &mut world);
    assert_eq!(aborted.completion.result, 0, "aborted");
    assert_eq!(admin.host.replies.remove(&held[3]).expect("answered").status(), Status::AbortRequested);
    let unknown = admin.command(&Command::abort(1, 0xffff), &[], &mut world);
    assert_eq!(unknown.completion.result, 1, "not aborted");
}

#[test]
fn silence_expires_the_controller_and_any_command_keeps_it() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting { keep_alive_ms: 5000, ..Setting::default() }, &mut world);
    let deadline = |world: &World| world.controllers[&1].deadline_ns();
    assert_eq!(deadline(&world), Some(6 * SECOND), "KATO and a granule of grace");
    world.now_ns = 5 * SECOND;
    admin.command(&Command::keep_alive(), &[], &mut world);
    assert_eq!(deadline(&world), Some(11 * SECOND));
    world.controllers.get_mut(&1).unwrap().touch(6 * SECOND);
    assert!(!world.controllers[&1].is_expired(12 * SECOND - 1));
    assert!(world.controllers[&1].is_expired(12 * SECOND));
    admin.command(&Command::set_feature(feature::KEEP_ALIVE_TIMER, 0), &[], &mut world);
    assert_eq!(deadline(&world), None, "off");
}

#[test]
fn fabrics_commands_that_no_queue_has() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let unknown = Command { entry: Submission::new(opcode::FABRICS, 0x08), data: Data::None };
    assert_eq!(admin.command(&unknown, &[], &mut world).status(), Status::InvalidOpcode);
    for (offset, size) in [(0x00, 4), (0x08, 8), (0x28, 8), (0x1000, 4)] {
        let reply = admin.command(&Command::get_property(offset, size), &[], &mut world);
        assert_eq!(reply.status(), Status::InvalidField, "{size} bytes at {offset:x}h");
    }
    let read_only = Command::set_property(property::CSTS, 1);
    assert_eq!(admin.command(&read_only, &[], &mut world).status(), Status::InvalidField);
}

#[test]
fn a_move_between_paths_is_told_and_reported() {
    let mut world = World::new();
    let mut admin = Pair::admin(Setting::default(), &mut world);
    let mut state = namespace();
    state.ana_state = AnaState::Inaccessible;
    world.subsystem.attach(1, state);
    let ana = admin.command(&get_log(log(log_page::ANA, 52)), &[], &mut world);
    let (change_count, groups) = parse_ana(&ana.data).expect("a whole page");
    assert_eq!((change_count, groups[0].state), (1, AnaState::Inaccessible));
}
