//! The sessions of a target: who is logged in, and what a new login replaces (6.3.4, 6.3.5).

use alloc::collections::{BTreeMap, BTreeSet};

use crate::wire::login::Isid;
use crate::wire::{LoginStatus, Name};

/// Most sessions of a target.
pub const SESSIONS_MAX: usize = 256;

/// Where a login belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The session's handle.
    pub tsih: u16,
    /// What has to end, all of its tasks with it, before the login is answered (I16).
    pub replaces: Replaces,
}

/// What a login takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaces {
    /// Nothing: a new session.
    Nothing,
    /// Nothing: one more connection of its session.
    NothingInSession,
    /// The session with this handle (session reinstatement).
    Session(u16),
    /// The connection with its own CID in its session (connection reinstatement).
    Connection,
}

struct Entry {
    initiator: Name,
    isid: Isid,
    connections: BTreeSet<u16>,
    /// What was agreed on as MaxConnections.
    connections_max: usize,
}

/// Who wants to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nexus<'a> {
    /// InitiatorName.
    pub initiator: &'a Name,
    /// ISID.
    pub isid: Isid,
    /// TSIH: 0 for a new session.
    pub tsih: u16,
    /// CID.
    pub cid: u16,
}

/// The table. Targets have one for each portal group.
#[derive(Default)]
pub struct Sessions {
    entries: BTreeMap<u16, Entry>,
    /// The handle given out last.
    last: u16,
}

impl Sessions {
    /// No sessions yet. Handles count up from `last`, which may be random.
    pub fn new(last: u16) -> Self {
        Self { entries: BTreeMap::new(), last }
    }

    /// Finds the place of a login and takes it: what it replaces is no longer in the table. `connections_max` is
    /// MaxConnections as agreed on by a leading login.
    ///
    /// # Errors
    /// The status to refuse the login with.
    pub fn place(&mut self, nexus: &Nexus<'_>, connections_max: u32) -> Result<Placement, LoginStatus> {
        if nexus.tsih != 0 { self.join(nexus) } else { self.open(nexus, connections_max) }
    }

    /// A connection has ended; its session has, too, when it was the last. Whether that was so. Not for a connection or session
    /// that a login has replaced: its place is that of the new one.
    pub fn close_connection(&mut self, tsih: u16, cid: u16) -> bool {
        let Some(entry) = self.entries.get_mut(&tsih) else { return false };
        entry.connections.remove(&cid);
        entry.connections.is_empty() && self.entries.remove(&tsih).is_some()
    }

    /// A session has ended.
    pub fn close_session(&mut self, tsih: u16) {
        self.entries.remove(&tsih);
    }

    /// Sessions that are open.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    fn join(&mut self, nexus: &Nexus<'_>) -> Result<Placement, LoginStatus> {
        let entry = self.entries.get_mut(&nexus.tsih).ok_or(LoginStatus::NoSession)?;
        if entry.initiator != *nexus.initiator || entry.isid != nexus.isid {
            return Err(LoginStatus::NoSession);
        }
        if entry.connections.contains(&nexus.cid) {
            return Ok(Placement { tsih: nexus.tsih, replaces: Replaces::Connection });
        }
        if entry.connections.len() >= entry.connections_max {
            return Err(LoginStatus::TooManyConnections);
        }
        entry.connections.insert(nexus.cid);
        Ok(Placement { tsih: nexus.tsih, replaces: Replaces::NothingInSession })
    }

    fn open(&mut self, nexus: &Nexus<'_>, connections_max: u32) -> Result<Placement, LoginStatus> {
        let same = |(_, entry): &(&u16, &Entry)| entry.initiator == *nexus.initiator && entry.isid == nexus.isid;
        let old = self.entries.iter().find(same).map(|(tsih, _)| *tsih);
        if old.is_none() && self.entries.len() >= SESSIONS_MAX {
            return Err(LoginStatus::OutOfResources);
        }
        let tsih = self.unused_handle();
        let replaces = old.map_or(Replaces::Nothing, Replaces::Session);
        if let Some(old) = old {
            self.entries.remove(&old);
        }
        self.last = tsih;
        let entry = Entry {
            initiator: nexus.initiator.clone(),
            isid: nexus.isid,
            connections: BTreeSet::from([nexus.cid]),
            connections_max: connections_max as usize,
        };
        self.entries.insert(tsih, entry);
        Ok(Placement { tsih, replaces })
    }

    /// The next handle that is neither 0 nor in use: there are more handles than sessions.
    fn unused_handle(&self) -> u16 {
        let mut handle = self.last;
        loop {
            handle = handle.wrapping_add(1);
            if handle != 0 && !self.entries.contains_key(&handle) {
                return handle;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    fn name(number: usize) -> Name {
        Name::parse(&format!("iqn.2026-01.org:host{number}")).unwrap()
    }

    #[test]
    fn the_same_initiator_and_isid_replace_their_session() {
        let mut sessions = Sessions::new(u16::MAX - 1);
        let (one, two) = (name(1), name(2));
        let login = |initiator, isid: u8, tsih| Nexus { initiator, isid: [isid; 6], tsih, cid: 0 };
        let place = |tsih, replaces| Ok(Placement { tsih, replaces });
        assert_eq!(sessions.place(&login(&one, 0, 0), 1), place(u16::MAX, Replaces::Nothing));
        assert_eq!(sessions.place(&login(&one, 1, 0), 1), place(1, Replaces::Nothing), "0 is no handle");
        assert_eq!(sessions.place(&login(&two, 0, 0), 1), place(2, Replaces::Nothing));
        assert_eq!(sessions.place(&login(&one, 0, 0), 1), place(3, Replaces::Session(u16::MAX)));
        assert_eq!(sessions.count(), 3);
        assert_eq!(sessions.place(&login(&one, 0, u16::MAX), 1), Err(LoginStatus::NoSession), "it is gone");
        assert_eq!(sessions.place(&login(&two, 1, 3), 1), Err(LoginStatus::NoSession), "another's");
    }

    #[test]
    fn connections_join_up_to_the_agreed_number_and_replace_their_own() {
        let mut sessions = Sessions::new(0);
        let one = name(1);
        let login = |tsih, cid| Nexus { initiator: &one, isid: [0; 6], tsih, cid };
        let tsih = sessions.place(&login(0, 7), 2).unwrap().tsih;
        assert_eq!(sessions.place(&login(tsih, 7), 1).unwrap().replaces, Replaces::Connection);
        assert_eq!(sessions.place(&login(tsih, 8), 1).unwrap().replaces, Replaces::NothingInSession);
        assert_eq!(sessions.place(&login(tsih, 9), 9), Err(LoginStatus::TooManyConnections));
        assert!(!sessions.close_connection(tsih, 7));
        assert!(sessions.place(&login(tsih, 9), 9).is_ok());
        assert!(!sessions.close_connection(tsih, 8));
        assert!(sessions.close_connection(tsih, 9), "the last one ends the session");
        assert_eq!(sessions.count(), 0);
        assert_eq!(sessions.place(&login(tsih, 9), 9), Err(LoginStatus::NoSession));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes a minute there")]
    fn sessions_are_bounded() {
        let mut sessions = Sessions::new(0);
        for number in 0..SESSIONS_MAX {
            let login = Nexus { initiator: &name(number), isid: [0; 6], tsih: 0, cid: 0 };
            assert!(sessions.place(&login, 1).is_ok());
        }
        let initiator = name(SESSIONS_MAX);
        let login = Nexus { initiator: &initiator, isid: [0; 6], tsih: 0, cid: 0 };
        assert_eq!(sessions.place(&login, 1), Err(LoginStatus::OutOfResources));
        let again = Nexus { initiator: &name(0), isid: [0; 6], tsih: 0, cid: 0 };
        assert!(sessions.place(&again, 1).is_ok(), "a session that comes again takes no new place");
    }
}
