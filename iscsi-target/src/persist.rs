//! PERSISTENT RESERVE OUT is answered when what it changed is durable (I38).

use std::rc::Rc;

use scsi_protocol::reservation::Reservations;
use scsi_protocol::sense::Sense;
use scsi_protocol::unit::{NexusId, Response};

use crate::management::abort_nexuses;
use crate::session::Session;

/// Makes the reservations durable, and ends the commands of `abort`. Fails back to `before` if that does not work.
pub(crate) async fn persist(session: &Rc<Session>, abort: &[NexusId], before: Reservations) -> Response {
    let target = &session.target;
    target.saving.set(true);
    let record = target.unit.borrow().reservations().encode();
    let saved = target.store.save(record).await;
    target.saving.set(false);
    if let Err(error) = saved {
        tracing::error!(target = %target.identity().name, %error, "reservations could not be made durable");
        target.unit.borrow_mut().restore_reservations(before);
        return Response::check(Sense::INTERNAL_TARGET_FAILURE);
    }
    abort_nexuses(target, abort).await;
    Response::good(Vec::new())
}
