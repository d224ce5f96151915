//! Command opcodes and their data direction (Base 5, 6 and 7, NVM 3.2).

/// Deallocates or hints ranges: Dataset Management (NVM 3.2.3).
pub const DATASET_MANAGEMENT: u8 = 0x09;
/// Makes acknowledged writes durable: Flush (Base 7.1).
pub const FLUSH: u8 = 0x00;
/// Writes logical blocks (NVM 3.2.6).
pub const WRITE: u8 = 0x01;
/// Reads logical blocks (NVM 3.2.4).
pub const READ: u8 = 0x02;
/// Compares logical blocks with host data (NVM 3.2.1).
pub const COMPARE: u8 = 0x05;
/// Sets logical blocks to zero (NVM 3.2.8).
pub const WRITE_ZEROES: u8 = 0x08;

/// Returns a log page (Base 5.16).
pub const GET_LOG_PAGE: u8 = 0x02;
/// Returns a data structure that describes controller or namespaces (Base 5.17).
pub const IDENTIFY: u8 = 0x06;
/// Aborts one command, best effort (Base 5.1).
pub const ABORT: u8 = 0x08;
/// Sets a feature's attributes (Base 5.27).
pub const SET_FEATURES: u8 = 0x09;
/// Returns a feature's attributes (Base 5.15).
pub const GET_FEATURES: u8 = 0x0a;
/// Waits for the next event: Asynchronous Event Request (Base 5.2).
pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
/// Restarts the Keep Alive Timer (Base 5.18).
pub const KEEP_ALIVE: u8 = 0x18;
/// All Fabrics commands; their type stands in FCTYPE (Base 6).
pub const FABRICS: u8 = 0x7f;

/// Which way a command moves data: bits 1:0 of the opcode or of FCTYPE (Base 3.3.3.1, "Data Transfer Direction").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// 00b: no data.
    None,
    /// 01b: from the host to the controller.
    ToController,
    /// 10b: from the controller to the host.
    ToHost,
    /// 11b: both ways; no command of ours uses it.
    Both,
}

impl Direction {
    /// Direction that `opcode` (or an FCTYPE) announces.
    pub fn of(opcode: u8) -> Self {
        match opcode & 0b11 {
            0b00 => Self::None,
            0b01 => Self::ToController,
            0b10 => Self::ToHost,
            _ => Self::Both,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_bits_of_known_opcodes_give_their_direction() {
        assert_eq!(Direction::of(READ), Direction::ToHost);
        assert_eq!(Direction::of(WRITE), Direction::ToController);
        assert_eq!(Direction::of(COMPARE), Direction::ToController);
        assert_eq!(Direction::of(WRITE_ZEROES), Direction::None);
        assert_eq!(Direction::of(IDENTIFY), Direction::ToHost);
        assert_eq!(Direction::of(SET_FEATURES), Direction::ToController);
        assert_eq!(Direction::of(0x83), Direction::Both);
    }
}
