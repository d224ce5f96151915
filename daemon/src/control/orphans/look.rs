//! One look at everything that may have no owner: docs/orphans.md.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lvol::LvolKind;
use proto::v1::{self, Orphan, OrphanKind, OrphanState};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::claims::{self, Answer, Asked, Claim, Claims, Evidence, MOST_ASKED, Verdict};
use super::{Found, Orphans, Place, place_in_list};
use crate::control::error::ControlError;
use crate::data::{CopyFacts, LvolFacts, ReplicaFacts, SuspectFacts};

/// A replica of this node, or what is left of one, and where it is.
struct Suspect {
    asked: Asked,
    home: usize,
    store: Uuid,
    /// None when it has no head.
    facts: Option<ReplicaFacts>,
    /// Bytes of what is left of it.
    used: u64,
    /// Milliseconds since the Unix epoch.
    since: i64,
}

impl Orphans {
    /// Everything without an owner, in order of kind, name and UUID.
    pub(super) async fn look(&self) -> Result<Vec<Found>, ControlError> {
        let mut found = self.replicas().await?;
        found.extend(self.records().await?);
        found.extend(self.memberships().await?);
        found.extend(self.deletions().await);
        found.extend(self.exports().await?);
        found.sort_by(|one, other| place_in_list(&one.orphan).cmp(&place_in_list(&other.orphan)));
        Ok(found)
    }

    fn orphan(&self, kind: OrphanKind, uuid: Uuid, volume: Option<Uuid>, reason: &str) -> Orphan {
        Orphan {
            kind: kind.into(),
            uuid: uuid.to_string(),
            state: OrphanState::Orphan.into(),
            volume_uuid: volume.map_or_else(String::new, |volume| volume.to_string()),
            node: self.here.node.clone(),
            reason: reason.to_owned(),
            ..Orphan::default()
        }
    }

    async fn replicas(&self) -> Result<Vec<Found>, ControlError> {
        let mut suspects = Vec::new();
        for home in 0..self.here.data.reactors() {
            let replicas = self.here.data.replicas(home).await?;
            suspects.extend(suspects_of(home, replicas, &self.here.data.lvols(home).await?));
        }
        let asked: Vec<Asked> = suspects.iter().map(|suspect| suspect.asked).collect();
        let own = self.claims_here(&asked);
        suspects.retain(|suspect| own.get(&suspect.asked.replica) != Some(&Claim::Owned));
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.ask_peers(suspects.iter().map(|suspect| suspect.asked).collect()).await;
        let closer = self.look_closer(&suspects).await?;
        let mut found = Vec::new();
        for suspect in suspects {
            let facts = closer.get(&suspect.asked.replica);
            if suspect.facts.is_some() && facts.is_none() {
                // Gone meanwhile.
                continue;
            }
            let copy = facts.and_then(|facts| facts.copy.clone());
            let members = copy.iter().flat_map(|copy| copy.members.iter().map(|member| member.node.clone()));
            let named = members.chain(facts.and_then(|facts| facts.owner.clone())).collect();
            let evidence = Evidence {
                asked: suspect.asked,
                node: &self.here.node,
                own: own.get(&suspect.asked.replica),
                answers: &answers,
                named,
                is_open: facts.is_some_and(|facts| facts.is_open),
            };
            if let Some(verdict) = evidence.judge() {
                found.push(self.found(suspect, verdict, copy));
            }
        }
        Ok(found)
    }

    fn found(&self, suspect: Suspect, verdict: Verdict, copy: Option<CopyFacts>) -> Found {
        let Suspect { asked, home, store, facts, used, since } = suspect;
        let kind = if facts.is_some() { OrphanKind::Replica } else { OrphanKind::Remains };
        let orphan = Orphan {
            state: verdict.state.into(),
            name: facts.as_ref().map_or_else(String::new, |facts| facts.spec.name.clone()),
            store: self.here.stores.name(store),
            size_bytes: facts.as_ref().map_or(0, |facts| facts.spec.size),
            used_bytes: used,
            since_unix_ms: since,
            unasked_nodes: verdict.unasked,
            adoptable: facts.is_some() && !verdict.is_let_go,
            ..self.orphan(kind, asked.replica, asked.volume, &verdict.reason)
        };
        let place = match facts {
            Some(facts) => Place::Replica { home, facts, copy },
            None => Place::Remains { home, store, replica: asked.replica },
        };
        Found { orphan, place }
    }

    /// What the records of this node say of replicas.
    pub(super) fn claims_here(&self, asked: &[Asked]) -> Claims {
        claims::of_records(asked, &self.here.node, &self.here.volumes, &self.here.engines, &self.here.deletions)
    }

    /// What the peers say, all asked at once.
    async fn ask_peers(&self, asked: Vec<Asked>) -> BTreeMap<String, Answer> {
        let mut calls = JoinSet::new();
        let asked: Arc<[Asked]> = asked.into();
        for peer in self.here.peers.names() {
            let (peer, peers, asked) = (peer.to_owned(), Arc::clone(&self.here.peers), Arc::clone(&asked));
            calls.spawn(async move {
                let mut claims = Claims::new();
                for some in asked.chunks(MOST_ASKED) {
                    let request = v1::ListClaimsRequest { replicas: some.iter().map(Asked::request).collect() };
                    match peers.claims(&peer, request).await {
                        Ok(answer) => claims.extend(answer.into_iter().filter_map(Claim::parse)),
                        Err(error) => return (peer, Err(error.to_string())),
                    }
                }
                (peer, Ok(claims))
            });
        }
        let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
        while let Some(call) = calls.join_next().await {
            if let Ok((peer, answer)) = call {
                answers.insert(peer, answer);
            }
        }
        // One whose call ended without an answer has not said that it owns nothing.
        for peer in self.here.peers.names() {
            answers.entry(peer.to_owned()).or_insert_with(|| Err(format!("node `{peer}`: the call ended")));
        }
        answers
    }

    async fn look_closer(&self, suspects: &[Suspect]) -> Result<BTreeMap<Uuid, SuspectFacts>, ControlError> {
        let mut places: BTreeMap<(usize, Uuid), Vec<Uuid>> = BTreeMap::new();
        for suspect in suspects {
            places.entry((suspect.home, suspect.store)).or_default().push(suspect.asked.replica);
        }
        let mut closer = BTreeMap::new();
        for ((home, store), replicas) in places {
            let facts = self.here.data.suspects(home, store, replicas).await?;
            closer.extend(facts.into_iter().map(|facts| (facts.replica, facts)));
        }
        Ok(closer)
    }

    /// Volumes without engines, and engines without volumes.
    async fn records(&self) -> Result<Vec<Found>, ControlError> {
        let (volumes, unreadable_volumes) = self.here.volumes.all_records();
        let (engines, unreadable_engines) = self.here.engines.all_records();
        let mut found = Vec::new();
        for volume in volumes.into_iter().filter(|volume| volume.is_created) {
            let uuid = volume.uuid;
            // Its deletion takes the engine first: looked at again, whether it has begun.
            if self.here.engines.contains(uuid) || !self.here.volumes.is_created(uuid) {
                continue;
            }
            let reason = "its engine has no record: nobody serves it";
            let orphan = Orphan {
                name: volume.name,
                size_bytes: volume.size,
                since_unix_ms: self.here.volumes.since(uuid).await,
                adoptable: true,
                ..self.orphan(OrphanKind::Volume, uuid, Some(uuid), reason)
            };
            found.push(doubted(orphan, unreadable_engines, uuid, "engine", Place::Volume(uuid)));
        }
        for engine in engines.into_iter().filter(|engine| engine.of_volume) {
            let uuid = engine.volume;
            if self.here.volumes.contains(uuid) || !self.here.engines.contains(uuid) {
                continue;
            }
            let reason = "its volume has no record: it is served, and in no list of volumes";
            let orphan = Orphan {
                name: engine.name.clone(),
                size_bytes: engine.size,
                since_unix_ms: self.here.engines.since(uuid).await,
                adoptable: true,
                ..self.orphan(OrphanKind::Engine, uuid, Some(uuid), reason)
            };
            found.push(doubted(orphan, unreadable_volumes, uuid, "volume", Place::Engine(Box::new(engine))));
        }
        Ok(found)
    }

    async fn memberships(&self) -> Result<Vec<Found>, ControlError> {
        let recorded = self.here.data.memberships().await?;
        let (_, unreadable_volumes) = self.here.volumes.all_records();
        let (_, unreadable_engines) = self.here.engines.all_records();
        let mut found = Vec::new();
        for uuid in recorded {
            let is_known = |uuid| self.here.volumes.contains(uuid) || self.here.engines.contains(uuid);
            if is_known(uuid) || unreadable_volumes.contains(&uuid) || unreadable_engines.contains(&uuid) {
                continue;
            }
            let (copy, reason) = match self.here.data.membership(uuid).await {
                Ok(None) => continue,
                Ok(Some(copy)) => (Some(copy), "neither its volume nor its engine has a record".to_owned()),
                Err(error) => (None, format!("neither its volume nor its engine has a record, and {error}")),
            };
            let orphan = Orphan {
                size_bytes: copy.as_ref().map_or(0, |copy| copy.size),
                since_unix_ms: self.here.data.membership_changed_at(uuid).await,
                adoptable: copy.is_some(),
                ..self.orphan(OrphanKind::Membership, uuid, Some(uuid), &reason)
            };
            found.push(Found { orphan, place: Place::Membership { volume: uuid, copy } });
        }
        Ok(found)
    }

    async fn deletions(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for record in self.here.deletions.of_unknown_nodes() {
            let node = &record.node;
            let reason = format!("it waits for node `{node}`, which is no peer of this one any more");
            let orphan = Orphan {
                since_unix_ms: self.here.deletions.since(record.replica).await,
                ..self.orphan(OrphanKind::Deletion, record.replica, Some(record.volume), &reason)
            };
            found.push(Found { orphan, place: Place::Deletion(record.replica) });
        }
        found
    }

    async fn exports(&self) -> Result<Vec<Found>, ControlError> {
        let mut found = Vec::new();
        for home in 0..self.here.data.reactors() {
            let shown = self.here.data.exports(home).await?;
            let strange: Vec<Uuid> = shown.into_iter().filter(|volume| !self.here.engines.contains(*volume)).collect();
            if strange.is_empty() {
                continue;
            }
            // An engine that ends is taken from hosts before it is from the list.
            let still: BTreeSet<Uuid> = self.here.data.exports(home).await?.into_iter().collect();
            for volume in strange.into_iter().filter(|volume| still.contains(volume)) {
                let reason = "hosts see it, and no engine has a record";
                let orphan = self.orphan(OrphanKind::Export, volume, Some(volume), reason);
                found.push(Found { orphan, place: Place::Export { home, volume } });
            }
        }
        Ok(found)
    }
}

/// What lacks a record that is there and cannot be read is no orphan for certain.
fn doubted(orphan: Orphan, unreadable: &BTreeSet<Uuid>, uuid: Uuid, what: &str, place: Place) -> Found {
    if !unreadable.contains(&uuid) {
        return Found { orphan, place };
    }
    let reason = format!(
        "the record of its {what} cannot be read (see the log): to say that it is lost, move that file away and restart"
    );
    let state = OrphanState::Unknown.into();
    Found { orphan: Orphan { state, reason, ..orphan }, place }
}

/// The replicas in the stores of a reactor, and what is left of such.
fn suspects_of(home: usize, replicas: Vec<ReplicaFacts>, lvols: &[LvolFacts]) -> Vec<Suspect> {
    let mut since: BTreeMap<(Uuid, Uuid), i64> = BTreeMap::new();
    let mut remains: BTreeMap<(Uuid, Uuid), (u64, i64)> = BTreeMap::new();
    for lvol in lvols {
        let Some(replica) = lvol.owner.and_then(|owner| owner.replica) else { continue };
        let made = i64::try_from(lvol.info.created_at.as_millis()).unwrap_or(i64::MAX);
        let place = (lvol.store, replica);
        if lvol.info.kind == LvolKind::Head {
            since.insert(place, made);
        } else if lvol.info.deletion.is_none() && lvol.owner.is_some_and(|owner| owner.volume.is_none()) {
            let (used, newest) = remains.entry(place).or_default();
            (*used, *newest) = (used.saturating_add(lvol.info.used_bytes), made.max(*newest));
        }
    }
    let whole = replicas.into_iter().map(|facts| Suspect {
        asked: Asked { replica: facts.spec.uuid, volume: Some(facts.spec.volume) },
        home,
        store: facts.store,
        used: facts.used,
        since: since.get(&(facts.store, facts.spec.uuid)).copied().unwrap_or(0),
        facts: Some(facts),
    });
    let left = remains.into_iter().map(|((store, replica), (used, since))| Suspect {
        asked: Asked { replica, volume: None },
        home,
        store,
        facts: None,
        used,
        since,
    });
    whole.chain(left).collect()
}
