//! Who may log in to a target, and how an initiator proves who it is.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::chap::{Algorithm, Credentials};
use crate::wire::Name;

/// Why credentials cannot be used together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidChap {
    /// Both directions have the same secret: an answer could be had by asking for it (12.1.3).
    SameSecret,
    /// No algorithm is allowed.
    NoAlgorithm,
}

impl fmt::Display for InvalidChap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::SameSecret => "the CHAP secrets of initiator and target must differ",
            Self::NoAlgorithm => "at least one CHAP algorithm must be allowed",
        })
    }
}

impl core::error::Error for InvalidChap {}

/// What CHAP needs at a target.
#[derive(Debug)]
pub struct Chap {
    pub(super) initiator: Credentials,
    pub(super) target: Option<Credentials>,
    pub(super) algorithms: Vec<Algorithm>,
}

impl Chap {
    /// Initiators prove that they know the first credentials; the target proves the second where it is asked to (mutual).
    ///
    /// # Errors
    /// The credentials do not go together.
    pub fn new(
        initiator: Credentials,
        target: Option<Credentials>,
        algorithms: &[Algorithm],
    ) -> Result<Self, InvalidChap> {
        if target.as_ref().is_some_and(|target| target.secret.is_same(&initiator.secret)) {
            return Err(InvalidChap::SameSecret);
        }
        if algorithms.is_empty() {
            return Err(InvalidChap::NoAlgorithm);
        }
        Ok(Self { initiator, target, algorithms: algorithms.into() })
    }
}

/// Who may log in to a target.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The initiators that may; any, if there is no list.
    pub initiators: Option<BTreeSet<Name>>,
    /// What they have to prove.
    pub chap: Option<Arc<Chap>>,
}

impl Access {
    /// Whether an initiator of this name may log in, once it has proved what it has to.
    pub fn admits(&self, initiator: &Name) -> bool {
        self.initiators.as_ref().is_none_or(|names| names.contains(initiator))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chap::Secret;

    fn credentials(secret: &[u8]) -> Credentials {
        Credentials { name: "someone".into(), secret: Secret::new(secret).unwrap() }
    }

    #[test]
    fn both_directions_need_secrets_of_their_own() {
        let chap = |target: &[u8], algorithms: &[Algorithm]| {
            Chap::new(credentials(b"initiator secret"), Some(credentials(target)), algorithms).err()
        };
        assert_eq!(chap(b"target's secret", &Algorithm::ALL), None);
        assert_eq!(chap(b"initiator secret", &Algorithm::ALL), Some(InvalidChap::SameSecret));
        assert_eq!(chap(b"target's secret", &[]), Some(InvalidChap::NoAlgorithm));
    }

    #[test]
    fn a_list_admits_those_on_it_whatever_their_case() {
        let name = |text: &str| Name::parse(text).unwrap();
        let access = Access { initiators: Some([name("iqn.2026-01.org:Host")].into()), chap: None };
        assert!(access.admits(&name("IQN.2026-01.ORG:host")));
        assert!(!access.admits(&name("iqn.2026-01.org:other")));
        assert!(Access::default().admits(&name("iqn.2026-01.org:other")));
        assert!(!Access { initiators: Some(BTreeSet::new()), chap: None }.admits(&name("iqn.2026-01.org:host")));
    }
}
