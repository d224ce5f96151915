//! A record as replicas keep it: in few enough bytes for any number of them. `docs/replication.md` has the table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use replica::MAX_MEMBERSHIP;
use uuid::Uuid;

use super::record::{MAX_REPLICAS, MemberState, PendingChange, ReplicaRecord, VolumeRecord};

const VERSION: u16 = 1;
const FLAG_CLEAN: u8 = 1;
const FLAG_REVERT: u8 = 2;

/// Longest node name and longest reason, in bytes. Names that the daemon takes are shorter; a reason is for people.
const NODE: usize = 120;
const REASON: usize = 60;

const HEADER: usize = 80;
const REPLICA: usize = 46 + NODE + REASON;
const _: () = assert!(HEADER + MAX_REPLICAS * REPLICA <= MAX_MEMBERSHIP as usize);

/// The bytes of a record. Reservations are attached to them. Tokens and what is noted of absent replicas stay out: a record that was
/// made anew takes nothing of that for known.
pub(crate) fn encode(record: &VolumeRecord) -> Vec<u8> {
    let (revert, snapshot) = match &record.pending {
        Some(PendingChange::Revert { snapshot }) => (FLAG_REVERT, *snapshot),
        None => (0, Uuid::nil()),
    };
    let mut bytes = VERSION.to_le_bytes().to_vec();
    // At most MAX_REPLICAS.
    bytes.extend([record.replicas.len() as u8, (u8::from(record.clean) * FLAG_CLEAN) | revert]);
    bytes.extend(record.block_size.to_le_bytes());
    bytes.extend(record.volume.as_bytes());
    bytes.extend(record.version.to_le_bytes());
    bytes.extend(record.epoch.to_le_bytes());
    bytes.extend(record.instance.as_bytes());
    bytes.extend(record.size.to_le_bytes());
    bytes.extend(snapshot.as_bytes());
    record.replicas.iter().for_each(|replica| put_replica(&mut bytes, replica));
    bytes
}

fn put_replica(bytes: &mut Vec<u8>, replica: &ReplicaRecord) {
    let (state, since, reason) = match &replica.state {
        MemberState::InSync => (0, 0, ""),
        MemberState::Settling => (1, 0, ""),
        MemberState::Rebuilding => (2, 0, ""),
        MemberState::OutOfSync { since, reason } => (3, *since, reason.as_str()),
    };
    let (family, address) = match replica.address.ip() {
        IpAddr::V4(address) => (4, address.to_ipv6_mapped()),
        IpAddr::V6(address) => (6, address),
    };
    bytes.extend(replica.replica.as_bytes());
    bytes.extend([state, family]);
    bytes.extend(replica.address.port().to_le_bytes());
    bytes.extend(address.octets());
    bytes.extend(u64::to_le_bytes(since));
    for (text, longest) in [(replica.node.as_str(), NODE), (reason, REASON)] {
        let text = &text[..text.floor_char_boundary(longest)];
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
    }
}

/// The record of such bytes; none if they are of another version, or no record.
pub(crate) fn decode(bytes: &[u8]) -> Option<VolumeRecord> {
    let mut fields = Fields(bytes);
    let version = u16::from_le_bytes(fields.array()?);
    let [count, flags] = fields.array()?;
    if version != VERSION || flags & !(FLAG_CLEAN | FLAG_REVERT) != 0 {
        return None;
    }
    let block_size = u32::from_le_bytes(fields.array()?);
    let mut record = VolumeRecord {
        volume: fields.uuid()?,
        version: fields.number()?,
        epoch: fields.number()?,
        instance: fields.uuid()?,
        clean: flags & FLAG_CLEAN != 0,
        size: fields.number()?,
        block_size,
        replicas: Vec::new(),
        pending: None,
        reservations: Vec::new(),
    };
    let snapshot = fields.uuid()?;
    record.pending = (flags & FLAG_REVERT != 0).then_some(PendingChange::Revert { snapshot });
    for _ in 0..count {
        record.replicas.push(fields.replica()?);
    }
    (fields.0.is_empty() && record.check().is_ok()).then_some(record)
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn uuid(&mut self) -> Option<Uuid> {
        self.array().map(Uuid::from_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let [length] = self.array()?;
        String::from_utf8(self.take(length.into())?.to_vec()).ok()
    }

    fn replica(&mut self) -> Option<ReplicaRecord> {
        let replica = self.uuid()?;
        let [state, family] = self.array()?;
        let port = u16::from_le_bytes(self.array()?);
        let address = Ipv6Addr::from(self.array::<16>()?);
        let ip: IpAddr = match family {
            4 => address.to_ipv4_mapped().map(Ipv4Addr::into)?,
            6 => address.into(),
            _ => return None,
        };
        let since = self.number()?;
        let (node, reason) = (self.text()?, self.text()?);
        let state = match state {
            0 => MemberState::InSync,
            1 => MemberState::Settling,
            2 => MemberState::Rebuilding,
            3 => MemberState::OutOfSync { since, reason },
            _ => return None,
        };
        let address = SocketAddr::new(ip, port);
        Some(ReplicaRecord { replica, node, address, state, token: None, changes: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewReplica;

    fn record(count: usize, node: &str, reason: &str) -> VolumeRecord {
        let replica = |number: usize| NewReplica {
            replica: Uuid::from_bytes([number as u8 + 1; 16]),
            node: node.to_owned(),
            address: ([10, 0, 0, 1], 9601).into(),
        };
        let mut record =
            VolumeRecord::new(Uuid::from_bytes([0xaa; 16]), 1 << 30, 512, (0..count).map(replica).collect::<Vec<_>>());
        (record.version, record.epoch, record.instance) = (3, 2, Uuid::from_bytes([9; 16]));
        for (number, replica) in record.replicas.iter_mut().enumerate().skip(1) {
            replica.state = match number % 3 {
                0 => MemberState::Settling,
                1 => MemberState::OutOfSync { since: 7, reason: reason.to_owned() },
                _ => MemberState::Rebuilding,
            };
            replica.address = (Ipv6Addr::LOCALHOST, 9601).into();
        }
        record
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut record = record(2, "n", "off");
        record.pending = Some(PendingChange::Revert { snapshot: Uuid::from_bytes([5; 16]) });
        let mut expected = vec![1, 0, 2, 3, 0, 2, 0, 0];
        expected.extend([0xaa; 16]);
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([9; 16]);
        expected.extend([0, 0, 0, 0x40, 0, 0, 0, 0]);
        expected.extend([5; 16]);
        expected.extend([1; 16]);
        expected.extend([0, 4, 0x81, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, b'n', 0]);
        expected.extend([2; 16]);
        expected.extend([3, 6, 0x81, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([7, 0, 0, 0, 0, 0, 0, 0, 1, b'n', 3, b'o', b'f', b'f']);
        assert_eq!(encode(&record), expected);
        assert_eq!(decode(&expected), Some(record));
    }

    #[test]
    fn the_largest_record_fits_and_only_words_are_cut() {
        let large = record(MAX_REPLICAS, &"ä".repeat(100), &"because ".repeat(40));
        let bytes = encode(&large);
        assert!(bytes.len() <= MAX_MEMBERSHIP as usize, "{}", bytes.len());
        let mut expected = large;
        for replica in &mut expected.replicas {
            replica.node = "ä".repeat(60);
            if let MemberState::OutOfSync { reason, .. } = &mut replica.state {
                reason.truncate(REASON);
            }
        }
        assert_eq!(decode(&bytes), Some(expected));
    }

    #[test]
    fn what_is_no_record_is_not_guessed_at() {
        let bytes = encode(&record(3, "n", "off"));
        (0..bytes.len()).for_each(|length| assert_eq!(decode(&bytes[..length]), None, "{length}"));
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        // Version, count, flags, family of an address, state, and a record with nothing in sync.
        for (at, value) in [(0, 2), (2, 2), (2, 17), (3, 4), (97, 5), (96, 4), (96, 2)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert_eq!(decode(&wrong), None, "byte {at}");
        }
    }
}
