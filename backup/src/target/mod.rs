//! Where backups are: an object store, or a folder.
//!
//! [`Store`] is the one seam to the outside world. `url` says where, `credentials` with which keys; [`open`] makes a store of them.
//! `client::Client` is what all else uses: it tries again within reason, and says that something is not there only when a
//! listing confirms it. `check` tries a target out.

pub mod check;
pub(crate) mod client;
mod cloud;
pub mod credentials;
mod folder;
mod http;
mod store;
pub mod url;

pub use credentials::Credentials;
pub use folder::FolderStore;
pub use http::{Resolve, SystemResolver};
pub use store::{Body, Content, Folder, Listing, ObjectInfo, Store};
pub use url::{Place, TargetUrl};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Result, invalid};

/// How a target is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who resolves names.
    pub resolver: Arc<dyn Resolve>,
    /// How long an attempt to connect may take.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, and each part of it to come.
    pub answer_timeout: Duration,
    /// Of a folder: the mark without which it is not the one that is meant ([`FolderStore::mark`]).
    pub mark: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolver: Arc::new(SystemResolver),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            mark: None,
        }
    }
}

/// An opened target, with what it showed of its clock.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How its clock differs from ours.
    pub clock: Clock,
}

/// What the answers of a server said about its clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<std::sync::Mutex<Option<SystemTime>>>);

impl Clock {
    pub(crate) fn saw(&self, time: SystemTime) {
        if let Ok(mut seen) = self.0.lock() {
            *seen = Some(time);
        }
    }

    pub(crate) fn take(&self) -> Option<SystemTime> {
        self.0.lock().ok().and_then(|mut seen| seen.take())
    }
}

/// Opens a target. Nothing is sent yet.
///
/// # Errors
/// `Invalid` when URL and credentials do not make a target.
pub fn open(url: &TargetUrl, credentials: &Credentials, settings: &Settings) -> Result<Opened> {
    let clock = Clock::default();
    let store: Arc<dyn Store> = match &url.place {
        Place::Folder { path } => {
            Arc::new(FolderStore::new(path, settings.answer_timeout).marked(settings.mark.as_deref()))
        }
        Place::Mountable { scheme, .. } => {
            let advice = "mount it on this node and give the folder: vfs:///path";
            return Err(invalid(format!("{scheme} is not mounted by us: {advice}")));
        }
        Place::S3 { .. } | Place::Azure { .. } | Place::Google { .. } => {
            Arc::new(cloud::open(url, credentials, settings, &clock)?)
        }
    };
    Ok(Opened { store, clock })
}
