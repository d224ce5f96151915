//! The payloads of greetings, and the requests in words.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{
    Flags, Frame, GRANULES, Kind, MAX_ATTACHED, MAX_CONTROL, MAX_EXTENTS, MAX_MEMBERSHIP, MAX_NOTE, MAX_RANGES,
    MAX_REPAIR, MAX_TEXT, MAX_TRANSFER, NOTES, ProtocolError, Status, checksum,
};

/// A UUID's bytes.
pub type Id = [u8; 16];

/// The first frame of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The lowest version spoken.
    pub min: u16,
    /// The highest.
    pub max: u16,
    /// The engine's instance.
    pub instance: Id,
    /// The engine's node, for people.
    pub node: String,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version of all that follows.
    pub version: u16,
    /// How many requests may be in flight.
    pub requests: u32,
    /// How many bytes of data they may carry together.
    pub bytes: u64,
    /// The replica's node, for people.
    pub node: String,
}

/// Asks for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Which replica.
    pub replica: Id,
    /// The volume it must belong to.
    pub volume: Id,
    /// The engine's instance.
    pub instance: Id,
    /// The epoch asked for; zero to look at it only.
    pub epoch: u64,
}

/// Whether a replica's chain is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It is.
    Complete = 0,
    /// A full rebuild began and has not ended.
    Rebuilding = 1,
}

impl State {
    fn from_code(code: u64) -> Result<Self, ProtocolError> {
        match code {
            0 => Ok(Self::Complete),
            1 => Ok(Self::Rebuilding),
            _ => Err(ProtocolError::Malformed),
        }
    }
}

/// The replica is open at the epoch asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The epoch granted.
    pub epoch: u64,
    /// Bytes in all.
    pub size: u64,
    /// Bytes a block.
    pub block_size: u32,
    /// Bytes that a power cut leaves whole.
    pub atomic_write: u32,
    /// Bytes that an unmap gives back at least.
    pub allocation_unit: u32,
    /// Whether its chain is whole.
    pub state: State,
}

/// The replica is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub status: Status,
    /// The epoch the replica has stored.
    pub stored_epoch: u64,
    /// Words for people.
    pub text: String,
}

/// How the replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The age of the oldest request in flight, in milliseconds; zero without one.
    pub oldest_ms: u64,
    /// Requests in flight.
    pub in_flight: u32,
    /// Changes whenever damage of a snapshot was found in the replica's store.
    pub findings: u32,
    /// A newer epoch was granted: this engine has lost the replica.
    pub fenced: bool,
}

/// What a replica knows of its volume's membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The highest epoch granted; zero before the first.
    pub epoch: u64,
    /// The engine's bytes; none if no engine has left any.
    pub content: Option<Vec<u8>>,
    /// What was kept with them; none if that is not known any more.
    pub attached: Option<Vec<u8>>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read a range.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Write data, which follows the header.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u32,
        /// Durable before the answer.
        fua: bool,
        /// CRC32C of the data.
        checksum: u32,
    },
    /// Make everything answered before durable.
    Flush,
    /// Forget ranges of `(offset, length)`.
    Unmap(Vec<(u64, u64)>),
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// The space may be given back.
        unmap: bool,
        /// Durable before the answer.
        fua: bool,
    },
    /// Cut the head.
    Snapshot {
        /// The snapshot's uuid.
        id: Id,
        /// The volume's size, in bytes.
        size: u64,
        /// Its name.
        name: String,
    },
    /// List the chain.
    Chain,
    /// List own blocks of an lvol of the chain.
    Extents {
        /// Which.
        lvol: Id,
        /// From where, in bytes.
        offset: u64,
        /// Within how many bytes.
        length: u64,
        /// At most so many.
        max: u32,
    },
    /// Read through a snapshot of the chain.
    ReadLvol {
        /// Which.
        lvol: Id,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Begin a full rebuild.
    Reset,
    /// Say whether the chain is whole.
    SetState(State),
    /// Hash what is read through an lvol of the chain, in pieces.
    Hashes {
        /// Which.
        lvol: Id,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u32,
        /// Bytes of a piece: one of [`GRANULES`], a power of two. The last piece may be shorter.
        granule: u32,
    },
    /// Keep a note, in place of what was there.
    SetNote {
        /// Where, below [`NOTES`].
        place: u8,
        /// Durable before the answer.
        durable: bool,
        /// At most [`MAX_NOTE`] bytes.
        content: Vec<u8>,
    },
    /// List the notes.
    Notes,
    /// Keep a copy of the membership record, durably, in place of what was there.
    SetMembership {
        /// 1 to [`MAX_MEMBERSHIP`] bytes.
        content: Vec<u8>,
        /// What is kept with it, at most [`MAX_ATTACHED`] bytes.
        attached: Vec<u8>,
    },
    /// Tell the copy of the membership record.
    Membership,
    /// Delete a snapshot of the chain; none there is no error.
    DeleteSnapshot {
        /// Which.
        id: Id,
    },
    /// Make the head read as a snapshot of the chain; the snapshots after it go.
    Revert {
        /// Which.
        id: Id,
    },
    /// List regions of the chain's snapshots that are known to be damaged.
    Damage,
    /// Mend a region of a snapshot with these bytes, if they hash to the value that is stored for it.
    Repair {
        /// Which snapshot.
        id: Id,
        /// Where, in bytes.
        offset: u64,
        /// At most [`MAX_REPAIR`] bytes.
        data: Vec<u8>,
    },
    /// Make the head so large; at least as large is no error.
    Grow {
        /// Bytes.
        size: u64,
    },
}

impl Command {
    /// The kind of its frame.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Read { .. } => Kind::Read,
            Self::Write { .. } => Kind::Write,
            Self::Flush => Kind::Flush,
            Self::Unmap(_) => Kind::Unmap,
            Self::WriteZeroes { .. } => Kind::WriteZeroes,
            Self::Snapshot { .. } => Kind::Snapshot,
            Self::Chain => Kind::Chain,
            Self::Extents { .. } => Kind::Extents,
            Self::ReadLvol { .. } => Kind::ReadLvol,
            Self::Reset => Kind::Reset,
            Self::SetState(_) => Kind::SetState,
            Self::Hashes { .. } => Kind::Hashes,
            Self::SetNote { .. } => Kind::SetNote,
            Self::Notes => Kind::Notes,
            Self::SetMembership { .. } => Kind::SetMembership,
            Self::Membership => Kind::Membership,
            Self::DeleteSnapshot { .. } => Kind::DeleteSnapshot,
            Self::Revert { .. } => Kind::Revert,
            Self::Grow { .. } => Kind::Grow,
            Self::Damage => Kind::Damage,
            Self::Repair { .. } => Kind::Repair,
        }
    }

    /// Header and payload. The payload of a write is the caller's data.
    pub(crate) fn frame(&self, request: u64, epoch: u64) -> (Frame, Vec<u8>) {
        let mut frame = Frame { request, epoch, ..Frame::new(self.kind()) };
        let mut payload = Vec::new();
        match self {
            Self::Flush | Self::Chain | Self::Reset | Self::Notes | Self::Damage | Self::Membership => {}
            Self::Read { offset, length } => (frame.offset, frame.length) = (*offset, u64::from(*length)),
            Self::Write { offset, length, fua, checksum } => {
                (frame.offset, frame.length, frame.flags.fua) = (*offset, u64::from(*length), *fua);
                (frame.payload_length, frame.payload_checksum) = (*length, *checksum);
                return (frame, payload);
            }
            Self::Unmap(ranges) => {
                for (offset, length) in ranges {
                    payload.extend_from_slice(&offset.to_le_bytes());
                    payload.extend_from_slice(&length.to_le_bytes());
                }
            }
            Self::WriteZeroes { offset, length, unmap, fua } => {
                (frame.offset, frame.length, frame.flags) = (*offset, *length, Flags { fua: *fua, unmap: *unmap });
            }
            Self::Snapshot { id, size, name } => {
                frame.length = *size;
                payload.extend_from_slice(id);
                put_name(&mut payload, name);
            }
            Self::Extents { lvol, offset, length, max } => {
                (frame.offset, frame.length) = (*offset, *length);
                payload.extend_from_slice(lvol);
                payload.extend_from_slice(&max.to_le_bytes());
                payload.extend_from_slice(&[0; 4]);
            }
            Self::ReadLvol { lvol, offset, length } => {
                (frame.offset, frame.length) = (*offset, u64::from(*length));
                payload.extend_from_slice(lvol);
            }
            Self::SetState(state) => frame.offset = *state as u64,
            Self::Hashes { lvol, offset, length, granule } => {
                (frame.offset, frame.length) = (*offset, u64::from(*length));
                payload.extend_from_slice(lvol);
                payload.extend_from_slice(&granule.to_le_bytes());
                payload.extend_from_slice(&[0; 4]);
            }
            Self::SetNote { place, durable, content } => {
                debug_assert!(content.len() <= MAX_NOTE as usize);
                (frame.offset, frame.flags.fua) = (u64::from(*place), *durable);
                payload.extend_from_slice(content);
            }
            Self::SetMembership { content, attached } => {
                debug_assert!(content.len() <= MAX_MEMBERSHIP as usize && attached.len() <= MAX_ATTACHED as usize);
                frame.length = attached.len() as u64;
                payload.extend_from_slice(content);
                payload.extend_from_slice(attached);
            }
            Self::DeleteSnapshot { id } | Self::Revert { id } => payload.extend_from_slice(id),
            Self::Grow { size } => frame.length = *size,
            Self::Repair { id, offset, data } => {
                debug_assert!(data.len() <= MAX_REPAIR as usize);
                frame.offset = *offset;
                payload.extend_from_slice(id);
                payload.extend_from_slice(data);
            }
        }
        seal(&mut frame, &payload);
        (frame, payload)
    }

    /// The request of a frame and its payload (none for a write).
    pub(crate) fn parse(frame: &Frame, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let (offset, length) = (frame.offset, frame.length);
        let command = match frame.kind {
            Kind::Read => Self::Read { offset, length: transfer(length)? },
            Kind::Flush => Self::Flush,
            Kind::Unmap => Self::Unmap(fields.ranges()?),
            Kind::WriteZeroes => Self::WriteZeroes { offset, length, unmap: frame.flags.unmap, fua: frame.flags.fua },
            Kind::Snapshot => Self::Snapshot { id: fields.array()?, size: length, name: fields.name()? },
            Kind::Chain => Self::Chain,
            Kind::Extents => {
                let (lvol, max) = (fields.array()?, fields.u32()?);
                fields.zeroes(4)?;
                if !(1..=MAX_EXTENTS).contains(&max) {
                    return Err(ProtocolError::Malformed);
                }
                Self::Extents { lvol, offset, length, max }
            }
            Kind::ReadLvol => Self::ReadLvol { lvol: fields.array()?, offset, length: transfer(length)? },
            Kind::Reset => Self::Reset,
            Kind::SetState => Self::SetState(State::from_code(offset)?),
            Kind::Hashes => {
                let (lvol, granule) = (fields.array()?, fields.u32()?);
                fields.zeroes(4)?;
                if !GRANULES.contains(&granule) || !granule.is_power_of_two() {
                    return Err(ProtocolError::Malformed);
                }
                Self::Hashes { lvol, offset, length: transfer(length)?, granule }
            }
            Kind::SetNote => {
                let place = u8::try_from(offset).ok().filter(|place| *place < NOTES);
                let place = place.ok_or(ProtocolError::Malformed)?;
                Self::SetNote { place, durable: frame.flags.fua, content: fields.rest().to_vec() }
            }
            Kind::Notes => Self::Notes,
            Kind::SetMembership => {
                let rest = fields.rest();
                let attached = usize::try_from(length).ok().filter(|length| *length <= MAX_ATTACHED as usize);
                let cut = attached.and_then(|attached| rest.len().checked_sub(attached));
                let cut = cut.filter(|cut| (1..=MAX_MEMBERSHIP as usize).contains(cut));
                let (content, attached) = rest.split_at(cut.ok_or(ProtocolError::Malformed)?);
                Self::SetMembership { content: content.to_vec(), attached: attached.to_vec() }
            }
            Kind::Membership => Self::Membership,
            Kind::DeleteSnapshot => Self::DeleteSnapshot { id: fields.array()? },
            Kind::Revert => Self::Revert { id: fields.array()? },
            Kind::Grow => Self::Grow { size: length },
            Kind::Damage => Self::Damage,
            Kind::Repair => Self::Repair { id: fields.array()?, offset, data: fields.rest().to_vec() },
            other => return Err(ProtocolError::Unexpected(other as u8)),
        };
        fields.end()?;
        Ok(command)
    }
}

fn transfer(length: u64) -> Result<u32, ProtocolError> {
    u32::try_from(length).ok().filter(|&length| length <= MAX_TRANSFER).ok_or(ProtocolError::Malformed)
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.min.to_le_bytes());
        payload.extend_from_slice(&self.max.to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        payload.extend_from_slice(&self.instance);
        put_name(&mut payload, &self.node);
        message(Frame::new(Kind::Hello), &payload)
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let (min, max) = (fields.u16()?, fields.u16()?);
        fields.zeroes(4)?;
        let hello = Self { min, max, instance: fields.array()?, node: fields.name()? };
        fields.end()?;
        Ok(hello)
    }
}

impl Welcome {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.version.to_le_bytes());
        payload.extend_from_slice(&[0; 2]);
        payload.extend_from_slice(&self.requests.to_le_bytes());
        payload.extend_from_slice(&self.bytes.to_le_bytes());
        put_name(&mut payload, &self.node);
        message(Frame::new(Kind::Welcome), &payload)
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let version = fields.u16()?;
        fields.zeroes(2)?;
        let welcome = Self { version, requests: fields.u32()?, bytes: fields.u64()?, node: fields.name()? };
        fields.end()?;
        Ok(welcome)
    }
}

impl Open {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let payload = [self.replica, self.volume, self.instance].concat();
        message(Frame { epoch: self.epoch, ..Frame::new(Kind::Open) }, &payload)
    }

    pub(crate) fn parse(frame: &Frame, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let open =
            Self { replica: fields.array()?, volume: fields.array()?, instance: fields.array()?, epoch: frame.epoch };
        fields.end()?;
        Ok(open)
    }
}

impl Grant {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.size.to_le_bytes());
        payload.extend_from_slice(&self.block_size.to_le_bytes());
        payload.extend_from_slice(&self.atomic_write.to_le_bytes());
        payload.extend_from_slice(&self.allocation_unit.to_le_bytes());
        payload.extend_from_slice(&[self.state as u8, 0, 0, 0]);
        message(Frame { epoch: self.epoch, ..Frame::new(Kind::Grant) }, &payload)
    }

    pub(crate) fn parse(frame: &Frame, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let grant = Self {
            epoch: frame.epoch,
            size: fields.u64()?,
            block_size: fields.u32()?,
            atomic_write: fields.u32()?,
            allocation_unit: fields.u32()?,
            state: State::from_code(fields.u8()?.into())?,
        };
        fields.zeroes(3)?;
        fields.end()?;
        Ok(grant)
    }
}

impl Refusal {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let frame = Frame { status: self.status, epoch: self.stored_epoch, ..Frame::new(Kind::Refuse) };
        message(frame, text_bytes(&self.text))
    }

    pub(crate) fn parse(frame: &Frame, payload: &[u8]) -> Result<Self, ProtocolError> {
        if frame.status == Status::Good {
            return Err(ProtocolError::Malformed);
        }
        Ok(Self { status: frame.status, stored_epoch: frame.epoch, text: parse_text(payload)? })
    }
}

impl Pong {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.oldest_ms.to_le_bytes());
        payload.extend_from_slice(&self.in_flight.to_le_bytes());
        payload.extend_from_slice(&self.findings.to_le_bytes());
        let status = if self.fenced { Status::Fenced } else { Status::Good };
        message(Frame { status, ..Frame::new(Kind::Pong) }, &payload)
    }

    pub(crate) fn parse(frame: &Frame, payload: &[u8]) -> Result<Self, ProtocolError> {
        let fenced = match frame.status {
            Status::Good => false,
            Status::Fenced => true,
            _ => return Err(ProtocolError::Malformed),
        };
        let mut fields = Fields(payload);
        let pong = Self { oldest_ms: fields.u64()?, in_flight: fields.u32()?, findings: fields.u32()?, fenced };
        fields.end()?;
        Ok(pong)
    }
}

impl Membership {
    /// The payload of an answer.
    pub fn encode(&self) -> Vec<u8> {
        let (content, attached) = (self.content.as_deref(), self.attached.as_deref());
        let mut payload = self.epoch.to_le_bytes().to_vec();
        // At most MAX_MEMBERSHIP.
        payload.extend_from_slice(&(content.unwrap_or_default().len() as u32).to_le_bytes());
        payload.extend_from_slice(&u32::from(attached.is_some()).to_le_bytes());
        payload.extend_from_slice(content.unwrap_or_default());
        payload.extend_from_slice(attached.unwrap_or_default());
        payload
    }

    /// The message in an answer.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let (epoch, length, known) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let (content, attached) = fields.rest().split_at_checked(length as usize).ok_or(ProtocolError::Malformed)?;
        let fits = length <= MAX_MEMBERSHIP && attached.len() <= MAX_ATTACHED as usize;
        if !fits || known > 1 || (known == 0 && !attached.is_empty()) {
            return Err(ProtocolError::Malformed);
        }
        let content = (!content.is_empty()).then(|| content.to_vec());
        Ok(Self { epoch, content, attached: (known == 1).then(|| attached.to_vec()) })
    }
}

/// A frame with its payload, ready to be sent.
pub(crate) fn message(mut frame: Frame, payload: &[u8]) -> Vec<u8> {
    seal(&mut frame, payload);
    [&frame.encode()[..], payload].concat()
}

/// Puts a control payload's length and checksum into its header.
pub(crate) fn seal(frame: &mut Frame, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_CONTROL as usize);
    if !payload.is_empty() {
        // Bounded by MAX_CONTROL.
        (frame.payload_length, frame.payload_checksum) = (payload.len() as u32, checksum(payload));
    }
}

/// As much of a text as a frame carries.
pub(crate) fn text_bytes(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]
}

/// The text of an error.
pub(crate) fn parse_text(payload: &[u8]) -> Result<String, ProtocolError> {
    let text = core::str::from_utf8(payload).map_err(|_| ProtocolError::Malformed)?;
    Ok(String::from(text))
}

/// Writes as much of a name as fits.
pub(crate) fn put_name(payload: &mut Vec<u8>, name: &str) {
    let name = &name[..name.floor_char_boundary(usize::from(u8::MAX))];
    payload.push(name.len() as u8);
    payload.extend_from_slice(name.as_bytes());
}

/// Takes fields off the front of a payload.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ProtocolError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    pub(crate) fn name(&mut self) -> Result<String, ProtocolError> {
        let length = self.u8()?;
        parse_text(self.take(length.into())?)
    }

    pub(crate) fn ranges(&mut self) -> Result<Vec<(u64, u64)>, ProtocolError> {
        if self.0.is_empty() || self.0.len() > 16 * MAX_RANGES {
            return Err(ProtocolError::Malformed);
        }
        let mut ranges = Vec::with_capacity(self.0.len() / 16);
        while !self.0.is_empty() {
            ranges.push((self.u64()?, self.u64()?));
        }
        Ok(ranges)
    }

    pub(crate) fn zeroes(&mut self, count: usize) -> Result<(), ProtocolError> {
        match self.take(count)?.iter().all(|&byte| byte == 0) {
            true => Ok(()),
            false => Err(ProtocolError::Reserved),
        }
    }

    pub(crate) fn end(&self) -> Result<(), ProtocolError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(ProtocolError::Malformed),
        }
    }
}
