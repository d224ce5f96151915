//! I/O commands, parsed into a type that cannot be wrong: ranges lie within the namespace and the data's length is
//! that of the blocks.

use super::connection::Transfer;
use super::subsystem::Namespace;
use crate::wire::bytes::array_at;
use crate::wire::dataset::{ATTRIBUTE_DEALLOCATE, RANGE_SIZE, Range};
use crate::wire::opcode::{COMPARE, DATASET_MANAGEMENT, FLUSH, READ, WRITE, WRITE_ZEROES};
use crate::wire::{Status, Submission};

/// Logical blocks within a namespace; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub start: u64,
    /// Number of blocks, from 1; at most 65536.
    pub count: u32,
}

/// A valid I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// Read; the host has room for all of it.
    Read(Blocks),
    /// Write data of exactly these blocks.
    Write {
        /// Where.
        blocks: Blocks,
        /// Force Unit Access (FUA): durable before the completion (I4).
        fua: bool,
    },
    /// Compare with data of exactly these blocks.
    Compare(Blocks),
    /// Set to zero.
    WriteZeroes {
        /// Where.
        blocks: Blocks,
        /// Deallocate (DEAC): the space may be given back.
        deallocate: bool,
        /// Force Unit Access (FUA).
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Dataset Management; `ranges` of them follow as data, to be read with [`parse_ranges`].
    DatasetManagement {
        /// Number of ranges, 1 to 256.
        ranges: u16,
        /// Deallocate (AD); otherwise the ranges are only hints.
        deallocate: bool,
    },
}

/// CDW12 bit 30 of Read, Write and Write Zeroes: Force Unit Access (FUA).
const FUA: u32 = 1 << 30;
/// CDW12 bit 25 of Write Zeroes: Deallocate (DEAC).
const DEALLOCATE: u32 = 1 << 25;

impl IoCommand {
    /// Parses a command for `namespace` whose data moves as `transfer` says; `transfer_max` is MDTS in bytes.
    ///
    /// # Errors
    /// The status to complete the command with.
    #[inline]
    pub fn parse(
        entry: &Submission,
        transfer: Transfer,
        namespace: &Namespace,
        transfer_max: u32,
    ) -> Result<Self, Status> {
        if entry.fuse() != 0 {
            return Err(Status::InvalidField);
        }
        let data = |blocks| check_data(blocks, transfer, namespace, transfer_max);
        let fua = entry.dword(12) & FUA != 0;
        Ok(match entry.opcode() {
            READ => Self::Read(data(blocks_of(entry, namespace)?)?),
            WRITE => Self::Write { blocks: data(blocks_of(entry, namespace)?)?, fua },
            COMPARE => Self::Compare(data(blocks_of(entry, namespace)?)?),
            WRITE_ZEROES => Self::WriteZeroes {
                blocks: blocks_of(entry, namespace)?,
                deallocate: entry.dword(12) & DEALLOCATE != 0,
                fua,
            },
            FLUSH => Self::Flush,
            DATASET_MANAGEMENT => dataset_management(entry, transfer)?,
            _ => return Err(Status::InvalidOpcode),
        })
    }
}

/// Starting LBA (CDW11:10) and 0's based number of blocks (CDW12 15:0), within the namespace.
#[inline]
fn blocks_of(entry: &Submission, namespace: &Namespace) -> Result<Blocks, Status> {
    let blocks = Blocks { start: entry.starting_block(), count: (entry.dword(12) & 0xffff) + 1 };
    match blocks.start.checked_add(u64::from(blocks.count)) {
        Some(end) if end <= namespace.blocks => Ok(blocks),
        _ => Err(Status::LbaOutOfRange),
    }
}

#[inline]
fn check_data(blocks: Blocks, transfer: Transfer, namespace: &Namespace, transfer_max: u32) -> Result<Blocks, Status> {
    let length = u64::from(blocks.count) << namespace.block_size.shift();
    if length > u64::from(transfer_max) {
        return Err(Status::InvalidField);
    }
    if length != u64::from(transfer.length()) {
        return Err(Status::DataSglLengthInvalid);
    }
    Ok(blocks)
}

fn dataset_management(entry: &Submission, transfer: Transfer) -> Result<IoCommand, Status> {
    // NR, CDW10 7:0, 0's based.
    let ranges = (entry.dword(10) & 0xff) as u16 + 1;
    if (transfer.length() as usize) < usize::from(ranges) * RANGE_SIZE {
        return Err(Status::DataSglLengthInvalid);
    }
    Ok(IoCommand::DatasetManagement { ranges, deallocate: entry.dword(11) & ATTRIBUTE_DEALLOCATE != 0 })
}

/// The first `count` ranges of a Dataset Management command's data, all within the namespace; empty ones left out.
///
/// # Errors
/// Data SGL Length Invalid if `data` is too short, LBA Out of Range if a range ends beyond the namespace.
pub fn parse_ranges<'a>(
    data: &'a [u8],
    count: u16,
    namespace: &Namespace,
) -> Result<impl Iterator<Item = Range> + use<'a>, Status> {
    let data = data.get(..usize::from(count) * RANGE_SIZE).ok_or(Status::DataSglLengthInvalid)?;
    let ranges = data.chunks_exact(RANGE_SIZE).map(|bytes| Range::parse(&array_at(bytes, 0)));
    let fits =
        |range: Range| range.start.checked_add(u64::from(range.blocks)).is_some_and(|end| end <= namespace.blocks);
    if !ranges.clone().all(fits) {
        return Err(Status::LbaOutOfRange);
    }
    Ok(ranges.filter(|range| range.blocks > 0))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::target::subsystem::BlockSize;
    use crate::wire::log_page::AnaState;
    use crate::wire::sgl::Sgl;

    const NAMESPACE: Namespace = Namespace {
        blocks: 1000,
        block_size: BlockSize::B4096,
        nguid: [1; 16],
        uuid: [2; 16],
        used_blocks: 0,
        atomic_blocks: 1,
        ana_state: AnaState::Optimized,
    };

    fn entry(opcode: u8, start: u64, zero_based_blocks: u32) -> Submission {
        let mut entry = Submission::new(opcode, 1);
        entry.set_starting_block(start);
        entry.set_dword(12, zero_based_blocks);
        entry.set_sgl(Sgl::Transport { length: (zero_based_blocks + 1) * 4096 });
        entry
    }

    fn parse(entry: &Submission, length: u32) -> Result<IoCommand, Status> {
        IoCommand::parse(entry, Transfer::ToHost { length }, &NAMESPACE, 1 << 20)
    }

    #[test]
    fn the_last_blocks_are_in_range_and_the_next_is_not() {
        let blocks = Blocks { start: 998, count: 2 };
        assert_eq!(parse(&entry(READ, 998, 1), 8192), Ok(IoCommand::Read(blocks)));
        assert_eq!(parse(&entry(READ, 999, 1), 8192), Err(Status::LbaOutOfRange));
        assert_eq!(parse(&entry(READ, u64::MAX, 0), 4096), Err(Status::LbaOutOfRange));
        assert_eq!(parse(&entry(WRITE_ZEROES, 0, 1000), 0), Err(Status::LbaOutOfRange));
    }

    #[test]
    fn data_must_be_as_long_as_the_blocks_and_within_mdts() {
        assert_eq!(parse(&entry(READ, 0, 0), 4095), Err(Status::DataSglLengthInvalid));
        assert_eq!(parse(&entry(WRITE, 0, 1), 4096), Err(Status::DataSglLengthInvalid));
        assert_eq!(parse(&entry(READ, 0, 256), 257 * 4096), Err(Status::InvalidField));
        assert!(parse(&entry(READ, 0, 255), 256 * 4096).is_ok());
    }

    #[test]
    fn flags_are_taken_from_dword_12() {
        let blocks = Blocks { start: 5, count: 1 };
        let mut write = entry(WRITE, 5, 0);
        assert_eq!(parse(&write, 4096), Ok(IoCommand::Write { blocks, fua: false }));
        write.set_dword(12, 0x4000_0000);
        assert_eq!(parse(&write, 4096), Ok(IoCommand::Write { blocks, fua: true }));
        let mut zeroes = entry(WRITE_ZEROES, 5, 0);
        zeroes.set_dword(12, 0x0200_0000);
        assert_eq!(parse(&zeroes, 0), Ok(IoCommand::WriteZeroes { blocks, deallocate: true, fua: false }));
    }

    #[test]
    fn unknown_and_fused_commands_are_refused() {
        assert_eq!(parse(&Submission::new(0x0d, 1), 0), Err(Status::InvalidOpcode));
        let mut bytes = *entry(COMPARE, 0, 0).as_bytes();
        bytes[1] |= 0b01;
        assert_eq!(parse(&Submission::from_bytes(bytes), 4096), Err(Status::InvalidField));
    }

    #[test]
    fn dataset_ranges_are_all_checked_before_any_is_used() {
        let mut command = Submission::new(DATASET_MANAGEMENT, 1);
        command.set_dword(10, 1);
        command.set_dword(11, 0b100);
        let transfer = Transfer::InCapsule { length: 32 };
        assert_eq!(
            IoCommand::parse(&command, transfer, &NAMESPACE, 1 << 20),
            Ok(IoCommand::DatasetManagement { ranges: 2, deallocate: true })
        );
        let short = Transfer::InCapsule { length: 31 };
        assert_eq!(IoCommand::parse(&command, short, &NAMESPACE, 1 << 20), Err(Status::DataSglLengthInvalid));

        let bytes = |ranges: &[Range]| ranges.iter().flat_map(Range::encode).collect::<Vec<u8>>();
        let (good, empty) = (Range { start: 0, blocks: 1000 }, Range { start: 1000, blocks: 0 });
        let parsed: Vec<Range> = parse_ranges(&bytes(&[good, empty]), 2, &NAMESPACE).unwrap().collect();
        assert_eq!(parsed, [good]);
        let beyond = Range { start: 1, blocks: 1000 };
        assert_eq!(parse_ranges(&bytes(&[good, beyond]), 2, &NAMESPACE).err(), Some(Status::LbaOutOfRange));
        assert_eq!(parse_ranges(&bytes(&[good]), 2, &NAMESPACE).err(), Some(Status::DataSglLengthInvalid));
    }
}
