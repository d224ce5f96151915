//! Log pages (SPC 7.3): which there are, and the space of a thin unit.

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::put;
use crate::sense::Sense;

/// THRESHOLD EXPONENT (SBC 6.5.4): resources are counted in units of 2 to this power of blocks.
pub(crate) const THRESHOLD_EXPONENT: u8 = 11;

const SUPPORTED_PAGES: u8 = 0x00;
const PROVISIONING: u8 = 0x0c;
const ALL_SUBPAGES: u8 = 0xff;

/// Space behind a thin unit, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// That the unit uses.
    pub used: u64,
    /// That it can still get.
    pub available: u64,
}

/// Log page `page` (code, subpage), with parameters from `pointer` on.
///
/// # Errors
/// INVALID FIELD IN CDB for a page that is not there, or a pointer behind its parameters.
pub(crate) fn page((code, subpage): (u8, u8), pointer: u16, space: &Space) -> Result<Vec<u8>, Sense> {
    let content = match (code, subpage) {
        (SUPPORTED_PAGES, 0) => vec![SUPPORTED_PAGES, PROVISIONING],
        (SUPPORTED_PAGES, ALL_SUBPAGES) => {
            vec![SUPPORTED_PAGES, 0, SUPPORTED_PAGES, ALL_SUBPAGES, PROVISIONING, 0]
        }
        (PROVISIONING, 0) => provisioning(pointer, space)?,
        (SUPPORTED_PAGES | PROVISIONING, _) => return Err(Sense::cdb_field(3, None)),
        _ => return Err(Sense::cdb_field(2, Some(5))),
    };
    let spf = if subpage == 0 { 0 } else { 0x40 };
    let [high, low] = (content.len() as u16).to_be_bytes();
    let mut bytes = vec![spf | code, subpage, high, low];
    bytes.extend(content);
    Ok(bytes)
}

/// Logical Block Provisioning log page (SBC 6.4.5): parameter 1, available, and parameter 2, used.
fn provisioning(pointer: u16, space: &Space) -> Result<Vec<u8>, Sense> {
    let parameters = [(1_u16, space.available), (2, space.used)];
    if pointer > 2 {
        return Err(Sense::cdb_field(5, None));
    }
    let mut bytes = Vec::new();
    for (code, blocks) in parameters.into_iter().filter(|(code, _)| *code >= pointer) {
        let mut parameter = vec![0; 12];
        put(&mut parameter, 0, code.to_be_bytes());
        // FORMAT AND LINKING 11b: a list that LOG SENSE cannot save; of this unit only or of more: not said (SCOPE 00b).
        parameter[2] = 0x03;
        parameter[3] = 8;
        let units = u32::try_from(blocks >> THRESHOLD_EXPONENT).unwrap_or(u32::MAX);
        put(&mut parameter, 4, units.to_be_bytes());
        bytes.extend(parameter);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: Space = Space { used: 3 << 11, available: 5 << 11 };

    #[test]
    fn the_space_of_a_thin_unit() {
        let page = page((PROVISIONING, 0), 0, &SPACE).unwrap();
        assert_eq!(page[..4], [0x0c, 0, 0, 24]);
        assert_eq!(page[4..16], [0, 1, 3, 8, 0, 0, 0, 5, 0, 0, 0, 0]);
        assert_eq!(page[16..], [0, 2, 3, 8, 0, 0, 0, 3, 0, 0, 0, 0]);
    }

    #[test]
    fn parameters_begin_at_the_pointer() {
        let from = |pointer| page((PROVISIONING, 0), pointer, &SPACE);
        assert_eq!(from(2).unwrap()[..6], [0x0c, 0, 0, 12, 0, 2]);
        assert_eq!(from(3), Err(Sense::cdb_field(5, None)));
    }

    #[test]
    fn pages_that_are_not_there() {
        assert_eq!(page((0, 0), 0, &SPACE).unwrap(), [0, 0, 0, 2, 0, 0x0c]);
        assert_eq!(page((0, 0xff), 0, &SPACE).unwrap()[..4], [0x40, 0xff, 0, 6]);
        assert_eq!(page((0x0d, 0), 0, &SPACE), Err(Sense::cdb_field(2, Some(5))));
        assert_eq!(page((0x0c, 1), 0, &SPACE), Err(Sense::cdb_field(3, None)));
    }
}
