//! What belongs to nobody, looked at seldom: a look may ask every peer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use proto::v1;

use super::told;
use crate::control::error::ControlError;
use crate::control::orphans::place_in_list;
use crate::control::streams::ChangeStream;
use crate::control::watched::{Seen, Source};
use crate::control::{Control, Orphans, pages};

pub(super) struct OrphanList(pub(super) Arc<Orphans>);

impl Control {
    /// A page of what has no owner, and what may have none.
    pub(crate) async fn list_orphans(
        &self,
        request: v1::ListOrphansRequest,
    ) -> Result<v1::ListOrphansResponse, ControlError> {
        let (Seen { objects, unopened }, resource_version) = self.watches.orphans.look().await?;
        let wanted = pages::Wanted { size: request.page_size, token: request.page_token };
        let (orphans, next_page_token) = pages::page("orphans", objects, place_in_list, &wanted)?;
        Ok(v1::ListOrphansResponse { orphans, unopened, next_page_token, resource_version })
    }

    /// What there is, and what becomes of it.
    pub(crate) async fn watch_orphans(
        &self,
        request: v1::WatchOrphansRequest,
    ) -> Result<ChangeStream<v1::OrphanChange>, ControlError> {
        let message = |kind, orphan, resource_version| v1::OrphanChange { kind, orphan, resource_version };
        let tell = move |change| told(change, |_| true, message);
        self.watches.orphans.watch(&request.resource_version, tell).await
    }
}

#[tonic::async_trait]
impl Source for OrphanList {
    type Object = v1::Orphan;

    const WHAT: &'static str = "orphans";
    const EVERY: Duration = Duration::from_secs(10);
    const GATHERED: Duration = Duration::from_secs(1);
    // Longer than a peer may take to answer.
    const LIMIT: Duration = Duration::from_secs(30);

    async fn look(&self) -> Result<Seen<v1::Orphan>, ControlError> {
        let (objects, unopened) = self.0.all().await?;
        Ok(Seen { objects, unopened })
    }

    /// Orphans of several kinds may have one UUID.
    fn key(orphan: &v1::Orphan) -> Cow<'_, str> {
        format!("{} {}", orphan.kind, orphan.uuid).into()
    }

    fn is_in(orphan: &v1::Orphan, store: &v1::UnopenedStore) -> bool {
        orphan.store == store.name
    }
}
