//! The replica's end of a connection.

use alloc::string::String;
use alloc::vec::Vec;

use crate::decoder::{Decoder, Piece};
use crate::message::{self, seal, text_bytes};
use crate::{
    Command, Frame, Grant, HEADER_SIZE, Hello, Kind, MAX_REQUESTS, MAX_TRANSFER, Open, Pong, ProtocolError, Refusal,
    Status, VERSION, Welcome, checksum,
};

/// Something the driver has to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// The engine introduced itself: answer with [`Server::welcome`].
    Hello(Hello),
    /// It asks for a replica: answer with [`Server::grant`] or [`Server::refuse`].
    Open(Open),
    /// A request, complete: answer with [`Server::answer`].
    Request {
        /// Which.
        id: u64,
        /// The epoch it carries.
        epoch: u64,
        /// What it asks.
        command: Command,
    },
    /// A write begins; its data follows, then [`ServerEvent::WriteEnd`].
    WriteBegin {
        /// Which.
        id: u64,
        /// The epoch it carries.
        epoch: u64,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes of data follow.
        length: u32,
        /// Durable before the answer.
        fua: bool,
    },
    /// A part of the data, to be copied away.
    WriteData(&'a [u8]),
    /// The data is complete and checked: carry the write out, and answer with [`Server::answer`].
    WriteEnd,
    /// Answer with [`Server::pong`], at once.
    Ping,
    /// No more requests come: close when everything is answered.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// Hello came, Welcome has not gone.
    Greeted,
    Welcomed,
    /// Open came, neither Grant nor Refuse has gone.
    Opening,
    Serving,
    Closing,
}

/// The replica's end of one connection. Plain data: it can go to another thread with its connection.
///
/// The driver feeds what arrives to [`Server::handle`] until it gives `None`, and sends what the other methods
/// return. An error means that the connection must be closed.
pub struct Server {
    decoder: Decoder,
    state: State,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// The payload of a message so far; bounded by its kind.
    control: Vec<u8>,
    /// Bytes of credit each slot holds, and whether it is in use.
    slots: Vec<Option<(u64, u64)>>,
    /// Bytes granted and not in use.
    bytes: u64,
    in_flight: u32,
}

impl Server {
    /// A connection that grants `requests` in flight with `bytes` of data, as far as they are limits that work.
    pub fn new(requests: u32, bytes: u64) -> Self {
        let requests = requests.clamp(1, MAX_REQUESTS);
        Self {
            decoder: Decoder::default(),
            state: State::Greeting,
            frame: None,
            control: Vec::new(),
            slots: alloc::vec![None; requests as usize],
            bytes: bytes.max(u64::from(MAX_TRANSFER)),
            in_flight: 0,
        }
    }

    /// The next event in `input`, which is shortened by what was used.
    pub fn handle<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<ServerEvent<'a>>, ProtocolError> {
        loop {
            let event = match self.decoder.next(input)? {
                None => return Ok(None),
                Some(Piece::Begin(frame)) => self.begin(frame)?,
                Some(Piece::Data(data)) => self.data(data),
                Some(Piece::End) => self.end()?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn begin<'a>(&mut self, frame: Frame) -> Result<Option<ServerEvent<'a>>, ProtocolError> {
        self.expect(frame.kind)?;
        self.frame = Some(frame);
        if frame.kind.is_request() {
            self.take_credit(&frame)?;
        }
        if frame.kind != Kind::Write {
            self.control.clear();
            return Ok(None);
        }
        Ok(Some(ServerEvent::WriteBegin {
            id: frame.request,
            epoch: frame.epoch,
            offset: frame.offset,
            length: frame.payload_length,
            fua: frame.flags.fua,
        }))
    }

    /// Whether a frame of this kind may come now.
    fn expect(&self, kind: Kind) -> Result<(), ProtocolError> {
        let expected = match self.state {
            State::Greeting => kind == Kind::Hello,
            State::Welcomed => kind == Kind::Open,
            State::Serving => kind.is_request() || matches!(kind, Kind::Ping | Kind::Close),
            State::Greeted | State::Opening | State::Closing => false,
        };
        match expected {
            true => Ok(()),
            false => Err(ProtocolError::Unexpected(kind as u8)),
        }
    }

    fn take_credit(&mut self, frame: &Frame) -> Result<(), ProtocolError> {
        let slot = self.slots.get_mut(slot_of(frame.request)).ok_or(ProtocolError::CreditOverrun)?;
        let left = self.bytes.checked_sub(frame.cost()).ok_or(ProtocolError::CreditOverrun)?;
        if slot.is_some() {
            return Err(ProtocolError::CreditOverrun);
        }
        *slot = Some((frame.request, frame.cost()));
        self.bytes = left;
        self.in_flight += 1;
        Ok(())
    }

    fn data<'a>(&mut self, data: &'a [u8]) -> Option<ServerEvent<'a>> {
        match self.frame.is_some_and(|frame| frame.kind.carries_data()) {
            true => Some(ServerEvent::WriteData(data)),
            false => {
                self.control.extend_from_slice(data);
                None
            }
        }
    }

    fn end<'a>(&mut self) -> Result<Option<ServerEvent<'a>>, ProtocolError> {
        let Some(frame) = self.frame.take() else { return Ok(None) };
        Ok(Some(match frame.kind {
            Kind::Hello => self.hello()?,
            Kind::Open => {
                self.state = State::Opening;
                ServerEvent::Open(Open::parse(&frame, &self.control)?)
            }
            Kind::Ping => ServerEvent::Ping,
            Kind::Close => {
                self.state = State::Closing;
                ServerEvent::Close
            }
            Kind::Write => ServerEvent::WriteEnd,
            _ => {
                let command = Command::parse(&frame, &self.control)?;
                ServerEvent::Request { id: frame.request, epoch: frame.epoch, command }
            }
        }))
    }

    fn hello<'a>(&mut self) -> Result<ServerEvent<'a>, ProtocolError> {
        let hello = Hello::parse(&self.control)?;
        if hello.min > VERSION || hello.max < VERSION {
            return Err(ProtocolError::Version(hello.max));
        }
        self.state = State::Greeted;
        Ok(ServerEvent::Hello(hello))
    }

    /// The answer to Hello.
    pub fn welcome(&mut self, node: &str) -> Vec<u8> {
        debug_assert_eq!(self.state, State::Greeted);
        self.state = State::Welcomed;
        let requests = self.slots.len() as u32;
        Welcome { version: VERSION, requests, bytes: self.bytes, node: String::from(node) }.encode()
    }

    /// Opens the replica for requests.
    pub fn grant(&mut self, grant: &Grant) -> Vec<u8> {
        debug_assert_eq!(self.state, State::Opening);
        self.state = State::Serving;
        grant.encode()
    }

    /// Refuses; the connection is to be closed when this is sent.
    pub fn refuse(&mut self, refusal: &Refusal) -> Vec<u8> {
        debug_assert_eq!(self.state, State::Opening);
        self.state = State::Closing;
        refusal.encode()
    }

    /// The header of an answer whose payload are these pieces; they are to be sent behind it. `None` when no such request is
    /// in flight, which is our mistake.
    pub fn answer<'p>(
        &mut self,
        request: u64,
        status: Status,
        payload: impl Iterator<Item = &'p [u8]> + Clone,
    ) -> Option<[u8; HEADER_SIZE]> {
        self.give_back(request)?;
        let length: usize = payload.clone().map(<[u8]>::len).sum();
        debug_assert!(length <= MAX_TRANSFER as usize);
        Some(
            Frame {
                request,
                status,
                // Bounded by the request's length.
                payload_length: length as u32,
                payload_checksum: checksum_of(payload),
                ..Frame::new(Kind::Answer)
            }
            .encode(),
        )
    }

    /// A whole answer with an error, and words about it.
    pub fn answer_error(&mut self, request: u64, status: Status, text: &str) -> Option<Vec<u8>> {
        debug_assert_ne!(status, Status::Good);
        self.give_back(request)?;
        Some(message::message(Frame { request, status, ..Frame::new(Kind::Answer) }, text_bytes(text)))
    }

    /// A whole answer with a message as its payload.
    pub fn answer_control(&mut self, request: u64, payload: &[u8]) -> Option<Vec<u8>> {
        self.give_back(request)?;
        let mut frame = Frame { request, ..Frame::new(Kind::Answer) };
        seal(&mut frame, payload);
        Some([&frame.encode()[..], payload].concat())
    }

    fn give_back(&mut self, request: u64) -> Option<()> {
        let slot = self.slots.get_mut(slot_of(request))?;
        let (_, cost) = slot.take_if(|(id, _)| *id == request)?;
        self.bytes += cost;
        self.in_flight -= 1;
        Some(())
    }

    /// The answer to a Ping: `oldest_ms` is the age of the oldest request in flight, `findings` changes when damage was found, `fenced`
    /// says that a newer epoch was granted.
    pub fn pong(&self, oldest_ms: u64, findings: u32, fenced: bool) -> Vec<u8> {
        Pong { oldest_ms, in_flight: self.in_flight, findings, fenced }.encode()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

/// The slot of a request id.
pub(crate) const fn slot_of(request: u64) -> usize {
    (request & 0xffff) as usize
}

fn checksum_of<'p>(mut pieces: impl Iterator<Item = &'p [u8]> + Clone) -> u32 {
    let mut rest = pieces.clone();
    match (rest.next(), rest.next()) {
        (None, _) => 0,
        (Some(only), None) => match only.is_empty() {
            true => 0,
            false => checksum(only),
        },
        _ => {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
            pieces.by_ref().for_each(|piece| digest.update(piece));
            // A 32-bit checksum in a wider type.
            digest.finalize() as u32
        }
    }
}
