//! The one table of supported commands: the parser refuses what it does not name, and REPORT SUPPORTED OPERATION CODES
//! (SPC 6.35) reads it aloud.

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::put;
use crate::command::CDB_LENGTH;
use crate::sense::Sense;

/// Declares the operation codes and the table: name, code, service action if there are any, length, and which bits of the
/// bytes after the first may be set (the service action's bits are left to the parser).
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $code:literal $(/ $action:literal)?, $length:literal, [$($bits:literal),*];)*) => {
        /// What a CDB asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Operation {
            $($(#[$doc])* $name,)*
        }

        /// Every supported command, by ascending operation code and service action.
        pub const SUPPORTED: &[Supported] = &[$(Supported {
            operation: Operation::$name,
            code: $code,
            service_action: operations!(@action $($action)?),
            length: $length,
            usable: &[$($bits),*],
        },)*];
    };
    (@action) => { None };
    (@action $action:literal) => { Some($action) };
}

/// A supported command.
#[derive(Clone, Copy, Debug)]
pub struct Supported {
    /// Which one.
    pub operation: Operation,
    /// OPERATION CODE.
    pub code: u8,
    /// SERVICE ACTION, in bits 4:0 of byte 1.
    pub service_action: Option<u8>,
    /// Bytes of the CDB.
    pub length: u8,
    /// Bits that may be set, from byte 1 on.
    usable: &'static [u8],
}

operations! {
    /// TEST UNIT READY.
    TestUnitReady = 0x00, 6, [0, 0, 0, 0, 0];
    /// REQUEST SENSE.
    RequestSense = 0x03, 6, [0x01, 0, 0, 0xff, 0];
    /// READ (6).
    Read6 = 0x08, 6, [0x1f, 0xff, 0xff, 0xff, 0];
    /// WRITE (6).
    Write6 = 0x0a, 6, [0x1f, 0xff, 0xff, 0xff, 0];
    /// INQUIRY.
    Inquiry = 0x12, 6, [0x01, 0xff, 0xff, 0xff, 0];
    /// MODE SELECT (6).
    ModeSelect6 = 0x15, 6, [0x11, 0, 0, 0xff, 0];
    /// RESERVE (6).
    Reserve6 = 0x16, 6, [0, 0, 0, 0, 0];
    /// RELEASE (6).
    Release6 = 0x17, 6, [0, 0, 0, 0, 0];
    /// MODE SENSE (6).
    ModeSense6 = 0x1a, 6, [0x08, 0xff, 0xff, 0xff, 0];
    /// START STOP UNIT.
    StartStopUnit = 0x1b, 6, [0x01, 0, 0x0f, 0xf7, 0];
    /// READ CAPACITY (10).
    ReadCapacity10 = 0x25, 10, [0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0];
    /// READ (10).
    Read10 = 0x28, 10, [0x1a, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// WRITE (10).
    Write10 = 0x2a, 10, [0x1a, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// WRITE AND VERIFY (10).
    WriteAndVerify10 = 0x2e, 10, [0x12, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// VERIFY (10).
    Verify10 = 0x2f, 10, [0x12, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// PRE-FETCH (10).
    Prefetch10 = 0x34, 10, [0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// SYNCHRONIZE CACHE (10).
    SynchronizeCache10 = 0x35, 10, [0x06, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// WRITE SAME (10).
    WriteSame10 = 0x41, 10, [0x08, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0];
    /// UNMAP.
    Unmap = 0x42, 10, [0, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0];
    /// LOG SENSE.
    LogSense = 0x4d, 10, [0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// MODE SELECT (10).
    ModeSelect10 = 0x55, 10, [0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    /// MODE SENSE (10).
    ModeSense10 = 0x5a, 10, [0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE IN, READ KEYS.
    ReadKeys = 0x5e / 0x00, 10, [0, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE IN, READ RESERVATION.
    ReadReservation = 0x5e / 0x01, 10, [0, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE IN, REPORT CAPABILITIES.
    ReportCapabilities = 0x5e / 0x02, 10, [0, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE IN, READ FULL STATUS.
    ReadFullStatus = 0x5e / 0x03, 10, [0, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, REGISTER.
    Register = 0x5f / 0x00, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, RESERVE.
    Reserve = 0x5f / 0x01, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, RELEASE.
    Release = 0x5f / 0x02, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, CLEAR.
    Clear = 0x5f / 0x03, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, PREEMPT.
    Preempt = 0x5f / 0x04, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, PREEMPT AND ABORT.
    PreemptAndAbort = 0x5f / 0x05, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore = 0x5f / 0x06, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// PERSISTENT RESERVE OUT, REGISTER AND MOVE.
    RegisterAndMove = 0x5f / 0x07, 10, [0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    /// EXTENDED COPY (LID1).
    ExtendedCopy = 0x83 / 0x00, 16, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// RECEIVE COPY RESULTS: RECEIVE COPY STATUS (LID1).
    ReceiveCopyStatus = 0x84 / 0x00, 16, [0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// RECEIVE COPY RESULTS: RECEIVE COPY OPERATING PARAMETERS.
    ReceiveCopyParameters = 0x84 / 0x03, 16, [0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// READ (16).
    Read16 = 0x88, 16, [0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// COMPARE AND WRITE.
    CompareAndWrite = 0x89, 16, [0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x1f, 0];
    /// WRITE (16).
    Write16 = 0x8a, 16, [0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// ORWRITE (16).
    OrWrite16 = 0x8b, 16, [0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// WRITE AND VERIFY (16).
    WriteAndVerify16 = 0x8e, 16, [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// VERIFY (16).
    Verify16 = 0x8f, 16, [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// PRE-FETCH (16).
    Prefetch16 = 0x90, 16, [0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// SYNCHRONIZE CACHE (16).
    SynchronizeCache16 = 0x91, 16, [0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// WRITE SAME (16).
    WriteSame16 = 0x93, 16, [0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// READ CAPACITY (16).
    ReadCapacity16 = 0x9e / 0x10, 16, [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0];
    /// GET LBA STATUS.
    GetLbaStatus = 0x9e / 0x12, 16, [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// REPORT LUNS.
    ReportLuns = 0xa0, 12, [0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// REPORT TARGET PORT GROUPS.
    ReportTargetPortGroups = 0xa3 / 0x0a, 12, [0xe0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// REPORT SUPPORTED OPERATION CODES.
    ReportOperationCodes = 0xa3 / 0x0c, 12, [0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    /// READ (12).
    Read12 = 0xa8, 12, [0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// WRITE (12).
    Write12 = 0xaa, 12, [0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// WRITE AND VERIFY (12).
    WriteAndVerify12 = 0xae, 12, [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
    /// VERIFY (12).
    Verify12 = 0xaf, 12, [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
}

/// The bits of SERVICE ACTION in byte 1.
const SERVICE_ACTION: u8 = 0x1f;

/// By operation code, where the table's rows of it begin; `u8::MAX` where there are none. For the path of every command.
const FIRST_ROW: [u8; 256] = {
    let mut rows = [u8::MAX; 256];
    let mut row = SUPPORTED.len();
    while row > 0 {
        row -= 1;
        rows[SUPPORTED[row].code as usize] = row as u8;
    }
    rows
};

impl Supported {
    /// The table's row of a CDB.
    ///
    /// # Errors
    /// INVALID COMMAND OPERATION CODE, or INVALID FIELD IN CDB for a service action or a bit that is not supported.
    #[inline]
    pub fn of(cdb: &[u8; CDB_LENGTH]) -> Result<&'static Self, Sense> {
        let rows = rows_of(cdb[0]);
        let first = rows.first().ok_or(Sense::INVALID_OPERATION_CODE)?;
        let row = match first.service_action {
            None => first,
            Some(_) => rows
                .iter()
                .find(|row| row.service_action == Some(cdb[1] & SERVICE_ACTION))
                .ok_or(Sense::cdb_field(1, Some(4)))?,
        };
        row.check_bits(cdb)?;
        Ok(row)
    }

    #[inline]
    fn check_bits(&self, cdb: &[u8; CDB_LENGTH]) -> Result<(), Sense> {
        for (index, (byte, usable)) in cdb[1..].iter().zip(self.usable).enumerate() {
            let action = if index == 0 && self.service_action.is_some() { SERVICE_ACTION } else { 0 };
            let unusable = byte & !usable & !action;
            if unusable != 0 {
                return Err(Sense::cdb_field(index as u16 + 1, Some(unusable.ilog2() as u8)));
            }
        }
        Ok(())
    }

    /// CDB USAGE DATA: the operation code and service action as they are, and which other bits may be set.
    fn usage(&self) -> Vec<u8> {
        let mut usage = vec![self.code];
        usage.extend(self.usable);
        usage[1] |= self.service_action.unwrap_or(0);
        usage
    }

    /// A command descriptor of the list of all commands (SPC 6.35.2).
    fn describe(&self, timeouts: bool) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes[0] = self.code;
        put(&mut bytes, 2, u16::from(self.service_action.unwrap_or(0)).to_be_bytes());
        bytes[5] = u8::from(timeouts) << 1 | u8::from(self.service_action.is_some());
        put(&mut bytes, 6, u16::from(self.length).to_be_bytes());
        if timeouts {
            bytes.extend(NO_TIMEOUTS);
        }
        bytes
    }
}

/// Command timeouts descriptor (SPC 6.35.4): nothing is promised.
const NO_TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn rows_of(code: u8) -> &'static [Supported] {
    let first = usize::from(FIRST_ROW[usize::from(code)]);
    let rows = SUPPORTED.get(first..).unwrap_or(&[]);
    let count = rows.iter().take_while(|row| row.code == code).count();
    &rows[..count]
}

/// All supported commands (SPC 6.35.2).
pub(crate) fn report_all(timeouts: bool) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    SUPPORTED.iter().for_each(|row| bytes.extend(row.describe(timeouts)));
    let length = bytes.len() as u32 - 4;
    put(&mut bytes, 0, length.to_be_bytes());
    bytes
}

/// One command (SPC 6.35.3). `options` is REPORTING OPTIONS 1 (by operation code), 2 (and service action) or 3 (either).
///
/// # Errors
/// INVALID FIELD IN CDB if a service action is named where there are none, or missing where there are.
pub(crate) fn report_one(options: u8, code: u8, action: u16, timeouts: bool) -> Result<Vec<u8>, Sense> {
    let rows = rows_of(code);
    let has_actions = rows.first().is_some_and(|row| row.service_action.is_some());
    match (options, has_actions) {
        (1, true) | (2, false) if !rows.is_empty() => return Err(Sense::cdb_field(2, Some(2))),
        _ => {}
    }
    let row =
        rows.iter().find(|row| row.service_action.map_or(options == 1 || action == 0, |own| u16::from(own) == action));
    // SUPPORT: 3 as the standard says, 1 not supported.
    let support = if row.is_some() { 3 } else { 1 };
    let mut bytes = vec![0, u8::from(timeouts && row.is_some()) << 7 | support, 0, 0];
    if let Some(row) = row {
        put(&mut bytes, 2, u16::from(row.length).to_be_bytes());
        bytes.extend(row.usage());
        if timeouts {
            bytes.extend(NO_TIMEOUTS);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; CDB_LENGTH] {
        let mut cdb = [0; CDB_LENGTH];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn the_table_is_in_order_and_as_long_as_its_cdbs() {
        let place = |row: &Supported| (row.code, row.service_action);
        assert!(SUPPORTED.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])));
        for row in SUPPORTED {
            assert_eq!(row.usable.len() + 1, usize::from(row.length), "{:?}", row.operation);
            assert_eq!(
                Supported::of(&cdb(&[row.code, row.service_action.unwrap_or(0)])).unwrap().operation,
                row.operation
            );
            // SPC 4.2.5.1: the group code says the length.
            let length = match row.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(row.length, length, "{:?}", row.operation);
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_place() {
        let sense = |bytes: &[u8]| Supported::of(&cdb(bytes)).map(|row| row.operation).unwrap_err();
        assert_eq!(sense(&[0x04]), Sense::INVALID_OPERATION_CODE);
        assert_eq!(sense(&[0x5e, 0x04]), Sense::cdb_field(1, Some(4)));
        // RDPROTECT.
        assert_eq!(sense(&[0x28, 0x20]), Sense::cdb_field(1, Some(5)));
        // NACA in CONTROL.
        assert_eq!(sense(&[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0x04]), Sense::cdb_field(9, Some(2)));
    }

    #[test]
    fn one_command_is_asked_for_with_its_service_action_or_without() {
        let read = report_one(1, 0x28, 0, false).unwrap();
        assert_eq!(read, [0, 3, 0, 10, 0x28, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]);
        assert_eq!(report_one(2, 0x28, 0, false), Err(Sense::cdb_field(2, Some(2))));
        assert_eq!(report_one(1, 0x9e, 0x10, false), Err(Sense::cdb_field(2, Some(2))));
        let capacity = report_one(2, 0x9e, 0x10, true).unwrap();
        assert_eq!(capacity[..6], [0, 0x83, 0, 16, 0x9e, 0x10]);
        assert_eq!(capacity.len(), 4 + 16 + 12);
        assert_eq!(report_one(2, 0x9e, 0x11, true), Ok(vec![0, 1, 0, 0]));
        assert_eq!(report_one(1, 0x04, 0, false), Ok(vec![0, 1, 0, 0]));
    }

    #[test]
    fn all_commands_with_and_without_time_limits() {
        let plain = report_all(false);
        assert_eq!(plain.len(), 4 + 8 * SUPPORTED.len());
        assert_eq!(plain[4..12], [0, 0, 0, 0, 0, 0, 0, 6]);
        let timed = report_all(true);
        assert_eq!(timed.len(), 4 + 20 * SUPPORTED.len());
        assert_eq!(timed[9], 0x02);
    }
}
