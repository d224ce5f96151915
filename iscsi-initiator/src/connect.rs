//! Establishing all connections of a unit, and what it says about itself.

use std::rc::Rc;

use crate::cdb::Command;
use crate::error::{CommandError, ConnectError};
use crate::options::Options;
use crate::queue::{Answer, Queue, Window};
use crate::session::Session;

/// Most commands in flight on a queue: connections have some places more, for what belongs to them.
pub(crate) const DEPTH_MAX: u16 = 1000;
/// Most queues: each has an ISID of its own if it must.
pub(crate) const QUEUES_MAX: u16 = 4096;

/// How often a unit may have something to say before it is ready.
const ATTENTIONS_MAX: usize = 32;
/// Most bytes of one command's data, whatever the unit takes.
const TRANSFER_MAX: u64 = 4 << 20;
/// Bytes of logical unit numbers that are looked at: 256 of them.
const LUNS_ROOM: u32 = 8 + 256 * 8;

/// A logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Logical unit number (LUN), as commands carry it.
    pub lun: u64,
    /// Size in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block: a power of two from 512 to 64 KiB.
    pub block_size: u32,
    /// Most bytes that one command moves.
    pub max_transfer: u32,
    /// Most blocks of one WRITE SAME.
    pub write_same_max: u32,
    /// Most blocks of one COMPARE AND WRITE; none if it does not have that.
    pub compare_and_write_max: u8,
    /// Most ranges of one UNMAP, and most blocks of them together; none if it does not have that.
    pub unmap_max: (u32, u32),
    /// Its designators (SPC 7.8.6), as they are: who it is.
    pub designators: Vec<u8>,
}

impl Medium {
    /// Bytes.
    pub fn size(&self) -> u64 {
        // Checked when it was identified.
        self.blocks * u64::from(self.block_size)
    }

    /// Whether this is the same unit. It may have grown.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.lun, self.block_size, &self.designators) == (other.lun, other.block_size, &other.designators)
    }
}

/// Logs in all queues, consumes what each session has to be told, looks at the unit.
pub(crate) async fn establish(session: &Rc<Session>) -> Result<Medium, ConnectError> {
    let Options { queues, queue_depth, lun, connections_per_session, .. } = session.options;
    if !(1..=QUEUES_MAX).contains(&queues) || !(1..=DEPTH_MAX).contains(&queue_depth) {
        return Err(ConnectError::Queues);
    }
    let mut medium: Option<Medium> = None;
    let mut joined: Option<(Rc<Window>, u32)> = None;
    for (number, queue) in session.queues.iter().enumerate() {
        let agreed = |window: &Window| window.numbers.borrow().parameters().max_connections;
        joined = joined.filter(|(window, used)| *used < agreed(window).min(connections_per_session.into()));
        let begins_session = joined.is_none();
        joined = Some(match joined {
            Some((window, used)) => (session.open(queue, number as u16, used as u16, Some(&window)).await?, used + 1),
            None => (session.open(queue, number as u16, 0, None).await?, 1),
        });
        match medium.as_ref().map(|medium| medium.lun) {
            None => medium = Some(identify(queue, lun).await?),
            Some(lun) if begins_session => ready(queue, lun).await?,
            Some(_) => {}
        }
    }
    let medium = medium.ok_or(ConnectError::Queues)?;
    session.queues.iter().for_each(|queue| queue.set_lun(medium.lun));
    Ok(medium)
}

/// Has the unit say what it has to say first, until it is ready.
async fn ready(queue: &Queue, lun: u64) -> Result<(), ConnectError> {
    execute(queue, lun, "TEST UNIT READY", Command::test_unit_ready()).await.map(drop)
}

/// Looks at the unit `wanted`, or at the first disk there is.
async fn identify(queue: &Queue, wanted: Option<u64>) -> Result<Medium, ConnectError> {
    let lun = find_disk(queue, wanted).await?;
    ready(queue, lun).await?;
    let answer = execute(queue, lun, "READ CAPACITY (16)", Command::read_capacity(32)).await?;
    let nonsense = ConnectError::Nonsense("READ CAPACITY (16)");
    let (blocks, block_size) = parse_capacity(&answer.data).ok_or(nonsense)?;
    let designators = page(queue, lun, 0x83).await?.map(|page| of_unit(&page)).unwrap_or_default();
    let limits = page(queue, lun, 0xb0).await?.unwrap_or_default();
    Ok(medium(lun, blocks, block_size, designators, &limits))
}

async fn find_disk(queue: &Queue, wanted: Option<u64>) -> Result<u64, ConnectError> {
    let answer = execute(queue, 0, "REPORT LUNS", Command::report_luns(LUNS_ROOM)).await?;
    for lun in parse_luns(&answer.data).filter(|lun| wanted.is_none_or(|wanted| wanted == *lun)) {
        let standard = execute(queue, lun, "INQUIRY", Command::inquiry(None, 96)).await?;
        // PERIPHERAL QUALIFIER: connected; PERIPHERAL DEVICE TYPE: direct access block device (SPC 6.6.2).
        if standard.data.first() == Some(&0) {
            return Ok(lun);
        }
    }
    Err(ConnectError::NoUnit(wanted.unwrap_or(0)))
}

/// A page of vital product data, without its header; none if the unit does not have it.
async fn page(queue: &Queue, lun: u64, code: u8) -> Result<Option<Vec<u8>>, ConnectError> {
    const ILLEGAL_REQUEST: u8 = 0x5;
    match execute(queue, lun, "INQUIRY (vital product data)", Command::inquiry(Some(code), 512)).await {
        Ok(answer) => Ok(parse_page(&answer.data, code).map(<[u8]>::to_vec)),
        Err(ConnectError::Command { error: CommandError::Check(sense), .. }) if sense.key == ILLEGAL_REQUEST => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Carries out a command of ours; a unit attention is no answer to it.
async fn execute(queue: &Queue, lun: u64, name: &'static str, command: Command) -> Result<Answer, ConnectError> {
    let mut attentions = 0;
    loop {
        match queue.execute_internal(lun, command.into()).await {
            Err(CommandError::Check(sense)) if sense.is_attention() && attentions < ATTENTIONS_MAX => attentions += 1,
            answer => return answer.map_err(|error| ConnectError::Command { command: name, error }),
        }
    }
}

/// The list of REPORT LUNS (SPC 6.33), as far as it came.
fn parse_luns(data: &[u8]) -> impl Iterator<Item = u64> {
    let announced = u32_at(data, 0).unwrap_or(0) as usize;
    let list = data.get(8..).unwrap_or_default();
    list[..list.len().min(announced)].as_chunks().0.iter().map(|lun| u64::from_be_bytes(*lun))
}

/// Number and size of blocks (SBC 5.16.2), if both make sense together.
fn parse_capacity(data: &[u8]) -> Option<(u64, u32)> {
    let blocks = u64_at(data, 0)?.checked_add(1)?;
    let block_size = u32_at(data, 8)?;
    let good = block_size.is_power_of_two() && (512..=65_536).contains(&block_size);
    blocks.checked_mul(block_size.into()).filter(|_| good).map(|_| (blocks, block_size))
}

/// The content of a page, as far as it came.
fn parse_page(data: &[u8], code: u8) -> Option<&[u8]> {
    let [_, found, high, low, content @ ..] = data else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    (*found == code).then(|| &content[..content.len().min(length)])
}

/// The designators of the unit, not those of its port or device (SPC 7.8.6).
fn of_unit(mut page: &[u8]) -> Vec<u8> {
    let mut designators = Vec::new();
    while let [_, kind, _, length, rest @ ..] = page {
        let length = usize::from(*length).min(rest.len());
        let (designator, next) = (&page[..4 + length], &rest[length..]);
        // ASSOCIATION, bits 5:4.
        if kind & 0x30 == 0 {
            designators.extend_from_slice(designator);
        }
        page = next;
    }
    designators
}

/// What the block limits (SBC 6.5.3), without their header, allow. A limit of zero or one that is not told is none.
fn medium(lun: u64, blocks: u64, block_size: u32, designators: Vec<u8>, limits: &[u8]) -> Medium {
    let limit = |offset: usize| u32_at(limits, offset - 4).filter(|limit| *limit > 0);
    let transfer = limit(8).map_or(TRANSFER_MAX, |blocks| u64::from(blocks) * u64::from(block_size));
    let same = u64_at(limits, 36 - 4).filter(|limit| *limit > 0).unwrap_or(u64::from(u16::MAX));
    Medium {
        lun,
        blocks,
        block_size,
        max_transfer: transfer.min(TRANSFER_MAX) as u32,
        write_same_max: same.min(u64::from(u32::MAX)) as u32,
        compare_and_write_max: limits.get(5 - 4).copied().unwrap_or(0),
        unmap_max: (limit(24).unwrap_or(0), limit(20).unwrap_or(0)),
        designators,
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_that_make_sense() {
        let capacity = |last: u64, size: u32| [&last.to_be_bytes()[..], &size.to_be_bytes()].concat();
        assert_eq!(parse_capacity(&capacity(4095, 4096)), Some((4096, 4096)));
        assert_eq!(parse_capacity(&capacity(u64::MAX, 512)), None, "more than can be counted");
        assert_eq!(parse_capacity(&capacity(u64::MAX - 1, 512)), None, "more bytes than can be counted");
        assert_eq!([0, 256, 520, 1 << 17].map(|size| parse_capacity(&capacity(9, size))), [None; 4]);
        assert_eq!(parse_capacity(&[0; 11]), None);
    }

    #[test]
    fn lists_are_as_long_as_they_say_and_as_came() {
        let mut list = vec![0, 0, 0, 16, 0, 0, 0, 0];
        list.extend_from_slice(&[0; 8]);
        list.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        list.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse_luns(&list).collect::<Vec<_>>(), [0, 1 << 48]);
        assert_eq!(parse_luns(&list[..20]).collect::<Vec<_>>(), [0]);
        assert_eq!(parse_luns(&[]).count(), 0);
    }

    #[test]
    fn only_the_units_own_designators_say_who_it_is() {
        let page = [1, 0x03, 0, 2, 7, 7, 0x51, 0x94, 0, 4, 0, 0, 0, 1, 3, 0x28, 0, 1, 9, 1, 0x01, 0, 200, 5];
        assert_eq!(of_unit(&page), [1, 0x03, 0, 2, 7, 7, 1, 0x01, 0, 200, 5], "the last one was cut short");
        assert_eq!(parse_page(&[0, 0x83, 0, 2, 7, 7, 7], 0x83), Some(&[7, 7][..]));
        assert_eq!(parse_page(&[0, 0x80, 0, 2, 7, 7], 0x83), None);
    }

    /// SBC table 172.
    #[test]
    fn limits_are_those_of_the_unit_or_ours() {
        let mut page = [0; 60];
        page[1] = 255;
        page[4..8].copy_from_slice(&2048_u32.to_be_bytes());
        page[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        page[20..24].copy_from_slice(&256_u32.to_be_bytes());
        page[32..40].copy_from_slice(&65_535_u64.to_be_bytes());
        let told = medium(0, 9, 512, Vec::new(), &page);
        assert_eq!((told.max_transfer, told.write_same_max, told.compare_and_write_max), (1 << 20, 65_535, 255));
        assert_eq!(told.unmap_max, (256, u32::MAX));
        let untold = medium(0, 9, 512, Vec::new(), &[]);
        assert_eq!((untold.max_transfer, untold.write_same_max, untold.unmap_max), (4 << 20, 65_535, (0, 0)));
    }
}
