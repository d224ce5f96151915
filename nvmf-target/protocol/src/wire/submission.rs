//! Submission queue entries (Base 3.3.3.1).

use super::bytes::{array_at, put, u16_at, u32_at, u64_at};
use super::sgl::Sgl;

/// Bytes of a submission queue entry.
pub const SUBMISSION_SIZE: usize = 64;

/// A Submission Queue Entry (SQE): one command's 64 bytes.
///
/// A thin view over the bytes; what the command dwords mean depends on the opcode and is parsed by the
/// command's own type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    bytes: [u8; SUBMISSION_SIZE],
}

impl Submission {
    /// The entry in these bytes.
    pub fn from_bytes(bytes: [u8; SUBMISSION_SIZE]) -> Self {
        Self { bytes }
    }

    /// A command with this opcode and namespace, SGLs used (PSDT 01b), all else zero.
    pub fn new(opcode: u8, namespace: u32) -> Self {
        let mut bytes = [0; SUBMISSION_SIZE];
        bytes[0] = opcode;
        bytes[1] = 0b01 << 6;
        put(&mut bytes, 4, namespace.to_le_bytes());
        Self { bytes }
    }

    /// The entry's bytes.
    pub fn as_bytes(&self) -> &[u8; SUBMISSION_SIZE] {
        &self.bytes
    }

    /// Opcode (OPC), byte 0.
    pub fn opcode(&self) -> u8 {
        self.bytes[0]
    }

    /// Fused Operation (FUSE), bits 1:0 of byte 1: 0 for a command of its own.
    pub fn fuse(&self) -> u8 {
        self.bytes[1] & 0b11
    }

    /// PRP or SGL for Data Transfer (PSDT), bits 7:6 of byte 1. Fabrics requires 01b for I/O and admin commands.
    pub fn psdt(&self) -> u8 {
        self.bytes[1] >> 6
    }

    /// Command Identifier (CID), bytes 3:2.
    pub fn command_id(&self) -> u16 {
        u16_at(&self.bytes, 2)
    }

    /// Sets the Command Identifier (CID).
    pub fn set_command_id(&mut self, command_id: u16) {
        put(&mut self.bytes, 2, command_id.to_le_bytes());
    }

    /// Namespace Identifier (NSID), bytes 7:4.
    pub fn namespace(&self) -> u32 {
        u32_at(&self.bytes, 4)
    }

    /// Fabrics Command Type (FCTYPE), byte 4 of a Fabrics command (Base 6).
    pub fn fabrics_type(&self) -> u8 {
        self.bytes[4]
    }

    /// SGL Entry 1 (SGL1), bytes 39:24.
    pub fn sgl(&self) -> Sgl {
        Sgl::parse(&array_at(&self.bytes, 24))
    }

    /// Sets SGL Entry 1 (SGL1).
    pub fn set_sgl(&mut self, sgl: Sgl) {
        put(&mut self.bytes, 24, sgl.encode());
    }

    /// Command Dword `index` (CDW10 to CDW15).
    ///
    /// # Panics
    /// If `index` is not 10 to 15.
    pub fn dword(&self, index: usize) -> u32 {
        assert!((10..=15).contains(&index), "CDW{index} is not command specific");
        u32_at(&self.bytes, index * 4)
    }

    /// Sets Command Dword `index` (CDW10 to CDW15).
    ///
    /// # Panics
    /// If `index` is not 10 to 15.
    pub fn set_dword(&mut self, index: usize, value: u32) {
        assert!((10..=15).contains(&index), "CDW{index} is not command specific");
        put(&mut self.bytes, index * 4, value.to_le_bytes());
    }

    /// CDW10 and CDW11 as one number: the Starting LBA (SLBA) of I/O commands.
    pub fn starting_block(&self) -> u64 {
        u64_at(&self.bytes, 40)
    }

    /// Sets CDW10 and CDW11: the Starting LBA (SLBA).
    pub fn set_starting_block(&mut self, block: u64) {
        put(&mut self.bytes, 40, block.to_le_bytes());
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; SUBMISSION_SIZE] {
        &mut self.bytes
    }
}

impl core::fmt::Debug for Submission {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Submission")
            .field("opcode", &self.opcode())
            .field("command_id", &self.command_id())
            .field("namespace", &self.namespace())
            .field("sgl", &self.sgl())
            .field("cdw10", &self.dword(10))
            .field("cdw11", &self.dword(11))
            .field("cdw12", &self.dword(12))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 3.3.3.1: byte 0 opcode, 1 FUSE and PSDT, 3:2 CID, 7:4 NSID, 39:24 SGL1, 43:40 CDW10 on.
    #[test]
    fn every_field_at_its_offset() {
        let mut bytes = [0; 64];
        bytes[0] = 0x02;
        bytes[1] = 0x40;
        bytes[2..4].copy_from_slice(&[0x34, 0x12]);
        bytes[4..8].copy_from_slice(&[0x01, 0, 0, 0]);
        bytes[32..36].copy_from_slice(&[0x00, 0x10, 0, 0]);
        bytes[39] = 0x5a;
        bytes[40..48].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        bytes[48..52].copy_from_slice(&[0x07, 0, 0, 0x40]);
        let entry = Submission::from_bytes(bytes);
        assert_eq!(entry.opcode(), 0x02);
        assert_eq!(entry.fuse(), 0);
        assert_eq!(entry.psdt(), 1);
        assert_eq!(entry.command_id(), 0x1234);
        assert_eq!(entry.namespace(), 1);
        assert_eq!(entry.sgl(), Sgl::Transport { length: 4096 });
        assert_eq!(entry.starting_block(), 0x1122_3344_5566_7788);
        assert_eq!(entry.dword(12), 0x4000_0007);

        let mut built = Submission::new(0x02, 1);
        built.set_command_id(0x1234);
        built.set_sgl(Sgl::Transport { length: 4096 });
        built.set_starting_block(0x1122_3344_5566_7788);
        built.set_dword(12, 0x4000_0007);
        assert_eq!(built.as_bytes(), &bytes);
    }
}
