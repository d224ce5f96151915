//! The certificates in use, replaced as a whole when the files have changed.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;

use crate::files::{Files, Stamp};
use crate::settings::Set;
use crate::{Identity, TlsError, Who};

/// A node's certificates. Asked once a connection; the locks are held for the copy of a pointer.
pub struct Certificates {
    files: Files,
    node: String,
    peers: Arc<BTreeSet<String>>,
    current: RwLock<Arc<Set>>,
    /// Of what is in `current`: another number for each that was.
    generation: AtomicU64,
    /// How the files looked when they were read last. Held while they are read, which may take long.
    stamp: Mutex<Stamp>,
    /// Why what is in them is not in use.
    problem: Mutex<Option<String>>,
    not_after: AtomicI64,
    failed: AtomicBool,
}

/// What became of files that have changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// They are in use.
    Replaced,
    /// They are not, with the reason; what was in use stays so.
    Refused(String),
}

impl Certificates {
    /// Reads the files of node `node`, whose peers are `peers`.
    ///
    /// # Errors
    /// When they cannot be used. A certificate that has ended is no error: see [`Certificates::has_ended`].
    pub fn load(files: Files, node: &str, peers: impl IntoIterator<Item = String>) -> Result<Arc<Self>, TlsError> {
        // An engine of this node reaches a replica here on another reactor in the same way.
        let peers: Arc<BTreeSet<_>> = Arc::new(peers.into_iter().chain([node.to_owned()]).collect());
        let stamp = files.stamp();
        let set = Set::read(&files, node, &peers)?;
        Ok(Arc::new(Self {
            not_after: AtomicI64::new(set.not_after),
            failed: AtomicBool::new(false),
            files,
            node: node.to_owned(),
            peers,
            current: RwLock::new(Arc::new(set)),
            generation: AtomicU64::new(0),
            stamp: Mutex::new(stamp),
            problem: Mutex::default(),
        }))
    }

    /// Looks whether the files are others, or reads them in any case with `always`. Blocks for as long as the disk takes. None when there is
    /// nothing new to tell.
    pub fn refresh(&self, always: bool) -> Option<Report> {
        let mut last = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let (stamp, known) = (self.files.stamp(), self.problem());
        // What was refused may have been read while it was written.
        if !always && known.is_none() && stamp == *last {
            return None;
        }
        *last = stamp;
        let read = Set::read(&self.files, &self.node, &self.peers).map_err(|error| error.to_string());
        let read = read.and_then(|set| match has_ended(set.not_after) {
            true => Err(format!("{}: it has ended", self.files.certificate.display())),
            false => Ok(set),
        });
        self.failed.store(read.is_err(), Ordering::Relaxed);
        let problem = read.as_ref().err().cloned();
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem.clone();
        if let Ok(set) = read {
            self.not_after.store(set.not_after, Ordering::Relaxed);
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
            // Whoever sees the number sees what it is of.
            self.generation.fetch_add(1, Ordering::Release);
        }
        match problem {
            None => Some(Report::Replaced),
            Some(_) if !always && problem == known => None,
            Some(problem) => Some(Report::Refused(problem)),
        }
    }

    /// Whether the certificate in use has ended: nobody will talk to us.
    pub fn has_ended(&self) -> bool {
        has_ended(self.not_after())
    }

    /// When the certificate in use ends, in seconds since the Unix epoch.
    pub fn not_after(&self) -> i64 {
        self.not_after.load(Ordering::Relaxed)
    }

    /// Whether the files hold something that is refused.
    pub fn reload_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Why what is in the files is not in use.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.current().identity.clone()
    }

    /// Who a client is: in the domain of this node, and if it is a node, one of its peers.
    ///
    /// # Errors
    /// When it is nobody here; the text says why.
    pub fn who(&self, certificate: &[u8]) -> Result<Who, String> {
        let identity = Identity::of(&certificate.into())?;
        let domain = &self.current().identity.domain;
        match identity.who {
            _ if identity.domain != *domain => {
                Err(format!("the certificate is of the domain {}, and this is {domain}", identity.domain))
            }
            Who::Node(name) if !self.peers.contains(&name) => Err(format!("node {name} is no peer of this node")),
            who => Ok(who),
        }
    }

    /// For the listener of the API: one connection.
    pub fn for_clients(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().api)
    }

    /// Another number once others are in use. Asked for each piece of a connection's bytes: it is one load.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn current(&self) -> Arc<Set> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

fn has_ended(not_after: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    not_after <= i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
