//! Bytes that break the protocol: each costs its connection and nothing else.

use iscsi_target_protocol::Violation;
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::connection::{Connection, Limits};
use iscsi_target_protocol::target::login::{Event, Login};
use iscsi_target_protocol::target::session::Session;
use iscsi_target_protocol::wire::LoginStatus;
use iscsi_target_protocol::wire::login::{LoginRequest, LoginResponse, Stage, Transition};
use iscsi_target_protocol::wire::pdu::{RESERVED_TAG, RequestNumbers};
use iscsi_target_protocol::wire::request::{DataOut, ScsiCommand, TextRequest};

use crate::util::{INITIATOR, Pair, SECOND, Setting, TARGET, TARGET_CHALLENGE, numbered, write};

/// A session without digests and with nothing unasked for but what a test sends.
fn pair() -> Pair {
    let offer = Parameters { digests: Default::default(), ..Parameters::target() };
    let mut pair = Pair::open(Setting { offer, ..Setting::default() });
    pair.hold = true;
    pair
}

fn pdu(mut header: [u8; 48], data: &[u8]) -> Vec<u8> {
    header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    let mut bytes = [&header[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn numbers(cmd_sn: u32) -> RequestNumbers {
    RequestNumbers { immediate: false, cmd_sn, expected_stat_sn: 0 }
}

/// A write of 8192 bytes, of which more comes unasked unless it is `last`.
fn command(cmd_sn: u32, last: bool) -> ScsiCommand {
    let mut cdb = [0; 16];
    cdb[0] = 0x2a;
    ScsiCommand {
        last,
        read: false,
        write: true,
        attribute: 1,
        lun: 0,
        task_tag: 77,
        expected_length: 8192,
        numbers: numbers(cmd_sn),
        cdb,
    }
}

fn data_out(transfer_tag: u32) -> DataOut {
    DataOut { last: true, lun: 0, task_tag: 77, transfer_tag, expected_stat_sn: 0, data_sn: 0, offset: 0 }
}

fn send(pair: &mut Pair, bytes: &[u8]) -> Result<(), Violation> {
    pair.links[0].to_target.extend_from_slice(bytes);
    pair.deliver_to_target(0)
}

/// How a fresh connection takes these PDUs, and that it says so.
fn violation(pdus: &[Vec<u8>]) -> Violation {
    let mut pair = pair();
    let violation = send(&mut pair, &pdus.concat()).expect_err("the stream breaks the protocol");
    let link = &mut pair.links[0];
    link.to_initiator.clear();
    link.target.reject(&pair.target, violation, &mut link.to_initiator);
    let reason = violation.reason().expect("there is no digest here") as u8;
    assert_eq!(link.to_initiator[..3], [0x3f, 0x80, reason]);
    let last = pdus.last().expect("some PDU");
    assert_eq!(link.to_initiator[48..56], last[..8], "the header at fault is quoted");
    violation
}

#[test]
fn data_nobody_asked_for_ends_the_connection() {
    assert_eq!(violation(&[pdu(data_out(1).encode(), &[0; 512])]), Violation::Field(20), "no such transfer tag");
    assert_eq!(violation(&[pdu(data_out(RESERVED_TAG).encode(), &[0; 512])]), Violation::Field(16), "no such task");
    let finished = [pdu(command(1, true).encode(), &[0; 8192]), pdu(data_out(RESERVED_TAG).encode(), &[0; 4])];
    assert_eq!(violation(&finished), Violation::Field(16), "all of it is here");
}

#[test]
fn unsolicited_data_must_be_in_order_and_within_its_bounds() {
    let open = || pdu(command(1, false).encode(), &[0; 1024]);
    let right = DataOut { offset: 1024, ..data_out(RESERVED_TAG) };
    let after = |data: DataOut, length: usize| violation(&[open(), pdu(data.encode(), &vec![0; length])]);
    assert_eq!(after(DataOut { offset: 0, ..right }, 512), Violation::Sequence(40));
    assert_eq!(after(DataOut { offset: 2048, ..right }, 512), Violation::Sequence(40));
    assert_eq!(after(right, 0), Violation::Sequence(5));
    assert_eq!(after(right, 7169), Violation::DataTooLong);
    assert_eq!(after(DataOut { last: false, ..right }, 7168), Violation::Sequence(1), "nothing is left to come");
    let mut pair = pair();
    let good = [open(), pdu(DataOut { last: false, ..right }.encode(), &[1; 1000])].concat();
    assert_eq!(send(&mut pair, &good), Ok(()));
    let rest = DataOut { offset: 2024, data_sn: 1, ..right };
    assert_eq!(send(&mut pair, &pdu(rest.encode(), &[1; 6168])), Ok(()));
    assert_eq!(pair.links[0].pending.values().next().unwrap().data.len(), 8192);
}

/// 7.8: where a DataSN is missing, data is; the command ends, and the connection goes on.
#[test]
fn a_gap_in_the_numbers_of_data_ends_its_command_only() {
    let mut pair = pair();
    let open = pdu(command(1, false).encode(), &[0; 4096]);
    let rest = DataOut { offset: 4096, data_sn: 1, ..data_out(RESERVED_TAG) };
    assert_eq!(send(&mut pair, &[open, pdu(rest.encode(), &[0; 4096])].concat()), Ok(()));
    let answer = &pair.links[0].to_initiator;
    assert_eq!((answer[0], answer[3]), (0x21, 2), "CHECK CONDITION");
    let sense = &answer[50..];
    assert_eq!((sense[2], sense[12], sense[13]), (0x0b, 0x47, 0x05));
    assert_eq!(pair.target.in_flight(), 0);
}

#[test]
fn data_that_was_asked_for_must_be_what_was_asked_for() {
    // Neither immediate nor unsolicited: an R2T for all of it, whose tag is in its bytes 20 to 23.
    let asked = |change: &dyn Fn(&mut DataOut), length: usize| {
        let mut pair = pair();
        send(&mut pair, &pdu(command(1, true).encode(), &[])).unwrap();
        let r2t = std::mem::take(&mut pair.links[0].to_initiator);
        assert_eq!((r2t[0], r2t.len()), (0x31, 48));
        let mut data = data_out(u32::from_be_bytes(r2t[20..24].try_into().unwrap()));
        change(&mut data);
        send(&mut pair, &pdu(data.encode(), &vec![0; length]))
    };
    assert_eq!(asked(&|_| {}, 8192), Ok(()));
    assert_eq!(asked(&|data| data.last = false, 8192), Err(Violation::Sequence(1)));
    assert_eq!(asked(&|_| {}, 4096), Err(Violation::Sequence(1)), "ended early");
    assert_eq!(asked(&|_| {}, 8193), Err(Violation::DataTooLong));
    assert_eq!(asked(&|data| data.offset = 4, 8188), Err(Violation::Sequence(40)));
    assert_eq!(asked(&|data| data.task_tag = 78, 8192), Err(Violation::Field(20)));
    assert_eq!(asked(&|data| data.transfer_tag += 1, 8192), Err(Violation::Field(20)));
    assert_eq!(asked(&|data| data.transfer_tag = RESERVED_TAG, 8192), Err(Violation::Field(16)));
}

#[test]
fn commands_carry_no_more_data_than_they_may() {
    let with = |change: &dyn Fn(&mut ScsiCommand), length: usize| {
        let mut command = command(1, true);
        change(&mut command);
        violation(&[pdu(command.encode(), &vec![0; length])])
    };
    assert_eq!(with(&|_| {}, 8193), Violation::DataTooLong);
    assert_eq!(with(&|command| command.write = false, 4), Violation::DataTooLong);
    assert_eq!(with(&|command| command.task_tag = RESERVED_TAG, 0), Violation::Field(16));
    assert_eq!(
        with(&|command| command.last = false, 8192),
        Violation::Sequence(1),
        "more to come, but nothing is left"
    );
    let twice = [pdu(command(1, true).encode(), &[]), pdu(command(2, true).encode(), &[])];
    assert_eq!(violation(&twice), Violation::Field(16), "a task tag in use");
}

#[test]
fn targets_do_not_take_what_targets_send_or_what_is_too_long() {
    for opcode in [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f, 0x03, 0x43] {
        let mut header = [0; 48];
        header[0] = opcode;
        assert_eq!(violation(&[pdu(header, &[])]), Violation::UnexpectedPdu, "{opcode:02x}");
    }
    let mut header = command(1, true).encode();
    header[5..8].copy_from_slice(&[0xff; 3]);
    assert_eq!(violation(&[header.to_vec()]), Violation::DataTooLong, "16 MiB, refused by its length");
    let mut header = command(1, true).encode();
    header[4] = 1;
    assert_eq!(violation(&[[&header[..], &[0xff; 4]].concat()]), Violation::AdditionalHeader);
}

#[test]
fn what_is_unknown_or_not_supported_is_rejected_and_the_connection_goes_on() {
    let mut pair = pair();
    let mut unknown = [0; 48];
    unknown[0] = 0x1c;
    send(&mut pair, &pdu(unknown, b"vendor")).unwrap();
    let mut snack = [0; 48];
    snack[0] = 0x10;
    send(&mut pair, &pdu(snack, &[])).unwrap();
    send(&mut pair, &pdu(ScsiCommand { read: true, ..command(1, true) }.encode(), &[0; 8])).unwrap();
    // An extended CDB, with immediate data that has to be passed over.
    let mut header = command(2, true).encode();
    header[4] = 5;
    let mut bytes = pdu(header, &[0; 512]);
    let mut additional = vec![0, 17, 1, 0];
    additional.resize(20, 0);
    bytes.splice(48..48, additional);
    send(&mut pair, &bytes).unwrap();
    let mut told = &pair.links[0].to_initiator[..];
    let mut seen = Vec::new();
    while !told.is_empty() {
        seen.push((told[0], told[2], told[3]));
        let length = usize::from(told[7]).next_multiple_of(4);
        if told[0] == 0x21 {
            assert_eq!((told[50] & 0x7f, told[52], told[62]), (0x70, 5, 0x20), "INVALID COMMAND OPERATION CODE");
        }
        told = &told[48 + length..];
    }
    assert_eq!(seen, [(0x3f, 5, 0), (0x3f, 3, 0), (0x3f, 5, 0), (0x21, 0, 2)]);
    assert_eq!((pair.target.in_flight(), pair.target.expected()), (0, 3), "their numbers are used, their places free");
    assert_eq!(pair.begun, [0_u8; 0]);
}

#[test]
fn numbers_outside_of_the_window_do_nothing() {
    let mut pair = pair();
    for cmd_sn in [0, u32::MAX, 129, 1 << 31] {
        send(&mut pair, &pdu(ScsiCommand { task_tag: cmd_sn, ..command(cmd_sn, true) }.encode(), &[0; 8192])).unwrap();
    }
    assert_eq!((pair.target.expected(), pair.links[0].target.in_flight()), (1, 0));
    assert!(pair.links[0].to_initiator.is_empty());
    // A gap that is never filled: the connection waits, reads nothing, and is given up in time.
    send(&mut pair, &pdu(command(5, true).encode(), &[0; 8192])).unwrap();
    for _ in 0..10 {
        send(&mut pair, &pdu(command(6, true).encode(), &[0; 8192])).unwrap();
    }
    let link = &mut pair.links[0];
    assert!(link.target.is_waiting());
    assert_eq!(link.target.in_flight(), 0);
    assert!(link.target.tick(&pair.target, 15 * SECOND, &mut link.to_initiator).is_ok());
    pair.now_ns = 20 * SECOND;
    send(&mut pair, &[0; 48]).unwrap();
    let link = &mut pair.links[0];
    assert!(link.target.tick(&pair.target, 30 * SECOND, &mut link.to_initiator).is_err());
}

#[test]
fn text_is_bounded_and_an_exchange_has_its_tag() {
    let text = |transfer_tag: u32, continues: bool| {
        let immediate = RequestNumbers { immediate: true, ..numbers(1) };
        TextRequest { last: !continues, continues, task_tag: 5, transfer_tag, numbers: immediate }.encode()
    };
    assert_eq!(violation(&[pdu(text(RESERVED_TAG, false), &[b'A'; 16385])]), Violation::Text);
    assert_eq!(violation(&[pdu(text(RESERVED_TAG, false), b"no pair\0")]), Violation::Text);
    assert_eq!(violation(&[pdu(text(3, false), &[])]), Violation::Field(20), "no exchange is open");
    let many: Vec<u8> = (0..65).flat_map(|number| format!("X-{number}=1\0").into_bytes()).collect();
    assert_eq!(violation(&[pdu(text(RESERVED_TAG, false), &many)]), Violation::Text);
    // Continued without end.
    let mut pair = pair();
    send(&mut pair, &pdu(text(RESERVED_TAG, true), &[b'A'; 8000])).unwrap();
    send(&mut pair, &pdu(text(1, true), &[b'A'; 8000])).unwrap();
    assert_eq!(send(&mut pair, &pdu(text(2, true), &[b'A'; 8000])), Err(Violation::Text));
}

#[test]
fn a_stream_is_read_alike_whatever_its_fragments() {
    for fragment in [1, 2, 47, 333] {
        let offer = Parameters::target();
        let mut pair = Pair::open(Setting { offer, fragment, ..Setting::default() });
        assert_eq!(pair.command(&write(512, 5000), &[9; 5000]).status, 0);
        assert_eq!(pair.command(&numbered(1), &[]).status, 0);
        assert!(pair.disk[512..5512].iter().all(|byte| *byte == 9));
    }
}

fn login_request(transition: Option<Transition>) -> LoginRequest {
    LoginRequest {
        transition,
        version_max: 0,
        version_min: 0,
        isid: [0; 6],
        tsih: 0,
        task_tag: 1,
        cid: 0,
        numbers: RequestNumbers { immediate: true, cmd_sn: 1, expected_stat_sn: 0 },
    }
}

fn stage(current: Stage, next: Option<Stage>, continues: bool) -> Option<Transition> {
    Some(Transition { continues, current, next })
}

fn names() -> Vec<u8> {
    format!("InitiatorName={INITIATOR}\0TargetName={TARGET}\0").into_bytes()
}

/// How a login ends that sends these PDUs, and that the initiator is told the same.
fn login_refusal(pdus: &[Vec<u8>]) -> LoginStatus {
    let mut login = Login::new(Limits::default(), 1);
    let mut out = Vec::new();
    let bytes = pdus.concat();
    let mut input = &bytes[..];
    loop {
        match login.receive(&mut input, &mut out) {
            Ok(Some(Event::Identified)) => login.admit(&Access::default(), TARGET_CHALLENGE, None, &mut out),
            Ok(other) => panic!("{other:?} is no refusal"),
            Err(status) => {
                let told = LoginResponse::parse(out[out.len() - 48..].try_into().unwrap());
                assert_eq!(told.status, status);
                return status;
            }
        }
    }
}

#[test]
fn a_login_that_breaks_the_rules_is_refused() {
    let operational = stage(Stage::Operational, None, false);
    let first = || pdu(login_request(operational).encode(), &names());
    let error = LoginStatus::InitiatorError;
    assert_eq!(login_refusal(&[pdu(command(1, true).encode(), &[])]), LoginStatus::InvalidDuringLogin);
    let request = LoginRequest { version_min: 1, ..login_request(operational) };
    assert_eq!(login_refusal(&[pdu(request.encode(), &names())]), LoginStatus::UnsupportedVersion);
    let only = |text: &[u8]| login_refusal(&[pdu(login_request(operational).encode(), text)]);
    assert_eq!(only(b""), LoginStatus::MissingParameter);
    assert_eq!(only(format!("InitiatorName={INITIATOR}\0").as_bytes()), LoginStatus::MissingParameter);
    assert_eq!(only(format!("InitiatorName={INITIATOR}\0TargetName=x\0").as_bytes()), LoginStatus::NotFound);
    assert_eq!(only(format!("InitiatorName={INITIATOR}\0SessionType=Odd\0").as_bytes()), LoginStatus::SessionType);
    assert_eq!(only(b"InitiatorName=x\0"), error);
    assert_eq!(only(b"InitiatorName"), error);
    assert_eq!(only(&[b'A'; 8193]), error, "longer than a PDU may be");
    let then = |request: LoginRequest, text: &[u8]| login_refusal(&[first(), pdu(request.encode(), text)]);
    assert_eq!(then(LoginRequest { task_tag: 2, ..login_request(operational) }, b""), error);
    assert_eq!(then(LoginRequest { cid: 2, ..login_request(operational) }, b""), error);
    assert_eq!(then(login_request(stage(Stage::Security, None, false)), b""), error, "back to another stage");
    assert_eq!(then(login_request(operational), b"TargetName=iqn.x\0"), error, "names come first");
    assert_eq!(then(login_request(operational), b"MaxBurstLength=512\0MaxBurstLength=512\0"), error);
    assert_eq!(then(login_request(operational), b"AuthMethod=None\0"), error, "not in this stage");
    let many: Vec<u8> = (0..65).flat_map(|number| format!("X-{number}=1\0").into_bytes()).collect();
    assert_eq!(then(login_request(operational), &many), error);
    let impossible = LoginRequest { transition: None, ..login_request(None) }.encode();
    let mut impossible = impossible;
    impossible[1] = 0x84;
    assert_eq!(login_refusal(&[first(), pdu(impossible, b"")]), error, "from operational to security");
}

#[test]
fn a_login_without_end_ends() {
    let going_on = stage(Stage::Operational, None, false);
    let mut pdus = vec![pdu(login_request(going_on).encode(), &names())];
    pdus.extend((0..64).map(|_| pdu(login_request(going_on).encode(), b"")));
    assert_eq!(login_refusal(&pdus), LoginStatus::InitiatorError);
    let continued = stage(Stage::Operational, None, true);
    let endless: Vec<_> = (0..3).map(|_| pdu(login_request(continued).encode(), &[b'A'; 8000])).collect();
    assert_eq!(login_refusal(&endless), LoginStatus::InitiatorError);
}

/// What a listener pays for each of its half-open logins is this, and the text of one sequence.
#[test]
fn a_login_is_small_and_can_be_moved_to_another_thread() {
    fn size_of_what_moves<T: Send>() -> usize {
        size_of::<T>()
    }
    let sizes = [size_of_what_moves::<Login>(), size_of_what_moves::<Connection>(), size_of_what_moves::<Session>()];
    assert!(sizes.iter().all(|size| *size < 4096), "{sizes:?}");
}

#[test]
fn a_text_in_pieces_is_one_text() {
    let continued = stage(Stage::Operational, None, true);
    let full = stage(Stage::Operational, Some(Stage::FullFeature), false);
    let text = [&names()[..], b"MaxBurstLength=4096\0"].concat();
    let mut login = Login::new(Limits::default(), 1);
    let mut out = Vec::new();
    for piece in text.chunks(10) {
        let bytes = pdu(login_request(continued).encode(), piece);
        assert_eq!(login.receive(&mut &bytes[..], &mut out), Ok(None));
    }
    assert_eq!(out.len(), 48 * text.chunks(10).count(), "each is acknowledged with nothing");
    let bytes = pdu(login_request(full).encode(), b"");
    assert_eq!(login.receive(&mut &bytes[..], &mut out), Ok(Some(Event::Identified)));
    login.admit(&Access::default(), TARGET_CHALLENGE, None, &mut out);
    assert_eq!(login.receive(&mut &[][..], &mut out), Ok(Some(Event::Complete)));
    let (session, connection) = login.open(1, 0, &mut out);
    assert_eq!((session.parameters().max_burst, connection.parameters().max_burst), (4096, 4096));
}
