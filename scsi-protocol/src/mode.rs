//! Mode pages (SPC 7.5, SBC 6.4): caching and control.

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{put, u16_at};
use crate::command::ModeSense;
use crate::sense::Sense;
use crate::unit::Medium;

/// What MODE SELECT can change. All else is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Write Cache Enabled (WCE): without it every write is durable before it completes (I4).
    pub write_cache: bool,
    /// D_SENSE: sense data in descriptor format.
    pub descriptor_sense: bool,
    /// Software Write Protect (SWP).
    pub write_protected: bool,
}

impl Default for Mode {
    fn default() -> Self {
        Self { write_cache: true, descriptor_sense: false, write_protected: false }
    }
}

/// PAGE CODEs.
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// PAGE CONTROL.
const CHANGEABLE: u8 = 1;
const DEFAULT: u8 = 2;
const SAVED: u8 = 3;

/// Bits of the pages.
const WRITE_CACHE: u8 = 0x04;
const DESCRIPTOR_SENSE: u8 = 0x04;
const WRITE_PROTECT: u8 = 0x08;

/// DEVICE-SPECIFIC PARAMETER of the header: WP and DPOFUA (SBC 6.4.1).
const HEADER_WRITE_PROTECTED: u8 = 0x80;
const HEADER_FUA: u8 = 0x10;

impl Mode {
    /// Parameter data of MODE SENSE.
    ///
    /// # Errors
    /// What CHECK CONDITION is to say.
    pub(crate) fn sense(&self, command: &ModeSense, medium: &Medium) -> Result<Vec<u8>, Sense> {
        let values = match command.control {
            SAVED => return Err(Sense::SAVING_NOT_SUPPORTED),
            CHANGEABLE => Self { write_cache: true, descriptor_sense: true, write_protected: true },
            DEFAULT => Self::default(),
            _ => *self,
        };
        let masks = command.control == CHANGEABLE;
        let pages = match command.page {
            (CACHING, 0) => values.caching(),
            (CONTROL, 0) => values.control(masks),
            (ALL_PAGES, 0 | ALL_SUBPAGES) => [values.caching(), values.control(masks)].concat(),
            (CACHING | CONTROL | ALL_PAGES, _) => return Err(Sense::cdb_field(3, None)),
            _ => return Err(Sense::cdb_field(2, Some(5))),
        };
        let descriptor = match (command.no_descriptor, command.long && command.long_addresses) {
            (true, _) => Vec::new(),
            (false, false) => short_descriptor(medium),
            (false, true) => long_descriptor(medium),
        };
        let mut bytes = self.header(command, medium, descriptor.len());
        bytes.extend(descriptor);
        bytes.extend(pages);
        // MODE DATA LENGTH does not count itself.
        if command.long {
            let length = bytes.len() as u16 - 2;
            put(&mut bytes, 0, length.to_be_bytes());
        } else {
            bytes[0] = bytes.len() as u8 - 1;
        }
        Ok(bytes)
    }

    fn header(&self, command: &ModeSense, medium: &Medium, descriptor: usize) -> Vec<u8> {
        let protected = self.write_protected || medium.read_only;
        let specific = HEADER_FUA | if protected { HEADER_WRITE_PROTECTED } else { 0 };
        if !command.long {
            return vec![0, 0, specific, descriptor as u8];
        }
        // LONGLBA.
        let long_addresses = u8::from(descriptor == 16);
        vec![0, 0, 0, specific, long_addresses, 0, 0, descriptor as u8]
    }

    /// Caching mode page (SBC 6.4.5).
    fn caching(&self) -> Vec<u8> {
        let mut page = vec![0; 20];
        page[0] = CACHING;
        page[1] = 18;
        page[2] = if self.write_cache { WRITE_CACHE } else { 0 };
        page
    }

    /// Control mode page (SPC 7.5.8).
    fn control(&self, masks: bool) -> Vec<u8> {
        let mut page = vec![0; 12];
        page[0] = CONTROL;
        page[1] = 10;
        page[2] = if self.descriptor_sense { DESCRIPTOR_SENSE } else { 0 };
        // QUEUE ALGORITHM MODIFIER 1: reads and writes in any order, as each host keeps its own.
        page[3] = if masks { 0 } else { 0x10 };
        page[4] = if self.write_protected { WRITE_PROTECT } else { 0 };
        // BUSY TIMEOUT PERIOD: no limit.
        put(&mut page, 8, if masks { 0 } else { u16::MAX }.to_be_bytes());
        page
    }

    /// What MODE SELECT with `list` makes of it.
    ///
    /// # Errors
    /// What CHECK CONDITION is to say; nothing is changed then.
    pub(crate) fn select(&self, list: &[u8], long: bool, medium: &Medium) -> Result<Self, Sense> {
        if list.is_empty() {
            return Ok(*self);
        }
        let header = if long { 8 } else { 4 };
        if list.len() < header {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let descriptor = if long { usize::from(u16_at(list, 6)) } else { usize::from(list[3]) };
        let long_addresses = long && list[4] & 1 != 0;
        let pages = list.get(header + descriptor..).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        check_descriptor(&list[header..header + descriptor], header, long_addresses, medium)?;
        let mut selected = *self;
        let mut at = header + descriptor;
        let mut rest = pages;
        while !rest.is_empty() {
            let length = rest.get(1).map(|length| usize::from(*length) + 2).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            let page = rest.get(..length).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            selected.take_page(page).map_err(|offset| Sense::parameter_field((at + offset) as u16))?;
            at += length;
            rest = &rest[length..];
        }
        Ok(selected)
    }

    /// Takes one page over; else the offset of the byte that cannot be.
    fn take_page(&mut self, page: &[u8]) -> Result<(), usize> {
        let changeable = Self { write_cache: true, descriptor_sense: true, write_protected: true };
        // PS is reserved here.
        let (now, mask) = match page[0] & 0x7f {
            CACHING => (self.caching(), changeable.caching()),
            CONTROL => (self.control(false), changeable.control(true)),
            _ => return Err(0),
        };
        if page.len() != now.len() {
            return Err(1);
        }
        let wrong = (2..page.len()).find(|&index| (page[index] ^ now[index]) & !mask[index] != 0);
        match wrong {
            Some(offset) => return Err(offset),
            None if page[0] & 0x7f == CACHING => self.write_cache = page[2] & WRITE_CACHE != 0,
            None => {
                self.descriptor_sense = page[2] & DESCRIPTOR_SENSE != 0;
                self.write_protected = page[4] & WRITE_PROTECT != 0;
            }
        }
        Ok(())
    }
}

/// Short LBA mode parameter block descriptor (SBC 6.4.2.2).
fn short_descriptor(medium: &Medium) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    put(&mut bytes, 0, u32::try_from(medium.blocks).unwrap_or(u32::MAX).to_be_bytes());
    // LOGICAL BLOCK LENGTH has three bytes after a reserved one.
    put(&mut bytes, 4, medium.block_size.to_be_bytes());
    bytes
}

/// Long LBA mode parameter block descriptor (SBC 6.4.2.3).
fn long_descriptor(medium: &Medium) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    put(&mut bytes, 0, medium.blocks.to_be_bytes());
    put(&mut bytes, 12, medium.block_size.to_be_bytes());
    bytes
}

/// A block descriptor of MODE SELECT may repeat what is, or leave the number of blocks open; it changes nothing.
fn check_descriptor(bytes: &[u8], at: usize, long: bool, medium: &Medium) -> Result<(), Sense> {
    if bytes.is_empty() {
        return Ok(());
    }
    let now = if long { long_descriptor(medium) } else { short_descriptor(medium) };
    let blocks = if long { 8 } else { 4 };
    if bytes.len() != now.len() {
        return Err(Sense::parameter_field(at as u16 - 1));
    }
    let open = bytes[..blocks].iter().all(|byte| *byte == 0);
    if (!open && bytes[..blocks] != now[..blocks]) || bytes[blocks..] != now[blocks..] {
        return Err(Sense::parameter_field(at as u16));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIUM: Medium = Medium { blocks: 1000, ..Medium::EXAMPLE };
    const ASK: ModeSense = ModeSense {
        long: false,
        no_descriptor: true,
        long_addresses: false,
        control: 0,
        page: (0x3f, 0),
        allocation: 255,
    };

    #[test]
    fn all_pages_behind_a_header_and_a_descriptor() {
        let bytes = Mode::default().sense(&ModeSense { no_descriptor: false, ..ASK }, &MEDIUM).unwrap();
        assert_eq!(bytes[..4], [4 + 8 + 20 + 12 - 1, 0, 0x10, 8]);
        assert_eq!(bytes[4..12], [0, 0, 3, 0xe8, 0, 0, 2, 0]);
        assert_eq!(bytes[12..15], [8, 18, 4]);
        assert_eq!(bytes[32..34], [0x0a, 10]);
        let long = ModeSense { long: true, long_addresses: true, no_descriptor: false, ..ASK };
        let bytes = Mode::default().sense(&long, &MEDIUM).unwrap();
        assert_eq!(bytes[..8], [0, 8 + 16 + 32 - 2, 0, 0x10, 1, 0, 0, 16]);
    }

    #[test]
    fn a_write_protected_medium_says_so() {
        let protected = Mode { write_protected: true, ..Mode::default() };
        assert_eq!(protected.sense(&ASK, &MEDIUM).unwrap()[2], 0x90);
        let medium = Medium { read_only: true, ..MEDIUM };
        assert_eq!(Mode::default().sense(&ASK, &medium).unwrap()[2], 0x90);
    }

    #[test]
    fn what_can_be_changed_can_be_selected_and_the_rest_cannot() {
        let mode = Mode::default();
        let caching = |bits: u8| {
            let mut list = vec![0; 4];
            list.extend(mode.caching());
            list[4 + 2] = bits;
            list
        };
        let off = mode.select(&caching(0), false, &MEDIUM).unwrap();
        assert_eq!(off, Mode { write_cache: false, ..mode });
        assert_eq!(off.select(&caching(4), false, &MEDIUM), Ok(mode));
        // RCD cannot be set.
        assert_eq!(mode.select(&caching(5), false, &MEDIUM), Err(Sense::parameter_field(6)));
        assert_eq!(mode.select(&caching(4)[..20], false, &MEDIUM), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(mode.select(&[0, 0, 0], false, &MEDIUM), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(mode.select(&[0, 0, 0, 0, 0x1c, 2, 0, 0], false, &MEDIUM), Err(Sense::parameter_field(4)));
    }

    #[test]
    fn what_sense_says_select_takes() {
        for control in [0, 2] {
            for long in [false, true] {
                let ask = ModeSense { no_descriptor: false, long, control, ..ASK };
                let list = Mode::default().sense(&ask, &MEDIUM).unwrap();
                assert_eq!(Mode::default().select(&list, long, &MEDIUM), Ok(Mode::default()));
            }
        }
        let other = Medium { blocks: 999, ..MEDIUM };
        let list = Mode::default().sense(&ModeSense { no_descriptor: false, ..ASK }, &other).unwrap();
        assert_eq!(Mode::default().select(&list, false, &MEDIUM), Err(Sense::parameter_field(4)));
    }

    #[test]
    fn pages_that_are_not_there() {
        let ask = |page| Mode::default().sense(&ModeSense { page, ..ASK }, &MEDIUM);
        assert_eq!(ask((0x01, 0)), Err(Sense::cdb_field(2, Some(5))));
        assert_eq!(ask((0x0a, 1)), Err(Sense::cdb_field(3, None)));
        let saved = Mode::default().sense(&ModeSense { control: 3, ..ASK }, &MEDIUM);
        assert_eq!(saved, Err(Sense::SAVING_NOT_SUPPORTED));
    }
}
