//! What two ends agree on: every operational key, its default, and how two offers combine (13). The table of docs/iscsi.md.

use core::ops::RangeInclusive;

use crate::framing::Digests;
use crate::wire::pdu::DATA_SEGMENT_MAX;
use crate::wire::text::{Text, boolean, constant, number};

/// The values of the operational keys, as one end offers them or as both agreed on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// HeaderDigest and DataDigest (13.1).
    pub digests: Digests,
    /// MaxConnections (13.2).
    pub max_connections: u32,
    /// InitialR2T (13.10): no data comes in Data-Out without being asked for.
    pub initial_r2t: bool,
    /// ImmediateData (13.11): data may come with its command.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength (13.12) of this end.
    pub receive_segment: u32,
    /// MaxRecvDataSegmentLength of the other end.
    pub send_segment: u32,
    /// MaxBurstLength (13.13).
    pub max_burst: u32,
    /// FirstBurstLength (13.14).
    pub first_burst: u32,
    /// DefaultTime2Wait (13.15), in seconds.
    pub time_to_wait: u32,
    /// DefaultTime2Retain (13.16), in seconds.
    pub time_to_retain: u32,
    /// MaxOutstandingR2T (13.17).
    pub outstanding_r2t: u32,
    /// ErrorRecoveryLevel (13.20).
    pub error_recovery_level: u32,
    /// iSCSIProtocolLevel (13.24).
    pub protocol_level: u32,
    /// DataPDUInOrder (13.18).
    pub pdu_in_order: bool,
    /// DataSequenceInOrder (13.19).
    pub sequence_in_order: bool,
}

impl Default for Parameters {
    /// What holds for keys that nobody negotiates.
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            receive_segment: 8192,
            send_segment: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
            time_to_wait: 2,
            time_to_retain: 20,
            outstanding_r2t: 1,
            error_recovery_level: 0,
            protocol_level: 1,
            pdu_in_order: true,
            sequence_in_order: true,
        }
    }
}

impl Parameters {
    /// What a target offers.
    pub fn target() -> Self {
        Self {
            digests: Digests { header: true, data: true },
            max_connections: 8,
            initial_r2t: false,
            receive_segment: 262_144,
            max_burst: 1 << 20,
            first_burst: 262_144,
            time_to_retain: 0,
            outstanding_r2t: 4,
            ..Self::default()
        }
    }

    /// Whether each value is in its range, and they fit together.
    pub fn is_valid(&self) -> bool {
        let mut values = *self;
        let in_range = |definition: &Definition| match &definition.rule {
            Rule::Number { range, field, .. } => range.contains(field(&mut values)),
            _ => true,
        };
        KEYS.iter().all(in_range) && self.first_burst <= self.max_burst && SEGMENT.contains(&self.receive_segment)
    }

    /// The values of a connection that joins a session: those of the session are as they are.
    pub(crate) fn joining(session: &Self) -> Self {
        let own = Self::default();
        Self { digests: own.digests, receive_segment: own.receive_segment, send_segment: own.send_segment, ..*session }
    }
}

/// MaxRecvDataSegmentLength.
pub(crate) const SEGMENT_KEY: &str = "MaxRecvDataSegmentLength";
const SEGMENT: RangeInclusive<u32> = 512..=DATA_SEGMENT_MAX;
const COUNT: RangeInclusive<u32> = 1..=65_535;
const SECONDS: RangeInclusive<u32> = 0..=3_600;

enum Combine {
    Least,
    Greatest,
}

enum Rule {
    /// A list of digests by preference: the first one that is allowed.
    Digest {
        field: fn(&mut Parameters) -> &mut bool,
    },
    Number {
        combine: Combine,
        range: RangeInclusive<u32>,
        field: fn(&mut Parameters) -> &mut u32,
    },
    And {
        field: fn(&mut Parameters) -> &mut bool,
    },
    Or {
        field: fn(&mut Parameters) -> &mut bool,
    },
    /// Declared by each end for itself.
    Segment,
    /// A list of which we take this one.
    Choice(&'static str),
    /// Always answered with this (13.25).
    Obsolete(&'static str),
}

struct Definition {
    key: &'static str,
    rule: Rule,
    /// Only the leading login of a session negotiates it.
    leading_only: bool,
    /// It does not matter in discovery sessions.
    irrelevant_in_discovery: bool,
}

const fn connection(key: &'static str, rule: Rule) -> Definition {
    Definition { key, rule, leading_only: false, irrelevant_in_discovery: false }
}

const fn session(key: &'static str, rule: Rule) -> Definition {
    Definition { key, rule, leading_only: true, irrelevant_in_discovery: false }
}

const fn normal_session(key: &'static str, rule: Rule) -> Definition {
    Definition { key, rule, leading_only: true, irrelevant_in_discovery: true }
}

const fn least(range: RangeInclusive<u32>, field: fn(&mut Parameters) -> &mut u32) -> Rule {
    Rule::Number { combine: Combine::Least, range, field }
}

const KEYS: &[Definition] = &[
    connection("HeaderDigest", Rule::Digest { field: |p| &mut p.digests.header }),
    connection("DataDigest", Rule::Digest { field: |p| &mut p.digests.data }),
    connection(SEGMENT_KEY, Rule::Segment),
    normal_session("MaxConnections", least(COUNT, |p| &mut p.max_connections)),
    normal_session("InitialR2T", Rule::Or { field: |p| &mut p.initial_r2t }),
    normal_session("ImmediateData", Rule::And { field: |p| &mut p.immediate_data }),
    normal_session("MaxBurstLength", least(SEGMENT, |p| &mut p.max_burst)),
    normal_session("FirstBurstLength", least(SEGMENT, |p| &mut p.first_burst)),
    session(
        "DefaultTime2Wait",
        Rule::Number { combine: Combine::Greatest, range: SECONDS, field: |p| &mut p.time_to_wait },
    ),
    session("DefaultTime2Retain", least(SECONDS, |p| &mut p.time_to_retain)),
    normal_session("MaxOutstandingR2T", least(COUNT, |p| &mut p.outstanding_r2t)),
    normal_session("DataPDUInOrder", Rule::Or { field: |p| &mut p.pdu_in_order }),
    normal_session("DataSequenceInOrder", Rule::Or { field: |p| &mut p.sequence_in_order }),
    session("ErrorRecoveryLevel", least(0..=2, |p| &mut p.error_recovery_level)),
    normal_session("TaskReporting", Rule::Choice("RFC3720")),
    session("iSCSIProtocolLevel", least(0..=31, |p| &mut p.protocol_level)),
    session("IFMarker", Rule::Obsolete(constant::NO)),
    session("OFMarker", Rule::Obsolete(constant::NO)),
    session("IFMarkInt", Rule::Obsolete(constant::REJECT)),
    session("OFMarkInt", Rule::Obsolete(constant::REJECT)),
];

/// Why a negotiation fails altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The key was negotiated before.
    Repeated,
    /// The answer is none that could be given to what was offered.
    Impossible,
}

/// One end's view of the negotiation of a login.
#[derive(Clone, Debug)]
pub(crate) struct Negotiation {
    offer: Parameters,
    agreed: Parameters,
    /// Keys that have come, a bit for each of [`KEYS`].
    seen: u32,
    leading: bool,
    discovery: bool,
}

const _: () = assert!(KEYS.len() <= 32, "a bit for each key");

impl Negotiation {
    /// Of the leading login of a session.
    pub(crate) fn leading(offer: Parameters, discovery: bool) -> Self {
        Self { offer, agreed: Parameters::default(), seen: 0, leading: true, discovery }
    }

    /// Of a login that joins a session with these parameters.
    pub(crate) fn joining(offer: Parameters, session: &Parameters) -> Self {
        Self { offer, agreed: Parameters::joining(session), seen: 0, leading: false, discovery: false }
    }

    /// Whether `key` is one of those negotiated here.
    pub(crate) fn is_operational(key: &str) -> bool {
        KEYS.iter().any(|definition| definition.key == key)
    }

    /// What is agreed on so far; what this end declared counts with [`Self::declare`].
    pub(crate) fn agreed(&self) -> Parameters {
        Parameters { first_burst: self.agreed.first_burst.min(self.agreed.max_burst), ..self.agreed }
    }

    /// Declares how much data this end takes in a PDU.
    pub(crate) fn declare(&mut self, text: &mut Text) {
        text.push_number(SEGMENT_KEY, self.offer.receive_segment);
        self.agreed.receive_segment = self.offer.receive_segment;
    }

    /// Answers an offer of the other end. `false`: it is not an operational key.
    pub(crate) fn respond(&mut self, key: &str, value: &str, answer: &mut Text) -> Result<bool, Failure> {
        let Some(definition) = self.find(key)? else { return Ok(false) };
        if let Rule::Segment = definition.rule {
            match number(value).filter(|length| SEGMENT.contains(length)) {
                Some(length) => self.agreed.send_segment = length,
                None => answer.push(key, constant::REJECT),
            }
            return Ok(true);
        }
        if self.discovery && definition.irrelevant_in_discovery {
            answer.push(key, constant::IRRELEVANT);
            return Ok(true);
        }
        let negotiable = self.leading || !definition.leading_only;
        if !negotiable || self.combine(definition, value, answer).is_none() {
            answer.push(key, constant::REJECT);
        }
        Ok(true)
    }

    /// Combines an offer with ours and answers; `None` if its value is not valid.
    fn combine(&mut self, definition: &Definition, value: &str, answer: &mut Text) -> Option<()> {
        let key = definition.key;
        match &definition.rule {
            Rule::Digest { field } => {
                let allowed = *field(&mut self.offer);
                let choice = value.split(',').find_map(|name| digest(name).filter(|on| allowed || !on))?;
                *field(&mut self.agreed) = choice;
                answer.push(key, if choice { CRC32C } else { constant::NONE });
            }
            Rule::Number { combine, range, field } => {
                let offered = number(value).filter(|number| range.contains(number))?;
                let ours = *field(&mut self.offer);
                let result = match combine {
                    Combine::Least => offered.min(ours),
                    Combine::Greatest => offered.max(ours),
                };
                *field(&mut self.agreed) = result;
                answer.push_number(key, result);
            }
            Rule::And { field } => {
                let result = boolean(value)? && *field(&mut self.offer);
                *field(&mut self.agreed) = result;
                answer.push_boolean(key, result);
            }
            Rule::Or { field } => {
                let result = boolean(value)? || *field(&mut self.offer);
                *field(&mut self.agreed) = result;
                answer.push_boolean(key, result);
            }
            Rule::Choice(choice) => {
                value.split(',').find(|name| name == choice)?;
                answer.push(key, choice);
            }
            Rule::Obsolete(text) => answer.push(key, text),
            // Declared, not combined.
            Rule::Segment => {}
        }
        Some(())
    }

    /// Offers every key that is not at its default, and declares how much data this end takes.
    pub(crate) fn propose(&mut self, text: &mut Text) {
        let mut defaults = Parameters::default();
        for definition in KEYS {
            if definition.leading_only && !self.leading || self.discovery && definition.irrelevant_in_discovery {
                continue;
            }
            match &definition.rule {
                Rule::Digest { field } if *field(&mut self.offer) => text.push(definition.key, "CRC32C,None"),
                Rule::Digest { .. } => text.push(definition.key, constant::NONE),
                Rule::Number { field, .. } if *field(&mut self.offer) != *field(&mut defaults) => {
                    text.push_number(definition.key, *field(&mut self.offer));
                }
                Rule::And { field } | Rule::Or { field } if *field(&mut self.offer) != *field(&mut defaults) => {
                    text.push_boolean(definition.key, *field(&mut self.offer));
                }
                _ => {}
            }
        }
        self.declare(text);
    }

    /// Takes the other end's answer to what [`Self::propose`] offered, or its declaration. `false`: no operational key.
    pub(crate) fn accept(&mut self, key: &str, value: &str) -> Result<bool, Failure> {
        let Some(definition) = self.find(key)? else { return Ok(false) };
        if matches!(value, constant::REJECT | constant::IRRELEVANT | constant::NOT_UNDERSTOOD) {
            // The default stays.
            return Ok(true);
        }
        let mut offer = self.offer;
        match &definition.rule {
            Rule::Digest { field } => {
                let choice = digest(value).ok_or(Failure::Impossible)?;
                if choice && !*field(&mut offer) {
                    return Err(Failure::Impossible);
                }
                *field(&mut self.agreed) = choice;
            }
            Rule::Number { combine, range, field } => {
                let result = number(value).filter(|number| range.contains(number)).ok_or(Failure::Impossible)?;
                let possible = match combine {
                    Combine::Least => result <= *field(&mut offer),
                    Combine::Greatest => result >= *field(&mut offer),
                };
                if !possible {
                    return Err(Failure::Impossible);
                }
                *field(&mut self.agreed) = result;
            }
            Rule::And { field } | Rule::Or { field } => {
                let result = boolean(value).ok_or(Failure::Impossible)?;
                let is_and = matches!(definition.rule, Rule::And { .. });
                if is_and && result && !*field(&mut offer) || !is_and && !result && *field(&mut offer) {
                    return Err(Failure::Impossible);
                }
                *field(&mut self.agreed) = result;
            }
            Rule::Segment => {
                let length = number(value).filter(|length| SEGMENT.contains(length)).ok_or(Failure::Impossible)?;
                self.agreed.send_segment = length;
            }
            Rule::Choice(_) | Rule::Obsolete(_) => {}
        }
        Ok(true)
    }

    /// The definition of a key, which has come now.
    fn find(&mut self, key: &str) -> Result<Option<&'static Definition>, Failure> {
        let Some(index) = KEYS.iter().position(|definition| definition.key == key) else { return Ok(None) };
        let bit = 1 << index;
        if self.seen & bit != 0 {
            return Err(Failure::Repeated);
        }
        self.seen |= bit;
        Ok(Some(&KEYS[index]))
    }
}

const CRC32C: &str = "CRC32C";

fn digest(name: &str) -> Option<bool> {
    match name {
        CRC32C => Some(true),
        constant::NONE => Some(false),
        _ => None,
    }
}

/// A value of MaxRecvDataSegmentLength, if it is valid.
pub(crate) fn segment(value: &str) -> Option<u32> {
    number(value).filter(|length| SEGMENT.contains(length))
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    /// What a target with its usual offer answers.
    fn answer(key: &str, value: &str) -> String {
        let mut negotiation = Negotiation::leading(Parameters::target(), false);
        answer_in(&mut negotiation, key, value)
    }

    fn answer_in(negotiation: &mut Negotiation, key: &str, value: &str) -> String {
        let mut text = Text::new();
        assert_eq!(negotiation.respond(key, value, &mut text), Ok(true), "{key}");
        let text = String::from_utf8(text.into_bytes()).unwrap();
        text.trim_end_matches('\0').strip_prefix(key).map(|rest| String::from(&rest[1..])).unwrap_or_default()
    }

    #[test]
    fn every_key_combines_as_its_section_says() {
        for (key, offered, expected) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-other,CRC32C", "CRC32C"),
            ("DataDigest", "X-other", "Reject"),
            ("MaxConnections", "16", "8"),
            ("MaxConnections", "1", "1"),
            ("MaxConnections", "0", "Reject"),
            ("MaxConnections", "65536", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxRecvDataSegmentLength", "65536", ""),
            ("MaxRecvDataSegmentLength", "511", "Reject"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "512", "512"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("FirstBurstLength", "0x10000", "65536"),
            ("FirstBurstLength", "511", "Reject"),
            ("DefaultTime2Wait", "0", "2"),
            ("DefaultTime2Wait", "5", "5"),
            ("DefaultTime2Retain", "20", "0"),
            ("DefaultTime2Retain", "3601", "Reject"),
            ("MaxOutstandingR2T", "1", "1"),
            ("MaxOutstandingR2T", "99", "4"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "No", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("iSCSIProtocolLevel", "0", "0"),
            ("IFMarker", "Yes", "No"),
            ("OFMarker", "No", "No"),
            ("IFMarkInt", "1~2", "Reject"),
            ("OFMarkInt", "2048", "Reject"),
        ] {
            assert_eq!(answer(key, offered), expected, "{key}={offered}");
        }
    }

    #[test]
    fn what_is_agreed_on_is_what_was_answered_and_defaults_stay() {
        let mut negotiation = Negotiation::leading(Parameters::target(), false);
        for (key, value) in [
            ("HeaderDigest", "CRC32C"),
            ("InitialR2T", "No"),
            ("MaxBurstLength", "4096"),
            ("MaxRecvDataSegmentLength", "1024"),
            ("MaxOutstandingR2T", "nonsense"),
        ] {
            answer_in(&mut negotiation, key, value);
        }
        let expected = Parameters {
            digests: Digests { header: true, data: false },
            initial_r2t: false,
            max_burst: 4096,
            // Its default, but never above MaxBurstLength.
            first_burst: 4096,
            send_segment: 1024,
            ..Parameters::default()
        };
        assert_eq!(negotiation.agreed(), expected);
    }

    #[test]
    fn a_key_comes_once() {
        let mut negotiation = Negotiation::leading(Parameters::target(), false);
        answer_in(&mut negotiation, "MaxBurstLength", "4096");
        let again = negotiation.respond("MaxBurstLength", "4096", &mut Text::new());
        assert_eq!(again, Err(Failure::Repeated));
        assert_eq!(negotiation.respond("X-org.example.key", "1", &mut Text::new()), Ok(false));
        assert_eq!(negotiation.respond("X-org.example.key", "1", &mut Text::new()), Ok(false));
    }

    #[test]
    fn session_keys_are_for_the_leading_login_and_normal_sessions() {
        let session = Parameters { max_burst: 8192, ..Parameters::default() };
        let mut joining = Negotiation::joining(Parameters::target(), &session);
        assert_eq!(answer_in(&mut joining, "MaxBurstLength", "4096"), "Reject");
        assert_eq!(answer_in(&mut joining, "HeaderDigest", "CRC32C"), "CRC32C");
        assert_eq!(joining.agreed().max_burst, 8192);
        let mut discovery = Negotiation::leading(Parameters::target(), true);
        assert_eq!(answer_in(&mut discovery, "ImmediateData", "No"), "Irrelevant");
        assert_eq!(answer_in(&mut discovery, "DefaultTime2Wait", "0"), "2");
        assert_eq!(discovery.agreed().immediate_data, Parameters::default().immediate_data);
    }

    #[test]
    fn an_initiator_takes_only_answers_that_its_offer_allows() {
        let offer = Parameters { max_burst: 65536, first_burst: 8192, immediate_data: false, ..Parameters::target() };
        let accept = |key: &str, value: &str| Negotiation::leading(offer, false).accept(key, value);
        assert_eq!(accept("MaxBurstLength", "65537"), Err(Failure::Impossible));
        assert_eq!(accept("MaxBurstLength", "4096"), Ok(true));
        assert_eq!(accept("DefaultTime2Wait", "1"), Err(Failure::Impossible));
        assert_eq!(accept("ImmediateData", "Yes"), Err(Failure::Impossible));
        assert_eq!(accept("InitialR2T", "Yes"), Ok(true));
        assert_eq!(accept("HeaderDigest", "CRC32C,None"), Err(Failure::Impossible), "an answer is one value");
        assert_eq!(accept("MaxBurstLength", "Reject"), Ok(true));
        assert_eq!(accept("TargetAlias", "x"), Ok(false));
    }

    #[test]
    fn offers_are_checked() {
        assert!(Parameters::default().is_valid() && Parameters::target().is_valid());
        assert!(!Parameters { max_burst: 511, ..Parameters::default() }.is_valid());
        assert!(!Parameters { first_burst: 1 << 20, ..Parameters::default() }.is_valid());
        assert!(!Parameters { receive_segment: 1 << 24, ..Parameters::default() }.is_valid());
    }
}
