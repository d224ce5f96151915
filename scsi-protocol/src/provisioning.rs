//! Capacity and logical block provisioning: READ CAPACITY, UNMAP, GET LBA STATUS.

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::command::Blocks;
use crate::sense::Sense;
use crate::unit::Medium;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub const DESCRIPTORS_MAX: u32 = 256;

const UNMAP_HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// READ CAPACITY (10) parameter data (SBC 5.15.2).
pub(crate) fn capacity10(medium: &Medium) -> Vec<u8> {
    let last = medium.blocks - 1;
    let mut bytes = vec![0; 8];
    // All ones: ask for the long form.
    put(&mut bytes, 0, u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes());
    put(&mut bytes, 4, medium.block_size.to_be_bytes());
    bytes
}

/// READ CAPACITY (16) parameter data (SBC 5.16.2): LBPME, LBPRZ.
pub(crate) fn capacity16(medium: &Medium) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    put(&mut bytes, 0, (medium.blocks - 1).to_be_bytes());
    put(&mut bytes, 8, medium.block_size.to_be_bytes());
    bytes[13] = medium.physical_exponent & 0x0f;
    bytes[14] = 0x80 | 0x40;
    bytes
}

/// The ranges of an UNMAP parameter list (SBC 5.28.2), empty ones left out; all of them checked before any is used.
///
/// # Errors
/// What CHECK CONDITION is to say.
pub(crate) fn unmap_ranges(list: &[u8], medium: &Medium) -> Result<Vec<Blocks>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < UNMAP_HEADER {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    // UNMAP BLOCK DESCRIPTOR DATA LENGTH: what is cut off is not used.
    let length = usize::from(u16_at(list, 2)).min(list.len() - UNMAP_HEADER);
    let descriptors = list[UNMAP_HEADER..UNMAP_HEADER + length].chunks_exact(DESCRIPTOR);
    if descriptors.len() > DESCRIPTORS_MAX as usize {
        return Err(Sense::parameter_field(2));
    }
    let mut ranges = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        let blocks = Blocks { start: u64_at(descriptor, 0), count: u32_at(descriptor, 8) };
        match blocks.start.checked_add(u64::from(blocks.count)) {
            Some(end) if end <= medium.blocks => ranges.push(blocks),
            _ => return Err(Sense::LBA_OUT_OF_RANGE),
        }
    }
    ranges.retain(|blocks| blocks.count > 0);
    Ok(ranges)
}

/// How a run of blocks is provisioned (SBC 4.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Provisioning {
    /// Mapped: has space of its own.
    Mapped = 0,
    /// Deallocated: reads as zeroes.
    Deallocated = 1,
}

/// A run of blocks of one provisioning status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which blocks.
    pub blocks: Blocks,
    /// How they are provisioned.
    pub provisioning: Provisioning,
}

/// Runs that an answer to GET LBA STATUS with room for `allocation` bytes can hold; at least one.
pub fn runs_max(allocation: u32) -> usize {
    ((allocation as usize).saturating_sub(UNMAP_HEADER) / DESCRIPTOR).clamp(1, 256)
}

/// GET LBA STATUS parameter data (SBC 5.5.2).
pub fn lba_status(runs: &[Run], allocation: u32) -> Vec<u8> {
    let mut bytes = vec![0; UNMAP_HEADER];
    for run in runs.iter().take(runs_max(allocation)) {
        bytes.extend(run.blocks.start.to_be_bytes());
        bytes.extend(run.blocks.count.to_be_bytes());
        bytes.extend([run.provisioning as u8, 0, 0, 0]);
    }
    // PARAMETER DATA LENGTH counts from byte 4 on.
    let length = bytes.len() as u32 - 4;
    put(&mut bytes, 0, length.to_be_bytes());
    crate::bytes::cut(bytes, allocation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIUM: Medium = Medium { blocks: 1000, ..Medium::EXAMPLE };

    fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
        let length = ranges.len() as u16 * 16;
        let mut bytes = [(length + 6).to_be_bytes(), length.to_be_bytes(), [0; 2], [0; 2]].concat();
        for (start, count) in ranges {
            bytes.extend(start.to_be_bytes());
            bytes.extend(count.to_be_bytes());
            bytes.extend([0; 4]);
        }
        bytes
    }

    #[test]
    fn all_ranges_are_checked_before_any_is_used() {
        let blocks = |start, count| Blocks { start, count };
        assert_eq!(unmap_ranges(&[], &MEDIUM), Ok(vec![]));
        assert_eq!(unmap_ranges(&list(&[]), &MEDIUM), Ok(vec![]));
        let ranges = unmap_ranges(&list(&[(0, 1), (1000, 0), (999, 1)]), &MEDIUM);
        assert_eq!(ranges, Ok(vec![blocks(0, 1), blocks(999, 1)]));
        assert_eq!(unmap_ranges(&list(&[(0, 1), (999, 2)]), &MEDIUM), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(unmap_ranges(&list(&[(u64::MAX, 2)]), &MEDIUM), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(unmap_ranges(&[0; 7], &MEDIUM), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(unmap_ranges(&list(&[(0, 1); 257]), &MEDIUM), Err(Sense::parameter_field(2)));
        // Half a descriptor is none.
        assert_eq!(unmap_ranges(&list(&[(0, 1), (5, 1)])[..32], &MEDIUM), Ok(vec![blocks(0, 1)]));
    }

    #[test]
    fn capacities_of_small_and_great_media() {
        assert_eq!(capacity10(&MEDIUM), [0, 0, 3, 0xe7, 0, 0, 2, 0]);
        let great = Medium { blocks: 1 << 32, ..Medium::EXAMPLE };
        assert_eq!(capacity10(&Medium { blocks: (1 << 32) - 1, ..great })[..4], [0xff, 0xff, 0xff, 0xfe]);
        assert_eq!(capacity10(&Medium { blocks: (1 << 32) + 5, ..great })[..4], [0xff; 4]);
        assert_eq!(capacity16(&great)[..16], [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0]);
    }

    #[test]
    fn status_runs_fill_the_room_there_is() {
        let run = |start, provisioning| Run { blocks: Blocks { start, count: 8 }, provisioning };
        let runs = [run(0, Provisioning::Mapped), run(8, Provisioning::Deallocated)];
        let bytes = lba_status(&runs, 100);
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..4], [0, 0, 0, 36]);
        assert_eq!(bytes[24..40], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 1, 0, 0, 0]);
        assert_eq!(lba_status(&runs, 24)[..4], [0, 0, 0, 20]);
        assert_eq!(lba_status(&runs, 24).len(), 24);
        assert_eq!(lba_status(&runs, 4).len(), 4);
    }
}
