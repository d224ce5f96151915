//! Text requests and logouts of the full feature phase (11.10, 11.14, appendix C).

use alloc::string::String;
use alloc::vec::Vec;

use super::connection::{Connection, Event, Wanted};
use super::session::Session;
use crate::negotiation::{SEGMENT_KEY, segment};
use crate::sink::HeaderSink;
use crate::violation::Violation;
use crate::wire::Name;
use crate::wire::pdu::{Header, RESERVED_TAG, field};
use crate::wire::request::{LogoutReason, LogoutRequest, TextRequest};
use crate::wire::response::{LogoutOutcome, LogoutResponse, TextResponse};
use crate::wire::text::{Text, constant, pairs};

/// Most bytes of a text that is continued over several requests.
const TEXT_MAX: usize = 16 << 10;
/// Most keys of a text.
const KEYS_MAX: usize = 64;

/// A target as SendTargets tells it.
#[derive(Clone, Copy, Debug)]
pub struct TargetRecord<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Where it is: `host:port,group`, the host in brackets if it is an IPv6 address.
    pub addresses: &'a [String],
}

/// The text exchange of a connection: one at a time.
#[derive(Default)]
pub(super) struct TextExchange {
    task_tag: u32,
    /// The transfer tag that the next request of this exchange has; none if no exchange is open.
    open: Option<u32>,
    /// How many tags were given out.
    tags: u32,
    /// Flags F and C of the latest request.
    last: bool,
    continues: bool,
    /// What came, at most [`TEXT_MAX`]; up to `before_latest` of it with requests before the latest.
    received: Vec<u8>,
    before_latest: usize,
    /// What is to be told, and how much of it was.
    answer: Vec<u8>,
    told: usize,
    /// [`Event::SendTargets`] has not been answered; what comes before its answer.
    wanted: Option<Text>,
}

impl TextExchange {
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.received.len() + bytes.len() > TEXT_MAX {
            return Err(Violation::Text);
        }
        self.received.extend_from_slice(bytes);
        Ok(())
    }

    /// The latest request came damaged: it is as if it had not come.
    pub(super) fn drop_latest(&mut self) {
        self.received.truncate(self.before_latest);
    }

    fn begin(&mut self, request: &TextRequest) -> Result<(), Violation> {
        if self.wanted.is_some() {
            return Err(Violation::UnexpectedPdu);
        }
        if request.task_tag == RESERVED_TAG || request.last && request.continues {
            return Err(Violation::Field(field::FLAGS));
        }
        if request.transfer_tag == RESERVED_TAG {
            *self = Self { task_tag: request.task_tag, tags: self.tags, ..Self::default() };
        } else if self.open != Some(request.transfer_tag) || self.task_tag != request.task_tag {
            return Err(Violation::Field(field::TRANSFER_TAG));
        }
        (self.last, self.continues) = (request.last, request.continues);
        self.before_latest = self.received.len();
        Ok(())
    }

    /// A transfer tag for the next request.
    fn next_tag(&mut self) -> u32 {
        self.tags = self.tags.wrapping_add(1) & (u32::MAX >> 1);
        self.open = Some(self.tags);
        self.tags
    }
}

impl Connection {
    /// Answers [`Event::SendTargets`]: with every target that was asked for and that this initiator may see.
    ///
    /// # Panics
    /// If there is none to answer.
    pub fn answer_targets(&mut self, session: &Session, targets: &[TargetRecord<'_>], sink: &mut impl HeaderSink) {
        let Some(mut answer) = self.text.wanted.take() else { panic!("nobody asked for targets") };
        for target in targets {
            answer.push("TargetName", target.name.as_str());
            target.addresses.iter().for_each(|address| answer.push("TargetAddress", address));
        }
        self.tell(session, answer, sink);
    }

    /// Answers a logout. Afterwards: send, close.
    ///
    /// # Panics
    /// If there is none to answer.
    pub fn respond_logout(&mut self, session: &Session, outcome: LogoutOutcome, sink: &mut impl HeaderSink) {
        let Some(task_tag) = self.logout.take() else { panic!("no logout to answer") };
        self.write_logout(session, task_tag, outcome, sink);
    }

    pub(super) fn text_request<'a>(
        &mut self,
        session: &Session,
        header: &Header,
        whole: bool,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        self.text.begin(&TextRequest::parse(header))?;
        if whole { self.text_received(session, sink) } else { Ok(None) }
    }

    /// A text request is here with all of its data.
    pub(super) fn text_received<'a>(
        &mut self,
        session: &Session,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        if self.text.continues {
            let transfer_tag = self.text.next_tag();
            self.write_text(session, TextResponse { transfer_tag, ..self.text_response() }, &[], sink);
            return Ok(None);
        }
        if self.text.told < self.text.answer.len() {
            self.tell_more(session, sink);
            return Ok(None);
        }
        let received = core::mem::take(&mut self.text.received);
        let mut answer = Text::new();
        match self.negotiate(session, &received, &mut answer)? {
            Some(wanted) => {
                self.text.wanted = Some(answer);
                Ok(Some(Event::SendTargets(wanted)))
            }
            None => {
                self.tell(session, answer, sink);
                Ok(None)
            }
        }
    }

    fn negotiate(&mut self, session: &Session, text: &[u8], answer: &mut Text) -> Result<Option<Wanted>, Violation> {
        let mut wanted = None;
        for (number, pair) in pairs(text).enumerate() {
            if number == KEYS_MAX {
                return Err(Violation::Text);
            }
            match pair.map_err(|_| Violation::Text)? {
                ("SendTargets", "All") if session.is_discovery() => wanted = Some(Wanted::All),
                ("SendTargets", "") if !session.is_discovery() => wanted = Some(Wanted::Own),
                ("SendTargets", value) => match Name::parse(value) {
                    Some(name) => wanted = Some(Wanted::Named(name)),
                    None => answer.push("SendTargets", constant::REJECT),
                },
                (SEGMENT_KEY, value) => match segment(value) {
                    Some(length) => self.parameters.send_segment = length,
                    None => answer.push(SEGMENT_KEY, constant::REJECT),
                },
                // What is negotiated in logins only, and what nobody knows.
                (key, _) => answer.push(key, constant::NOT_UNDERSTOOD),
            }
        }
        Ok(wanted)
    }

    fn tell(&mut self, session: &Session, answer: Text, sink: &mut impl HeaderSink) {
        (self.text.answer, self.text.told) = (answer.into_bytes(), 0);
        self.tell_more(session, sink);
    }

    /// The next part of the answer, as much as fits.
    fn tell_more(&mut self, session: &Session, sink: &mut impl HeaderSink) {
        let answer = core::mem::take(&mut self.text.answer);
        let start = self.text.told;
        let end = answer.len().min(start.saturating_add(self.parameters.send_segment as usize));
        self.text.told = end;
        let mut response = self.text_response();
        if end < answer.len() {
            response = TextResponse { continues: true, transfer_tag: self.text.next_tag(), ..response };
        } else if self.text.last {
            self.text.open = None;
            response.last = true;
        } else {
            response.transfer_tag = self.text.next_tag();
        }
        self.write_text(session, response, &answer[start..end], sink);
        if end < answer.len() {
            self.text.answer = answer;
        }
    }

    fn text_response(&self) -> TextResponse {
        let task_tag = self.text.task_tag;
        TextResponse {
            last: false,
            continues: false,
            task_tag,
            transfer_tag: RESERVED_TAG,
            numbers: Default::default(),
        }
    }

    fn write_text(&mut self, session: &Session, response: TextResponse, text: &[u8], sink: &mut impl HeaderSink) {
        let response = TextResponse { numbers: self.take_status(session), ..response };
        self.writer.write_with_data(response.encode(), text, sink);
    }

    pub(super) fn logout_request<'a>(
        &mut self,
        session: &Session,
        header: &Header,
        sink: &mut impl HeaderSink,
    ) -> Result<Option<Event<'a>>, Violation> {
        let request = LogoutRequest::parse(header);
        if self.logout.is_some() {
            return Err(Violation::UnexpectedPdu);
        }
        let reason = match request.reason {
            0 => LogoutReason::CloseSession,
            1 => LogoutReason::CloseConnection,
            2 => {
                self.write_logout(session, request.task_tag, LogoutOutcome::NoRecovery, sink);
                return Ok(None);
            }
            _ => return Err(Violation::Field(field::FLAGS)),
        };
        self.logout = Some(request.task_tag);
        Ok(Some(Event::Logout { reason, cid: request.cid }))
    }

    fn write_logout(&mut self, session: &Session, task_tag: u32, outcome: LogoutOutcome, sink: &mut impl HeaderSink) {
        let numbers = self.take_status(session);
        // At most an hour.
        let seconds = |seconds: u32| seconds as u16;
        let (wait_seconds, retain_seconds) =
            (seconds(session.parameters().time_to_wait), seconds(session.parameters().time_to_retain));
        let response = LogoutResponse { response: outcome as u8, task_tag, numbers, wait_seconds, retain_seconds };
        self.writer.write(response.encode(), 0, sink);
    }
}
