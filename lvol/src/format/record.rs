//! Journal records: each an absolute or idempotent change, so that replaying one twice, or on top of pages that have it
//! already, changes nothing.

use std::collections::BTreeMap;

use smallvec::SmallVec;
use uuid::Uuid;

use super::Flaw;
use super::fields::Reader;
use super::page::Segment;
use super::superblock::MAX_NAME;
use crate::info::Role;
use crate::marks::BlockRun;

/// The most bytes that all attributes of an lvol may have, keys and values together.
pub(crate) const MAX_ATTRIBUTE_BYTES: usize = 4096;

/// The most attributes of an lvol.
pub(crate) const MAX_ATTRIBUTES: usize = 64;

/// Bytes of a record's own header: type and length.
pub(crate) const RECORD_HEADER: usize = 4;

const MAP_SET: u16 = 1;
const MAP_CLEAR: u16 = 2;
const MAP_ZERO: u16 = 3;
const MAP_DROP: u16 = 4;
const LVOL_PUT: u16 = 5;
const LVOL_REMOVE: u16 = 6;
const MAP_MERGE: u16 = 7;
const BLOCKS_MARKED: u16 = 8;

/// Types from here on may be skipped by a program that does not know them (compatible features).
const SKIPPABLE: u16 = 0x8000;

const FLAG_ZEROED: u16 = 1;
const FLAG_BAD: u32 = 1;
const FLAG_SNAPSHOT: u32 = 1;
const FLAG_RECORD_DAMAGED: u32 = 2;
const FLAG_MAP_DAMAGED: u32 = 4;
const FLAG_DELETED: u32 = 8;
const FLAG_MERGING: u32 = 16;

/// The role of an internal lvol is in the flags from this bit on.
const ROLE_SHIFT: u32 = 24;
const KNOWN_FLAGS: u32 = FLAG_SNAPSHOT | FLAG_RECORD_DAMAGED | FLAG_MAP_DAMAGED | FLAG_DELETED | FLAG_MERGING;

/// The checksums of newly valid blocks in order.
pub(crate) type BlockChecksums = SmallVec<[u32; 4]>;

/// An lvol as it is recorded: all of it in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LvolRecord {
    pub(crate) uuid: Uuid,
    /// The snapshot it reads through.
    pub(crate) parent: Option<Uuid>,
    /// Set for an lvol that belongs to another one: then it has no parent.
    pub(crate) internal: Option<Internal>,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    pub(crate) snapshot: bool,
    /// What was found damaged and stays so until a repair.
    pub(crate) damage: Damage,
    /// How far its deletion is, if it was asked for while others needed it.
    pub(crate) deletion: Option<Stage>,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at: u64,
    pub(crate) map: u32,
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<String, Vec<u8>>,
}

/// Whose an internal lvol is, and what for. On disk the owner is where the parent of others is, and the role in the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Internal {
    pub(crate) owner: Uuid,
    pub(crate) role: Role,
}

impl Internal {
    /// The UUID and the flags that stand for a parent or an owner.
    pub(crate) fn link(parent: Option<Uuid>, internal: Option<Self>) -> (Uuid, u32) {
        match internal {
            Some(Self { owner, role }) => (owner, u32::from(role.number()) << ROLE_SHIFT),
            None => (parent.unwrap_or_default(), 0),
        }
    }

    /// The parent or the owner that such a UUID and flags stand for.
    pub(crate) fn unlink(uuid: Uuid, flags: u32) -> Result<(Option<Uuid>, Option<Self>), Flaw> {
        let some = Some(uuid).filter(|uuid| !uuid.is_nil());
        // Eight bits are left.
        match ((flags >> ROLE_SHIFT) as u8, some) {
            (0, parent) => Ok((parent, None)),
            (number, Some(owner)) => match Role::from_number(number) {
                Some(role) => Ok((None, Some(Self { owner, role }))),
                None => Err(Flaw::Content("an internal lvol has an unknown role")),
            },
            (_, None) => Err(Flaw::Content("an internal lvol belongs to nobody")),
        }
    }
}

/// How far the deletion of an lvol is that others read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is to be deleted; all of it is still there.
    Marked,
    /// Its blocks are on their way into its child: it cannot be read alone any more.
    Merging,
}

impl Stage {
    /// The flags for a stage, in an lvol's record and in its entry of the directory.
    pub(crate) const fn flags(stage: Option<Self>) -> u32 {
        match stage {
            None => 0,
            Some(Self::Marked) => FLAG_DELETED,
            Some(Self::Merging) => FLAG_DELETED | FLAG_MERGING,
        }
    }

    /// The stage that flags tell of.
    pub(crate) const fn from_flags(flags: u32) -> Result<Option<Self>, Flaw> {
        match flags & (FLAG_DELETED | FLAG_MERGING) {
            0 => Ok(None),
            FLAG_DELETED => Ok(Some(Self::Marked)),
            FLAG_MERGING => Err(Flaw::Content("an lvol is merged without being deleted")),
            _ => Ok(Some(Self::Merging)),
        }
    }
}

/// What is damaged of an lvol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Its record: name and attributes are lost.
    pub(crate) record: bool,
    /// Its map: some of its blocks are lost.
    pub(crate) map: bool,
}

/// One change of the store's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Blocks of a cluster now hold this map's data, in `cluster`.
    MapSet {
        map: u32,
        /// Which cluster of the lvol.
        index: u32,
        cluster: u64,
        /// The first block within the cluster.
        first: u16,
        /// CRC-32C of each block as written.
        checksums: BlockChecksums,
    },
    /// Blocks of a cluster now hold zeroes, in `cluster`: they were zero before without one.
    MapSetZeroed { map: u32, index: u32, cluster: u64, first: u16, count: u16 },
    /// The map holds nothing for these blocks any more. `first` and `count` are in 4 KiB blocks of the lvol.
    MapClear { map: u32, first: u64, count: u64 },
    /// The map holds zeroes for these blocks, without a cluster. `first` and `count` as above.
    MapZero { map: u32, first: u64, count: u64 },
    /// The map is gone, and its clusters are free.
    MapDrop { map: u32 },
    /// The lvol is as given, also if there was none.
    LvolPut(Box<LvolRecord>),
    /// The lvol is gone.
    LvolRemove { uuid: Uuid },
    /// Entries of a leaf of map `to` are as listed in the segment from now on, and map `from` has none there any more.
    /// No record of what moved: pages of a checkpoint may have one of the two maps before and the other after.
    MapMerge { from: u32, to: u32, segment: Segment },
    /// The content of these blocks of the disk is known to be wrong, or is right again.
    BlocksMarked { run: BlockRun, bad: bool },
}

impl Record {
    /// Bytes of the encoded record.
    pub(crate) fn length(&self) -> usize {
        RECORD_HEADER
            + match self {
                Self::MapSet { checksums, .. } => 24 + 4 * checksums.len(),
                Self::MapSetZeroed { .. } => 24,
                Self::MapClear { .. } | Self::MapZero { .. } => 24,
                Self::MapDrop { .. } => 4,
                Self::LvolPut(record) => record.length(),
                Self::LvolRemove { .. } | Self::BlocksMarked { .. } => 16,
                Self::MapMerge { segment, .. } => 24 + 8 * segment.words.len(),
            }
    }

    /// Appends the encoded record.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let kind = match self {
            Self::MapSet { .. } | Self::MapSetZeroed { .. } => MAP_SET,
            Self::MapClear { .. } => MAP_CLEAR,
            Self::MapZero { .. } => MAP_ZERO,
            Self::MapDrop { .. } => MAP_DROP,
            Self::LvolPut(_) => LVOL_PUT,
            Self::LvolRemove { .. } => LVOL_REMOVE,
            Self::MapMerge { .. } => MAP_MERGE,
            Self::BlocksMarked { .. } => BLOCKS_MARKED,
        };
        put16(into, kind);
        // The longest record is a merge of 64 entries of 17 words: less than 9 KiB.
        put16(into, (self.length() - RECORD_HEADER) as u16);
        match self {
            Self::MapSet { map, index, cluster, first, checksums } => {
                // A cluster has at most 1024 blocks.
                encode_set(into, *map, *index, *cluster, [*first, checksums.len() as u16, 0]);
                checksums.iter().for_each(|&checksum| put32(into, checksum));
            }
            Self::MapSetZeroed { map, index, cluster, first, count } => {
                encode_set(into, *map, *index, *cluster, [*first, *count, FLAG_ZEROED]);
            }
            Self::MapClear { map, first, count } | Self::MapZero { map, first, count } => {
                put32(into, *map);
                put32(into, 0);
                put64(into, *first);
                put64(into, *count);
            }
            Self::MapDrop { map } => put32(into, *map),
            Self::LvolPut(record) => record.encode(into),
            Self::LvolRemove { uuid } => into.extend_from_slice(uuid.as_bytes()),
            Self::MapMerge { from, to, segment } => {
                [*from, *to, segment.leaf, 0].into_iter().for_each(|value| put32(into, value));
                put64(into, segment.present);
                segment.words.iter().for_each(|&word| put64(into, word));
            }
            Self::BlocksMarked { run, bad } => {
                put64(into, run.first);
                put32(into, run.count);
                put32(into, if *bad { FLAG_BAD } else { 0 });
            }
        }
    }

    /// Reads the next record; `None` for one that may be skipped.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Option<Self>, Flaw> {
        let kind = reader.u16()?;
        let length = usize::from(reader.u16()?);
        let mut body = Reader::new(reader.bytes(length)?);
        let record = match kind {
            MAP_SET => decode_set(&mut body)?,
            MAP_CLEAR | MAP_ZERO => decode_range(kind, &mut body)?,
            MAP_DROP => Self::MapDrop { map: body.u32()? },
            LVOL_PUT => Self::LvolPut(Box::new(LvolRecord::decode(&mut body)?)),
            LVOL_REMOVE => Self::LvolRemove { uuid: Uuid::from_bytes(body.array()?) },
            MAP_MERGE => decode_merge(&mut body, length)?,
            BLOCKS_MARKED => decode_marked(&mut body)?,
            SKIPPABLE.. => return Ok(None),
            _ => return Err(Flaw::Content("a journal record has an unknown type")),
        };
        match body.is_empty() {
            true => Ok(Some(record)),
            false => Err(Flaw::Content("a journal record is longer than its content")),
        }
    }
}

fn encode_set(into: &mut Vec<u8>, map: u32, index: u32, cluster: u64, rest: [u16; 3]) {
    put32(into, map);
    put32(into, index);
    put64(into, cluster);
    rest.into_iter().for_each(|value| put16(into, value));
    put16(into, 0);
}

fn decode_set(body: &mut Reader<'_>) -> Result<Record, Flaw> {
    let (map, index, cluster) = (body.u32()?, body.u32()?, body.u64()?);
    let (first, count, flags, _reserved) = (body.u16()?, body.u16()?, body.u16()?, body.u16()?);
    match flags {
        FLAG_ZEROED => Ok(Record::MapSetZeroed { map, index, cluster, first, count }),
        0 => {
            let checksums = (0..count).map(|_| body.u32()).collect::<Result<_, _>>()?;
            Ok(Record::MapSet { map, index, cluster, first, checksums })
        }
        _ => Err(Flaw::Content("a map record has unknown flags")),
    }
}

fn decode_range(kind: u16, body: &mut Reader<'_>) -> Result<Record, Flaw> {
    let (map, _reserved, first, count) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
    if first.checked_add(count).is_none() {
        return Err(Flaw::Content("a map record covers an impossible range"));
    }
    Ok(match kind {
        MAP_CLEAR => Record::MapClear { map, first, count },
        _ => Record::MapZero { map, first, count },
    })
}

fn decode_marked(body: &mut Reader<'_>) -> Result<Record, Flaw> {
    let (first, count, flags) = (body.u64()?, body.u32()?, body.u32()?);
    match flags {
        0 | FLAG_BAD => Ok(Record::BlocksMarked { run: BlockRun { first, count }, bad: flags == FLAG_BAD }),
        _ => Err(Flaw::Content("a mark has unknown flags")),
    }
}

fn decode_merge(body: &mut Reader<'_>, length: usize) -> Result<Record, Flaw> {
    let (from, to, leaf, _reserved) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
    let present = body.u64()?;
    // The words an entry follow from the length; whether they fit the map is for the map to say.
    let words = (0..length.saturating_sub(24) / 8).map(|_| body.u64()).collect::<Result<_, _>>()?;
    Ok(Record::MapMerge { from, to, segment: Segment { leaf, zero: false, present, words } })
}

impl LvolRecord {
    /// Bytes of the encoded record.
    pub(crate) fn length(&self) -> usize {
        let attributes: usize = self.attributes.iter().map(|(key, value)| 4 + key.len() + value.len()).sum();
        64 + self.name.len() + attributes
    }

    /// Appends the encoded record.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.uuid.as_bytes());
        let (link, role) = Internal::link(self.parent, self.internal);
        into.extend_from_slice(link.as_bytes());
        put64(into, self.size);
        put32(into, self.block_size);
        let flag = |set, flag| if set { flag } else { 0 };
        let damage = flag(self.damage.record, FLAG_RECORD_DAMAGED) | flag(self.damage.map, FLAG_MAP_DAMAGED);
        put32(into, flag(self.snapshot, FLAG_SNAPSHOT) | damage | Stage::flags(self.deletion) | role);
        put64(into, self.created_at);
        put32(into, self.map);
        // Checked when they were set: MAX_NAME, MAX_ATTRIBUTES, MAX_ATTRIBUTE_BYTES.
        put16(into, self.name.len() as u16);
        put16(into, self.attributes.len() as u16);
        into.extend_from_slice(self.name.as_bytes());
        for (key, value) in &self.attributes {
            put16(into, key.len() as u16);
            put16(into, value.len() as u16);
            into.extend_from_slice(key.as_bytes());
            into.extend_from_slice(value);
        }
    }

    /// Reads a record; what cannot be true is a flaw.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let uuid = Uuid::from_bytes(reader.array()?);
        let link = Uuid::from_bytes(reader.array()?);
        let (size, block_size, flags, created_at) = (reader.u64()?, reader.u32()?, reader.u32()?, reader.u64()?);
        let (map, name_length, attribute_count) = (reader.u32()?, reader.u16()?, reader.u16()?);
        if flags << (u32::BITS - ROLE_SHIFT) >> (u32::BITS - ROLE_SHIFT) & !KNOWN_FLAGS != 0 {
            return Err(Flaw::Content("an lvol has unknown flags"));
        }
        let (parent, internal) = Internal::unlink(link, flags)?;
        if internal.is_some() && flags & (FLAG_SNAPSHOT | FLAG_DELETED) != 0 {
            return Err(Flaw::Content("an internal lvol is a snapshot or to be deleted"));
        }
        let damage = Damage { record: flags & FLAG_RECORD_DAMAGED != 0, map: flags & FLAG_MAP_DAMAGED != 0 };
        let deletion = Stage::from_flags(flags)?;
        if usize::from(name_length) > MAX_NAME || usize::from(attribute_count) > MAX_ATTRIBUTES {
            return Err(Flaw::Content("an lvol has an impossible name or too many attributes"));
        }
        if block_device::Geometry::new(size, block_size).is_err() || uuid.is_nil() || link == uuid {
            return Err(Flaw::Content("an lvol has an impossible size, block size, id or parent"));
        }
        let name = text(reader.bytes(usize::from(name_length))?)?;
        let mut attributes = BTreeMap::new();
        for _ in 0..attribute_count {
            let (key, value) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
            attributes.insert(text(reader.bytes(key)?)?, reader.bytes(value)?.to_vec());
        }
        let snapshot = flags & FLAG_SNAPSHOT != 0;
        Ok(Self {
            uuid,
            parent,
            internal,
            size,
            block_size,
            snapshot,
            damage,
            deletion,
            created_at,
            map,
            name,
            attributes,
        })
    }
}

fn text(bytes: &[u8]) -> Result<String, Flaw> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Flaw::Content("a name is no text"))
}

fn put16(into: &mut Vec<u8>, value: u16) {
    into.extend_from_slice(&value.to_le_bytes());
}

fn put32(into: &mut Vec<u8>, value: u32) {
    into.extend_from_slice(&value.to_le_bytes());
}

fn put64(into: &mut Vec<u8>, value: u64) {
    into.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lvol() -> LvolRecord {
        LvolRecord {
            uuid: Uuid::from_u128(1),
            parent: Some(Uuid::from_u128(2)),
            internal: None,
            size: 1 << 30,
            block_size: 4096,
            snapshot: true,
            damage: Damage::default(),
            deletion: None,
            created_at: 3,
            map: 4,
            name: "base".to_owned(),
            attributes: [("epoch".to_owned(), vec![7, 0])].into_iter().collect(),
        }
    }

    fn internal() -> LvolRecord {
        let internal = Some(Internal { owner: Uuid::from_u128(9), role: Role::Activity });
        LvolRecord { parent: None, snapshot: false, internal, ..lvol() }
    }

    fn merge() -> Record {
        Record::MapMerge { from: 1, to: 2, segment: Segment { leaf: 3, zero: false, present: 5, words: vec![6, 7] } }
    }

    fn all() -> Vec<Record> {
        vec![
            Record::MapSet { map: 1, index: 2, cluster: 3, first: 4, checksums: [5, 6].into_iter().collect() },
            Record::MapSetZeroed { map: 1, index: 2, cluster: 3, first: 4, count: 5 },
            Record::MapClear { map: 1, first: 2, count: 3 },
            Record::MapZero { map: 1, first: 2, count: 3 },
            Record::MapDrop { map: 9 },
            Record::LvolPut(Box::new(lvol())),
            Record::LvolRemove { uuid: Uuid::from_u128(8) },
            Record::LvolPut(Box::new(LvolRecord { deletion: Some(Stage::Marked), ..lvol() })),
            Record::LvolPut(Box::new(LvolRecord { deletion: Some(Stage::Merging), ..lvol() })),
            Record::LvolPut(Box::new(internal())),
            merge(),
            Record::BlocksMarked { run: BlockRun { first: 5, count: 6 }, bad: true },
            Record::BlocksMarked { run: BlockRun { first: 5, count: 6 }, bad: false },
        ]
    }

    #[test]
    fn records_come_back_as_they_were() {
        for record in all() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(bytes.len(), record.length());
            let mut reader = Reader::new(&bytes);
            assert_eq!(Record::decode(&mut reader), Ok(Some(record)));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn a_record_cut_anywhere_is_a_flaw_and_no_panic() {
        for record in all() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            for length in 0..bytes.len() {
                assert!(Record::decode(&mut Reader::new(&bytes[..length])).is_err());
            }
        }
    }

    #[test]
    fn unknown_types_are_refused_unless_they_may_be_skipped() {
        assert!(Record::decode(&mut Reader::new(&[99, 0, 0, 0])).is_err());
        let mut reader = Reader::new(&[1, 0x80, 2, 0, 0xaa, 0xbb]);
        assert_eq!(Record::decode(&mut reader), Ok(None));
        assert!(reader.is_empty());
    }

    #[test]
    fn an_lvol_that_cannot_be_is_a_flaw() {
        let refused = |change: fn(&mut LvolRecord)| {
            let mut record = lvol();
            change(&mut record);
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert!(LvolRecord::decode(&mut Reader::new(&bytes)).is_err());
        };
        refused(|record| record.size = 0);
        refused(|record| record.block_size = 1024);
        refused(|record| record.uuid = Uuid::nil());
        refused(|record| record.parent = Some(record.uuid));
        refused(|record| *record = LvolRecord { snapshot: true, ..internal() });
        refused(|record| *record = LvolRecord { deletion: Some(Stage::Marked), ..internal() });
        let nobody = Some(Internal { owner: Uuid::nil(), role: Role::Hashes });
        let mut bytes = Vec::new();
        LvolRecord { internal: nobody, ..internal() }.encode(&mut bytes);
        assert!(LvolRecord::decode(&mut Reader::new(&bytes)).is_err());
        // A role that is none.
        bytes.clear();
        internal().encode(&mut bytes);
        bytes[47] = 77;
        assert!(LvolRecord::decode(&mut Reader::new(&bytes)).is_err());
    }

    /// Two versions must agree on these bytes: a change here is a format break.
    #[test]
    fn records_have_their_documented_bytes() {
        let mut bytes = Vec::new();
        Record::MapSet { map: 1, index: 2, cluster: 3, first: 4, checksums: [0x0605_0403].into_iter().collect() }
            .encode(&mut bytes);
        assert_eq!(
            bytes,
            [1, 0, 28, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0, 0, 0, 3, 4, 5, 6]
        );
        bytes.clear();
        Record::MapClear { map: 1, first: 2, count: 3 }.encode(&mut bytes);
        assert_eq!(bytes, [2, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.clear();
        merge().encode(&mut bytes);
        assert_eq!(bytes[..12], [7, 0, 40, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[12..28], [3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[28..], [6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        bytes.clear();
        Record::BlocksMarked { run: BlockRun { first: 1, count: 2 }, bad: true }.encode(&mut bytes);
        assert_eq!(bytes, [8, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        bytes.clear();
        lvol().encode(&mut bytes);
        assert_eq!(bytes[15], 1);
        assert_eq!(bytes[31], 2);
        assert_eq!(bytes[32..40], (1u64 << 30).to_le_bytes());
        assert_eq!(bytes[40..48], [0, 16, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[48..64], [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 1, 0]);
        let plain = bytes.clone();
        bytes.clear();
        internal().encode(&mut bytes);
        assert_eq!((bytes[31], bytes[44..48].to_vec()), (9, vec![0, 0, 0, 2]));
        let bytes = plain;
        assert_eq!(&bytes[64..], b"base\x05\x00\x02\x00epoch\x07\x00");
    }
}
