//! Task management functions (RFC 7143, 11.5; SAM-5 7).

use std::rc::Rc;

use block_device::ReplySink;
use iscsi_target_protocol::target::connection::{Aborted, Scope, Slot};
use iscsi_target_protocol::wire::request::TaskFunction;
use iscsi_target_protocol::wire::response::TaskManagementOutcome;
use reactor::spawn;
use scsi_protocol::Attention;
use scsi_protocol::unit::NexusId;

use crate::link::{Output, farewell};
use crate::session::{Line, Session};
use crate::target::Target;

/// A task management request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Management {
    pub(crate) slot: Slot,
    pub(crate) function: TaskFunction,
    pub(crate) lun: u64,
    pub(crate) task: Option<Slot>,
    pub(crate) before: u32,
}

/// Commands that were aborted and that the device still has.
type Waited = Vec<(Rc<Line>, Slot)>;

/// Carries out a function and answers it once nothing that it aborted can take effect any more (I15).
pub(crate) fn manage(session: &Rc<Session>, line: &Rc<Line>, management: Management) {
    let Management { slot, function, lun, task, before } = management;
    if function != TaskFunction::AbortTask && !is_about_target(function) && lun != 0 {
        return respond(session, line, slot, TaskManagementOutcome::NoLogicalUnit);
    }
    let target = &session.target;
    let waited = match function {
        TaskFunction::AbortTask => match task {
            Some(task) => abort_on(session, line, Scope::Task(task), None),
            None => return respond(session, line, slot, TaskManagementOutcome::NoTask),
        },
        TaskFunction::AbortTaskSet => abort_session(session, Scope::LogicalUnit(lun), Some(before)),
        TaskFunction::ClearTaskSet => {
            let mut waited = abort_session(session, Scope::LogicalUnit(lun), Some(before));
            for other in target.all_sessions().iter().filter(|other| !Rc::ptr_eq(other, session)) {
                let aborted = abort_session(other, Scope::LogicalUnit(lun), None);
                waited.extend(aborted);
            }
            target.unit.borrow_mut().tell(Some(session.nexus), Attention::CommandsCleared);
            waited
        }
        TaskFunction::LogicalUnitReset | TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset => {
            let sessions = target.all_sessions();
            let own = |other: &Rc<Session>| Rc::ptr_eq(other, session).then_some(before);
            let waited =
                sessions.iter().flat_map(|other| abort_session(other, Scope::Everything, own(other))).collect();
            target.unit.borrow_mut().reset(None);
            waited
        }
        // There is no ACA condition, and the protocol refuses reassignment.
        TaskFunction::ClearAca | TaskFunction::TaskReassign => {
            return respond(session, line, slot, TaskManagementOutcome::NotSupported);
        }
    };
    let (session, line) = (Rc::clone(session), Rc::clone(line));
    spawn(async move {
        wait_for(&session.target, &waited).await;
        respond(&session, &line, slot, TaskManagementOutcome::Complete);
        if function == TaskFunction::TargetColdReset {
            farewell(&line.stream).await;
            session.target.all_sessions().iter().for_each(|session| session.end());
        }
    });
}

/// Ends the commands of all sessions of these nexuses.
pub(crate) async fn abort_nexuses(target: &Rc<Target>, nexuses: &[NexusId]) {
    let sessions = target.all_sessions();
    let concerned = sessions.iter().filter(|session| nexuses.contains(&session.nexus));
    let waited: Waited = concerned.flat_map(|session| abort_session(session, Scope::Everything, None)).collect();
    wait_for(target, &waited).await;
}

/// Waits until the device has none of the commands any more.
async fn wait_for(target: &Rc<Target>, waited: &Waited) {
    let gone = |(line, slot): &(Rc<Line>, Slot)| match &*line.protocol.borrow() {
        Some(protocol) => !protocol.is_in_flight(*slot),
        None => line.outstanding.get() == 0,
    };
    waited.iter().for_each(|(line, _)| line.managers.set(line.managers.get() + 1));
    target.wait_until(|| waited.iter().all(gone)).await;
    waited.iter().for_each(|(line, _)| line.managers.set(line.managers.get() - 1));
}

fn is_about_target(function: TaskFunction) -> bool {
    matches!(function, TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset)
}

fn abort_session(session: &Session, scope: Scope, before: Option<u32>) -> Waited {
    session.lines().iter().flat_map(|line| abort_on(session, line, scope, before)).collect()
}

fn abort_on(session: &Session, line: &Rc<Line>, scope: Scope, before: Option<u32>) -> Waited {
    let mut protocol = line.protocol.borrow_mut();
    let Some(protocol) = protocol.as_mut() else { return Vec::new() };
    let aborted = protocol.abort(&mut session.numbers.borrow_mut(), scope, before);
    // The places of those that are gone have to be cleared, and room in the window is there again.
    line.wake.raise();
    let executing = aborted.into_iter().filter(|aborted: &Aborted| aborted.executing);
    let waited: Waited = executing.map(|aborted| (Rc::clone(line), aborted.slot)).collect();
    // What the device has not begun it never will; it says so to the connection.
    let sink = Rc::clone(&line.completions) as Rc<dyn ReplySink>;
    waited.iter().for_each(|(_, slot)| session.target.device.cancel(&sink, Some(slot.index() as u64)));
    waited
}

/// Answers, if the connection still lives.
fn respond(session: &Session, line: &Line, slot: Slot, outcome: TaskManagementOutcome) {
    if let Some(protocol) = line.protocol.borrow_mut().as_mut() {
        protocol.respond_task_management(&mut session.numbers.borrow_mut(), slot, outcome, &mut Output(&line.stream));
        line.stream.flush();
    }
}
