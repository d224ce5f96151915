//! The two ends of a connection against each other, with the bytes between them cut into any pieces.

use std::collections::VecDeque;

use proptest::prelude::*;
use replica_protocol::{
    Chain, ChainEntry, Client, ClientEvent, Command, Damage, DamagedRegion, Extent, ExtentKind, Extents, Grant, Hashes,
    LvolKind, MAX_TRANSFER, Membership, Note, Notes, Open, ProtocolError, Refusal, Server, ServerEvent, State, Status,
    checksum,
};

const OPEN: Open = Open { replica: [1; 16], volume: [2; 16], instance: [3; 16], epoch: 9 };
const GRANT: Grant = Grant {
    epoch: 9,
    size: 1 << 20,
    block_size: 512,
    atomic_write: 4096,
    allocation_unit: 4096,
    state: State::Complete,
};

/// A replica of plain memory behind a [`Server`].
struct Replica {
    server: Server,
    memory: Vec<u8>,
    write: Option<(u64, u64, Vec<u8>)>,
    /// Requests that wait to be answered, so that answers can come in any order.
    waiting: Vec<(u64, Command)>,
    fenced: bool,
    out: Vec<u8>,
}

impl Replica {
    fn new(requests: u32) -> Self {
        let server = Server::new(requests, u64::from(MAX_TRANSFER));
        Self { server, memory: vec![0; 1 << 20], write: None, waiting: Vec::new(), fenced: false, out: Vec::new() }
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<(), ProtocolError> {
        while let Some(event) = self.server.handle(&mut input)? {
            match event {
                ServerEvent::Hello(_) => self.out.extend(self.server.welcome("b")),
                ServerEvent::Open(open) => {
                    assert_eq!(open, OPEN);
                    self.out.extend(self.server.grant(&GRANT));
                }
                ServerEvent::Request { id, command, .. } => self.waiting.push((id, command)),
                ServerEvent::WriteBegin { id, offset, .. } => self.write = Some((id, offset, Vec::new())),
                ServerEvent::WriteData(data) => self.write.as_mut().expect("begun").2.extend_from_slice(data),
                ServerEvent::WriteEnd => {
                    let (id, offset, data) = self.write.take().expect("begun");
                    self.memory[offset as usize..][..data.len()].copy_from_slice(&data);
                    let header = self.server.answer(id, Status::Good, std::iter::empty()).expect("in flight");
                    self.out.extend(header);
                }
                ServerEvent::Ping => self.out.extend(self.server.pong(1500, 3, self.fenced)),
                ServerEvent::Close => {}
            }
        }
        Ok(())
    }

    /// Answers the request at `place` of those that wait.
    fn answer(&mut self, place: usize) {
        let (id, command) = self.waiting.remove(place);
        match command {
            Command::Read { offset, length } => {
                let data = &self.memory[offset as usize..][..length as usize];
                // In two pieces, as a store would have them.
                let pieces = data.split_at(data.len() / 3);
                let pieces = [pieces.0, pieces.1];
                let header = self.server.answer(id, Status::Good, pieces.into_iter()).expect("in flight");
                self.out.extend(header);
                self.out.extend(pieces.concat());
            }
            Command::Chain => self.out.extend(self.server.answer_control(id, &chain().encode()).expect("in flight")),
            Command::Extents { .. } => {
                self.out.extend(self.server.answer_control(id, &extents().encode()).expect("in flight"));
            }
            Command::Hashes { .. } => {
                self.out.extend(self.server.answer_control(id, &hashes().encode()).expect("in flight"));
            }
            Command::Notes => self.out.extend(self.server.answer_control(id, &notes().encode()).expect("in flight")),
            Command::Damage => self.out.extend(self.server.answer_control(id, &damage().encode()).expect("in flight")),
            Command::Membership => {
                self.out.extend(self.server.answer_control(id, &membership().encode()).expect("in flight"));
            }
            Command::Snapshot { .. } => {
                self.out.extend(self.server.answer_error(id, Status::NoSpace, "full").expect("in flight"));
            }
            _ => {
                let header = self.server.answer(id, Status::Good, std::iter::empty()).expect("in flight");
                self.out.extend(header);
            }
        }
    }
}

fn chain() -> Chain {
    let entry = |id: u8, kind| ChainEntry { id: [id; 16], created: 77, size: 1 << 30, kind, name: "früh".into() };
    Chain(vec![entry(4, LvolKind::Snapshot), entry(1, LvolKind::Head)])
}

fn extents() -> Extents {
    let list = vec![
        Extent { offset: 0, length: 4096, kind: ExtentKind::Data },
        Extent { offset: 8192, length: 512, kind: ExtentKind::Zero },
    ];
    Extents { list, next: Some(8704) }
}

fn hashes() -> Hashes {
    Hashes(vec![1, u128::MAX - 1])
}

fn damage() -> Damage {
    let region = |snapshot, offset| DamagedRegion { snapshot: [snapshot; 16], offset };
    Damage(vec![region(4, 0), region(5, 65536)])
}

fn notes() -> Notes {
    let note = |place, current, content: &[u8]| Note { place, current, content: content.to_vec() };
    Notes(vec![note(0, true, b"where"), note(16, false, b"")])
}

fn membership() -> Membership {
    Membership { epoch: 9, content: Some(b"who".to_vec()), attached: Some(b"and".to_vec()) }
}

/// What a request waits for on the engine's side.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    name: u32,
    data: Vec<u8>,
}

/// What an engine saw: the request's name, how it ended, its data or message, the words.
type Seen = (u32, Status, Vec<u8>, Option<String>);

struct Engine {
    client: Client<Waiting>,
    out: Vec<u8>,
    granted: bool,
    pongs: Vec<(u64, bool)>,
    seen: VecDeque<Seen>,
}

impl Engine {
    fn new() -> Self {
        let client = Client::default();
        let out = client.hello([3; 16], "a");
        Self { client, out, granted: false, pongs: Vec::new(), seen: VecDeque::new() }
    }

    fn receive(&mut self, mut input: &[u8]) -> Result<(), ProtocolError> {
        loop {
            match self.client.handle(&mut input)? {
                None => return Ok(()),
                Some(ClientEvent::Welcome(welcome)) => {
                    assert_eq!(welcome.node, "b");
                    self.out.extend(self.client.open(&OPEN));
                }
                Some(ClientEvent::Granted(grant)) => {
                    assert_eq!(grant, GRANT);
                    self.granted = true;
                }
                Some(ClientEvent::Refused(refusal)) => panic!("refused: {refusal:?}"),
                Some(ClientEvent::Data { request, at, bytes }) => {
                    assert_eq!(request.data.len(), at);
                    request.data.extend_from_slice(bytes);
                }
                Some(ClientEvent::Answer(answer)) => {
                    let mut data = answer.request.data;
                    data.extend_from_slice(answer.control);
                    self.seen.push_back((answer.request.name, answer.status, data, answer.text));
                }
                Some(ClientEvent::Pong(pong)) => self.pongs.push((pong.oldest_ms, pong.fenced)),
            }
        }
    }

    fn start(&mut self, name: u32, command: &Command) -> bool {
        let Ok((header, payload)) = self.client.start(command, Waiting { name, data: Vec::new() }) else {
            return false;
        };
        self.out.extend(header);
        self.out.extend(payload);
        true
    }

    fn write(&mut self, name: u32, offset: u64, data: &[u8]) -> bool {
        let length = data.len() as u32;
        let started = self.start(name, &Command::Write { offset, length, fua: false, checksum: checksum(data) });
        if started {
            self.out.extend_from_slice(data);
        }
        started
    }
}

/// Moves bytes both ways, in pieces of `size`, until nothing is left to move.
fn exchange(engine: &mut Engine, replica: &mut Replica, size: usize) {
    while !engine.out.is_empty() || !replica.out.is_empty() {
        for piece in std::mem::take(&mut engine.out).chunks(size) {
            replica.receive(piece).expect("a good engine");
        }
        for piece in std::mem::take(&mut replica.out).chunks(size) {
            engine.receive(piece).expect("a good replica");
        }
    }
}

fn connected(requests: u32) -> (Engine, Replica) {
    let (mut engine, mut replica) = (Engine::new(), Replica::new(requests));
    exchange(&mut engine, &mut replica, 13);
    assert!(engine.granted);
    (engine, replica)
}

#[test]
fn what_was_written_is_read_and_answers_may_come_in_any_order() {
    let (mut engine, mut replica) = connected(8);
    assert!(engine.write(1, 512, b"ashlar stone"));
    exchange(&mut engine, &mut replica, 5);
    assert_eq!(engine.seen.pop_front(), Some((1, Status::Good, vec![], None)));
    assert!(engine.start(2, &Command::Read { offset: 512, length: 12 }));
    assert!(engine.start(3, &Command::Read { offset: 0, length: 2 }));
    exchange(&mut engine, &mut replica, 5);
    replica.answer(1);
    replica.answer(0);
    exchange(&mut engine, &mut replica, 5);
    assert_eq!(engine.seen.pop_front(), Some((3, Status::Good, vec![0, 0], None)));
    assert_eq!(engine.seen.pop_front(), Some((2, Status::Good, b"ashlar stone".to_vec(), None)));
}

#[test]
fn messages_and_errors_arrive_whole() {
    let (mut engine, mut replica) = connected(16);
    let commands = [
        Command::Chain,
        Command::Extents { lvol: [4; 16], offset: 0, length: 1 << 20, max: 2 },
        Command::Snapshot { id: [5; 16], size: 1 << 30, name: "vor dem Umbau".into() },
        Command::DeleteSnapshot { id: [5; 16] },
        Command::Revert { id: [6; 16] },
        Command::Grow { size: 1 << 40 },
        Command::Unmap(vec![(0, 4096), (8192, 512)]),
        Command::Hashes { lvol: [4; 16], offset: 4096, length: 8192, granule: 4096 },
        Command::SetNote { place: 16, durable: true, content: b"where".to_vec() },
        Command::Notes,
        Command::Damage,
        Command::Repair { id: [5; 16], offset: 65536, data: vec![7; 65536] },
        Command::SetMembership { content: b"who".to_vec(), attached: b"and".to_vec() },
        Command::Membership,
    ];
    for (name, command) in (0..).zip(&commands) {
        assert!(engine.start(name, command));
    }
    exchange(&mut engine, &mut replica, 31);
    assert_eq!(replica.waiting.iter().map(|(_, command)| command.clone()).collect::<Vec<_>>(), commands);
    (0..commands.len()).for_each(|_| replica.answer(0));
    exchange(&mut engine, &mut replica, 31);
    let (_, _, data, _) = engine.seen.pop_front().expect("answered");
    assert_eq!(Chain::parse(&data), Ok(chain()));
    let (_, _, data, _) = engine.seen.pop_front().expect("answered");
    assert_eq!(Extents::parse(&data), Ok(extents()));
    assert_eq!(engine.seen.pop_front(), Some((2, Status::NoSpace, vec![], Some("full".into()))));
    for name in 3..7 {
        assert_eq!(engine.seen.pop_front(), Some((name, Status::Good, vec![], None)));
    }
    let (_, _, data, _) = engine.seen.pop_front().expect("answered");
    assert_eq!(Hashes::parse(&data), Ok(hashes()));
    assert_eq!(engine.seen.pop_front(), Some((8, Status::Good, vec![], None)));
    let (_, _, data, _) = engine.seen.pop_front().expect("answered");
    assert_eq!(Notes::parse(&data), Ok(notes()));
    let (_, _, data, _) = engine.seen.pop_front().expect("answered");
    assert_eq!(Damage::parse(&data), Ok(damage()));
    assert_eq!(engine.seen.pop_front(), Some((11, Status::Good, vec![], None)));
    assert_eq!(engine.seen.pop_front(), Some((12, Status::Good, vec![], None)));
    let (_, _, data, _) = engine.seen.pop_front().expect("answered");
    assert_eq!(data, *b"\x09\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0whoand");
    assert_eq!(Membership::parse(&data), Ok(membership()));
    let none = Membership { epoch: 9, content: None, attached: None };
    assert_eq!(Membership::parse(&none.encode()), Ok(none), "none was left");
}

#[test]
fn credits_end_and_come_back_with_answers() {
    let (mut engine, mut replica) = connected(2);
    assert!(engine.start(1, &Command::Read { offset: 0, length: MAX_TRANSFER }));
    // A request is left, but no byte.
    assert!(!engine.write(2, 0, b"x"));
    assert!(engine.start(3, &Command::Flush));
    assert!(!engine.start(4, &Command::Flush));
    exchange(&mut engine, &mut replica, 100);
    assert_eq!(replica.server.in_flight(), 2);
    replica.answer(1);
    exchange(&mut engine, &mut replica, 100);
    assert!(engine.start(5, &Command::Flush));
    assert_eq!(engine.client.in_flight(), 2);
}

#[test]
fn a_ping_is_answered_past_everything_else() {
    let (mut engine, mut replica) = connected(1);
    assert!(engine.start(1, &Command::Flush));
    engine.out.extend(engine.client.ping());
    exchange(&mut engine, &mut replica, 64);
    assert!(engine.seen.is_empty());
    // I14: an engine without anything to do hears of its end too.
    replica.fenced = true;
    engine.out.extend(engine.client.ping());
    exchange(&mut engine, &mut replica, 64);
    assert_eq!(engine.pongs, [(1500, false), (1500, true)]);
}

#[test]
fn a_refusal_says_why_and_which_epoch_is_stored() {
    let mut server = Server::new(4, 0);
    let mut client = Client::<()>::default();
    let hello = client.hello([3; 16], "a");
    assert!(matches!(server.handle(&mut &hello[..]), Ok(Some(ServerEvent::Hello(hello))) if hello.node == "a"));
    let welcome = server.welcome("b");
    assert!(matches!(client.handle(&mut &welcome[..]), Ok(Some(ClientEvent::Welcome(_)))));
    let open = client.open(&OPEN);
    assert_eq!(server.handle(&mut &open[..]), Ok(Some(ServerEvent::Open(OPEN))));
    let refusal = Refusal { status: Status::Fenced, stored_epoch: 10, text: "epoch 10 is newer".into() };
    let refused = server.refuse(&refusal);
    assert_eq!(client.handle(&mut &refused[..]), Ok(Some(ClientEvent::Refused(refusal))));
}

#[test]
fn what_was_in_flight_comes_back_when_the_connection_ends() {
    let (mut engine, _replica) = connected(4);
    assert!(engine.start(7, &Command::Flush));
    assert!(engine.start(8, &Command::Flush));
    let mut names: Vec<_> = engine.client.end().into_iter().map(|waiting| waiting.name).collect();
    names.sort_unstable();
    assert_eq!(names, [7, 8]);
    assert!(!engine.start(9, &Command::Flush));
}

proptest! {
    #[test]
    fn any_mix_of_reads_and_writes_in_any_pieces_equals_plain_memory(
        steps in prop::collection::vec((0u64..2000, prop::collection::vec(any::<u8>(), 1..300)), 1..20),
        size in 1usize..500,
    ) {
        let (mut engine, mut replica) = connected(64);
        let mut model = vec![0; 4096];
        for (name, (offset, data)) in (0..).zip(&steps) {
            model[*offset as usize..][..data.len()].copy_from_slice(data);
            prop_assert!(engine.write(name, *offset, data));
        }
        exchange(&mut engine, &mut replica, size);
        let started = engine.start(99, &Command::Read { offset: 0, length: 4096 });
        prop_assert!(started);
        exchange(&mut engine, &mut replica, size);
        replica.answer(0);
        exchange(&mut engine, &mut replica, size);
        let (_, status, data, _) = engine.seen.pop_back().expect("answered");
        prop_assert_eq!(status, Status::Good);
        prop_assert_eq!(data, model);
    }
}
