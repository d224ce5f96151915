//! What an engine keeps with its copy of the membership record: few bytes in an attribute beside it, many in an internal lvol of the head.
//!
//! The attribute changes in the same step as the copy. Of the internal lvol it names the half that counts, so a write that a kill
//! cuts off changes nothing. Both halves are written when the first many bytes come: later ones cost one write in place, and never
//! lack space. A reset leaves them behind: `docs/replication.md`, "Copies of the record".

use std::rc::Rc;

use block_device::{BlockDevice, Error, Request, Slice, execute};
use lvol::{LvolInfo, Role, Store, StoreError};
use replica_protocol::{MAX_ATTACHED, checksum};

use crate::needs_space;

/// Bytes of each half of the internal lvol.
const HALF: u64 = MAX_ATTACHED as u64;
const BLOCK: u32 = 4096;

/// Forms of the attribute: the bytes follow, or where they are.
const HERE: u8 = 1;
const IN_A_HALF: u8 = 2;

/// Where many bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    half: u8,
    length: u32,
    checksum: u32,
}

/// The attribute's new value beside a copy of this length. Many bytes are durable in their half then.
pub(super) async fn place(store: &Store, head: &LvolInfo, copy: usize, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    if !needs_space(copy, bytes.len()) {
        return Ok([&[HERE], bytes].concat());
    }
    let before = head.attributes.get(super::ATTACHED).and_then(|value| Place::decode(value));
    let half = before.map_or(0, |before| 1 - before.half);
    let device = open(store, head).await?;
    let mut data = bytes.to_vec();
    data.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    if before.is_none() {
        // Every block of both halves gets its place on the disk.
        data.resize(HALF as usize, 0);
        write(&*device, HALF, &data).await?;
    }
    write(&*device, u64::from(half) * HALF, &data).await?;
    // At most MAX_ATTACHED.
    Ok(Place { half, length: bytes.len() as u32, checksum: checksum(bytes) }.encode())
}

/// What is attached; none if nothing was ever, or if it is lost.
pub(super) async fn read(store: &Store, head: &LvolInfo) -> Result<Option<Vec<u8>>, Error> {
    let Some(value) = head.attributes.get(super::ATTACHED) else { return Ok(None) };
    if let Some((&HERE, bytes)) = value.split_first() {
        return Ok(Some(bytes.to_vec()));
    }
    let Some(place) = Place::decode(value) else { return Ok(None) };
    let device = match store.open_internal(head.uuid, Role::Attached).await {
        Ok(device) => device,
        Err(StoreError::NotFound { .. } | StoreError::LvolDamaged { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let length = u64::from(place.length).next_multiple_of(BLOCK.into());
    let mut bytes = execute(&*device, Request::read(u64::from(place.half) * HALF, length)).await?.to_vec();
    bytes.truncate(place.length as usize);
    Ok(Some(bytes).filter(|bytes| checksum(bytes) == place.checksum))
}

async fn open(store: &Store, head: &LvolInfo) -> Result<Rc<dyn BlockDevice>, Error> {
    match store.create_internal(head.uuid, Role::Attached, 2 * HALF, BLOCK).await {
        Err(StoreError::LvolDamaged { .. }) => {
            store.delete_internal(head.uuid, Role::Attached).await?;
            store.create_internal(head.uuid, Role::Attached, 2 * HALF, BLOCK).await?;
        }
        made => drop(made?),
    }
    Ok(store.open_internal(head.uuid, Role::Attached).await?)
}

async fn write(device: &dyn BlockDevice, offset: u64, data: &[u8]) -> Result<(), Error> {
    execute(device, Request::Write { offset, data: Slice::from(data), fua: true }).await?;
    Ok(())
}

impl Place {
    fn encode(self) -> Vec<u8> {
        let mut bytes = vec![IN_A_HALF, self.half];
        bytes.extend(self.length.to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
        bytes
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let [IN_A_HALF, half @ (0 | 1), a, b, c, d, e, f, g, h] = *value else { return None };
        let place = Self { half, length: u32::from_le_bytes([a, b, c, d]), checksum: u32::from_le_bytes([e, f, g, h]) };
        (place.length <= MAX_ATTACHED).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_pinned() {
        let place = Place { half: 1, length: 0x0102, checksum: 0x0a0b_0c0d };
        let bytes = [2, 1, 2, 1, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a];
        assert_eq!(place.encode(), bytes);
        assert_eq!(Place::decode(&bytes), Some(place));
    }

    #[test]
    fn what_is_no_place_is_none() {
        let good = Place { half: 0, length: MAX_ATTACHED, checksum: 7 }.encode();
        assert!(Place::decode(&good).is_some());
        for (at, value) in [(0, 1), (0, 3), (1, 2), (2, 1)] {
            let mut wrong = good.clone();
            wrong[at] = value;
            assert_eq!(Place::decode(&wrong), None, "byte {at}");
        }
        assert_eq!(Place::decode(&good[..9]), None);
        assert_eq!(Place::decode(&[]), None);
    }
}
