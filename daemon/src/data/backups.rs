//! What backups and restores do with a volume on its reactor: snapshots are read, and volumes that are kept from hosts are filled.

use std::rc::Rc;

use block_device::{ErrorKind, Range, Request, execute};
use engine::Engine;
use reactor::Slice;
use uuid::Uuid;

use super::engines::running;
use super::errors::engine_error;
use crate::control::ControlError;

/// Bytes of a write, and of a range that becomes zeroes at once.
const STEP: usize = 256 << 10;
const ZEROED: u64 = 64 << 20;

/// Runs of a snapshot, as [`Engine::snapshot_extents`] has them.
pub(super) async fn extents(
    volume: Uuid,
    snapshot: Uuid,
    since: Option<Uuid>,
    from: u64,
    most: usize,
) -> Result<Option<Vec<Range>>, ControlError> {
    let (_, engine) = running(volume)?;
    engine.snapshot_extents(snapshot, since, from, most).await.map_err(|error| engine_error(&volume.to_string(), error))
}

/// A range of a snapshot; none if that is gone.
pub(super) async fn read(volume: Uuid, snapshot: Uuid, range: Range) -> Result<Option<Vec<u8>>, ControlError> {
    let (_, engine) = running(volume)?;
    let read = engine.read_snapshot(snapshot, range).await;
    let read = read.map_err(|error| engine_error(&volume.to_string(), error))?;
    Ok(read.map(|data| data.to_vec()))
}

/// Writes to a volume that no host has.
pub(super) async fn write(volume: Uuid, offset: u64, data: Vec<u8>) -> Result<(), ControlError> {
    let (_, engine) = running(volume)?;
    for (piece, at) in data.chunks(STEP).zip((offset..).step_by(STEP)) {
        perform(&engine, Request::write(at, Slice::from(piece))).await?;
    }
    Ok(())
}

/// Makes a range of such a volume read as zeroes.
pub(super) async fn zero(volume: Uuid, range: Range) -> Result<(), ControlError> {
    let (_, engine) = running(volume)?;
    let mut offset = range.offset;
    while offset < range.end() {
        let piece = Range { offset, length: ZEROED.min(range.end() - offset) };
        perform(&engine, Request::WriteZeroes { range: piece, unmap: true, fua: false }).await?;
        offset = piece.end();
    }
    Ok(())
}

/// Makes durable what was written.
pub(super) async fn flush(volume: Uuid) -> Result<(), ControlError> {
    let (_, engine) = running(volume)?;
    perform(&engine, Request::Flush).await
}

/// One request; a busy engine is asked again.
async fn perform(engine: &Rc<Engine>, request: Request) -> Result<(), ControlError> {
    loop {
        match execute(&**engine, request.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Busy => reactor::sleep(std::time::Duration::from_millis(10)).await,
            Err(error) if error.kind() == ErrorKind::NoSpace => return Err(ControlError::exhausted(error)),
            Err(error) => return Err(ControlError::unavailable("ENGINE_STARTING", error)),
        }
    }
}
