//! Growing a volume while it is in use.

use std::rc::Rc;

use block_device::{Error, Geometry};
use reactor::bug;
use replica::Replica;

use crate::config::EngineError;
use crate::core::Core;

impl Core {
    /// Makes the volume at least so large. First every replica that receives writes grows, durably; then the record says
    /// so; then hosts are told (I39). A crash in between leaves replicas that are larger than the volume, which is harmless.
    ///
    /// # Errors
    /// For a smaller size, or when a replica cannot grow: the volume stays as it is, and no replica leaves for it (I33).
    pub(crate) async fn grow(self: &Rc<Self>, size: u64) -> Result<(), EngineError> {
        let _administration = self.administration.lock().await;
        let now = self.geometry.get();
        let grown = now.with_size(size).map_err(|error| EngineError::Config(error.to_string()))?;
        if size < now.size() {
            return Err(EngineError::Config(format!("the volume has {} bytes and cannot have {size}", now.size())));
        }
        self.check_serving()?;
        let receiving = self.members.borrow().receiving();
        let receiving = if bug!("grow-one-replica") { receiving & receiving.wrapping_neg() } else { receiving };
        let answers = self.ask("growing", receiving, move |replica| async move { replica.grow(size).await }).await;
        if let Some(error) = answers.into_iter().find_map(|(_, answer)| answer.err()) {
            return Err(EngineError::Failed(error));
        }
        let recorded = self.change_record(|record| {
            record.size = size;
            true
        });
        recorded.await.map_err(|reason| EngineError::Unavailable(Error::from(reason).to_string()))?;
        // Another grow waits for `administration`; what replicas joined meanwhile can do, they can do at this size too.
        self.geometry.set(Geometry { blocks: grown.blocks, ..self.geometry.get() });
        self.signals.announce_change();
        Ok(())
    }

    /// Makes a replica that missed a grow as large as the volume, before it gets anything (I39).
    pub(crate) async fn catch_up_size(&self, replica: &dyn Replica) -> Result<(), Error> {
        let size = self.record.borrow().size;
        match replica.granted().geometry.size() < size {
            true => replica.grow(size).await,
            false => Ok(()),
        }
    }
}
