//! The payloads of answers that list something.

use alloc::string::String;
use alloc::vec::Vec;

use crate::message::{Fields, put_name};
use crate::{Id, MAX_NOTE, NOTES, ProtocolError};

/// A chain, oldest first, the head last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain(pub Vec<ChainEntry>);

/// One lvol of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEntry {
    /// Its uuid.
    pub id: Id,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: LvolKind,
    /// Its name.
    pub name: String,
}

/// What an lvol of a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LvolKind {
    /// The writable end.
    Head = 0,
    /// An immutable ancestor.
    Snapshot = 1,
}

/// A region of a snapshot that is known to be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRegion {
    /// The snapshot.
    pub snapshot: [u8; 16],
    /// Bytes from its start.
    pub offset: u64,
}

/// Regions of a chain's snapshots that are known to be damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage(pub Vec<DamagedRegion>);

/// Own blocks of an lvol, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// The extents.
    pub list: Vec<Extent>,
    /// Where the next request goes on; none at the end.
    pub next: Option<u64>,
}

/// A run of own blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the start.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What own blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExtentKind {
    /// Data.
    Data = 0,
    /// Zeroes, whatever the parent has there.
    Zero = 1,
}

/// What pieces of a range contain, by their hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashes(pub Vec<u128>);

/// What an engine keeps with a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes(pub Vec<Note>);

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its place, below [`NOTES`].
    pub place: u8,
    /// Written since the machine started: nothing written later can have been lost.
    pub current: bool,
    /// The engine's bytes.
    pub content: Vec<u8>,
}

impl Chain {
    /// The payload of the answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        // Chains are a few hundred long.
        payload.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        for entry in &self.0 {
            payload.extend_from_slice(&entry.id);
            payload.extend_from_slice(&entry.created.to_le_bytes());
            payload.extend_from_slice(&entry.size.to_le_bytes());
            payload.push(entry.kind as u8);
            put_name(&mut payload, &entry.name);
        }
        payload
    }

    /// The chain in the payload of an answer.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let count = fields.u32()?;
        fields.zeroes(4)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (id, created, size) = (fields.array()?, fields.u64()?, fields.u64()?);
            let kind = match fields.u8()? {
                0 => LvolKind::Head,
                1 => LvolKind::Snapshot,
                _ => return Err(ProtocolError::Malformed),
            };
            entries.push(ChainEntry { id, created, size, kind, name: fields.name()? });
        }
        fields.end()?;
        Ok(Self(entries))
    }
}

impl Extents {
    /// The payload of the answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(16 + 24 * self.list.len());
        // At most MAX_EXTENTS.
        payload.extend_from_slice(&(self.list.len() as u32).to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        payload.extend_from_slice(&self.next.unwrap_or(u64::MAX).to_le_bytes());
        for extent in &self.list {
            payload.extend_from_slice(&extent.offset.to_le_bytes());
            payload.extend_from_slice(&extent.length.to_le_bytes());
            payload.extend_from_slice(&[extent.kind as u8, 0, 0, 0, 0, 0, 0, 0]);
        }
        payload
    }

    /// The extents in the payload of an answer.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let count = fields.u32()?;
        fields.zeroes(4)?;
        let next = fields.u64()?;
        let mut list = Vec::new();
        for _ in 0..count {
            let (offset, length) = (fields.u64()?, fields.u64()?);
            let kind = match fields.u8()? {
                0 => ExtentKind::Data,
                1 => ExtentKind::Zero,
                _ => return Err(ProtocolError::Malformed),
            };
            fields.zeroes(7)?;
            offset.checked_add(length).ok_or(ProtocolError::Malformed)?;
            list.push(Extent { offset, length, kind });
        }
        fields.end()?;
        Ok(Self { list, next: (next != u64::MAX).then_some(next) })
    }
}

impl Hashes {
    /// The payload of the answer.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|hash| hash.to_le_bytes()).collect()
    }

    /// The hashes in the payload of an answer.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let (hashes, rest) = payload.as_chunks::<16>();
        match rest.is_empty() {
            true => Ok(Self(hashes.iter().map(|bytes| u128::from_le_bytes(*bytes)).collect())),
            false => Err(ProtocolError::Malformed),
        }
    }
}

impl Damage {
    /// The payload of the answer: as many as fit.
    pub fn encode(&self) -> Vec<u8> {
        const MOST: usize = crate::MAX_CONTROL as usize / 24;
        self.0
            .iter()
            .take(MOST)
            .flat_map(|region| [&region.snapshot[..], &region.offset.to_le_bytes()].concat())
            .collect()
    }

    /// The regions in the payload of an answer.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let mut regions = Vec::new();
        for _ in 0..payload.len() / 24 {
            regions.push(DamagedRegion { snapshot: fields.array()?, offset: fields.u64()? });
        }
        fields.end()?;
        Ok(Self(regions))
    }
}

impl Notes {
    /// The payload of the answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        // At most NOTES.
        payload.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        for note in &self.0 {
            payload.extend_from_slice(&[note.place, u8::from(note.current), 0, 0]);
            // At most MAX_NOTE.
            payload.extend_from_slice(&(note.content.len() as u32).to_le_bytes());
            payload.extend_from_slice(&note.content);
        }
        payload
    }

    /// The notes in the payload of an answer.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let count = fields.u32()?;
        fields.zeroes(4)?;
        let mut notes: Vec<Note> = Vec::new();
        for _ in 0..count {
            let place = fields.u8()?;
            let current = match fields.u8()? {
                0 => false,
                1 => true,
                _ => return Err(ProtocolError::Malformed),
            };
            fields.zeroes(2)?;
            let length = fields.u32()?;
            let in_order = notes.last().is_none_or(|last| last.place < place);
            if place >= NOTES || length > MAX_NOTE || !in_order {
                return Err(ProtocolError::Malformed);
            }
            notes.push(Note { place, current, content: fields.take(length as usize)?.to_vec() });
        }
        fields.end()?;
        Ok(Self(notes))
    }
}
