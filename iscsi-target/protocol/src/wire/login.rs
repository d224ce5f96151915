//! Login Request and Login Response (11.12, 11.13).

use super::bytes::{array_at, put, u16_at, u32_at};
use super::pdu::{FLAG_CONTINUE, Header, Numbers, Opcode, RequestNumbers, header};

/// Stage of a login (11.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// SecurityNegotiation.
    Security = 0,
    /// LoginOperationalNegotiation.
    Operational = 1,
    /// FullFeaturePhase.
    FullFeature = 3,
}

impl Stage {
    fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::Security),
            1 => Some(Self::Operational),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }
}

/// Byte 1 of both login PDUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The text goes on in the next PDU (C).
    pub continues: bool,
    /// Current stage (CSG).
    pub current: Stage,
    /// Next stage (NSG), if this PDU asks for it or grants it (T).
    pub next: Option<Stage>,
}

/// Byte 1 bit 7 (T).
const TRANSIT: u8 = 1 << 7;

impl Transition {
    /// `None` if a stage has no such number, or there is no way from the current one to the next.
    fn parse(flags: u8) -> Option<Self> {
        let current = Stage::from_bits(flags >> 2).filter(|stage| *stage != Stage::FullFeature)?;
        let next =
            if flags & TRANSIT != 0 { Some(Stage::from_bits(flags).filter(|next| *next > current)?) } else { None };
        Some(Self { continues: flags & FLAG_CONTINUE != 0, current, next })
    }

    fn encode(self) -> u8 {
        let next = self.next.map_or(0, |next| TRANSIT | next as u8);
        next | if self.continues { FLAG_CONTINUE } else { 0 } | (self.current as u8) << 2
    }
}

/// Initiator's part of a session identifier (ISID, 11.12.5).
pub type Isid = [u8; 6];

/// Login Request (11.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// Byte 1; `None` if it makes no sense.
    pub transition: Option<Transition>,
    /// Version-max, byte 2.
    pub version_max: u8,
    /// Version-min, byte 3.
    pub version_min: u8,
    /// ISID, bytes 8 to 13.
    pub isid: Isid,
    /// Target Session Identifying Handle (TSIH), bytes 14 and 15; 0 for a new session.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Connection ID (CID), bytes 20 and 21.
    pub cid: u16,
    /// Bytes 24 to 31.
    pub numbers: RequestNumbers,
}

impl LoginRequest {
    /// The request of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            transition: Transition::parse(bytes[1]),
            version_max: bytes[2],
            version_min: bytes[3],
            isid: array_at(bytes, 8),
            tsih: u16_at(bytes, 14),
            task_tag: u32_at(bytes, 16),
            cid: u16_at(bytes, 20),
            numbers: RequestNumbers::parse(bytes),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::LoginRequest, self.transition.map_or(0, Transition::encode));
        bytes[2] = self.version_max;
        bytes[3] = self.version_min;
        put(&mut bytes, 8, self.isid);
        put(&mut bytes, 14, self.tsih.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        put(&mut bytes, 20, self.cid.to_be_bytes());
        self.numbers.write(&mut bytes);
        bytes
    }
}

/// Status-Class and Status-Detail of a login (11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum LoginStatus {
    /// Success.
    Success = 0x0000,
    /// Target moved temporarily: TargetAddress says where.
    MovedTemporarily = 0x0101,
    /// Target moved permanently: TargetAddress says where.
    MovedPermanently = 0x0102,
    /// Initiator error.
    InitiatorError = 0x0200,
    /// Authentication failure.
    AuthenticationFailure = 0x0201,
    /// Authorization failure: the initiator is not allowed here.
    AuthorizationFailure = 0x0202,
    /// Not found.
    NotFound = 0x0203,
    /// Target removed.
    Removed = 0x0204,
    /// Unsupported version.
    UnsupportedVersion = 0x0205,
    /// Too many connections.
    TooManyConnections = 0x0206,
    /// Missing parameter.
    MissingParameter = 0x0207,
    /// Can't include in session.
    CannotInclude = 0x0208,
    /// Session type not supported.
    SessionType = 0x0209,
    /// Session does not exist.
    NoSession = 0x020a,
    /// Invalid during login.
    InvalidDuringLogin = 0x020b,
    /// Target error.
    TargetError = 0x0300,
    /// Service unavailable: to be tried again.
    Unavailable = 0x0301,
    /// Out of resources.
    OutOfResources = 0x0302,
}

impl LoginStatus {
    /// The status with this class and detail; one with another detail is the general one of its class.
    pub fn from_code(code: u16) -> Self {
        match code {
            0x0000..=0x00ff => Self::Success,
            0x0102 => Self::MovedPermanently,
            0x0100..=0x01ff => Self::MovedTemporarily,
            0x0201 => Self::AuthenticationFailure,
            0x0202 => Self::AuthorizationFailure,
            0x0203 => Self::NotFound,
            0x0204 => Self::Removed,
            0x0205 => Self::UnsupportedVersion,
            0x0206 => Self::TooManyConnections,
            0x0207 => Self::MissingParameter,
            0x0208 => Self::CannotInclude,
            0x0209 => Self::SessionType,
            0x020a => Self::NoSession,
            0x020b => Self::InvalidDuringLogin,
            0x0200..=0x02ff => Self::InitiatorError,
            0x0301 => Self::Unavailable,
            0x0302 => Self::OutOfResources,
            0x0300.. => Self::TargetError,
        }
    }
}

/// Login Response (11.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// Byte 1; `None` if it makes no sense.
    pub transition: Option<Transition>,
    /// Version-active, byte 3; Version-max is 0 as well.
    pub version_active: u8,
    /// ISID.
    pub isid: Isid,
    /// TSIH: in the last response of a new session the one it gets.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Bytes 24 to 35.
    pub numbers: Numbers,
    /// Bytes 36 and 37.
    pub status: LoginStatus,
}

impl LoginResponse {
    /// The response of a header.
    pub fn parse(bytes: &Header) -> Self {
        Self {
            transition: Transition::parse(bytes[1]),
            version_active: bytes[3],
            isid: array_at(bytes, 8),
            tsih: u16_at(bytes, 14),
            task_tag: u32_at(bytes, 16),
            numbers: Numbers::parse(bytes),
            status: LoginStatus::from_code(u16_at(bytes, 36)),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> Header {
        let mut bytes = header(Opcode::LoginResponse, self.transition.map_or(0, Transition::encode));
        bytes[3] = self.version_active;
        put(&mut bytes, 8, self.isid);
        put(&mut bytes, 14, self.tsih.to_be_bytes());
        put(&mut bytes, 16, self.task_tag.to_be_bytes());
        self.numbers.write(&mut bytes);
        put(&mut bytes, 36, (self.status as u16).to_be_bytes());
        bytes
    }
}

/// ExpStatSN of a login's first request: what StatSN begins with.
pub fn first_status(bytes: &Header) -> u32 {
    u32_at(bytes, 28)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What open-iscsi sends first: T, from security to operational, ISID 00 02 3d ….
    #[test]
    fn a_login_request_is_where_the_rfc_puts_it() {
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[0x43, 0x81]);
        bytes[8..14].copy_from_slice(&[0x00, 0x02, 0x3d, 1, 0, 0]);
        bytes[19] = 9;
        bytes[21] = 3;
        bytes[27] = 1;
        let request = LoginRequest {
            transition: Some(Transition { continues: false, current: Stage::Security, next: Some(Stage::Operational) }),
            version_max: 0,
            version_min: 0,
            isid: [0x00, 0x02, 0x3d, 1, 0, 0],
            tsih: 0,
            task_tag: 9,
            cid: 3,
            numbers: RequestNumbers { immediate: true, cmd_sn: 1, expected_stat_sn: 0 },
        };
        assert_eq!(LoginRequest::parse(&bytes), request);
        assert_eq!(request.encode(), bytes);
    }

    #[test]
    fn stages_only_go_forward() {
        let parse = Transition::parse;
        assert!(parse(0x87).is_some() && parse(0x83).is_some() && parse(0x81).is_some() && parse(0x04).is_some());
        assert_eq!(parse(0x80), None, "from security to security");
        assert_eq!(parse(0x84), None, "from operational to security");
        assert_eq!(parse(0x82), None, "to stage 2");
        assert_eq!(parse(0x08), None, "in stage 2");
        assert_eq!(parse(0x0c), None, "in the full feature phase");
        for flags in [0x87, 0x83, 0x81, 0x04, 0x40] {
            assert_eq!(parse(flags).map(Transition::encode), Some(flags));
        }
    }

    #[test]
    fn a_login_response_tells_its_status() {
        let response = LoginResponse {
            transition: Some(Transition { continues: false, current: Stage::Security, next: None }),
            version_active: 0,
            isid: [1; 6],
            tsih: 0x0203,
            task_tag: 4,
            numbers: Numbers { stat_sn: 5, expected_cmd_sn: 6, max_cmd_sn: 7 },
            status: LoginStatus::AuthorizationFailure,
        };
        let bytes = response.encode();
        assert_eq!(bytes[..4], [0x23, 0, 0, 0]);
        assert_eq!(bytes[36..38], [2, 2]);
        assert_eq!(LoginResponse::parse(&bytes), response);
        assert_eq!(LoginStatus::from_code(0x02ff), LoginStatus::InitiatorError);
        assert_eq!(LoginStatus::from_code(0x7777), LoginStatus::TargetError);
    }
}
