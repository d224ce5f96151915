//! The engine's end of a connection.

use alloc::string::String;
use alloc::vec::Vec;

use crate::decoder::{Decoder, Piece};
use crate::message::parse_text;
use crate::{
    Command, Frame, Grant, HEADER_SIZE, Hello, Kind, MAX_CONTROL, MAX_REQUESTS, MAX_TEXT, MAX_TRANSFER, Open, Pong,
    ProtocolError, Refusal, Status, Welcome,
};
use crate::{VERSION, server::slot_of};

/// Something the driver has to act on. `T` is what it gave with each request.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEvent<'a, 'c, T> {
    /// The replica's node is there: send [`Client::open`].
    Welcome(Welcome),
    /// Requests may begin.
    Granted(Grant),
    /// They may not; the connection ends.
    Refused(Refusal),
    /// A part of the data of a read, to be copied to `at` bytes from its start.
    Data {
        /// What was given with the request.
        request: &'c mut T,
        /// Where in the data.
        at: usize,
        /// The part.
        bytes: &'a [u8],
    },
    /// A request is done.
    Answer(Answer<'c, T>),
    /// How the replica is.
    Pong(Pong),
}

/// The end of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'c, T> {
    /// What was given with the request.
    pub request: T,
    /// What became of it. With [`Status::Good`] all data of a read has been handed out.
    pub status: Status,
    /// The message in the answer (Chain, Extents, Hashes, Notes, Membership); empty for others.
    pub control: &'c [u8],
    /// The words of an error.
    pub text: Option<String>,
}

/// A request could not start: too much is in flight. Hands back what was given.
#[derive(Debug, PartialEq, Eq)]
pub struct NoCredit<T>(pub T);

/// What may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credits {
    /// Requests.
    pub requests: u32,
    /// Bytes of data.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Welcomed,
    Opening,
    Serving,
    Ended,
}

struct Pending<T> {
    id: u64,
    kind: Kind,
    /// The data asked for, in bytes.
    length: u32,
    cost: u64,
    request: T,
}

/// The engine's end of one connection.
///
/// The driver sends [`Client::hello`], then what the events call for; once granted, [`Client::start`] makes the frame of a
/// request or says that there is no credit left. An error means that the connection must be closed; [`Client::end`] then
/// hands back everything in flight.
pub struct Client<T> {
    decoder: Decoder,
    state: State,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// How much of the payload has arrived.
    arrived: usize,
    /// The payload of a message so far; bounded by its kind.
    control: Vec<u8>,
    epoch: u64,
    /// By slot, as long as the requests granted.
    pending: Vec<Option<Pending<T>>>,
    free: Vec<u16>,
    granted: Credits,
    /// Bytes granted and not in use.
    bytes: u64,
    /// Counts requests, so that ids do not repeat.
    counter: u64,
}

impl<T> Default for Client<T> {
    fn default() -> Self {
        Self {
            decoder: Decoder::default(),
            state: State::Greeting,
            frame: None,
            arrived: 0,
            control: Vec::new(),
            epoch: 0,
            pending: Vec::new(),
            free: Vec::new(),
            granted: Credits { requests: 0, bytes: 0 },
            bytes: 0,
            counter: 0,
        }
    }
}

impl<T> Client<T> {
    /// The first frame to send.
    pub fn hello(&self, instance: crate::Id, node: &str) -> Vec<u8> {
        Hello { min: VERSION, max: VERSION, instance, node: String::from(node) }.encode()
    }

    /// The frame that asks for a replica.
    pub fn open(&mut self, open: &Open) -> Vec<u8> {
        debug_assert_eq!(self.state, State::Welcomed);
        self.state = State::Opening;
        self.epoch = open.epoch;
        open.encode()
    }

    /// What the replica granted; nothing before it did.
    pub const fn credits(&self) -> Credits {
        self.granted
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len()
    }

    /// Starts a request: its header, and the rest of the frame unless the command is a write, whose data the
    /// caller sends.
    pub fn start(&mut self, command: &Command, request: T) -> Result<([u8; HEADER_SIZE], Vec<u8>), NoCredit<T>> {
        let (mut frame, payload) = command.frame(0, self.epoch);
        let cost = frame.cost();
        let room = self.state == State::Serving && cost <= self.bytes;
        let Some(slot) = room.then(|| self.free.pop()).flatten() else { return Err(NoCredit(request)) };
        self.counter += 1;
        frame.request = self.counter << 16 | u64::from(slot);
        self.bytes -= cost;
        // Data is no longer than the longest transfer.
        let length = if command_reads(command) { cost as u32 } else { 0 };
        self.pending[usize::from(slot)] = Some(Pending { id: frame.request, kind: frame.kind, length, cost, request });
        Ok((frame.encode(), payload))
    }

    /// A Ping to send.
    pub fn ping(&self) -> [u8; HEADER_SIZE] {
        Frame::new(Kind::Ping).encode()
    }

    /// The last frame to send.
    pub fn close(&self) -> [u8; HEADER_SIZE] {
        Frame::new(Kind::Close).encode()
    }

    /// Ends everything: what was in flight comes back, to be failed. The rest of an answer that has begun to arrive is malformed.
    pub fn end(&mut self) -> Vec<T> {
        self.state = State::Ended;
        self.frame = None;
        self.free.clear();
        self.pending.drain(..).flatten().map(|pending| pending.request).collect()
    }

    /// What was given with the requests in flight, in no order.
    pub fn requests(&self) -> impl Iterator<Item = &T> {
        self.pending.iter().flatten().map(|pending| &pending.request)
    }

    /// The next event in `input`, which is shortened by what was used.
    pub fn handle<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<ClientEvent<'a, '_, T>>, ProtocolError> {
        loop {
            match self.decoder.next(input)? {
                None => return Ok(None),
                Some(Piece::Begin(frame)) => self.begin(frame)?,
                Some(Piece::Data(bytes)) => {
                    let at = self.arrived;
                    self.arrived += bytes.len();
                    match self.reading() {
                        None => self.control.extend_from_slice(bytes),
                        Some(slot) => return self.deliver(slot, at, bytes).map(Some),
                    }
                }
                Some(Piece::End) => return self.finish().map(Some),
            }
        }
    }

    fn deliver<'a>(
        &mut self,
        slot: usize,
        at: usize,
        bytes: &'a [u8],
    ) -> Result<ClientEvent<'a, '_, T>, ProtocolError> {
        // `reading` found it, and nothing takes it out in between.
        let pending = self.pending[slot].as_mut().ok_or(ProtocolError::Malformed)?;
        Ok(ClientEvent::Data { request: &mut pending.request, at, bytes })
    }

    /// The slot of the read whose data is arriving.
    fn reading(&self) -> Option<usize> {
        let frame = self.frame.filter(|frame| frame.kind == Kind::Answer && frame.status == Status::Good)?;
        let slot = slot_of(frame.request);
        self.pending[slot].as_ref().filter(|pending| pending.length > 0).map(|_| slot)
    }

    fn begin(&mut self, frame: Frame) -> Result<(), ProtocolError> {
        self.expect(&frame)?;
        self.frame = Some(frame);
        self.arrived = 0;
        self.control.clear();
        Ok(())
    }

    /// Whether such a frame may come now.
    fn expect(&self, frame: &Frame) -> Result<(), ProtocolError> {
        let unexpected = Err(ProtocolError::Unexpected(frame.kind as u8));
        match (self.state, frame.kind) {
            (State::Greeting, Kind::Welcome) | (State::Opening, Kind::Grant | Kind::Refuse) => Ok(()),
            (State::Serving, Kind::Pong) => Ok(()),
            (State::Serving, Kind::Answer) => self.expect_answer(frame),
            _ => unexpected,
        }
    }

    fn expect_answer(&self, frame: &Frame) -> Result<(), ProtocolError> {
        let pending = self.pending.get(slot_of(frame.request)).and_then(Option::as_ref);
        let pending = pending.filter(|pending| pending.id == frame.request);
        let pending = pending.ok_or(ProtocolError::UnknownRequest(frame.request))?;
        let fits = match (frame.status, pending.kind) {
            (
                Status::Good,
                Kind::Chain | Kind::Extents | Kind::Hashes | Kind::Notes | Kind::Damage | Kind::Membership,
            ) => frame.payload_length <= MAX_CONTROL,
            (Status::Good, _) => frame.payload_length == pending.length,
            _ => frame.payload_length as usize <= MAX_TEXT,
        };
        match fits {
            true => Ok(()),
            false => Err(ProtocolError::PayloadLength(frame.payload_length)),
        }
    }

    fn finish<'a>(&mut self) -> Result<ClientEvent<'a, '_, T>, ProtocolError> {
        // Begin came before: the decoder pairs them.
        let frame = self.frame.take().ok_or(ProtocolError::Malformed)?;
        Ok(match frame.kind {
            Kind::Welcome => ClientEvent::Welcome(self.welcomed()?),
            Kind::Grant => ClientEvent::Granted(self.granted(&frame)?),
            Kind::Refuse => {
                self.state = State::Ended;
                ClientEvent::Refused(Refusal::parse(&frame, &self.control)?)
            }
            Kind::Pong => ClientEvent::Pong(Pong::parse(&frame, &self.control)?),
            _ => ClientEvent::Answer(self.answered(&frame)?),
        })
    }

    fn welcomed(&mut self) -> Result<Welcome, ProtocolError> {
        let welcome = Welcome::parse(&self.control)?;
        if welcome.version != VERSION {
            return Err(ProtocolError::Version(welcome.version));
        }
        if welcome.requests == 0 || welcome.requests > MAX_REQUESTS || welcome.bytes < u64::from(MAX_TRANSFER) {
            return Err(ProtocolError::BadCredits);
        }
        self.granted = Credits { requests: welcome.requests, bytes: welcome.bytes };
        self.bytes = welcome.bytes;
        self.pending.resize_with(welcome.requests as usize, || None);
        // Slots are below MAX_REQUESTS, which a u16 holds.
        self.free = (0..welcome.requests as u16).rev().collect();
        self.state = State::Welcomed;
        Ok(welcome)
    }

    fn granted(&mut self, frame: &Frame) -> Result<Grant, ProtocolError> {
        let grant = Grant::parse(frame, &self.control)?;
        if grant.epoch != self.epoch {
            return Err(ProtocolError::Malformed);
        }
        self.state = State::Serving;
        Ok(grant)
    }

    fn answered(&mut self, frame: &Frame) -> Result<Answer<'_, T>, ProtocolError> {
        let slot = slot_of(frame.request);
        // `expect_answer` found it, and nothing else takes it out.
        let pending = self.pending[slot].take().ok_or(ProtocolError::UnknownRequest(frame.request))?;
        self.free.push(slot as u16);
        self.bytes += pending.cost;
        let good = frame.status == Status::Good;
        let text = if good { None } else { Some(parse_text(&self.control)?) };
        let control: &[u8] = if good { &self.control } else { &[] };
        Ok(Answer { request: pending.request, status: frame.status, control, text })
    }
}

const fn command_reads(command: &Command) -> bool {
    matches!(command, Command::Read { .. } | Command::ReadLvol { .. })
}
