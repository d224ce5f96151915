//! EXTENDED COPY (LID1) from blocks to blocks of the same unit, and RECEIVE COPY RESULTS (SPC 6.4, 6.19–6.21).

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::command::Blocks;
use crate::inquiry::Identity;
use crate::sense::Sense;
use crate::unit::Medium;

/// MAXIMUM CSCD DESCRIPTOR COUNT: ends that a list names. All of them are this unit.
const ENDS_MAX: u16 = 8;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT.
const SEGMENTS_MAX: u16 = 64;
/// MAXIMUM DESCRIPTOR LIST LENGTH.
const DESCRIPTORS_LENGTH_MAX: u32 = ENDS_MAX as u32 * END_LENGTH as u32 + SEGMENTS_MAX as u32 * SEGMENT_LENGTH as u32;
/// MAXIMUM SEGMENT LENGTH in bytes.
const SEGMENT_BYTES_MAX: u32 = 16 << 20;
/// Copies of one I_T nexus whose result is kept.
const RESULTS_MAX: usize = 8;

const HEADER_LENGTH: usize = 16;
/// Identification descriptor (CSCD descriptor E4h).
const END_LENGTH: usize = 32;
const IDENTIFICATION: u8 = 0xe4;
/// Block device to block device segment descriptor.
const SEGMENT_LENGTH: usize = 28;
const BLOCK_TO_BLOCK: u8 = 0x02;
/// LIST ID USAGE 11b: no result is kept.
const NO_RESULT: u8 = 3;

/// One segment: blocks within the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where from.
    pub source: Blocks,
    /// First block where to.
    pub destination: u64,
}

/// A list that can be carried out, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// LIST IDENTIFIER under which the result is kept, if it is.
    pub list: Option<u8>,
    /// What to copy.
    pub segments: Vec<Segment>,
}

impl Copy {
    /// Parses a parameter list (SPC 6.4.3); everything is checked before anything is copied.
    ///
    /// # Errors
    /// What CHECK CONDITION is to say.
    pub(crate) fn parse(list: &[u8], identity: &Identity, medium: &Medium) -> Result<Self, Sense> {
        if list.is_empty() {
            return Ok(Self { list: None, segments: Vec::new() });
        }
        if list.len() < HEADER_LENGTH {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let ends_length = usize::from(u16_at(list, 2));
        let segments_length = u32_at(list, 8) as usize;
        if u32_at(list, 12) != 0 {
            return Err(Sense::parameter_field(12));
        }
        if ends_length + segments_length > DESCRIPTORS_LENGTH_MAX as usize {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let descriptors = &list[HEADER_LENGTH..];
        let ends = descriptors.get(..ends_length).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let segments = descriptors[ends_length..].get(..segments_length).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let ends = parse_ends(ends, identity)?;
        let segments = parse_segments(segments, ends, medium)?;
        let list = (list[1] >> 3 & 3 != NO_RESULT).then_some(list[0]);
        Ok(Self { list, segments })
    }
}

/// How many ends a list names, all of them this unit.
fn parse_ends(mut bytes: &[u8], identity: &Identity) -> Result<u16, Sense> {
    if bytes.len() > usize::from(ENDS_MAX) * END_LENGTH {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS);
    }
    let mut count = 0;
    while let Some(kind) = bytes.first() {
        if *kind != IDENTIFICATION {
            return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
        }
        let end = bytes.get(..END_LENGTH).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        // ASSOCIATION and DESIGNATOR TYPE, the length, and the designator itself.
        let length = usize::from(end[7]).min(20);
        let is_own = match end[5] & 0x3f {
            0x03 => end[8..8 + length] == identity.naa(),
            0x0a => length == 18 && end[10..26] == identity.uuid,
            _ => false,
        };
        if !is_own {
            return Err(Sense::COPY_TARGET_NOT_REACHABLE);
        }
        count += 1;
        bytes = &bytes[END_LENGTH..];
    }
    Ok(count)
}

fn parse_segments(mut bytes: &[u8], ends: u16, medium: &Medium) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    while let Some(kind) = bytes.first() {
        if *kind != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
        }
        if segments.len() == usize::from(SEGMENTS_MAX) {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        }
        let segment = bytes.get(..SEGMENT_LENGTH).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        segments.push(parse_segment(segment, ends, medium)?);
        bytes = &bytes[SEGMENT_LENGTH..];
    }
    Ok(segments)
}

/// A block device to block device segment descriptor (SPC 6.4.6.5).
fn parse_segment(bytes: &[u8], ends: u16, medium: &Medium) -> Result<Segment, Sense> {
    if usize::from(u16_at(bytes, 2)) != SEGMENT_LENGTH - 4 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let (from, to) = (u16_at(bytes, 4), u16_at(bytes, 6));
    let count = u32::from(u16_at(bytes, 10));
    let source = Blocks { start: u64_at(bytes, 12), count };
    let destination = u64_at(bytes, 20);
    let fits = |start: u64| start.checked_add(u64::from(count)).is_some_and(|end| end <= medium.blocks);
    let in_bounds = u64::from(count) * u64::from(medium.block_size) <= u64::from(SEGMENT_BYTES_MAX);
    if from >= ends || to >= ends || !fits(source.start) || !fits(destination) || !in_bounds {
        return Err(Sense::COPY_ABORTED);
    }
    Ok(Segment { source, destination })
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyResult {
    /// LIST IDENTIFIER.
    pub list: u8,
    /// Whether all segments were copied.
    pub completed: bool,
    /// SEGMENTS PROCESSED.
    pub segments: u16,
    /// Bytes copied.
    pub bytes: u64,
}

/// Results of one I_T nexus, the newest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results(Vec<CopyResult>);

impl Results {
    /// Keeps a result; the oldest goes if there are too many.
    pub(crate) fn keep(&mut self, result: CopyResult) {
        self.0.retain(|kept| kept.list != result.list);
        if self.0.len() == RESULTS_MAX {
            self.0.remove(0);
        }
        self.0.push(result);
    }

    /// RECEIVE COPY STATUS (LID1) parameter data (SPC 6.20).
    ///
    /// # Errors
    /// INVALID FIELD IN CDB if no copy of that list is known.
    pub(crate) fn status(&self, list: u8) -> Result<Vec<u8>, Sense> {
        let result = self.0.iter().find(|result| result.list == list).ok_or(Sense::cdb_field(2, None))?;
        let mut bytes = vec![0; 12];
        put(&mut bytes, 0, 8_u32.to_be_bytes());
        // COPY MANAGER STATUS.
        bytes[4] = if result.completed { 1 } else { 2 };
        put(&mut bytes, 5, result.segments.to_be_bytes());
        // TRANSFER COUNT UNITS: kibibytes, so that the greatest list's count fits.
        bytes[7] = 1;
        put(&mut bytes, 8, ((result.bytes >> 10) as u32).to_be_bytes());
        Ok(bytes)
    }
}

/// RECEIVE COPY OPERATING PARAMETERS (SPC 6.21).
pub(crate) fn operating_parameters(medium: &Medium) -> Vec<u8> {
    let implemented = [BLOCK_TO_BLOCK, IDENTIFICATION];
    let mut bytes = vec![0; 44];
    // SNLID: a list without identifier can be had.
    bytes[4] = 0x01;
    put(&mut bytes, 8, ENDS_MAX.to_be_bytes());
    put(&mut bytes, 10, SEGMENTS_MAX.to_be_bytes());
    put(&mut bytes, 12, DESCRIPTORS_LENGTH_MAX.to_be_bytes());
    put(&mut bytes, 16, SEGMENT_BYTES_MAX.to_be_bytes());
    // TOTAL CONCURRENT COPIES and MAXIMUM CONCURRENT COPIES.
    put(&mut bytes, 34, 1_u16.to_be_bytes());
    bytes[36] = 1;
    // DATA SEGMENT GRANULARITY.
    bytes[37] = medium.block_size.ilog2() as u8;
    bytes[43] = implemented.len() as u8;
    bytes.extend(implemented);
    let length = bytes.len() as u32 - 4;
    put(&mut bytes, 0, length.to_be_bytes());
    bytes
}

/// Content of the Third-party Copy VPD page (SPC 7.8.17): supported commands, parameters, descriptors.
pub(crate) fn vital_content() -> Vec<u8> {
    let mut commands = vec![0, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03];
    commands[0] = commands.len() as u8 - 1;
    let mut parameters = vec![0; 28];
    put(&mut parameters, 4, ENDS_MAX.to_be_bytes());
    put(&mut parameters, 6, SEGMENTS_MAX.to_be_bytes());
    put(&mut parameters, 8, DESCRIPTORS_LENGTH_MAX.to_be_bytes());
    let descriptors = vec![2, BLOCK_TO_BLOCK, IDENTIFICATION];
    let mut bytes = Vec::new();
    for (kind, mut content) in [(0x0001_u16, commands), (0x0004, parameters), (0x0008, descriptors)] {
        content.resize(content.len().next_multiple_of(4), 0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend((content.len() as u16).to_be_bytes());
        bytes.extend(content);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;

    use super::*;

    const MEDIUM: Medium = Medium { blocks: 1000, ..Medium::EXAMPLE };

    fn identity() -> Identity {
        Identity { uuid: [7; 16], serial: "7".to_owned(), revision: "1".to_owned(), target: "iqn.x".to_owned() }
    }

    fn end(designator: &[u8], kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[0] = 0xe4;
        bytes[4] = 1;
        bytes[5] = kind;
        bytes[7] = designator.len() as u8;
        bytes[8..8 + designator.len()].copy_from_slice(designator);
        bytes
    }

    fn segment(ends: (u16, u16), count: u16, from: u64, to: u64) -> Vec<u8> {
        let mut bytes = vec![0; 28];
        bytes[0] = 0x02;
        bytes[3] = 24;
        put(&mut bytes, 4, ends.0.to_be_bytes());
        put(&mut bytes, 6, ends.1.to_be_bytes());
        put(&mut bytes, 10, count.to_be_bytes());
        put(&mut bytes, 12, from.to_be_bytes());
        put(&mut bytes, 20, to.to_be_bytes());
        bytes
    }

    fn list(ends: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
        let (ends, segments) = (ends.concat(), segments.concat());
        let mut bytes = vec![0; 16];
        bytes[0] = 5;
        put(&mut bytes, 2, (ends.len() as u16).to_be_bytes());
        put(&mut bytes, 8, (segments.len() as u32).to_be_bytes());
        [bytes, ends, segments].concat()
    }

    fn parse(bytes: &[u8]) -> Result<Copy, Sense> {
        Copy::parse(bytes, &identity(), &MEDIUM)
    }

    fn own() -> Vec<u8> {
        end(&identity().naa(), 3)
    }

    #[test]
    fn blocks_are_copied_within_the_unit() {
        let copy = parse(&list(&[own(), own()], &[segment((0, 1), 8, 0, 992)])).unwrap();
        let segments = vec![Segment { source: Blocks { start: 0, count: 8 }, destination: 992 }];
        assert_eq!(copy, Copy { list: Some(5), segments });
        assert_eq!(parse(&[]).unwrap().segments, []);
    }

    #[test]
    fn a_list_that_is_wrong_anywhere_copies_nothing() {
        let good = segment((0, 0), 8, 0, 992);
        let wrong = |ends: &[Vec<u8>], segments: &[Vec<u8>]| parse(&list(ends, segments)).unwrap_err();
        assert_eq!(wrong(&[own()], &[good.clone(), segment((0, 0), 8, 0, 993)]), Sense::COPY_ABORTED);
        assert_eq!(wrong(&[own()], &[segment((0, 0), 1, u64::MAX, 0)]), Sense::COPY_ABORTED);
        assert_eq!(wrong(&[own()], &[segment((0, 1), 8, 0, 0)]), Sense::COPY_ABORTED);
        assert_eq!(wrong(&[end(&[1; 8], 3)], core::slice::from_ref(&good)), Sense::COPY_TARGET_NOT_REACHABLE);
        assert_eq!(wrong(&vec![own(); 9], core::slice::from_ref(&good)), Sense::TOO_MANY_TARGET_DESCRIPTORS);
        assert_eq!(wrong(&[own()], &vec![good.clone(); 65]), Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        assert_eq!(wrong(&vec![own(); 9], &vec![good.clone(); 64]), Sense::PARAMETER_LIST_LENGTH);
        assert_eq!(wrong(&[vec![0xe0; 32]], &[]), Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
        assert_eq!(wrong(&[own()], &[vec![0x03; 28]]), Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
    }

    #[test]
    fn lengths_that_do_not_add_up() {
        let bytes = list(&[own()], &[segment((0, 0), 8, 0, 992)]);
        for length in 1..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Err(Sense::PARAMETER_LIST_LENGTH), "{length}");
        }
        let mut inline = bytes;
        inline[15] = 1;
        assert_eq!(parse(&inline), Err(Sense::parameter_field(12)));
    }

    #[test]
    fn results_are_kept_by_list_and_not_for_ever() {
        let mut results = Results::default();
        assert!(results.status(0).is_err());
        for list in 0..9 {
            results.keep(CopyResult { list, completed: list != 8, segments: 2, bytes: 4096 });
        }
        assert!(results.status(0).is_err());
        assert_eq!(results.status(1).unwrap(), [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0, 4]);
        assert_eq!(results.status(8).unwrap()[4], 2);
    }

    #[test]
    fn descriptors_of_the_page_are_padded_to_four_bytes() {
        let content = vital_content();
        assert_eq!(content[..12], [0, 1, 0, 8, 7, 0x83, 1, 0, 0x84, 2, 0, 3]);
        assert_eq!(content.len() % 4, 0);
        assert_eq!(operating_parameters(&MEDIUM)[..4], [0, 0, 0, 42]);
    }
}
