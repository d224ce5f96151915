//! What becomes of engines and their replicas, told as events.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine::Engine;
use proto::v1::{EngineState, EventSubject, MemberState};
use uuid::Uuid;

use super::EngineFacts;
use super::engines::describe;
use crate::control::{EventSender, Happened, Touches};

/// States as they were told last.
#[derive(Debug, Default)]
struct Known {
    engine: Option<EngineState>,
    members: BTreeMap<Uuid, MemberState>,
}

/// Tells what becomes of an engine until it has stopped. Never waits for whom it tells.
pub(super) async fn tell(events: EventSender, touches: Touches, name: String, engine: Rc<Engine>) {
    let mut known = Known::default();
    loop {
        // Before the look, so that nothing between the two is missed.
        let change = engine.changed();
        let status = engine.status();
        let (volume, has_stopped) = (status.volume, matches!(status.state, engine::EngineState::Stopped { .. }));
        let nodes = status.replicas.iter().map(|replica| (replica.replica, replica.node.clone())).collect();
        for happened in known.learn(&name, volume, &describe(status), &nodes) {
            // Without a place for it, it is lost; the state is not.
            let _ = events.try_send(happened);
        }
        touches.touch(volume);
        if has_stopped {
            return;
        }
        change.await;
    }
}

impl Known {
    /// What is new about an engine.
    fn learn(
        &mut self,
        name: &str,
        volume: Uuid,
        facts: &EngineFacts,
        nodes: &BTreeMap<Uuid, String>,
    ) -> Vec<Happened> {
        let mut new = Vec::new();
        let before = self.engine.replace(facts.state);
        if before != Some(facts.state) {
            let stopped = before == Some(EngineState::Stopping) && facts.state == EngineState::Failed;
            let what = if stopped { "stopped".to_owned() } else { facts.state.to_string() };
            new.push(Happened {
                subject: EventSubject::Volume,
                name: name.to_owned(),
                uuid: volume.to_string(),
                what,
                detail: facts.reason.clone(),
            });
        }
        for member in &facts.members {
            let before = self.members.insert(member.replica, member.state);
            // A replica in sync is what everybody expects of the first look.
            if before.unwrap_or(MemberState::InSync) == member.state {
                continue;
            }
            let node = nodes.get(&member.replica).map_or("", String::as_str);
            new.push(Happened {
                subject: EventSubject::Replica,
                name: format!("{name} on {node}"),
                uuid: member.replica.to_string(),
                what: member.state.to_string(),
                detail: member.reason.clone(),
            });
        }
        self.members.retain(|replica, _| facts.members.iter().any(|member| member.replica == *replica));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::MemberFacts;

    fn facts(state: EngineState, reason: &str, members: &[(u128, MemberState)]) -> EngineFacts {
        let member = |(replica, state): &(u128, MemberState)| MemberFacts {
            replica: Uuid::from_u128(*replica),
            state: *state,
            reason: String::new(),
            copy: None,
            next_try: None,
            departures: 0,
            connected: true,
            repaired: 0,
            unrepaired: 0,
            lag: 0,
            oldest_request: None,
        };
        let members = members.iter().map(member).collect();
        EngineFacts { state, reason: reason.to_owned(), epoch: 1, size: 1, members }
    }

    #[test]
    fn what_is_new_is_told_once() {
        use EngineState::{Degraded, Failed, Healthy, Starting, Stopping};
        use MemberState::{InSync, OutOfSync, Rebuilding};
        let nodes = BTreeMap::from([(Uuid::from_u128(1), "a".to_owned()), (Uuid::from_u128(2), "b".to_owned())]);
        let mut known = Known::default();
        let mut learn = |state, reason: &str, members: &[(u128, MemberState)]| {
            let new = known.learn("v", Uuid::nil(), &facts(state, reason, members), &nodes);
            new.into_iter().map(|new| format!("{} {} {}", new.name, new.what, new.detail)).collect::<Vec<_>>()
        };
        assert_eq!(learn(Starting, "no replica", &[(1, InSync), (2, InSync)]), ["v starting no replica"]);
        assert!(learn(Starting, "still none", &[(1, InSync), (2, InSync)]).is_empty(), "another reason is no event");
        assert_eq!(learn(Healthy, "", &[(1, InSync), (2, InSync)]), ["v healthy "]);
        assert_eq!(
            learn(Degraded, "1 of 2", &[(1, InSync), (2, OutOfSync)]),
            ["v degraded 1 of 2", "v on b out of sync "]
        );
        assert_eq!(learn(Degraded, "1 of 2", &[(1, InSync), (2, Rebuilding)]), ["v on b rebuilding "]);
        assert_eq!(learn(Healthy, "", &[(1, InSync)]), ["v healthy "]);
        assert_eq!(learn(Stopping, "", &[(1, InSync)]), ["v stopping "]);
        assert_eq!(learn(Failed, "", &[(1, InSync)]), ["v stopped "]);
    }
}
