//! Who owns a replica: what this node's records say, and what is concluded from what all nodes say.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::{self, ClaimState, OrphanState};
use uuid::Uuid;

use crate::control::deletions::Deletions;
use crate::control::engines::Engines;
use crate::control::error::ControlError;
use crate::control::request;
use crate::control::volumes::Volumes;

/// Replicas in one question.
pub(super) const MOST_ASKED: usize = 10_000;

/// A replica that somebody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) replica: Uuid,
    /// None where nobody can say.
    pub(super) volume: Option<Uuid>,
}

impl Asked {
    pub(super) fn request(&self) -> v1::ReplicaOfVolume {
        let volume_uuid = self.volume.map_or_else(String::new, |volume| volume.to_string());
        v1::ReplicaOfVolume { replica_uuid: self.replica.to_string(), volume_uuid }
    }

    pub(super) fn parse(asked: &v1::ReplicaOfVolume) -> Result<Self, ControlError> {
        let replica = request::uuid("replicas.replica_uuid", &asked.replica_uuid)?;
        Ok(Self { replica, volume: request::optional_uuid("replicas.volume_uuid", &asked.volume_uuid)? })
    }
}

/// What one node says of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Owned,
    Unreadable(String),
    LetGo(String),
}

impl Claim {
    pub(super) fn describe(self, replica: Uuid) -> v1::Claim {
        let (state, reason) = match self {
            Self::Owned => (ClaimState::Owned, String::new()),
            Self::Unreadable(reason) => (ClaimState::Unreadable, reason),
            Self::LetGo(reason) => (ClaimState::LetGo, reason),
        };
        v1::Claim { replica_uuid: replica.to_string(), state: state.into(), reason }
    }

    /// Of a node that says what this version does not know, it is not taken for nothing.
    pub(super) fn parse(claim: v1::Claim) -> Option<(Uuid, Self)> {
        let replica = Uuid::try_parse(&claim.replica_uuid).ok()?;
        let parsed = match claim.state() {
            ClaimState::Owned => Self::Owned,
            ClaimState::LetGo => Self::LetGo(claim.reason),
            ClaimState::Unreadable | ClaimState::Unspecified => Self::Unreadable(claim.reason),
        };
        Some((replica, parsed))
    }
}

/// What the records of a node say of some replicas, by replica.
pub(super) type Claims = BTreeMap<Uuid, Claim>;

/// What this node's records say.
pub(super) fn of_records(
    asked: &[Asked],
    node: &str,
    volumes: &Volumes,
    engines: &Engines,
    deletions: &Deletions,
) -> Claims {
    let (known, unreadable_volumes) = volumes.all_records();
    let (served, unreadable_engines) = engines.all_records();
    let mut owned: BTreeSet<Uuid> = known.iter().flat_map(|volume| volume.replicas.iter().copied()).collect();
    owned.extend(served.iter().flat_map(|engine| engine.members.iter().map(|member| member.replica)));
    let mut here: BTreeMap<Uuid, &str> = served.iter().map(|engine| (engine.volume, engine.name.as_str())).collect();
    here.extend(known.iter().map(|volume| (volume.uuid, volume.name.as_str())));
    let unreadable: BTreeSet<Uuid> = unreadable_volumes.union(unreadable_engines).copied().collect();
    let claim = |asked: &Asked| {
        if owned.contains(&asked.replica) || deletions.waits_for(asked.replica).is_some() {
            return Some(Claim::Owned);
        }
        let doubted = asked.volume.map_or_else(|| unreadable.first(), |volume| unreadable.get(&volume));
        if let Some(volume) = doubted {
            let text = format!("a record of volume {volume} on node `{node}` cannot be read");
            return Some(Claim::Unreadable(text));
        }
        let name = here.get(&asked.volume?)?;
        Some(Claim::LetGo(format!("volume `{name}` on node `{node}` goes on without it")))
    };
    asked.iter().filter_map(|asked| Some((asked.replica, claim(asked)?))).collect()
}

/// What a peer said, or why it said nothing.
pub(super) type Answer = Result<Claims, String>;

/// What is known of a replica that this node does not own.
pub(super) struct Evidence<'a> {
    pub(super) asked: Asked,
    pub(super) node: &'a str,
    pub(super) own: Option<&'a Claim>,
    /// By peer.
    pub(super) answers: &'a BTreeMap<String, Answer>,
    /// The node that it was made for, and those that its copy of the membership names.
    pub(super) named: BTreeSet<String>,
    /// An engine has it open.
    pub(super) is_open: bool,
}

/// What became of the search for an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) state: OrphanState,
    pub(super) reason: String,
    pub(super) unasked: Vec<String>,
    /// Its volume lives without it.
    pub(super) is_let_go: bool,
}

impl Evidence<'_> {
    /// None if somebody owns it.
    pub(super) fn judge(&self) -> Option<Verdict> {
        let answers = self.answers.values().filter_map(|answer| answer.as_ref().ok()?.get(&self.asked.replica));
        let claims: Vec<&Claim> = self.own.into_iter().chain(answers).collect();
        if claims.iter().any(|claim| **claim == Claim::Owned) {
            return None;
        }
        let said = |wanted: fn(&Claim) -> Option<&String>| claims.iter().find_map(|claim| wanted(claim)).cloned();
        let let_go = said(|claim| match claim {
            Claim::LetGo(reason) => Some(reason),
            _ => None,
        });
        let unreadable = said(|claim| match claim {
            Claim::Unreadable(reason) => Some(reason),
            _ => None,
        });
        let verdict = |state, reason, unasked| Some(Verdict { state, reason, unasked, is_let_go: let_go.is_some() });
        if let Some(reason) = unreadable {
            // No answer of another node would change that.
            return verdict(OrphanState::Unknown, reason, Vec::new());
        }
        if self.is_open {
            let reason = "an engine has it open that no node known here owns up to".to_owned();
            return verdict(OrphanState::InUse, reason, self.unasked().into_keys().collect());
        }
        let unasked = self.unasked();
        if !unasked.is_empty() {
            let reasons: Vec<&str> = unasked.values().map(String::as_str).collect();
            let reason = format!("owner not reachable: {}", reasons.join("; "));
            return verdict(OrphanState::Unknown, reason, unasked.into_keys().collect());
        }
        let nobody = || match (self.asked.volume, self.answers.len()) {
            (None, _) => "it has no head, and no node has a replica of this UUID".to_owned(),
            (Some(volume), 0) => format!("this node has no volume {volume}, and no peers"),
            (Some(volume), peers) => format!("neither this node nor its {peers} peers have volume {volume}"),
        };
        verdict(OrphanState::Orphan, let_go.clone().unwrap_or_else(nobody), Vec::new())
    }

    /// Nodes that may own it and were not asked, with why.
    fn unasked(&self) -> BTreeMap<String, String> {
        let silent = self.answers.iter().filter_map(|(peer, answer)| Some((peer.clone(), answer.clone().err()?)));
        let strange = self.named.iter().filter(|name| *name != self.node && !self.answers.contains_key(*name));
        let strange =
            strange.map(|name| (name.clone(), format!("node `{name}`, which it names, is no peer of this one")));
        silent.chain(strange).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: Uuid = Uuid::from_u128(1);

    struct Case {
        own: Option<Claim>,
        answers: BTreeMap<String, Answer>,
        named: BTreeSet<String>,
        is_open: bool,
    }

    impl Case {
        fn new(answers: &[(&str, Answer)], named: &[&str]) -> Self {
            let answers = answers.iter().map(|(name, answer)| ((*name).to_owned(), answer.clone())).collect();
            let named = named.iter().map(|name| (*name).to_owned()).collect();
            Self { own: None, answers, named, is_open: false }
        }

        fn judge(&self) -> Option<Verdict> {
            let asked = Asked { replica: REPLICA, volume: Some(Uuid::from_u128(2)) };
            let (own, answers, named) = (self.own.as_ref(), &self.answers, self.named.clone());
            Evidence { asked, node: "a", own, answers, named, is_open: self.is_open }.judge()
        }

        fn state(&self) -> Option<OrphanState> {
            self.judge().map(|verdict| verdict.state)
        }
    }

    fn says(claim: Claim) -> Answer {
        Ok(BTreeMap::from([(REPLICA, claim)]))
    }

    fn nothing() -> Answer {
        Ok(BTreeMap::new())
    }

    #[test]
    fn only_what_everybody_was_asked_about_is_an_orphan() {
        assert_eq!(Case::new(&[], &["a"]).state(), Some(OrphanState::Orphan));
        assert_eq!(Case::new(&[("b", nothing()), ("c", nothing())], &["a", "c"]).state(), Some(OrphanState::Orphan));
        let silent = Case::new(&[("b", nothing()), ("c", Err("node `c`: dead".to_owned()))], &[]).judge();
        let silent = silent.expect("not owned");
        assert_eq!((silent.state, silent.unasked), (OrphanState::Unknown, vec!["c".to_owned()]));
        assert!(silent.reason.contains("owner not reachable") && silent.reason.contains("dead"), "{}", silent.reason);
        let stranger = Case::new(&[("b", nothing())], &["a", "b", "z"]).judge().expect("not owned");
        assert_eq!((stranger.state, stranger.unasked), (OrphanState::Unknown, vec!["z".to_owned()]));
    }

    #[test]
    fn one_owner_is_enough_whoever_else_is_silent() {
        let case = Case::new(&[("b", says(Claim::Owned)), ("c", Err("dead".to_owned()))], &["z"]);
        assert_eq!(case.judge(), None);
        let mut case = Case::new(&[("c", Err("dead".to_owned()))], &[]);
        case.own = Some(Claim::Owned);
        assert_eq!(case.judge(), None);
    }

    #[test]
    fn a_volume_that_goes_on_without_it_is_no_owner() {
        let case = Case::new(&[("b", says(Claim::LetGo("volume `v` goes on".to_owned())))], &["b"]);
        let verdict = case.judge().expect("not owned");
        assert!(verdict.is_let_go && verdict.state == OrphanState::Orphan && verdict.reason.contains("goes on"));
        let case = Case::new(&[("b", says(Claim::LetGo(String::new()))), ("c", Err("dead".to_owned()))], &[]);
        assert_eq!(case.state(), Some(OrphanState::Unknown), "another node may have taken it over");
    }

    #[test]
    fn doubt_and_use_keep_it_from_being_an_orphan() {
        let mut case = Case::new(&[("b", says(Claim::Unreadable("damaged".to_owned())))], &[]);
        assert_eq!(case.state(), Some(OrphanState::Unknown));
        assert_eq!(case.judge().expect("not owned").unasked, [""; 0], "no node can be done without");
        case = Case::new(&[("b", nothing())], &[]);
        case.is_open = true;
        assert_eq!(case.state(), Some(OrphanState::InUse));
    }

    #[test]
    fn a_claim_of_another_version_is_a_doubt() {
        let (replica, claim) = Claim::parse(Claim::Owned.describe(REPLICA)).expect("a claim");
        assert_eq!((replica, claim), (REPLICA, Claim::Owned));
        let strange = v1::Claim { replica_uuid: REPLICA.to_string(), state: 99, reason: "new".to_owned() };
        assert_eq!(Claim::parse(strange), Some((REPLICA, Claim::Unreadable("new".to_owned()))));
    }
}
