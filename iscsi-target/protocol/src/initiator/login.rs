//! One connection before its full feature phase, as the initiator sees it (6.3).
//!
//! Call [`Login::start`], then feed received bytes to [`Login::receive`] until it returns `None`. After
//! [`Event::Complete`] call [`Login::finish`]; after anything else, close.
//!
//! ```text
//!            AuthMethod     CHAP_A     CHAP_N, CHAP_R     keys
//! with CHAP ───────────▶ Method ──▶ Algorithm ──▶ Response ──▶ Operational ──▶ Complete
//! without ─────────────────────────────────────────────────────▲ names, keys
//! ```

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::connection::{Connection, Session};
use crate::chap::{Algorithm, CHALLENGE_MAX, Challenge, Credentials};
use crate::framing::{Piece, Reader, Writer};
use crate::negotiation::{Negotiation, Parameters};
use crate::sink::HeaderSink;
use crate::violation::Violation;
use crate::wire::login::{Isid, LoginRequest, LoginResponse, Stage, Transition};
use crate::wire::pdu::{Header, Opcode, RequestNumbers, additional_length};
use crate::wire::text::{Text, binary, number, pairs};
use crate::wire::{LoginStatus, Name};

/// Most data of a login response.
const SEGMENT_MAX: u32 = 8192;

/// What an initiator proves, and wants proved.
#[derive(Debug)]
pub struct Chap {
    /// Who we are.
    pub initiator: Credentials,
    /// Who the target has to be (mutual).
    pub target: Option<Credentials>,
    /// What we offer, by preference.
    pub algorithms: Vec<Algorithm>,
}

/// How to log in.
#[derive(Clone, Debug)]
pub struct Options {
    /// InitiatorName.
    pub initiator: Name,
    /// TargetName; a discovery session without.
    pub target: Option<Name>,
    /// ISID.
    pub isid: Isid,
    /// TSIH: of the session to join, or 0 for a new one.
    pub tsih: u16,
    /// CID.
    pub cid: u16,
    /// The operational keys.
    pub offer: Parameters,
    /// What to prove.
    pub chap: Option<Arc<Chap>>,
    /// What the target has to answer, if it has to prove something. It must be random and new.
    pub challenge: Challenge,
}

/// How a login ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It succeeded: call [`Login::finish`].
    Complete,
    /// The target refused it.
    Refused {
        /// Why.
        status: LoginStatus,
        /// Where to go instead (TargetAddress).
        address: Option<String>,
    },
    /// The target did not prove who it is, or answered what nobody offered.
    Distrusted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Method,
    Algorithm,
    Response(Algorithm),
    Operational,
    Complete,
    Ended,
}

/// The state machine. See the module for the order of calls.
pub struct Login {
    options: Options,
    state: State,
    reader: Reader,
    negotiation: Negotiation,
    /// CmdSN of the session.
    cmd_sn: u32,
    /// Text of the response that arrives.
    text: Vec<u8>,
    response: Option<LoginResponse>,
}

impl Login {
    /// A login to a new session whose first command has this number.
    pub fn new(options: Options, cmd_sn: u32) -> Self {
        let discovery = options.target.is_none();
        let negotiation = Negotiation::leading(options.offer, discovery);
        let state = if options.chap.is_some() { State::Method } else { State::Operational };
        Self { options, state, reader: Reader::new(), negotiation, cmd_sn, text: Vec::new(), response: None }
    }

    /// A login that adds a connection to `session`, or replaces one of its.
    pub fn joining(options: Options, session: &Session) -> Self {
        let negotiation = Negotiation::joining(options.offer, session.parameters());
        Self { negotiation, ..Self::new(Options { tsih: session.tsih(), ..options }, session.next_cmd_sn()) }
    }

    /// Writes the first request.
    pub fn start(&mut self, sink: &mut impl HeaderSink) {
        let mut text = Text::new();
        text.push("InitiatorName", self.options.initiator.as_str());
        match &self.options.target {
            Some(target) => {
                text.push("TargetName", target.as_str());
                text.push("SessionType", "Normal");
            }
            None => text.push("SessionType", "Discovery"),
        }
        if self.state == State::Method {
            text.push("AuthMethod", "CHAP");
            return self.request(Stage::Security, None, text, sink);
        }
        self.negotiation.propose(&mut text);
        self.request(Stage::Operational, Some(Stage::FullFeature), text, sink);
    }

    /// Consumes input up to the end of the login; `None` when all of it is used and more is needed.
    ///
    /// # Errors
    /// The target breaks the protocol.
    pub fn receive(&mut self, input: &mut &[u8], sink: &mut impl HeaderSink) -> Result<Option<Event>, Violation> {
        loop {
            if matches!(self.state, State::Complete | State::Ended) {
                return Ok(None);
            }
            let event = match self.reader.next(input, limit)? {
                None => return Ok(None),
                Some(Piece::Header { data_length }) => {
                    self.response = Some(LoginResponse::parse(&self.reader.header()));
                    self.text.clear();
                    if data_length == 0 { self.received(sink)? } else { None }
                }
                Some(Piece::Data(bytes)) => {
                    self.text.extend_from_slice(bytes);
                    None
                }
                Some(Piece::DataEnd { .. }) => self.received(sink)?,
            };
            if let Some(event) = event {
                self.state = if event == Event::Complete { State::Complete } else { State::Ended };
                return Ok(Some(event));
            }
        }
    }

    /// The connection, and the session if it is a new one.
    ///
    /// # Panics
    /// Before [`Event::Complete`].
    pub fn finish(self) -> (Session, Connection) {
        let (Some(response), State::Complete) = (self.response, self.state) else { panic!("not logged in") };
        let parameters = self.negotiation.agreed();
        let session = Session::new(response.tsih, parameters, self.cmd_sn, response.numbers.max_cmd_sn);
        let next_status = response.numbers.stat_sn.wrapping_add(1);
        (session, Connection::new(self.reader, parameters, next_status, self.options.cid))
    }

    fn request(&mut self, current: Stage, next: Option<Stage>, text: Text, sink: &mut impl HeaderSink) {
        let expected_stat_sn = self.response.map_or(0, |response| response.numbers.stat_sn.wrapping_add(1));
        let request = LoginRequest {
            transition: Some(Transition { continues: false, current, next }),
            version_max: 0,
            version_min: 0,
            isid: self.options.isid,
            tsih: self.options.tsih,
            task_tag: 0,
            cid: self.options.cid,
            numbers: RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, expected_stat_sn },
        };
        Writer::default().write_with_data(request.encode(), &text.into_bytes(), sink);
    }

    /// A response is here with all of its text.
    fn received(&mut self, sink: &mut impl HeaderSink) -> Result<Option<Event>, Violation> {
        let text = core::mem::take(&mut self.text);
        let mut all = Vec::new();
        for pair in pairs(&text) {
            all.push(pair.map_err(|_| Violation::Text)?);
        }
        let Some(response) = self.response else { return Err(Violation::UnexpectedPdu) };
        let value = |wanted: &str| all.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        if response.status != LoginStatus::Success {
            let address = value("TargetAddress").map(String::from);
            return Ok(Some(Event::Refused { status: response.status, address }));
        }
        let transition = response.transition.ok_or(Violation::Field(1))?;
        match self.state {
            State::Method => self.method(value("AuthMethod"), sink),
            State::Algorithm => Ok(self.respond(value("CHAP_A"), value("CHAP_I"), value("CHAP_C"), sink)),
            State::Response(algorithm) => {
                if transition.next != Some(Stage::Operational)
                    || !self.is_proved(algorithm, value("CHAP_N"), value("CHAP_R"))
                {
                    return Ok(Some(Event::Distrusted));
                }
                let mut text = Text::new();
                self.negotiation.propose(&mut text);
                self.state = State::Operational;
                self.request(Stage::Operational, Some(Stage::FullFeature), text, sink);
                Ok(None)
            }
            State::Operational => {
                if all.iter().any(|(key, value)| self.negotiation.accept(key, value).is_err()) {
                    return Ok(Some(Event::Distrusted));
                }
                let complete = transition.next == Some(Stage::FullFeature);
                Ok(Some(if complete { Event::Complete } else { Event::Distrusted }))
            }
            State::Complete | State::Ended => Ok(None),
        }
    }

    fn method(&mut self, method: Option<&str>, sink: &mut impl HeaderSink) -> Result<Option<Event>, Violation> {
        let Some(chap) = self.options.chap.clone().filter(|_| method == Some("CHAP")) else {
            return Ok(Some(Event::Distrusted));
        };
        let mut list = String::new();
        for algorithm in &chap.algorithms {
            if !list.is_empty() {
                list.push(',');
            }
            // One digit each.
            list.push(char::from(b'0' + *algorithm as u8));
        }
        let mut text = Text::new();
        text.push("CHAP_A", &list);
        self.state = State::Algorithm;
        self.request(Stage::Security, None, text, sink);
        Ok(None)
    }

    /// Answers the target's challenge.
    fn respond(
        &mut self,
        algorithm: Option<&str>,
        identifier: Option<&str>,
        challenge: Option<&str>,
        sink: &mut impl HeaderSink,
    ) -> Option<Event> {
        let Some(chap) = self.options.chap.clone() else { return Some(Event::Distrusted) };
        let offered = |algorithm: &Algorithm| chap.algorithms.contains(algorithm);
        let algorithm = algorithm.and_then(number).and_then(Algorithm::from_number).filter(offered);
        let identifier = identifier.and_then(number).and_then(|number| u8::try_from(number).ok());
        let challenge = challenge.and_then(|value| binary(value, CHALLENGE_MAX));
        let (Some(algorithm), Some(identifier), Some(challenge)) = (algorithm, identifier, challenge) else {
            return Some(Event::Distrusted);
        };
        let mut text = Text::new();
        text.push("CHAP_N", &chap.initiator.name);
        let response = algorithm.respond(identifier, &chap.initiator.secret, &challenge);
        text.push_binary("CHAP_R", response.as_bytes());
        if chap.target.is_some() {
            text.push_number("CHAP_I", u32::from(self.options.challenge.identifier));
            text.push_binary("CHAP_C", &self.options.challenge.bytes);
        }
        self.state = State::Response(algorithm);
        self.request(Stage::Security, Some(Stage::Operational), text, sink);
        None
    }

    /// Whether the target is who it has to be.
    fn is_proved(&self, algorithm: Algorithm, name: Option<&str>, response: Option<&str>) -> bool {
        let Some(target) = self.options.chap.as_ref().and_then(|chap| chap.target.as_ref()) else { return true };
        let Challenge { identifier, bytes } = &self.options.challenge;
        let received = response.and_then(|value| binary(value, algorithm.response_size())).unwrap_or_default();
        algorithm.respond(*identifier, &target.secret, bytes).matches(&received) & (name == Some(&target.name))
    }
}

/// Only login responses may come, without additional headers.
fn limit(header: &Header) -> Result<u32, Violation> {
    if Opcode::of(header) != Some(Opcode::LoginResponse) {
        return Err(Violation::UnexpectedPdu);
    }
    if additional_length(header) > 0 {
        return Err(Violation::AdditionalHeader);
    }
    Ok(SEGMENT_MAX)
}
