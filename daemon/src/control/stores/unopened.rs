//! Stores that are not open: what they hold is in no list.

use std::collections::BTreeMap;
use std::future::Future;

use proto::v1;
use uuid::Uuid;

use super::{State, Stores};
use crate::control::error::ControlError;

impl Stores {
    /// Gives those that are being opened a moment.
    pub(crate) async fn wait_until_opened(&self) {
        self.wait_while_opening(|_| true).await;
    }

    /// The stores that are not open after that moment.
    pub(crate) async fn unopened(&self) -> Vec<v1::UnopenedStore> {
        self.wait_until_opened().await;
        self.unopened_now().into_values().collect()
    }

    fn unopened_now(&self) -> BTreeMap<Uuid, v1::UnopenedStore> {
        let entries = self.entries();
        let hidden = entries.values().filter(|entry| entry.state.may_hide());
        hidden.map(|entry| (entry.spec.uuid, entry.unopened())).collect()
    }

    /// What a look into the stores finds, and those that were not open before it or after: what they hold may be missing.
    pub(crate) async fn with_unopened<T>(&self, look: impl Future<Output = T>) -> (T, Vec<v1::UnopenedStore>) {
        let mut unopened = self.unopened_now();
        let found = look.await;
        unopened.extend(self.unopened_now());
        (found, unopened.into_values().collect())
    }

    /// The same, and an error also if one has failed, and so may hold things that nobody sees now.
    pub(crate) async fn all_open(&self) -> Result<(), ControlError> {
        self.none_opening().await?;
        self.first_in(State::may_hide).map_or(Ok(()), |entry| {
            let text = format!("store `{}` is not open, and may hold it", entry.spec.name);
            Err(ControlError::unavailable("STORE_FAILED", text))
        })
    }
}
