//! Reservations of hosts: bytes of a frontend that outlive it with the volume's record (I38).

use block_device::ErrorKind;
use replica::needs_space;

use crate::config::EngineError;
use crate::core::Core;
use crate::members::bit;
use crate::membership::not_recorded;
use crate::registry::{MAX_RESERVATIONS, VolumeRecord, compact};
use crate::spreading::copier;

impl Core {
    /// Puts them into the record. Many bytes go to the replicas first, where they may lack space: then nothing has changed.
    pub(crate) async fn set_reservations(&self, reservations: Vec<u8>) -> Result<(), EngineError> {
        if reservations.len() > MAX_RESERVATIONS {
            let text = format!("{} bytes of reservations, not at most {MAX_RESERVATIONS}", reservations.len());
            return Err(EngineError::Config(text));
        }
        self.record_reservations(reservations).await?;
        // Who has no copy is out of sync before anyone hears of it.
        self.until(|| (self.members.borrow().failing() == 0 || !self.is_serving()).then_some(())).await;
        self.check_serving()
    }

    async fn record_reservations(&self, reservations: Vec<u8>) -> Result<(), EngineError> {
        let _recording = self.recording.lock().await;
        self.check_serving()?;
        let next = VolumeRecord { reservations: reservations.clone(), ..self.record.borrow().clone() };
        if needs_space(compact::encode(&next).len(), reservations.len()) {
            self.make_place(&next).await?;
        }
        let changed = self.change_locked_record(|record| {
            record.reservations.clone_from(&reservations);
            true
        });
        changed.await.map_err(not_recorded)
    }

    /// Leaves a copy of a record to be with every replica that takes part. One that has had it has space for the next.
    async fn make_place(&self, next: &VolumeRecord) -> Result<(), EngineError> {
        let (members, in_sync) = {
            let members = self.members.borrow();
            (members.receiving(), members.in_sync())
        };
        let mut full = None;
        for (member, answer) in self.ask("reservations", members, copier(next)).await {
            match answer {
                Err(error) if error.kind() == ErrorKind::NoSpace && in_sync & bit(member) != 0 => {
                    full = Some(error);
                }
                Err(error) if self.members.borrow().is_last(member) => return Err(EngineError::Failed(error)),
                Err(error) => self.member_failed(member, &error),
                Ok(()) => {}
            }
        }
        let Some(error) = full else { return Ok(()) };
        // Those who had space get back what counts.
        let record = self.record.borrow().clone();
        self.spread_record(&record).await;
        Err(EngineError::Failed(error))
    }
}
