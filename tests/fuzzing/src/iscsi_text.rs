//! The text of iSCSI logins and text requests: keys, lists, numbers, names, hexadecimal and base64, in PDUs that are well made.

use std::sync::Arc;

use iscsi_target_protocol::Digests;
use iscsi_target_protocol::chap::{Algorithm, Credentials, Secret};
use iscsi_target_protocol::initiator::login::{self as initiator, Options};
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::access::{Access, Chap};
use iscsi_target_protocol::target::connection::Limits;
use iscsi_target_protocol::target::login::{Event, Login};
use iscsi_target_protocol::wire::LoginStatus;
use iscsi_target_protocol::wire::login::{LoginRequest, LoginResponse};
use iscsi_target_protocol::wire::pdu::{Header, Numbers, RESERVED_TAG, RequestNumbers, padding};
use iscsi_target_protocol::wire::request::TextRequest;

use crate::iscsi::{CHALLENGE, drive_target, logged_in, options};

/// Between the texts of two PDUs.
const BREAK: u8 = 0xff;
/// Most text of a PDU of a login.
const SEGMENT_MAX: usize = 8192;
const SECRET: &[u8] = b"a secret of the host";

/// The first byte says who gets the text, and whether CHAP is wanted. Each part begins with byte 1 of its PDU.
pub(super) fn text(bytes: &[u8]) {
    let [mode, text @ ..] = bytes else { return };
    let parts = text.split(|byte| *byte == BREAK).filter_map(|part| part.split_first());
    let parts = parts.map(|(flags, text)| (*flags, &text[..text.len().min(SEGMENT_MAX)]));
    match mode & 3 {
        0 | 1 => to_target(parts, mode & 1 != 0),
        2 => to_initiator(parts, mode & 4 != 0),
        _ => after_login(parts),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    const NAMES: &str = "InitiatorName=iqn.2026-01.org:host\0TargetName=iqn.2026-01.org:target\0SessionType=Normal\0";
    const KEYS: &str = "HeaderDigest=CRC32C,None\0DataDigest=None\0MaxConnections=4\0InitialR2T=No\0ImmediateData=Yes\0\
        MaxRecvDataSegmentLength=262144\0MaxBurstLength=512\0FirstBurstLength=65536\0DefaultTime2Wait=0\0\
        DefaultTime2Retain=0x10\0MaxOutstandingR2T=2\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
        ErrorRecoveryLevel=2\0TaskReporting=RFC3720,FastAbort\0iSCSIProtocolLevel=2\0IFMarker=No\0X-org.key=1\0";
    let response = Algorithm::Md5.respond(1, &secret(), &CHALLENGE.bytes);
    let hexadecimal: String = response.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |flags: u8, text: &str| [&[flags], text.as_bytes()].concat();
    let seed = |mode: u8, parts: &[Vec<u8>]| [vec![mode], parts.join(&BREAK)].concat();
    let proof = format!("CHAP_N=host\0CHAP_R=0x{hexadecimal}\0CHAP_I=7\0CHAP_C=0bAAECAwQFBgcICQoLDA0ODw==\0");
    let asked = "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0";
    vec![
        seed(0, &[part(0x87, &format!("{NAMES}{KEYS}"))]),
        seed(0, &[part(0x44, NAMES), part(0x44, KEYS), part(0x87, "MaxBurstLength=1024\0")]),
        seed(0, &[part(0x87, "InitiatorName=iqn.2026-01.org:host\0SessionType=Discovery\0")]),
        seed(
            1,
            &[
                part(0x00, &format!("{NAMES}AuthMethod=CHAP,None\0")),
                part(0x00, "CHAP_A=8,7,6,5\0"),
                part(0x81, &proof),
                part(0x87, KEYS),
            ],
        ),
        seed(2, &[part(0x87, KEYS)]),
        seed(2, &[part(0x87, "TargetAddress=10.0.0.1:3260,1\0")]),
        seed(6, &[part(0x00, "AuthMethod=CHAP\0"), part(0x00, asked), part(0x81, &proof), part(0x87, KEYS)]),
        seed(3, &[part(0x80, "SendTargets=All\0"), part(0x80, "MaxRecvDataSegmentLength=512\0")]),
        seed(3, &[part(0x40, "SendTargets="), part(0x80, "iqn.2026-01.org:target\0Unknown=1\0")]),
    ]
}

fn secret() -> Secret {
    Secret::new(SECRET).expect("long enough")
}

fn credentials(name: &str) -> Credentials {
    Credentials { name: name.to_owned(), secret: secret() }
}

/// A PDU with text.
fn pdu(mut header: Header, flags: u8, text: &[u8]) -> Vec<u8> {
    header[1] = flags;
    header[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
    [&header[..], text, &[0; 3][..padding(text.len() as u32)]].concat()
}

fn numbers() -> RequestNumbers {
    RequestNumbers { immediate: true, cmd_sn: 1, expected_stat_sn: 0 }
}

/// What was agreed on can be worked with, whatever was offered.
fn check(agreed: &Parameters) {
    assert!(agreed.is_valid() && agreed.send_segment >= 512, "{agreed:?}");
    assert!(agreed.pdu_in_order && agreed.sequence_in_order && agreed.error_recovery_level == 0, "{agreed:?}");
}

fn to_target<'a>(parts: impl Iterator<Item = (u8, &'a [u8])>, wants_chap: bool) {
    let chap = Chap::new(credentials("host"), None, &Algorithm::ALL).expect("one secret");
    let access = Access { initiators: None, chap: wants_chap.then(|| Arc::new(chap)) };
    let mut login = Login::new(Limits::default(), 1);
    let mut out = Vec::new();
    let header = LoginRequest {
        transition: None,
        version_max: 0,
        version_min: 0,
        isid: [0; 6],
        tsih: 0,
        task_tag: 0,
        cid: 0,
        numbers: numbers(),
    }
    .encode();
    for (flags, text) in parts {
        let bytes = pdu(header, flags, text);
        let mut input = &bytes[..];
        loop {
            match login.receive(&mut input, &mut out) {
                Ok(Some(Event::Identified)) => login.admit(&access, CHALLENGE, None, &mut out),
                Ok(Some(Event::Complete)) => {
                    let (session, connection) = login.open(1, 0, &mut out);
                    check(connection.parameters());
                    assert!(session.commands() > 0);
                    return;
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(out.len() < 1 << 20, "answers are bounded");
        out.clear();
    }
}

fn to_initiator<'a>(parts: impl Iterator<Item = (u8, &'a [u8])>, has_chap: bool) {
    let chap = initiator::Chap {
        initiator: credentials("host"),
        target: Some(credentials("target")),
        algorithms: Algorithm::ALL.to_vec(),
    };
    let options = Options { chap: has_chap.then(|| Arc::new(chap)), ..options(Digests { header: true, data: true }) };
    let mut login = initiator::Login::new(options, 1);
    let mut out = Vec::new();
    login.start(&mut out);
    let response = LoginResponse {
        transition: None,
        version_active: 0,
        isid: [0; 6],
        tsih: 1,
        task_tag: 0,
        numbers: Numbers { stat_sn: 0, expected_cmd_sn: 1, max_cmd_sn: 9 },
        status: LoginStatus::Success,
    };
    for (flags, text) in parts {
        out.clear();
        let bytes = pdu(response.encode(), flags, text);
        match login.receive(&mut &bytes[..], &mut out) {
            Ok(Some(initiator::Event::Complete)) => {
                let (session, connection) = login.finish();
                check(session.parameters());
                check(connection.parameters());
                return;
            }
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return,
        }
    }
}

fn after_login<'a>(parts: impl Iterator<Item = (u8, &'a [u8])>) {
    let mut ends = logged_in(Digests::default());
    let request =
        TextRequest { last: true, continues: false, task_tag: 7, transfer_tag: RESERVED_TAG, numbers: numbers() };
    let stream: Vec<u8> = parts.flat_map(|(flags, text)| pdu(request.encode(), flags, text)).collect();
    drive_target(&mut ends.target_session, &mut ends.target, &stream, usize::MAX);
    check(ends.target.parameters());
}
