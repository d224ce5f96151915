//! The superblock: what a store is, and where its last checkpoint and its journal start.

use uuid::Uuid;

use super::fields::{array_at, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use super::layout::{Layout, Region, SECOND_SUPERBLOCK};
use super::{BLOCK, Flaw, HEADER, Header};

const MAGIC: [u8; 8] = *b"ASHLSUPB";

/// Where the two superblocks are, in bytes.
pub(crate) const PLACES: [u64; 2] = [0, SECOND_SUPERBLOCK];

/// The longest name of a store or an lvol in bytes.
pub(crate) const MAX_NAME: usize = 255;

const NAME_AT: usize = 288;

/// Behind the longest name.
const RESERVE_AT: usize = 544;
const OVERCOMMIT_AT: usize = 552;

/// What counts up, one by one, never gets here: whoever adds one need not look.
pub(crate) const MAX_COUNTER: u64 = u64::MAX / 2;

const STATE_CLEAN: u32 = 1;
const STATE_DAMAGED: u32 = 2;

/// Features that a store uses. What a program must not touch when it does not know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// May be ignored.
    pub(crate) compatible: u64,
    /// A program that does not know them may read but not write.
    pub(crate) read_only: u64,
    /// A program that does not know them must not open the store.
    pub(crate) incompatible: u64,
}

/// [`Features::incompatible`]: the checkpoint areas lie among the data clusters, as they do once a store has grown.
pub(crate) const AREAS_AMONG_CLUSTERS: u64 = 1;

/// How far the space of a store may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The sizes of all heads together, in percent of the store's; 0 for any.
    pub(crate) overcommit_percent: u32,
    /// Clusters that writes of hosts do not take.
    pub(crate) reserve: u64,
}

/// Where a checkpoint is, and where replay starts on top of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckpointPointer {
    /// Which area, 0 or 1.
    pub(crate) area: u32,
    /// The checkpoint's number, in every page of it.
    pub(crate) sequence: u64,
    /// Bytes of map pages, from the start of the area.
    pub(crate) maps_length: u64,
    /// Bytes in all, from the start of the area.
    pub(crate) length: u64,
    /// The first batch to replay.
    pub(crate) start_batch: u64,
    /// Where it is or will be, in bytes from the start of the journal; it may also be at 0 if it did not fit.
    pub(crate) start_position: u64,
    /// Records of batches up to this one are durable with their data.
    pub(crate) durable_through: u64,
}

/// The content of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) generation: u64,
    pub(crate) format_id: [u8; 16],
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) features: Features,
    pub(crate) layout: Layout,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at: u64,
    /// Counts the opens: batches of other sessions are not replayed.
    pub(crate) session: u64,
    /// The machine's boot in which the session began.
    pub(crate) boot_id: [u8; 16],
    /// Closed in order: nothing to replay or to verify.
    pub(crate) clean: bool,
    /// Something was found damaged: the checkpoint's bitmap tells which clusters are in use, not the maps alone.
    pub(crate) damaged: bool,
    pub(crate) checkpoint: CheckpointPointer,
    pub(crate) lvols: u32,
    /// The lowest map id never used.
    pub(crate) next_map: u32,
    pub(crate) limits: Limits,
}

impl Superblock {
    /// The bytes for one of the [`PLACES`].
    pub(crate) fn encode(&self, place: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK as usize];
        bytes[64..80].copy_from_slice(self.uuid.as_bytes());
        put_u64(&mut bytes, 80, self.features.compatible);
        put_u64(&mut bytes, 88, self.features.read_only);
        put_u64(&mut bytes, 96, self.features.incompatible);
        self.encode_layout(&mut bytes);
        put_u64(&mut bytes, 184, self.created_at);
        put_u64(&mut bytes, 192, self.session);
        bytes[200..216].copy_from_slice(&self.boot_id);
        let clean = if self.clean { STATE_CLEAN } else { 0 };
        let damaged = if self.damaged { STATE_DAMAGED } else { 0 };
        put_u32(&mut bytes, 216, clean | damaged);
        let checkpoint = &self.checkpoint;
        put_u32(&mut bytes, 220, checkpoint.area);
        put_u64(&mut bytes, 224, checkpoint.sequence);
        put_u64(&mut bytes, 232, checkpoint.maps_length);
        put_u64(&mut bytes, 240, checkpoint.length);
        put_u64(&mut bytes, 248, checkpoint.start_batch);
        put_u64(&mut bytes, 256, checkpoint.start_position);
        put_u64(&mut bytes, 264, checkpoint.durable_through);
        put_u32(&mut bytes, 272, self.next_map);
        put_u32(&mut bytes, 276, self.lvols);
        put_u16(&mut bytes, 280, self.name.len() as u16);
        bytes[NAME_AT..NAME_AT + self.name.len()].copy_from_slice(self.name.as_bytes());
        put_u64(&mut bytes, RESERVE_AT, self.limits.reserve);
        put_u32(&mut bytes, OVERCOMMIT_AT, self.limits.overcommit_percent);
        let header =
            Header { magic: MAGIC, kind: 0, address: place, sequence: self.generation, format_id: self.format_id };
        header.seal(&mut bytes);
        bytes
    }

    fn encode_layout(&self, bytes: &mut [u8]) {
        let layout = &self.layout;
        put_u64(bytes, 104, layout.size);
        put_u32(bytes, 112, layout.cluster_size);
        put_u32(bytes, 116, BLOCK as u32);
        for (place, region) in [layout.journal, layout.areas[0], layout.areas[1]].into_iter().enumerate() {
            put_u64(bytes, 120 + 16 * place, region.offset);
            put_u64(bytes, 128 + 16 * place, region.length);
        }
        put_u64(bytes, 168, layout.first_cluster);
        put_u64(bytes, 176, layout.clusters);
    }

    /// Reads and checks the superblock found at `place`.
    pub(crate) fn decode(bytes: &[u8], place: u64) -> Result<Self, Flaw> {
        let (header, length) = Header::open(bytes, MAGIC, place)?;
        if length != BLOCK as usize {
            return Err(Flaw::Content("the superblock has a wrong length"));
        }
        let region = |at| Region { offset: u64_at(bytes, at), length: u64_at(bytes, at + 8) };
        let layout = Layout {
            size: u64_at(bytes, 104),
            cluster_size: u32_at(bytes, 112),
            journal: region(120),
            areas: [region(136), region(152)],
            first_cluster: u64_at(bytes, 168),
            clusters: u64_at(bytes, 176),
        };
        if u32_at(bytes, 116) != BLOCK as u32 {
            return Err(Flaw::Content("the metadata block size is not 4096"));
        }
        layout.check()?;
        let checkpoint = CheckpointPointer {
            area: u32_at(bytes, 220),
            sequence: u64_at(bytes, 224),
            maps_length: u64_at(bytes, 232),
            length: u64_at(bytes, 240),
            start_batch: u64_at(bytes, 248),
            start_position: u64_at(bytes, 256),
            durable_through: u64_at(bytes, 264),
        };
        check_pointer(&layout, &checkpoint)?;
        let counters = [header.sequence, u64_at(bytes, 192), checkpoint.sequence, checkpoint.start_batch];
        if counters.iter().any(|&counter| counter > MAX_COUNTER) {
            return Err(Flaw::Content("a counter is higher than one can have become"));
        }
        let name = usize::from(u16_at(bytes, 280));
        let name = bytes.get(NAME_AT..NAME_AT + name).filter(|_| name <= MAX_NAME).unwrap_or(&[0xff]);
        let name = std::str::from_utf8(name).map_err(|_| Flaw::Content("the store's name is no text"))?;
        Ok(Self {
            generation: header.sequence,
            format_id: header.format_id,
            uuid: Uuid::from_bytes(array_at(bytes, HEADER)),
            name: name.to_owned(),
            features: Features {
                compatible: u64_at(bytes, 80),
                read_only: u64_at(bytes, 88),
                incompatible: u64_at(bytes, 96),
            },
            layout,
            created_at: u64_at(bytes, 184),
            session: u64_at(bytes, 192),
            boot_id: array_at(bytes, 200),
            clean: u32_at(bytes, 216) & STATE_CLEAN != 0,
            damaged: u32_at(bytes, 216) & STATE_DAMAGED != 0,
            checkpoint,
            lvols: u32_at(bytes, 276),
            next_map: u32_at(bytes, 272),
            limits: Limits { overcommit_percent: u32_at(bytes, OVERCOMMIT_AT), reserve: u64_at(bytes, RESERVE_AT) },
        })
    }
}

fn check_pointer(layout: &Layout, checkpoint: &CheckpointPointer) -> Result<(), Flaw> {
    let area = layout.areas.get(checkpoint.area as usize).ok_or(Flaw::Content("there is no such checkpoint area"))?;
    let lengths = [checkpoint.maps_length, checkpoint.length];
    if lengths.iter().any(|length| length % BLOCK != 0 || *length > area.length)
        || checkpoint.maps_length > checkpoint.length
    {
        return Err(Flaw::Content("the checkpoint does not fit its area"));
    }
    if checkpoint.start_batch == 0 {
        return Err(Flaw::Content("the journal starts with batch 0, and the first one is 1"));
    }
    if !checkpoint.start_position.is_multiple_of(BLOCK) || checkpoint.start_position > layout.journal.length {
        return Err(Flaw::Content("the journal starts outside its region"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            generation: 5,
            format_id: [0xf1; 16],
            uuid: Uuid::from_u128(0x1234),
            name: "quarry".to_owned(),
            features: Features { compatible: 1, read_only: 2, incompatible: 4 },
            layout: Layout::plan(1 << 30, 64 << 10).expect("large enough"),
            created_at: 1_700_000_000_000,
            session: 9,
            boot_id: [0xb0; 16],
            clean: true,
            damaged: true,
            checkpoint: CheckpointPointer {
                area: 1,
                sequence: 33,
                maps_length: 8192,
                length: 16384,
                start_batch: 100,
                start_position: 12288,
                durable_through: 101,
            },
            lvols: 3,
            next_map: 8,
            limits: Limits { overcommit_percent: 300, reserve: 77 },
        }
    }

    #[test]
    fn a_superblock_comes_back_as_it_was() {
        for place in PLACES {
            assert_eq!(Superblock::decode(&superblock().encode(place), place), Ok(superblock()));
        }
    }

    #[test]
    fn a_superblock_at_the_other_place_is_refused() {
        assert_eq!(Superblock::decode(&superblock().encode(0), PLACES[1]), Err(Flaw::Address(0)));
    }

    #[test]
    fn pointers_outside_their_regions_are_refused() {
        let refused = |change: fn(&mut CheckpointPointer)| {
            let mut superblock = superblock();
            change(&mut superblock.checkpoint);
            assert!(matches!(Superblock::decode(&superblock.encode(0), 0), Err(Flaw::Content(_))));
        };
        refused(|pointer| pointer.area = 2);
        refused(|pointer| pointer.length = !4095);
        refused(|pointer| pointer.maps_length = pointer.length + 4096);
        refused(|pointer| pointer.start_position = !4095);
        refused(|pointer| pointer.start_position = 1);
        refused(|pointer| pointer.start_batch = 0);
        refused(|pointer| pointer.start_batch = u64::MAX);
        refused(|pointer| pointer.sequence = u64::MAX);
    }

    /// Two versions must agree on these bytes: a change here is a format break.
    #[test]
    fn the_superblock_has_its_documented_bytes() {
        let bytes = superblock().encode(0);
        assert_eq!(&bytes[..8], b"ASHLSUPB");
        assert_eq!(u64_at(&bytes, 24), 5);
        assert_eq!(&bytes[64..80], Uuid::from_u128(0x1234).as_bytes());
        assert_eq!((u64_at(&bytes, 80), u64_at(&bytes, 88), u64_at(&bytes, 96)), (1, 2, 4));
        assert_eq!((u64_at(&bytes, 104), u32_at(&bytes, 112), u32_at(&bytes, 116)), (1 << 30, 65536, 4096));
        assert_eq!((u64_at(&bytes, 120), u64_at(&bytes, 128)), ((4 << 20) + 4096, 8 << 20));
        assert_eq!((u64_at(&bytes, 192), bytes[200], u32_at(&bytes, 216)), (9, 0xb0, 3));
        assert_eq!((u32_at(&bytes, 220), u64_at(&bytes, 224)), (1, 33));
        assert_eq!((u64_at(&bytes, 248), u64_at(&bytes, 256), u64_at(&bytes, 264)), (100, 12288, 101));
        assert_eq!((u32_at(&bytes, 272), u32_at(&bytes, 276), u16_at(&bytes, 280)), (8, 3, 6));
        assert_eq!(&bytes[288..294], b"quarry");
        assert_eq!((u64_at(&bytes, 544), u32_at(&bytes, 552)), (77, 300));
        assert!(bytes[294..544].iter().chain(&bytes[556..]).all(|&byte| byte == 0));
    }
}
