//! Features of Get Features and Set Features (Base 5.15, 5.27; NVM 4.1.3).

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery.
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration.
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
/// Keep Alive Timer.
pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
/// I/O Command Set Profile.
pub const COMMAND_SET_PROFILE: u8 = 0x19;
/// Host Identifier.
pub const HOST_IDENTIFIER: u8 = 0x81;

/// Which value Get Features returns: Select (SEL), CDW10 bits 10:8 (Base 5.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// 000b: the value in force.
    Current,
    /// 001b: the value after a reset.
    Default,
    /// 010b: the value saved; here always the default, as nothing is saveable.
    Saved,
    /// 011b: what the controller can do with the feature.
    Capabilities,
}

impl Select {
    /// The selection in CDW10, if it is not reserved.
    pub fn parse(cdw10: u32) -> Option<Self> {
        match cdw10 >> 8 & 0b111 {
            0b000 => Some(Self::Current),
            0b001 => Some(Self::Default),
            0b010 => Some(Self::Saved),
            0b011 => Some(Self::Capabilities),
            _ => None,
        }
    }
}

/// Result bit of [`Select::Capabilities`]: the feature is changeable (bit 2).
pub const CAPABILITY_CHANGEABLE: u64 = 1 << 2;

/// Number of Queues (Base 5.27.1.5), CDW11 and result: both counts 0's based, submission below completion queues.
pub fn encode_queue_count(queues: u32) -> u32 {
    let zero_based = queues.saturating_sub(1) & 0xffff;
    zero_based << 16 | zero_based
}

/// Submission queues of a Number of Queues value, counted from one; none for the reserved FFFFh.
pub fn parse_queue_count(value: u32) -> Option<u32> {
    let (submission, completion) = (value & 0xffff, value >> 16);
    (submission != 0xffff && completion != 0xffff).then_some(submission.min(completion) + 1)
}

/// Bits of Asynchronous Event Configuration (Base 5.27.1.8) and of Identify's OAES.
pub mod event {
    /// Namespace Attribute Notices.
    pub const NAMESPACE_CHANGED: u32 = 1 << 8;
    /// Asymmetric Namespace Access Change Notices.
    pub const ANA_CHANGED: u32 = 1 << 11;
    /// Discovery Log Page Change Notification.
    pub const DISCOVERY_CHANGED: u32 = 1 << 31;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_are_zero_based_in_both_halves() {
        assert_eq!(encode_queue_count(128), 0x007f_007f);
        assert_eq!(parse_queue_count(0x0003_0001), Some(2));
        assert_eq!(parse_queue_count(0x0000_ffff), None);
        assert_eq!(parse_queue_count(0xffff_0000), None);
    }

    #[test]
    fn select_is_bits_10_to_8() {
        assert_eq!(Select::parse(0x0000_0006), Some(Select::Current));
        assert_eq!(Select::parse(0x0000_0306), Some(Select::Capabilities));
        assert_eq!(Select::parse(0x0000_0406), None);
    }
}
