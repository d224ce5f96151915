//! One connection before its full feature phase, as the target sees it (6.3).
//!
//! # Call order
//! Feed received bytes to [`Login::receive`] until it returns `None`, and act on each event:
//!
//! 1. [`Event::Identified`]: look up [`Login::identity`], then [`Login::admit`], [`Login::refuse`] or [`Login::redirect`].
//!    Until then the login may be moved elsewhere, with the bytes that are not read yet.
//! 2. [`Event::Complete`]: find the session's place ([`super::sessions`]), end what it replaces, then [`Login::open`] or
//!    [`Login::join`], which answer and turn the login into a connection; or [`Login::refuse`].
//! 3. An error from `receive`: the initiator has been told; send what was written, close.
//!
//! After `refuse` and `redirect`: send what was written, close.
//!
//! ```text
//!                request, all of its text              admit              all agreed on
//!  Receiving ─────────────────────▶ Identified ───▶ Receiving ───▶ Complete ───▶ a Connection
//!      │ violation                      │ refuse, redirect                │ refuse
//!      └────────────▶ Refused ◀─────────┴─────────────────────────────────┘
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use super::access::Access;
use super::connection::{Connection, Limits};
use super::security::{Security, keys_of};
use super::session::Session;
use crate::chap::Challenge;
use crate::framing::{Piece, Reader, Writer};
use crate::negotiation::{Negotiation, Parameters};
use crate::sink::HeaderSink;
use crate::violation::Violation;
use crate::wire::login::{Isid, LoginRequest, LoginResponse, Stage, Transition, first_status};
use crate::wire::pdu::{Header, Numbers, Opcode, additional_length};
use crate::wire::text::{Text, constant, pairs};
use crate::wire::{LoginStatus, Name};

/// Most data of a PDU before the full feature phase: MaxRecvDataSegmentLength at its default.
const SEGMENT_MAX: u32 = 8192;
/// Most bytes of a text that is continued over several requests.
const TEXT_MAX: usize = 16 << 10;
/// Most keys of a text. Their answers fit in one segment.
const KEYS_MAX: usize = 64;
/// Most requests of a login.
const REQUESTS_MAX: u32 = 64;

/// Who wants to log in where. Names of kinds that make no sense never get here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// InitiatorName.
    pub initiator: Name,
    /// TargetName; none in a discovery session that names no target.
    pub target: Option<Name>,
    /// SessionType=Discovery.
    pub discovery: bool,
    /// ISID.
    pub isid: Isid,
    /// TSIH: 0 for a new session.
    pub tsih: u16,
    /// CID.
    pub cid: u16,
}

/// What the driver has to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Login::identity`] is known.
    Identified,
    /// Everything is agreed on and proved; the final answer is due.
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Receiving,
    Identified,
    /// `told`: [`Event::Complete`] was.
    Complete {
        told: bool,
    },
    Refused(LoginStatus),
}

/// What an admitted login negotiates.
struct Admitted {
    security: Security,
    negotiation: Negotiation,
    /// MaxRecvDataSegmentLength has been declared.
    declared: bool,
}

/// The state machine. See the module for the order of calls.
pub struct Login {
    limits: Limits,
    portal_group: u16,
    state: State,
    reader: Reader,
    stage: Stage,
    /// The first request, with which the others must agree.
    first: Option<LoginRequest>,
    /// The latest request.
    request: Option<LoginRequest>,
    identity: Option<Identity>,
    admitted: Option<Admitted>,
    /// Text of the current sequence of requests, at most [`TEXT_MAX`].
    text: Vec<u8>,
    /// The answer that waits for [`Self::open`] or [`Self::join`].
    answer: Text,
    /// The first text, which may name names, has not been answered.
    first_text: bool,
    requests: u32,
    /// StatSN of the next response.
    stat_sn: u32,
    /// ExpCmdSN and MaxCmdSN of the session that this login joins.
    window: Option<(u32, u32)>,
}

impl Login {
    /// A connection on which nothing has arrived yet, to a portal of this group.
    ///
    /// # Panics
    /// If `limits` offers values that are out of range or do not go together.
    pub fn new(limits: Limits, portal_group: u16) -> Self {
        assert!(limits.offer.is_valid(), "{:?}", limits.offer);
        Self {
            limits,
            portal_group,
            state: State::Receiving,
            reader: Reader::new(),
            stage: Stage::Security,
            first: None,
            request: None,
            identity: None,
            admitted: None,
            text: Vec::new(),
            answer: Text::new(),
            first_text: true,
            requests: 0,
            stat_sn: 0,
            window: None,
        }
    }

    /// Consumes input up to the next event; `None` when all of it is used and more is needed.
    ///
    /// # Errors
    /// The login is refused with this status, and the initiator is told.
    ///
    /// # Panics
    /// If called before [`Event::Identified`] or [`Event::Complete`] was acted on.
    pub fn receive(&mut self, input: &mut &[u8], sink: &mut impl HeaderSink) -> Result<Option<Event>, LoginStatus> {
        loop {
            match self.state {
                State::Refused(status) => return Err(status),
                State::Complete { told: false } => {
                    self.state = State::Complete { told: true };
                    return Ok(Some(Event::Complete));
                }
                State::Identified | State::Complete { told: true } => panic!("an event waits to be acted on"),
                State::Receiving => {}
            }
            match self.reader.next(input, limit) {
                Ok(None) => return Ok(None),
                Ok(Some(Piece::Header { data_length })) => self.header(data_length == 0, sink),
                Ok(Some(Piece::Data(bytes))) => self.append(bytes, sink),
                Ok(Some(Piece::DataEnd { .. })) => self.received(sink),
                Err(Violation::UnexpectedPdu) => self.refuse(LoginStatus::InvalidDuringLogin, sink),
                Err(_) => self.refuse(LoginStatus::InitiatorError, sink),
            }
            if self.state == State::Identified {
                return Ok(Some(Event::Identified));
            }
        }
    }

    /// Who wants to log in.
    ///
    /// # Panics
    /// Before [`Event::Identified`].
    pub fn identity(&self) -> &Identity {
        match &self.identity {
            Some(identity) => identity,
            None => panic!("nobody is known yet"),
        }
    }

    /// MaxConnections as agreed on.
    pub fn connections_max(&self) -> u32 {
        self.admitted.as_ref().map_or(1, |admitted| admitted.negotiation.agreed().max_connections)
    }

    /// Goes on with the login, if `access` has this initiator; `session` is the one that it joins, if its TSIH names one. The
    /// challenge must be random and new.
    ///
    /// # Panics
    /// If no [`Event::Identified`] waits for it.
    pub fn admit(
        &mut self,
        access: &Access,
        challenge: Challenge,
        session: Option<&Session>,
        sink: &mut impl HeaderSink,
    ) {
        assert_eq!(self.state, State::Identified, "nobody to admit");
        if !access.admits(&self.identity().initiator) {
            return self.refuse(LoginStatus::AuthorizationFailure, sink);
        }
        let negotiation = match session {
            Some(session) => Negotiation::joining(self.limits.offer, session.parameters()),
            None => Negotiation::leading(self.limits.offer, self.identity().discovery),
        };
        self.window = session.map(|session| (session.expected(), session.last()));
        let security = Security::new(access.chap.clone(), challenge);
        self.admitted = Some(Admitted { security, negotiation, declared: false });
        self.state = State::Receiving;
        self.negotiate(sink);
    }

    /// Ends the login with this status.
    pub fn refuse(&mut self, status: LoginStatus, sink: &mut impl HeaderSink) {
        self.end(status, &Text::new(), sink);
    }

    /// Ends the login and sends the initiator to `address` (`host:port`, or `host:port,group`).
    pub fn redirect(&mut self, address: &str, permanently: bool, sink: &mut impl HeaderSink) {
        let mut text = Text::new();
        text.push("TargetAddress", address);
        let status = if permanently { LoginStatus::MovedPermanently } else { LoginStatus::MovedTemporarily };
        self.end(status, &text, sink);
    }

    /// Answers: a new session with this handle, of which this is the first connection.
    ///
    /// # Panics
    /// If no [`Event::Complete`] waits for it, or `tsih` is 0.
    pub fn open(mut self, tsih: u16, now_ns: u64, sink: &mut impl HeaderSink) -> (Session, Connection) {
        assert!(tsih != 0, "0 is no handle");
        let discovery = self.identity().discovery;
        let (Some(first), parameters) = (self.first, self.agreed()) else { panic!("no login") };
        let session = Session::new(parameters, discovery, first.numbers.cmd_sn, self.limits.commands);
        let connection = self.finish(tsih, &session, now_ns, sink);
        (session, connection)
    }

    /// Answers: one more connection of `session`.
    ///
    /// # Panics
    /// If no [`Event::Complete`] waits for it.
    pub fn join(mut self, session: &Session, now_ns: u64, sink: &mut impl HeaderSink) -> Connection {
        let tsih = self.identity().tsih;
        self.finish(tsih, session, now_ns, sink)
    }

    fn agreed(&self) -> Parameters {
        match &self.admitted {
            Some(admitted) => admitted.negotiation.agreed(),
            None => panic!("nothing is agreed on"),
        }
    }

    fn finish(&mut self, tsih: u16, session: &Session, now_ns: u64, sink: &mut impl HeaderSink) -> Connection {
        assert!(matches!(self.state, State::Complete { .. }), "the login is not complete");
        self.window = Some((session.expected(), session.last()));
        let answer = core::mem::take(&mut self.answer);
        let transition = Transition { continues: false, current: self.stage, next: Some(Stage::FullFeature) };
        self.respond(Some(transition), LoginStatus::Success, tsih, &answer.into_bytes(), sink);
        let reader = core::mem::replace(&mut self.reader, Reader::new());
        let parameters = self.agreed();
        Connection::new(&self.limits, reader, parameters, self.stat_sn, self.identity().cid, session, now_ns)
    }

    fn end(&mut self, status: LoginStatus, text: &Text, sink: &mut impl HeaderSink) {
        let transition = Transition { continues: false, current: self.stage, next: None };
        let tsih = self.first.map_or(0, |first| first.tsih);
        self.respond(Some(transition), status, tsih, &text.clone().into_bytes(), sink);
        self.state = State::Refused(status);
    }

    fn respond(
        &mut self,
        transition: Option<Transition>,
        status: LoginStatus,
        tsih: u16,
        text: &[u8],
        sink: &mut impl HeaderSink,
    ) {
        let first_cmd_sn = self.first.map_or(0, |first| first.numbers.cmd_sn);
        let (expected, last) =
            self.window.unwrap_or((first_cmd_sn, first_cmd_sn.wrapping_add(self.limits.commands).wrapping_sub(1)));
        let response = LoginResponse {
            transition,
            version_active: 0,
            isid: self.first.map_or([0; 6], |first| first.isid),
            tsih,
            task_tag: self.first.map_or(0, |first| first.task_tag),
            numbers: Numbers { stat_sn: self.stat_sn, expected_cmd_sn: expected, max_cmd_sn: last },
            status,
        };
        self.stat_sn = self.stat_sn.wrapping_add(1);
        Writer::default().write_with_data(response.encode(), text, sink);
    }

    /// A request's header is here.
    fn header(&mut self, whole: bool, sink: &mut impl HeaderSink) {
        let header = self.reader.header();
        let request = LoginRequest::parse(&header);
        self.requests += 1;
        match &self.first {
            None => {
                // Chosen by the initiator, who may come back on this connection identifier.
                self.stat_sn = first_status(&header);
                self.stage = request.transition.map_or(Stage::Security, |transition| transition.current);
                self.first = Some(request);
                if request.version_min > 0 {
                    return self.refuse(LoginStatus::UnsupportedVersion, sink);
                }
            }
            Some(first) => {
                let same = (first.isid, first.tsih, first.cid, first.task_tag, first.numbers.cmd_sn)
                    == (request.isid, request.tsih, request.cid, request.task_tag, request.numbers.cmd_sn);
                if !same {
                    return self.refuse(LoginStatus::InitiatorError, sink);
                }
            }
        }
        let in_stage = request.transition.is_some_and(|transition| {
            transition.current == self.stage && !(transition.continues && transition.next.is_some())
        });
        if !in_stage || self.requests > REQUESTS_MAX {
            return self.refuse(LoginStatus::InitiatorError, sink);
        }
        self.request = Some(request);
        if whole {
            self.received(sink);
        }
    }

    fn append(&mut self, bytes: &[u8], sink: &mut impl HeaderSink) {
        if self.text.len() + bytes.len() > TEXT_MAX {
            return self.refuse(LoginStatus::InitiatorError, sink);
        }
        self.text.extend_from_slice(bytes);
    }

    /// A request is here with all of its data.
    fn received(&mut self, sink: &mut impl HeaderSink) {
        let Some(transition) = self.request.and_then(|request| request.transition) else { return };
        if transition.continues {
            let go_on = Transition { continues: false, current: self.stage, next: None };
            let tsih = self.first.map_or(0, |first| first.tsih);
            return self.respond(Some(go_on), LoginStatus::Success, tsih, &[], sink);
        }
        if self.admitted.is_some() {
            return self.negotiate(sink);
        }
        match self.identify() {
            Ok(identity) => {
                self.identity = Some(identity);
                self.state = State::Identified;
            }
            Err(status) => self.refuse(status, sink),
        }
    }

    /// The names in the first request's text.
    fn identify(&self) -> Result<Identity, LoginStatus> {
        let (mut initiator, mut target, mut discovery) = (None, None, false);
        for pair in pairs(&self.text).take(KEYS_MAX) {
            match pair.map_err(|_| LoginStatus::InitiatorError)? {
                ("InitiatorName", value) => initiator = Some(Name::parse(value).ok_or(LoginStatus::InitiatorError)?),
                // A name that is none belongs to no target.
                ("TargetName", value) => target = Some(Name::parse(value).ok_or(LoginStatus::NotFound)?),
                ("SessionType", "Normal") => discovery = false,
                ("SessionType", "Discovery") => discovery = true,
                ("SessionType", _) => return Err(LoginStatus::SessionType),
                _ => {}
            }
        }
        let initiator = initiator.ok_or(LoginStatus::MissingParameter)?;
        if target.is_none() && !discovery {
            return Err(LoginStatus::MissingParameter);
        }
        let first = self.first.ok_or(LoginStatus::InitiatorError)?;
        // A discovery session has one connection.
        if discovery && first.tsih != 0 {
            return Err(LoginStatus::CannotInclude);
        }
        Ok(Identity { initiator, target, discovery, isid: first.isid, tsih: first.tsih, cid: first.cid })
    }

    /// Answers the text of the latest request, and moves to the next stage if nothing stands against it.
    fn negotiate(&mut self, sink: &mut impl HeaderSink) {
        let text = core::mem::take(&mut self.text);
        let mut answer = Text::new();
        if let Err(status) = self.answer(&text, &mut answer) {
            return self.refuse(status, sink);
        }
        let (Some(Admitted { security, .. }), Some(request)) = (&self.admitted, self.request) else { return };
        let asked = request.transition.and_then(|transition| transition.next);
        let next = asked.filter(|_| self.stage == Stage::Operational || security.is_satisfied());
        if next == Some(Stage::FullFeature) {
            self.answer = answer;
            self.state = State::Complete { told: false };
            return;
        }
        let transition = Transition { continues: false, current: self.stage, next };
        self.stage = next.unwrap_or(self.stage);
        self.respond(Some(transition), LoginStatus::Success, request.tsih, &answer.into_bytes(), sink);
    }

    fn answer(&mut self, text: &[u8], answer: &mut Text) -> Result<(), LoginStatus> {
        let mut all = Vec::new();
        for pair in pairs(text) {
            if all.len() == KEYS_MAX {
                return Err(LoginStatus::InitiatorError);
            }
            all.push(pair.map_err(|_| LoginStatus::InitiatorError)?);
        }
        let names_allowed = core::mem::replace(&mut self.first_text, false);
        let (Some(admitted), Some(identity)) = (&mut self.admitted, &self.identity) else {
            return Err(LoginStatus::TargetError);
        };
        if names_allowed && !identity.discovery {
            answer.push_number("TargetPortalGroupTag", u32::from(self.portal_group));
        }
        let security = keys_of(&all);
        match self.stage {
            Stage::Security => admitted.security.respond(&security, answer)?,
            _ if !security.is_empty() => return Err(LoginStatus::InitiatorError),
            _ if !admitted.security.is_satisfied() => return Err(LoginStatus::AuthenticationFailure),
            _ => {}
        }
        let mut named: Vec<String> = Vec::new();
        for (key, value) in all.into_iter().filter(|(key, _)| !Security::knows(key)) {
            if matches!(key, "InitiatorName" | "TargetName" | "SessionType" | "InitiatorAlias") {
                if !names_allowed || named.iter().any(|name| name == key) {
                    return Err(LoginStatus::InitiatorError);
                }
                named.push(key.into());
            } else if self.stage == Stage::Operational {
                let known = admitted.negotiation.respond(key, value, answer);
                if !known.map_err(|_| LoginStatus::InitiatorError)? {
                    answer.push(key, constant::NOT_UNDERSTOOD);
                }
            } else if Negotiation::is_operational(key) {
                return Err(LoginStatus::InitiatorError);
            } else {
                answer.push(key, constant::NOT_UNDERSTOOD);
            }
        }
        if self.stage == Stage::Operational && !admitted.declared {
            admitted.declared = true;
            admitted.negotiation.declare(answer);
        }
        Ok(())
    }
}

/// Only login requests may come, without additional headers.
fn limit(header: &Header) -> Result<u32, Violation> {
    if Opcode::of(header) != Some(Opcode::LoginRequest) {
        return Err(Violation::UnexpectedPdu);
    }
    if additional_length(header) > 0 {
        return Err(Violation::AdditionalHeader);
    }
    Ok(SEGMENT_MAX)
}
