//! The security negotiation of a login, the target's side (12.1).
//!
//! ```text
//!              AuthMethod            CHAP_A               CHAP_N, CHAP_R
//! Method ──────────────────▶ Algorithm ──────▶ Response ─────────────────▶ Done
//!    └────────────────────────────────────────────────────────────────────▶
//!              AuthMethod, or none at all, where nothing has to be proved
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::access::Chap;
use crate::chap::{self, Algorithm, CHALLENGE_MAX, Challenge};
use crate::wire::LoginStatus;
use crate::wire::text::{Text, binary, constant, number};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Method,
    Algorithm,
    Response(Algorithm),
    Done,
}

/// What an initiator has proved.
pub(super) struct Security {
    chap: Option<Arc<Chap>>,
    challenge: Challenge,
    state: State,
}

/// Keys of one request; each comes once.
#[derive(Default)]
struct Keys<'a> {
    method: Option<&'a str>,
    algorithms: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
    identifier: Option<&'a str>,
    challenge: Option<&'a str>,
}

impl Security {
    pub(super) fn new(chap: Option<Arc<Chap>>, challenge: Challenge) -> Self {
        Self { chap, challenge, state: State::Method }
    }

    /// Whether nothing more has to be proved.
    pub(super) fn is_satisfied(&self) -> bool {
        self.state == State::Done || self.state == State::Method && self.chap.is_none()
    }

    /// Whether `key` belongs to the security negotiation.
    pub(super) fn knows(key: &str) -> bool {
        matches!(key, "AuthMethod" | "CHAP_A" | "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C")
    }

    /// Takes the security keys of a request, and answers them.
    pub(super) fn respond(&mut self, pairs: &[(&str, &str)], answer: &mut Text) -> Result<(), LoginStatus> {
        let keys = Keys::gather(pairs)?;
        if pairs.is_empty() {
            return Ok(());
        }
        match self.state {
            State::Method => {
                self.method(&keys, answer)?;
                // Both steps may come in one request.
                if self.state == State::Algorithm && keys.algorithms.is_some() {
                    self.algorithm(&keys, answer)
                } else {
                    Ok(())
                }
            }
            State::Algorithm => self.algorithm(&keys, answer),
            State::Response(algorithm) => self.response(algorithm, &keys, answer),
            State::Done => Err(LoginStatus::AuthenticationFailure),
        }
    }

    fn method(&mut self, keys: &Keys<'_>, answer: &mut Text) -> Result<(), LoginStatus> {
        let offered = keys.method.ok_or(LoginStatus::AuthenticationFailure)?;
        let (wanted, next) = match self.chap {
            Some(_) => ("CHAP", State::Algorithm),
            None => (constant::NONE, State::Done),
        };
        if !offered.split(',').any(|method| method == wanted) {
            return Err(LoginStatus::AuthenticationFailure);
        }
        answer.push("AuthMethod", wanted);
        self.state = next;
        Ok(())
    }

    fn algorithm(&mut self, keys: &Keys<'_>, answer: &mut Text) -> Result<(), LoginStatus> {
        let (Some(offered), Some(chap)) = (keys.algorithms, &self.chap) else {
            return Err(LoginStatus::AuthenticationFailure);
        };
        let offers = |algorithm: &Algorithm| offered.split(',').any(|text| number(text) == Some(*algorithm as u32));
        let algorithm = Algorithm::ALL.into_iter().filter(|algorithm| chap.algorithms.contains(algorithm)).find(offers);
        let algorithm = algorithm.ok_or(LoginStatus::AuthenticationFailure)?;
        answer.push_number("CHAP_A", algorithm as u32);
        answer.push_number("CHAP_I", u32::from(self.challenge.identifier));
        answer.push_binary("CHAP_C", &self.challenge.bytes);
        self.state = State::Response(algorithm);
        Ok(())
    }

    fn response(&mut self, algorithm: Algorithm, keys: &Keys<'_>, answer: &mut Text) -> Result<(), LoginStatus> {
        let failure = LoginStatus::AuthenticationFailure;
        let (Some(chap), Some(name), Some(response)) = (&self.chap, keys.name, keys.response) else {
            return Err(failure);
        };
        if name.len() > chap::NAME_MAX {
            return Err(failure);
        }
        let received = binary(response, algorithm.response_size()).ok_or(failure)?;
        let Challenge { identifier, bytes } = &self.challenge;
        let expected = algorithm.respond(*identifier, &chap.initiator.secret, bytes);
        // Both are looked at, so that a wrong name takes as long as a wrong response.
        let right = expected.matches(&received) & (name == chap.initiator.name);
        if !right {
            return Err(failure);
        }
        self.prove_ourselves(algorithm, keys, answer)?;
        self.state = State::Done;
        Ok(())
    }

    /// Mutual authentication, if the initiator asks for it.
    fn prove_ourselves(&self, algorithm: Algorithm, keys: &Keys<'_>, answer: &mut Text) -> Result<(), LoginStatus> {
        let failure = LoginStatus::AuthenticationFailure;
        let (identifier, challenge) = match (keys.identifier, keys.challenge) {
            (None, None) => return Ok(()),
            (Some(identifier), Some(challenge)) => (identifier, challenge),
            _ => return Err(failure),
        };
        let identifier = number(identifier).and_then(|number| u8::try_from(number).ok()).ok_or(failure)?;
        let challenge = binary(challenge, CHALLENGE_MAX).ok_or(failure)?;
        // Reflection: our own challenge sent back to have us answer it (12.1.3).
        if challenge == self.challenge.bytes {
            return Err(failure);
        }
        let credentials = self.chap.as_ref().and_then(|chap| chap.target.as_ref()).ok_or(failure)?;
        answer.push("CHAP_N", &credentials.name);
        let response = algorithm.respond(identifier, &credentials.secret, &challenge);
        answer.push_binary("CHAP_R", response.as_bytes());
        Ok(())
    }
}

impl<'a> Keys<'a> {
    fn gather(pairs: &[(&'a str, &'a str)]) -> Result<Self, LoginStatus> {
        let mut keys = Self::default();
        for (key, value) in pairs {
            let place = match *key {
                "AuthMethod" => &mut keys.method,
                "CHAP_A" => &mut keys.algorithms,
                "CHAP_N" => &mut keys.name,
                "CHAP_R" => &mut keys.response,
                "CHAP_I" => &mut keys.identifier,
                _ => &mut keys.challenge,
            };
            if place.replace(value).is_some() {
                return Err(LoginStatus::InitiatorError);
            }
        }
        Ok(keys)
    }
}

/// The pairs of a request that belong here.
pub(super) fn keys_of<'a>(pairs: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    pairs.iter().copied().filter(|(key, _)| Security::knows(key)).collect()
}
