//! Controller properties, read and written by Property Get and Property Set (Base 3.1.3).

/// Offset of Controller Capabilities (CAP), 8 bytes.
pub const CAP: u32 = 0x00;
/// Offset of Version (VS), 4 bytes.
pub const VS: u32 = 0x08;
/// Offset of Controller Configuration (CC), 4 bytes.
pub const CC: u32 = 0x14;
/// Offset of Controller Status (CSTS), 4 bytes.
pub const CSTS: u32 = 0x1c;
/// Offset of NVM Subsystem Reset (NSSR), 4 bytes.
pub const NSSR: u32 = 0x20;
/// Offset of Controller Ready Timeouts (CRTO), 4 bytes.
pub const CRTO: u32 = 0x68;

/// Value of Version (VS) for NVM Express 2.0.0: major, minor and tertiary number in bytes 3:2, 1, 0.
pub const VERSION_2_0: u32 = 0x0002_0000;

/// Controller Capabilities (CAP, Base 3.1.3.1), the fields that mean something over Fabrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Maximum Queue Entries Supported (MQES), bits 15:0; counted from one here.
    pub max_queue_entries: u32,
    /// Timeout (TO), bits 31:24: worst time to become ready, in 500 ms.
    pub ready_timeout_500ms: u8,
}

impl Capabilities {
    /// The property's value. Always set: contiguous queues (CQR, bit 16), the NVM command set (bit 37)
    /// and one or more I/O command sets (bit 43) in CSS, ready with media (CRMS.CRWMS, bit 59).
    pub fn encode(&self) -> u64 {
        u64::from(self.max_queue_entries - 1)
            | 1 << 16
            | u64::from(self.ready_timeout_500ms) << 24
            | 1 << 37
            | 1 << 43
            | 1 << 59
    }

    /// Reads the fields from the property's value.
    pub fn parse(value: u64) -> Self {
        Self { max_queue_entries: (value as u32 & 0xffff) + 1, ready_timeout_500ms: (value >> 24) as u8 }
    }
}

/// Shutdown Notification (CC.SHN, bits 15:14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownNotification {
    /// 00b: no notification.
    None,
    /// 01b or 10b: normal or abrupt shutdown.
    Shutdown,
    /// 11b: reserved.
    Reserved,
}

/// Controller Configuration (CC, Base 3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// What a host sets to enable a controller: I/O queue entry sizes 2^6 and 2^4 (IOSQES, IOCQES), EN.
    /// `all_command_sets` selects CSS 110b instead of 000b.
    pub fn enable(all_command_sets: bool) -> Self {
        let command_sets = if all_command_sets { 0b110 << 4 } else { 0 };
        Self(4 << 20 | 6 << 16 | command_sets | 1)
    }

    /// The same configuration with a normal shutdown notified (SHN 01b).
    pub fn with_shutdown(self) -> Self {
        Self(self.0 & !(0b11 << 14) | 0b01 << 14)
    }

    /// Enable (EN), bit 0.
    pub fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// I/O Command Set Selected (CSS), bits 6:4: 000b NVM, 110b all supported, 111b admin only.
    pub fn command_sets(self) -> u8 {
        (self.0 >> 4 & 0b111) as u8
    }

    /// Memory Page Size (MPS), bits 10:7: 2^(12 + MPS) bytes.
    pub fn memory_page_shift(self) -> u32 {
        12 + (self.0 >> 7 & 0xf)
    }

    /// Arbitration Mechanism Selected (AMS), bits 13:11.
    pub fn arbitration(self) -> u8 {
        (self.0 >> 11 & 0b111) as u8
    }

    /// Shutdown Notification (SHN), bits 15:14.
    pub fn shutdown(self) -> ShutdownNotification {
        match self.0 >> 14 & 0b11 {
            0b00 => ShutdownNotification::None,
            0b11 => ShutdownNotification::Reserved,
            _ => ShutdownNotification::Shutdown,
        }
    }
}

/// Bits of Controller Status (CSTS, Base 3.1.3.6).
pub mod csts {
    /// Ready (RDY).
    pub const READY: u32 = 1 << 0;
    /// Controller Fatal Status (CFS).
    pub const FATAL: u32 = 1 << 1;
    /// Shutdown Status (SHST) 10b: shutdown processing complete.
    pub const SHUTDOWN_COMPLETE: u32 = 0b10 << 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 3.1.3.1: 128 entries, 7.5 s.
    #[test]
    fn capabilities_bits() {
        let capabilities = Capabilities { max_queue_entries: 128, ready_timeout_500ms: 15 };
        assert_eq!(capabilities.encode(), 0x0800_0820_0f01_007f);
        assert_eq!(Capabilities::parse(0x0800_0820_0f01_007f), capabilities);
    }

    /// Base 3.1.3.5; 0x00460001 is what hosts write to enable an NVM-only controller.
    #[test]
    fn configuration_bits() {
        assert_eq!(Configuration::enable(false).0, 0x0046_0001);
        assert_eq!(Configuration::enable(true).0, 0x0046_0061);
        let configuration = Configuration(0x0046_4060);
        assert!(!configuration.enabled());
        assert_eq!(configuration.command_sets(), 0b110);
        assert_eq!(configuration.memory_page_shift(), 12);
        assert_eq!(configuration.arbitration(), 0);
        assert_eq!(configuration.shutdown(), ShutdownNotification::Shutdown);
        assert_eq!(Configuration(0x0046_0001).with_shutdown().0, 0x0046_4001);
        assert_eq!(Configuration(0xc000).shutdown(), ShutdownNotification::Reserved);
    }
}
