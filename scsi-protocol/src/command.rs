//! CDBs, parsed into commands that cannot be wrong: ranges lie within the medium, transfers within the limits.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::opcodes::{Operation, Supported};
use crate::sense::Sense;
use crate::unit::Medium;

/// Bytes of the longest CDB; shorter ones are followed by anything.
pub const CDB_LENGTH: usize = 16;

/// Blocks that one COMPARE AND WRITE may have (its field has one byte).
pub const COMPARE_AND_WRITE_MAX: u32 = 255;

/// Logical blocks within the medium. None are as good as some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub count: u32,
}

impl Blocks {
    /// The first block after them.
    pub const fn end(&self) -> u64 {
        self.start + self.count as u64
    }
}

/// What is to be done with blocks of the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ.
    Read(Blocks),
    /// WRITE; durable before it completes if Force Unit Access (FUA) says so (I4).
    Write {
        /// Where.
        blocks: Blocks,
        /// FUA.
        fua: bool,
    },
    /// WRITE AND VERIFY: durable, then read back, and compared with the data if BYTCHK says so.
    WriteAndVerify {
        /// Where.
        blocks: Blocks,
        /// BYTCHK.
        compare: bool,
    },
    /// VERIFY: read, and compared with the data if BYTCHK says so.
    Verify {
        /// Where.
        blocks: Blocks,
        /// BYTCHK.
        compare: bool,
    },
    /// ORWRITE: what is there, OR the data.
    OrWrite {
        /// Where.
        blocks: Blocks,
        /// FUA.
        fua: bool,
    },
    /// COMPARE AND WRITE: the second half of the data if the first is what is there; nothing comes in between.
    CompareAndWrite {
        /// Where.
        blocks: Blocks,
        /// FUA.
        fua: bool,
    },
    /// WRITE SAME: one block of data for all of them.
    WriteSame {
        /// Where.
        blocks: Blocks,
        /// The space may be given back if the block is all zeroes.
        unmap: bool,
        /// There is no data (NDOB): zeroes.
        zeroes: bool,
    },
    /// SYNCHRONIZE CACHE, and START STOP UNIT that stops.
    Flush,
    /// GET LBA STATUS from a block on.
    Status {
        /// The first block asked about.
        start: u64,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
}

/// A command that the unit can carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// TEST UNIT READY, and START STOP UNIT that starts.
    TestUnitReady,
    /// PRE-FETCH: the blocks are there.
    Prefetch,
    /// Blocks of the medium.
    Access(Access),
    /// UNMAP.
    Unmap {
        /// PARAMETER LIST LENGTH.
        length: u16,
    },
    /// REQUEST SENSE.
    RequestSense {
        /// DESC: descriptor format.
        descriptors: bool,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// INQUIRY.
    Inquiry {
        /// PAGE CODE of vital product data (EVPD).
        page: Option<u8>,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// SELECT REPORT.
        select: u8,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// READ CAPACITY (10).
    ReadCapacity10,
    /// READ CAPACITY (16).
    ReadCapacity16 {
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// MODE SENSE.
    ModeSense(ModeSense),
    /// MODE SELECT.
    ModeSelect {
        /// The 10 byte form.
        long: bool,
        /// PARAMETER LIST LENGTH.
        length: u16,
    },
    /// LOG SENSE.
    LogSense {
        /// PAGE CODE and SUBPAGE CODE.
        page: (u8, u8),
        /// PARAMETER POINTER.
        pointer: u16,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// PERSISTENT RESERVE IN: READ KEYS, READ RESERVATION, REPORT CAPABILITIES or READ FULL STATUS.
    PersistentReserveIn {
        /// Which.
        operation: Operation,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// PERSISTENT RESERVE OUT.
    PersistentReserveOut {
        /// Which.
        operation: Operation,
        /// SCOPE and TYPE.
        scope_and_type: u8,
        /// PARAMETER LIST LENGTH.
        length: u32,
    },
    /// RESERVE (6).
    Reserve6,
    /// RELEASE (6).
    Release6,
    /// REPORT TARGET PORT GROUPS.
    ReportTargetPortGroups {
        /// PARAMETER DATA FORMAT: with the extended header.
        extended: bool,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportOperationCodes {
        /// REPORTING OPTIONS.
        options: u8,
        /// REQUESTED OPERATION CODE.
        code: u8,
        /// REQUESTED SERVICE ACTION.
        action: u16,
        /// RCTD: with command timeouts descriptors.
        timeouts: bool,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// EXTENDED COPY (LID1).
    ExtendedCopy {
        /// PARAMETER LIST LENGTH.
        length: u32,
    },
    /// RECEIVE COPY STATUS (LID1).
    ReceiveCopyStatus {
        /// LIST IDENTIFIER.
        list: u8,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// RECEIVE COPY OPERATING PARAMETERS.
    ReceiveCopyParameters {
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
}

/// MODE SENSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeSense {
    /// The 10 byte form.
    pub long: bool,
    /// No block descriptor (DBD).
    pub no_descriptor: bool,
    /// The block descriptor may have 64-bit block addresses (LLBAA).
    pub long_addresses: bool,
    /// PAGE CONTROL (PC).
    pub control: u8,
    /// PAGE CODE and SUBPAGE CODE.
    pub page: (u8, u8),
    /// ALLOCATION LENGTH.
    pub allocation: u32,
}

/// DPO, FUA and BYTCHK in byte 1 of the commands that have them.
const FUA: u8 = 0x08;
const BYTE_CHECK: u8 = 0x02;
/// UNMAP and NDOB in byte 1 of WRITE SAME.
const UNMAP: u8 = 0x08;
const NO_DATA_OUT: u8 = 0x01;

impl Command {
    /// Parses a CDB for a unit with `medium`.
    ///
    /// # Errors
    /// What CHECK CONDITION is to say.
    #[inline]
    pub fn parse(cdb: &[u8; CDB_LENGTH], medium: &Medium) -> Result<Self, Sense> {
        use Operation as Op;
        let row = Supported::of(cdb)?;
        let blocks = || blocks_of(cdb, row.length, medium);
        let moved = || transfer(blocks()?, medium);
        let fua = cdb[1] & FUA != 0;
        let compare = cdb[1] & BYTE_CHECK != 0;
        Ok(match row.operation {
            Op::Read6 | Op::Read10 | Op::Read12 | Op::Read16 => Self::Access(Access::Read(moved()?)),
            Op::Write6 => Self::Access(Access::Write { blocks: moved()?, fua: false }),
            Op::Write10 | Op::Write12 | Op::Write16 => Self::Access(Access::Write { blocks: moved()?, fua }),
            Op::WriteAndVerify10 | Op::WriteAndVerify12 | Op::WriteAndVerify16 => {
                Self::Access(Access::WriteAndVerify { blocks: moved()?, compare })
            }
            Op::Verify10 | Op::Verify12 | Op::Verify16 => Self::Access(Access::Verify { blocks: moved()?, compare }),
            Op::OrWrite16 => Self::Access(Access::OrWrite { blocks: moved()?, fua }),
            Op::CompareAndWrite => {
                let blocks = in_range(u64_at(cdb, 2), u32::from(cdb[13]), medium)?;
                Self::Access(Access::CompareAndWrite { blocks, fua })
            }
            Op::WriteSame10 | Op::WriteSame16 => write_same(cdb, blocks()?, medium)?,
            Op::SynchronizeCache10 | Op::SynchronizeCache16 => {
                blocks()?;
                Self::Access(Access::Flush)
            }
            Op::Prefetch10 | Op::Prefetch16 => {
                blocks()?;
                Self::Prefetch
            }
            Op::GetLbaStatus => lba_status(cdb, medium)?,
            Op::StartStopUnit => start_stop(cdb)?,
            _ => Self::parse_control(row.operation, cdb)?,
        })
    }

    /// Commands that are not about blocks.
    fn parse_control(operation: Operation, cdb: &[u8; CDB_LENGTH]) -> Result<Self, Sense> {
        use Operation as Op;
        Ok(match operation {
            Op::TestUnitReady => Self::TestUnitReady,
            Op::RequestSense => Self::RequestSense { descriptors: cdb[1] & 1 != 0, allocation: u32::from(cdb[4]) },
            Op::Inquiry => inquiry(cdb)?,
            Op::ReportLuns => Self::ReportLuns { select: cdb[2], allocation: u32_at(cdb, 6) },
            Op::ReadCapacity10 => Self::ReadCapacity10,
            Op::ReadCapacity16 => Self::ReadCapacity16 { allocation: u32_at(cdb, 10) },
            Op::ModeSense6 => Self::ModeSense(mode_sense(cdb, false, u32::from(cdb[4]))),
            Op::ModeSense10 => Self::ModeSense(mode_sense(cdb, true, u32::from(u16_at(cdb, 7)))),
            Op::ModeSelect6 => mode_select(cdb, false, u16::from(cdb[4]))?,
            Op::ModeSelect10 => mode_select(cdb, true, u16_at(cdb, 7))?,
            Op::LogSense => Self::LogSense {
                page: (cdb[2] & 0x3f, cdb[3]),
                pointer: u16_at(cdb, 5),
                allocation: u32::from(u16_at(cdb, 7)),
            },
            Op::Unmap => Self::Unmap { length: u16_at(cdb, 7) },
            Op::ReadKeys | Op::ReadReservation | Op::ReportCapabilities | Op::ReadFullStatus => {
                Self::PersistentReserveIn { operation, allocation: u32::from(u16_at(cdb, 7)) }
            }
            Op::Reserve6 => Self::Reserve6,
            Op::Release6 => Self::Release6,
            Op::ReportTargetPortGroups => target_port_groups(cdb)?,
            Op::ReportOperationCodes => report_operation_codes(cdb)?,
            Op::ExtendedCopy => Self::ExtendedCopy { length: u32_at(cdb, 10) },
            Op::ReceiveCopyStatus => Self::ReceiveCopyStatus { list: cdb[2], allocation: u32_at(cdb, 10) },
            Op::ReceiveCopyParameters => Self::ReceiveCopyParameters { allocation: u32_at(cdb, 10) },
            // PERSISTENT RESERVE OUT: the others are taken above and in `parse`.
            _ => Self::PersistentReserveOut { operation, scope_and_type: cdb[2], length: u32_at(cdb, 5) },
        })
    }

    /// Bytes that the command takes from the initiator, as its CDB says.
    #[inline]
    pub fn data_out(&self, medium: &Medium) -> u64 {
        let bytes = |count: u32| u64::from(count) * u64::from(medium.block_size);
        match *self {
            Self::Access(access) => match access {
                Access::Write { blocks, .. }
                | Access::WriteAndVerify { blocks, .. }
                | Access::OrWrite { blocks, .. } => bytes(blocks.count),
                Access::Verify { blocks, compare: true } => bytes(blocks.count),
                Access::CompareAndWrite { blocks, .. } => 2 * bytes(blocks.count),
                Access::WriteSame { zeroes: false, .. } => bytes(1),
                Access::Read(_)
                | Access::Verify { compare: false, .. }
                | Access::WriteSame { zeroes: true, .. }
                | Access::Flush
                | Access::Status { .. } => 0,
            },
            Self::Unmap { length } | Self::ModeSelect { length, .. } => u64::from(length),
            Self::PersistentReserveOut { length, .. } | Self::ExtendedCopy { length } => u64::from(length),
            _ => 0,
        }
    }

    /// The same command for so much data-out as there is, where the initiator sends another amount than the CDB says: a write
    /// is done as far as whole blocks of data go, and the transport tells the rest as a residual (SAM 5.4.3). The other commands
    /// would mean something else.
    ///
    /// # Errors
    /// What CHECK CONDITION is to say.
    pub fn with_data_out(self, length: u64, medium: &Medium) -> Result<Self, Sense> {
        let cut = |blocks: Blocks| {
            let count = length / u64::from(medium.block_size);
            Blocks { count: blocks.count.min(u32::try_from(count).unwrap_or(u32::MAX)), ..blocks }
        };
        match self {
            _ if length == self.data_out(medium) => Ok(self),
            Self::Access(Access::Write { blocks, fua }) => Ok(Self::Access(Access::Write { blocks: cut(blocks), fua })),
            Self::Access(Access::WriteAndVerify { blocks, compare }) => {
                Ok(Self::Access(Access::WriteAndVerify { blocks: cut(blocks), compare }))
            }
            Self::Access(Access::CompareAndWrite { .. }) => Err(Sense::INVALID_FIELD_IN_CDB),
            _ if self.data_out(medium) == 0 => Ok(self),
            _ => Err(Sense::INVALID_FIELD_IN_INFORMATION_UNIT),
        }
    }

    /// Whether it may change the content of the medium.
    pub(crate) const fn writes(&self) -> bool {
        match self {
            Self::Access(access) => {
                !matches!(access, Access::Read(_) | Access::Verify { .. } | Access::Flush | Access::Status { .. })
            }
            Self::Unmap { .. } | Self::ExtendedCopy { .. } => true,
            _ => false,
        }
    }
}

/// LOGICAL BLOCK ADDRESS and TRANSFER LENGTH of a CDB of `length` bytes.
#[inline]
fn blocks_of(cdb: &[u8; CDB_LENGTH], length: u8, medium: &Medium) -> Result<Blocks, Sense> {
    let (start, count) = match length {
        // READ (6) and WRITE (6): 21 bits, and 0 is 256 (SBC 5.7).
        6 => (u32_at(cdb, 0) & 0x001f_ffff, if cdb[4] == 0 { 256 } else { u32::from(cdb[4]) }),
        10 => (u32_at(cdb, 2), u32::from(u16_at(cdb, 7))),
        12 => (u32_at(cdb, 2), u32_at(cdb, 6)),
        _ => return in_range(u64_at(cdb, 2), u32_at(cdb, 10), medium),
    };
    in_range(u64::from(start), count, medium)
}

#[inline]
fn in_range(start: u64, count: u32, medium: &Medium) -> Result<Blocks, Sense> {
    match start.checked_add(u64::from(count)) {
        Some(end) if end <= medium.blocks => Ok(Blocks { start, count }),
        _ => Err(Sense::LBA_OUT_OF_RANGE),
    }
}

/// Blocks whose bytes move: not more than MAXIMUM TRANSFER LENGTH (SBC 6.5.3).
#[inline]
fn transfer(blocks: Blocks, medium: &Medium) -> Result<Blocks, Sense> {
    if blocks.count > medium.transfer_max { Err(Sense::INVALID_FIELD_IN_CDB) } else { Ok(blocks) }
}

fn write_same(cdb: &[u8; CDB_LENGTH], blocks: Blocks, medium: &Medium) -> Result<Command, Sense> {
    // WSNZ: zero blocks do not mean all that follow. MAXIMUM WRITE SAME LENGTH bounds the work of one command.
    if blocks.count == 0 || blocks.count > medium.write_same_max {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let unmap = cdb[1] & UNMAP != 0;
    Ok(Command::Access(Access::WriteSame { blocks, unmap, zeroes: cdb[1] & NO_DATA_OUT != 0 }))
}

fn lba_status(cdb: &[u8; CDB_LENGTH], medium: &Medium) -> Result<Command, Sense> {
    let start = u64_at(cdb, 2);
    if start >= medium.blocks {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    Ok(Command::Access(Access::Status { start, allocation: u32_at(cdb, 10) }))
}

/// START STOP UNIT (SBC 5.25). The unit has no medium to eject and nothing that spins: a stop makes the cache durable, and the
/// next command finds the unit ready.
fn start_stop(cdb: &[u8; CDB_LENGTH]) -> Result<Command, Sense> {
    const START: u8 = 0x01;
    const LOAD_OR_EJECT: u8 = 0x02;
    const NO_FLUSH: u8 = 0x04;
    let power_condition = cdb[4] >> 4;
    if power_condition == 0 && cdb[4] & LOAD_OR_EJECT != 0 {
        return Err(Sense::cdb_field(4, Some(1)));
    }
    let stops = power_condition == 0 && cdb[4] & START == 0;
    Ok(if stops && cdb[4] & NO_FLUSH == 0 { Command::Access(Access::Flush) } else { Command::TestUnitReady })
}

fn inquiry(cdb: &[u8; CDB_LENGTH]) -> Result<Command, Sense> {
    let vital = cdb[1] & 1 != 0;
    if !vital && cdb[2] != 0 {
        return Err(Sense::cdb_field(2, None));
    }
    Ok(Command::Inquiry { page: vital.then_some(cdb[2]), allocation: u32::from(u16_at(cdb, 3)) })
}

fn mode_sense(cdb: &[u8; CDB_LENGTH], long: bool, allocation: u32) -> ModeSense {
    ModeSense {
        long,
        no_descriptor: cdb[1] & 0x08 != 0,
        long_addresses: cdb[1] & 0x10 != 0,
        control: cdb[2] >> 6,
        page: (cdb[2] & 0x3f, cdb[3]),
        allocation,
    }
}

fn mode_select(cdb: &[u8; CDB_LENGTH], long: bool, length: u16) -> Result<Command, Sense> {
    // SP: mode pages are not saved.
    if cdb[1] & 0x01 != 0 {
        return Err(Sense::cdb_field(1, Some(0)));
    }
    // PF: pages as the standards draw them.
    if cdb[1] & 0x10 == 0 {
        return Err(Sense::cdb_field(1, Some(4)));
    }
    Ok(Command::ModeSelect { long, length })
}

fn target_port_groups(cdb: &[u8; CDB_LENGTH]) -> Result<Command, Sense> {
    let format = cdb[1] >> 5;
    if format > 1 {
        return Err(Sense::cdb_field(1, Some(7)));
    }
    Ok(Command::ReportTargetPortGroups { extended: format == 1, allocation: u32_at(cdb, 6) })
}

fn report_operation_codes(cdb: &[u8; CDB_LENGTH]) -> Result<Command, Sense> {
    let options = cdb[2] & 0x07;
    if options > 3 {
        return Err(Sense::cdb_field(2, Some(2)));
    }
    Ok(Command::ReportOperationCodes {
        options,
        code: cdb[3],
        action: u16_at(cdb, 4),
        timeouts: cdb[2] & 0x80 != 0,
        allocation: u32_at(cdb, 6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIUM: Medium = Medium { blocks: 1000, write_same_max: 500, transfer_max: 256, ..Medium::EXAMPLE };

    fn parse(bytes: &[u8]) -> Result<Command, Sense> {
        let mut cdb = [0; CDB_LENGTH];
        cdb[..bytes.len()].copy_from_slice(bytes);
        Command::parse(&cdb, &MEDIUM)
    }

    #[test]
    fn the_same_read_in_four_lengths() {
        let read = Ok(Command::Access(Access::Read(Blocks { start: 0x102, count: 3 })));
        assert_eq!(parse(&[0x08, 0, 1, 2, 3]), read);
        assert_eq!(parse(&[0x28, 0, 0, 0, 1, 2, 0, 0, 3]), read);
        assert_eq!(parse(&[0xa8, 0, 0, 0, 1, 2, 0, 0, 0, 3]), read);
        assert_eq!(parse(&[0x88, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]), read);
    }

    #[test]
    fn no_blocks_are_256_in_the_short_form_and_none_in_the_others() {
        assert_eq!(parse(&[0x08]), Ok(Command::Access(Access::Read(Blocks { start: 0, count: 256 }))));
        assert_eq!(parse(&[0x28]), Ok(Command::Access(Access::Read(Blocks { start: 0, count: 0 }))));
    }

    #[test]
    fn blocks_end_where_the_medium_ends() {
        let read = |start: u64, count: u32| {
            let mut cdb = [0; CDB_LENGTH];
            cdb[0] = 0x88;
            cdb[2..10].copy_from_slice(&start.to_be_bytes());
            cdb[10..14].copy_from_slice(&count.to_be_bytes());
            Command::parse(&cdb, &MEDIUM)
        };
        assert!(read(999, 1).is_ok());
        assert!(read(1000, 0).is_ok());
        for (start, count) in [(1000, 1), (1001, 0), (999, 2), (u64::MAX, 1), (u64::MAX, 0), (1 << 63, 256)] {
            assert_eq!(read(start, count), Err(Sense::LBA_OUT_OF_RANGE), "{start} {count}");
        }
        assert_eq!(read(0, 257), Err(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn write_same_takes_one_block_or_none() {
        let same = |flags: u8, count: u8| parse(&[0x93, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count]);
        let blocks = Blocks { start: 0, count: 9 };
        let expected = Command::Access(Access::WriteSame { blocks, unmap: true, zeroes: false });
        assert_eq!(same(0x08, 9), Ok(expected));
        assert_eq!(expected.data_out(&MEDIUM), 512);
        let zeroes = Command::Access(Access::WriteSame { blocks, unmap: false, zeroes: true });
        assert_eq!(same(0x01, 9), Ok(zeroes));
        assert_eq!(zeroes.data_out(&MEDIUM), 0);
        assert_eq!(same(0x08, 0), Err(Sense::INVALID_FIELD_IN_CDB));
        // ANCHOR.
        assert_eq!(same(0x18, 9), Err(Sense::cdb_field(1, Some(4))));
    }

    #[test]
    fn a_stop_flushes_and_an_eject_is_refused() {
        assert_eq!(parse(&[0x1b, 0, 0, 0, 0x00]), Ok(Command::Access(Access::Flush)));
        assert_eq!(parse(&[0x1b, 0, 0, 0, 0x04]), Ok(Command::TestUnitReady));
        assert_eq!(parse(&[0x1b, 0, 0, 0, 0x01]), Ok(Command::TestUnitReady));
        assert_eq!(parse(&[0x1b, 0, 0, 0, 0x02]), Err(Sense::cdb_field(4, Some(1))));
    }

    #[test]
    fn a_write_is_done_as_far_as_its_data_goes_and_what_compares_is_not() {
        let write = parse(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 2]).unwrap();
        let cut = |length| write.with_data_out(length, &MEDIUM).map(|command| command.data_out(&MEDIUM));
        assert_eq!([0, 200, 512, 1024, 4096].map(cut), [Ok(0), Ok(0), Ok(512), Ok(1024), Ok(1024)]);
        let same = parse(&[0x41, 0, 0, 0, 0, 0, 0, 0, 2]).unwrap();
        assert_eq!(same.with_data_out(1024, &MEDIUM), Err(Sense::INVALID_FIELD_IN_INFORMATION_UNIT));
        assert_eq!(same.with_data_out(512, &MEDIUM), Ok(same));
        let compare = parse(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(compare.with_data_out(512, &MEDIUM), Err(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn data_out_is_what_the_cdb_says() {
        let command = parse(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]).unwrap();
        assert_eq!(command.data_out(&MEDIUM), 2048);
        let verify = parse(&[0x2f, 0, 0, 0, 0, 0, 0, 0, 4]).unwrap();
        assert_eq!(verify.data_out(&MEDIUM), 0);
        let compared = parse(&[0x2f, 2, 0, 0, 0, 0, 0, 0, 4]).unwrap();
        assert_eq!(compared.data_out(&MEDIUM), 2048);
        assert_eq!(parse(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24]).unwrap().data_out(&MEDIUM), 24);
    }

    proptest::proptest! {
        #[test]
        fn any_cdb_is_a_command_within_the_medium_or_refused(cdb: [u8; CDB_LENGTH]) {
            if let Ok(Command::Access(Access::Read(blocks) | Access::Write { blocks, .. })) = Command::parse(&cdb, &MEDIUM) {
                assert!(blocks.end() <= MEDIUM.blocks && blocks.count <= MEDIUM.transfer_max);
            }
        }
    }
}
