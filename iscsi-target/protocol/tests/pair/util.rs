//! Two endpoints and what lies between them: a story's stage.

use std::collections::BTreeMap;
use std::sync::Arc;

use iscsi_target_protocol::Violation;
use iscsi_target_protocol::chap::Challenge;
use iscsi_target_protocol::initiator::connection::{self as initiator, Command, Data};
use iscsi_target_protocol::initiator::login::{self as initiator_login, Chap, Options};
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::access::Access;
use iscsi_target_protocol::target::connection::{self as target, Event, Limits, Response, Transfer};
use iscsi_target_protocol::target::login as target_login;
use iscsi_target_protocol::target::session::Session;
use iscsi_target_protocol::wire::response::Residual;
use iscsi_target_protocol::wire::{LoginStatus, Name, Sense};

pub(crate) const TARGET: &str = "iqn.2026-01.io.ashlar:pair";
pub(crate) const INITIATOR: &str = "iqn.1993-08.org.debian:01:pair";
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const DISK: usize = 4 << 20;
pub(crate) const TARGET_CHALLENGE: Challenge = Challenge { identifier: 7, bytes: [0x5a; 32] };
const INITIATOR_CHALLENGE: Challenge = Challenge { identifier: 9, bytes: [0xa5; 32] };

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// What an initiator logs in with unless a test says otherwise.
pub(crate) fn options() -> Options {
    Options {
        initiator: name(INITIATOR),
        target: Some(name(TARGET)),
        isid: [0, 2, 0x3d, 0, 0, 1],
        tsih: 0,
        cid: 0,
        offer: Parameters::target(),
        chap: None,
        challenge: INITIATOR_CHALLENGE,
    }
}

pub(crate) fn with_chap(chap: Chap) -> Options {
    Options { chap: Some(Arc::new(chap)), ..options() }
}

/// Runs a login to its end: what the initiator was told, and the target's side if it is complete.
pub(crate) fn log_in(
    login: &mut initiator_login::Login,
    limits: Limits,
    access: &Access,
    session: Option<&Session>,
    fragment: usize,
) -> (initiator_login::Event, Option<target_login::Login>, Vec<u8>) {
    let mut target = target_login::Login::new(limits, 1);
    let (mut to_target, mut to_initiator) = (Vec::new(), Vec::new());
    login.start(&mut to_target);
    for _ in 0..20 {
        for chunk in std::mem::take(&mut to_target).chunks(fragment) {
            let mut input = chunk;
            loop {
                match target.receive(&mut input, &mut to_initiator) {
                    Ok(Some(target_login::Event::Identified)) => {
                        target.admit(access, TARGET_CHALLENGE, session, &mut to_initiator);
                    }
                    Ok(Some(target_login::Event::Complete)) => {
                        return (initiator_login::Event::Complete, Some(target), to_initiator);
                    }
                    Ok(None) | Err(_) => break,
                }
            }
        }
        for chunk in std::mem::take(&mut to_initiator).chunks(fragment) {
            if let Some(event) = login.receive(&mut &chunk[..], &mut to_target).expect("a sound target") {
                return (event, None, Vec::new());
            }
        }
    }
    panic!("a login without end");
}

/// What a refused login says.
pub(crate) fn refusal(options: Options, access: &Access) -> initiator_login::Event {
    let mut login = initiator_login::Login::new(options, 1);
    log_in(&mut login, Limits::default(), access, None, usize::MAX).0
}

pub(crate) fn refused(status: LoginStatus) -> initiator_login::Event {
    initiator_login::Event::Refused { status, address: None }
}

/// What became of a command.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u8,
    pub(crate) residual: Residual,
    pub(crate) data: Vec<u8>,
    pub(crate) sense: Vec<u8>,
    pub(crate) intact: bool,
}

/// A command that the target has.
pub(crate) struct Pending {
    pub(crate) slot: target::Slot,
    command: target::Command,
    transfer: Transfer,
    pub(crate) data: Vec<u8>,
}

/// One connection: both ends, and what is on its way.
pub(crate) struct Link {
    pub(crate) initiator: initiator::Connection,
    pub(crate) target: target::Connection,
    pub(crate) to_target: Vec<u8>,
    pub(crate) to_initiator: Vec<u8>,
    /// Received by the target, and not read because the connection waits.
    unread: Vec<u8>,
    pub(crate) pending: BTreeMap<usize, Pending>,
    buffers: BTreeMap<usize, Vec<u8>>,
    pub(crate) replies: BTreeMap<usize, Reply>,
    /// Events of the initiator that are neither data nor replies.
    pub(crate) heard: Vec<String>,
    /// Events of the target that are no commands.
    pub(crate) asked: Vec<String>,
    pub(crate) managed: Vec<target::Slot>,
}

/// A session between an initiator and a target with a disk.
pub(crate) struct Pair {
    pub(crate) target: Session,
    pub(crate) initiator: initiator::Session,
    pub(crate) links: Vec<Link>,
    pub(crate) disk: Vec<u8>,
    pub(crate) now_ns: u64,
    /// The target keeps commands instead of executing them.
    pub(crate) hold: bool,
    /// Task tags in the order in which the target began them.
    pub(crate) begun: Vec<u8>,
    fragment: usize,
}

/// What a pair runs with.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) limits: Limits,
    pub(crate) offer: Parameters,
    pub(crate) fragment: usize,
}

impl Default for Setting {
    fn default() -> Self {
        Self { limits: Limits::default(), offer: Parameters::target(), fragment: usize::MAX }
    }
}

impl Pair {
    pub(crate) fn open(setting: Setting) -> Self {
        Self::open_as(setting, Options { offer: setting.offer, ..options() })
    }

    pub(crate) fn open_as(setting: Setting, options: Options) -> Self {
        let mut login = initiator_login::Login::new(options, 1);
        let (event, complete, mut out) = log_in(&mut login, setting.limits, &Access::default(), None, setting.fragment);
        assert_eq!(event, initiator_login::Event::Complete);
        let (target, connection) = complete.expect("complete").open(1, 0, &mut out);
        assert_eq!(login.receive(&mut &out[..], &mut Vec::new()), Ok(Some(initiator_login::Event::Complete)));
        let (initiator, initiator_connection) = login.finish();
        assert_eq!(initiator_connection.parameters().digests, connection.parameters().digests);
        Self {
            target,
            initiator,
            links: vec![Link::new(initiator_connection, connection)],
            disk: vec![0; DISK],
            now_ns: 0,
            hold: false,
            begun: Vec::new(),
            fragment: setting.fragment,
        }
    }

    /// One more connection of the session.
    pub(crate) fn join(&mut self, cid: u16) {
        let joining = Options { cid, ..options() };
        let mut login = initiator_login::Login::joining(joining, &self.initiator);
        let limits = Limits::default();
        let (event, complete, mut out) = log_in(&mut login, limits, &Access::default(), Some(&self.target), usize::MAX);
        assert_eq!(event, initiator_login::Event::Complete);
        let connection = complete.expect("complete").join(&self.target, 0, &mut out);
        assert_eq!(login.receive(&mut &out[..], &mut Vec::new()), Ok(Some(initiator_login::Event::Complete)));
        self.links.push(Link::new(login.finish().1, connection));
    }

    pub(crate) fn submit(&mut self, link: usize, command: &Command, data: &[u8]) -> Option<initiator::Slot> {
        let link = &mut self.links[link];
        let submitted = link.initiator.submit(&mut self.initiator, command, &mut link.to_target)?;
        let first = &data[..submitted.immediate_data as usize];
        if !first.is_empty() {
            link.to_target.extend_from_slice(first);
            link.initiator.write_data_end([first], &mut link.to_target);
        }
        link.buffers.insert(submitted.slot.index(), data.to_vec());
        link.send_data(submitted.slot);
        Some(submitted.slot)
    }

    /// Runs one command to its end.
    pub(crate) fn command(&mut self, command: &Command, data: &[u8]) -> Reply {
        let slot = self.submit(0, command, data).expect("room in the window");
        self.run();
        self.links[0].replies.remove(&slot.index()).expect("the command completed")
    }

    /// Lets bytes flow until none are left.
    pub(crate) fn run(&mut self) {
        while self.links.iter().any(|link| !link.to_target.is_empty() || !link.to_initiator.is_empty()) {
            for index in 0..self.links.len() {
                self.deliver_to_target(index).expect("an initiator that keeps to the protocol");
                self.deliver_to_initiator(index).expect("a target that keeps to the protocol");
            }
        }
    }

    pub(crate) fn deliver_to_target(&mut self, index: usize) -> Result<(), Violation> {
        let bytes = std::mem::take(&mut self.links[index].to_target);
        for chunk in bytes.chunks(self.fragment) {
            self.links[index].unread.extend_from_slice(chunk);
            self.read(index)?;
            // What one connection brings may be what others wait for.
            let mut seen = None;
            while seen != Some(self.target.expected()) {
                seen = Some(self.target.expected());
                for other in 0..self.links.len() {
                    self.read(other)?;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, index: usize) -> Result<(), Violation> {
        let unread = std::mem::take(&mut self.links[index].unread);
        let mut input = &unread[..];
        let result = self.feed(index, &mut input);
        let link = &mut self.links[index];
        assert!(result.is_err() || input.is_empty() || link.target.is_waiting(), "input is left only by who waits");
        link.unread = input.to_vec();
        result
    }

    fn feed(&mut self, index: usize, input: &mut &[u8]) -> Result<(), Violation> {
        loop {
            let link = &mut self.links[index];
            let event = link.target.receive(&mut self.target, self.now_ns, input, &mut link.to_initiator)?;
            match event {
                None => return Ok(()),
                Some(Event::Command { slot, command, transfer }) => {
                    let pending = Pending { slot, command, transfer, data: Vec::new() };
                    self.begun.push(command.cdb[15]);
                    link.pending.insert(slot.index(), pending);
                    if !matches!(transfer, Transfer::FromInitiator { unsolicited: 1.., .. }) {
                        self.go_on(index, slot.index(), Ok(()));
                    }
                }
                Some(Event::Payload { slot, offset, bytes }) => {
                    let pending = link.pending.get_mut(&slot.index()).expect("payload of a command in flight");
                    assert_eq!(pending.data.len(), offset as usize, "payload comes in order");
                    pending.data.extend_from_slice(bytes);
                }
                Some(Event::PayloadEnd { slot, received, result }) => {
                    assert_eq!(link.pending[&slot.index()].data.len(), received as usize);
                    self.go_on(index, slot.index(), result);
                }
                Some(Event::TaskManagement { slot, function, lun, task, before }) => {
                    link.managed.push(slot);
                    link.asked.push(format!("{function:?} {lun:x} {} {before}", task.is_some()));
                }
                Some(other) => link.asked.push(format!("{other:?}")),
            }
        }
    }

    /// A command is here with all data that comes unasked.
    fn go_on(&mut self, index: usize, task: usize, result: Result<(), Sense>) {
        let link = &mut self.links[index];
        let pending = &link.pending[&task];
        if let (Transfer::FromInitiator { length, .. }, Ok(())) = (pending.transfer, result)
            && pending.data.len() < length as usize
        {
            return link.target.request_data(&self.target, pending.slot, length, &mut link.to_initiator);
        }
        match result {
            Ok(()) if self.hold => {}
            Ok(()) => self.execute(index, task),
            Err(sense) => {
                let slot = link.pending.remove(&task).expect("in flight").slot;
                let response = Response { status: 2, sense: &sense.fixed(), length: 0 };
                link.target.respond(&mut self.target, slot, response, &mut link.to_initiator);
            }
        }
    }

    /// Executes a command that was held.
    pub(crate) fn execute(&mut self, index: usize, task: usize) {
        let link = &mut self.links[index];
        let Pending { slot, command, data, .. } = link.pending.remove(&task).expect("in flight");
        let (start, length) = range_of(&command.cdb);
        let end = start + length as usize;
        match command.cdb[0] {
            READ => {
                let payload = self.disk[start..end].to_vec();
                while let Some(range) =
                    link.target.write_data_header(&mut self.target, slot, length, &mut link.to_initiator)
                {
                    let part = &payload[range.start as usize..range.end as usize];
                    link.to_initiator.extend_from_slice(part);
                    link.target.write_data_end([part], &mut link.to_initiator);
                }
            }
            WRITE => {
                self.disk[start..start + data.len()].copy_from_slice(&data);
                let response = Response { status: 0, sense: &[], length };
                link.target.respond(&mut self.target, slot, response, &mut link.to_initiator);
            }
            _ => {
                let response = Response { status: 2, sense: &Sense::INVALID_OPERATION.fixed(), length: 0 };
                link.target.respond(&mut self.target, slot, response, &mut link.to_initiator);
            }
        }
    }

    pub(crate) fn deliver_to_initiator(&mut self, index: usize) -> Result<(), Violation> {
        let link = &mut self.links[index];
        let bytes = std::mem::take(&mut link.to_initiator);
        for chunk in bytes.chunks(self.fragment) {
            let mut input = chunk;
            while let Some(event) = link.initiator.receive(&mut self.initiator, &mut input, &mut link.to_target)? {
                match event {
                    initiator::Event::Data { slot, offset, bytes } => {
                        let buffer = link.buffers.get_mut(&slot.index()).expect("a command in flight");
                        assert_eq!(buffer.len(), offset as usize, "data comes in order");
                        buffer.extend_from_slice(bytes);
                    }
                    initiator::Event::DataRequested { slot } => link.send_data(slot),
                    initiator::Event::Completed { slot, status, residual, sense, intact, received } => {
                        let mut data = link.buffers.remove(&slot.index()).expect("exactly one completion (I34)");
                        data.truncate(received as usize);
                        link.replies.insert(slot.index(), Reply { status, residual, data, sense, intact });
                    }
                    other => link.heard.push(format!("{other:?}")),
                }
            }
            assert!(input.is_empty());
        }
        Ok(())
    }
}

impl Link {
    fn new(initiator: initiator::Connection, target: target::Connection) -> Self {
        Self {
            initiator,
            target,
            to_target: Vec::new(),
            to_initiator: Vec::new(),
            unread: Vec::new(),
            pending: BTreeMap::new(),
            buffers: BTreeMap::new(),
            replies: BTreeMap::new(),
            heard: Vec::new(),
            asked: Vec::new(),
            managed: Vec::new(),
        }
    }

    fn send_data(&mut self, slot: initiator::Slot) {
        while let Some(range) = self.initiator.write_data_header(slot, &mut self.to_target) {
            let part = self.buffers[&slot.index()][range.start as usize..range.end as usize].to_vec();
            self.to_target.extend_from_slice(&part);
            self.initiator.write_data_end([&part[..]], &mut self.to_target);
        }
    }
}

const READ: u8 = 0x28;
const WRITE: u8 = 0x2a;

/// The pair's own CDBs: start and length in bytes, and a number to know the command by.
fn cdb(operation: u8, start: u32, length: u32, number: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = operation;
    cdb[2..6].copy_from_slice(&start.to_be_bytes());
    cdb[6..10].copy_from_slice(&length.to_be_bytes());
    cdb[15] = number;
    cdb
}

fn range_of(cdb: &[u8; 16]) -> (usize, u32) {
    let number = |offset: usize| u32::from_be_bytes(cdb[offset..offset + 4].try_into().expect("four bytes"));
    (number(2) as usize, number(6))
}

pub(crate) fn read(start: u32, length: u32) -> Command {
    Command { lun: 0, cdb: cdb(READ, start, length, 0), data: Data::Receive(length), immediate: false }
}

pub(crate) fn write(start: u32, length: u32) -> Command {
    Command { lun: 0, cdb: cdb(WRITE, start, length, 0), data: Data::Send(length), immediate: false }
}

/// A read of nothing that can be told from others.
pub(crate) fn numbered(number: u8) -> Command {
    Command { lun: 0, cdb: cdb(WRITE, 0, 0, number), data: Data::None, immediate: false }
}

/// Bytes that differ everywhere and by `seed`.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
