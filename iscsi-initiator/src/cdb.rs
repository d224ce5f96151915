//! Commands as a disk understands them (SPC-4, SBC-3): CDBs, and how much data each moves which way.

use iscsi_target_protocol::initiator::connection::Data;

/// Bytes of a CDB.
const CDB_SIZE: usize = 16;

/// A command descriptor block and its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The CDB, with zeroes behind a shorter one.
    pub cdb: [u8; CDB_SIZE],
    /// Its data.
    pub data: Data,
    /// Whether it may bring less data than it has room for, as parameter data does.
    pub may_be_short: bool,
}

/// Blocks of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The first one.
    pub block: u64,
    /// How many.
    pub blocks: u32,
    /// Bytes of each.
    pub block_size: u32,
}

impl Access {
    fn bytes(self) -> u32 {
        self.blocks * self.block_size
    }
}

impl Command {
    /// Any command: its CDB of at most 16 bytes and its data.
    ///
    /// # Panics
    /// When the CDB is longer.
    pub fn new(cdb: &[u8], data: Data) -> Self {
        let mut whole = [0; CDB_SIZE];
        whole[..cdb.len()].copy_from_slice(cdb);
        Self { cdb: whole, data, may_be_short: false }
    }

    /// A command that brings parameter data of at most `room` bytes.
    pub fn parameters(cdb: &[u8], room: u32) -> Self {
        Self { may_be_short: true, ..Self::new(cdb, Data::Receive(room)) }
    }

    /// TEST UNIT READY (SPC 6.47).
    pub fn test_unit_ready() -> Self {
        Self::new(&[0x00], Data::None)
    }

    /// INQUIRY (SPC 6.6), standard or of a page of vital product data.
    pub fn inquiry(page: Option<u8>, room: u16) -> Self {
        let [high, low] = room.to_be_bytes();
        Self::parameters(&[0x12, page.is_some().into(), page.unwrap_or(0), high, low, 0], room.into())
    }

    /// REPORT LUNS (SPC 6.33), all of them.
    pub fn report_luns(room: u32) -> Self {
        let [a, b, c, d] = room.to_be_bytes();
        Self::parameters(&[0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0], room)
    }

    /// READ CAPACITY (16) (SBC 5.16).
    pub fn read_capacity(room: u8) -> Self {
        Self::parameters(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, room, 0, 0], room.into())
    }

    /// READ (16) (SBC 5.13).
    #[inline]
    pub fn read(access: Access) -> Self {
        Self { cdb: of_blocks(0x88, 0, access), data: Data::Receive(access.bytes()), may_be_short: false }
    }

    /// WRITE (16) (SBC 5.35), durable with `force_unit_access` (FUA).
    #[inline]
    pub fn write(access: Access, force_unit_access: bool) -> Self {
        let flags = u8::from(force_unit_access) << 3;
        Self { cdb: of_blocks(0x8a, flags, access), data: Data::Send(access.bytes()), may_be_short: false }
    }

    /// SYNCHRONIZE CACHE (16) (SBC 5.26) of all blocks.
    #[inline]
    pub fn flush() -> Self {
        Self::new(&[0x91], Data::None)
    }

    /// WRITE SAME (16) (SBC 5.43): one block of data for all of `access`, or with `unmap` their space given back if the data is zeroes.
    pub fn write_same(access: Access, unmap: bool) -> Self {
        Self::new(&of_blocks(0x93, u8::from(unmap) << 3, access), Data::Send(access.block_size))
    }

    /// UNMAP (SBC 5.28) with a parameter list of `length` bytes.
    pub fn unmap(length: u16) -> Self {
        let [high, low] = length.to_be_bytes();
        Self::new(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], Data::Send(length.into()))
    }

    /// COMPARE AND WRITE (SBC 5.2): sends what has to be there, and then what replaces it.
    ///
    /// # Panics
    /// When there are more than 255 blocks.
    pub fn compare_and_write(access: Access) -> Self {
        let Ok(blocks) = u8::try_from(access.blocks) else { panic!("COMPARE AND WRITE of {} blocks", access.blocks) };
        let mut cdb = [0; CDB_SIZE];
        cdb[0] = 0x89;
        cdb[2..10].copy_from_slice(&access.block.to_be_bytes());
        cdb[13] = blocks;
        Self::new(&cdb, Data::Send(2 * access.bytes()))
    }

    /// How many bytes it brings at most.
    pub(crate) fn receives(&self) -> u32 {
        if let Data::Receive(length) = self.data { length } else { 0 }
    }

    /// How many bytes it sends.
    pub(crate) fn sends(&self) -> u32 {
        if let Data::Send(length) = self.data { length } else { 0 }
    }
}

/// The shape that the commands of 16 bytes share: flags in byte 1, address, number of blocks.
#[inline]
fn of_blocks(code: u8, flags: u8, access: Access) -> [u8; CDB_SIZE] {
    let mut cdb = [0; CDB_SIZE];
    (cdb[0], cdb[1]) = (code, flags);
    cdb[2..10].copy_from_slice(&access.block.to_be_bytes());
    cdb[10..14].copy_from_slice(&access.blocks.to_be_bytes());
    cdb
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SBC tables 61, 105, 125, 130 and 18.
    #[test]
    fn cdbs_are_where_the_standard_puts_them() {
        let access = Access { block: 0x0102_0304_0506_0708, blocks: 0x0a, block_size: 512 };
        let read = Command::read(access);
        assert_eq!(read.cdb, [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0x0a, 0, 0]);
        assert_eq!(read.data, Data::Receive(5120));
        let write = Command::write(access, true);
        assert_eq!(write.cdb, [0x8a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0x0a, 0, 0]);
        assert_eq!(write.data, Data::Send(5120));
        let same = Command::write_same(access, true);
        assert_eq!(same.cdb, [0x93, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0x0a, 0, 0]);
        assert_eq!(same.data, Data::Send(512));
        let compare = Command::compare_and_write(access);
        assert_eq!(compare.cdb, [0x89, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0x0a, 0, 0]);
        assert_eq!(compare.data, Data::Send(10_240));
        assert_eq!(Command::inquiry(Some(0x83), 255).cdb[..6], [0x12, 1, 0x83, 0, 255, 0]);
    }
}
