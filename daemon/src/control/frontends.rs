//! How hosts reach a volume, as it is recorded with its engine: over which frontends, and who may attach there.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use iscsi_target::{Access, Algorithm, Credentials, Name, Secret};
use nvmf_target::Hosts;
use proto::v1;
use serde::{Deserialize, Serialize};

use super::error::ControlError;

/// Hosts in a list.
const MOST_HOSTS: usize = 256;
/// Bytes of a CHAP name, and of an NVMe Qualified Name (NQN).
const LONGEST_CHAP_NAME: usize = 255;
const LONGEST_NQN: usize = 223;

/// The frontends of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frontends {
    pub(crate) nvmf: Option<Nvmf>,
    pub(crate) iscsi: Option<Iscsi>,
}

impl Default for Frontends {
    /// As a new volume is, and as all were before there was a choice.
    fn default() -> Self {
        Self { nvmf: Some(Nvmf::default()), iscsi: None }
    }
}

/// A kind of frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frontend {
    Nvmf,
    Iscsi,
}

/// An export over NVMe/TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Nvmf {
    /// The NQNs of those that may connect; any host if there is no list.
    hosts: Option<BTreeSet<String>>,
}

/// An export over iSCSI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Iscsi {
    /// The names of those that may log in; any initiator if there is no list.
    initiators: Option<BTreeSet<String>>,
    /// What they have to prove.
    chap: Option<Chap>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chap {
    initiator: User,
    /// For initiators that ask for it.
    target: Option<User>,
    /// At least one.
    algorithms: Vec<ChapAlgorithm>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    name: String,
    secret: SecretText,
}

/// A secret as it is recorded. Prints nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct SecretText(String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

/// What responses may be hashes of, in the words of the API and of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ChapAlgorithm {
    #[serde(rename = "sha3-256")]
    Sha3,
    #[serde(rename = "sha256")]
    Sha256,
    #[serde(rename = "sha1")]
    Sha1,
    #[serde(rename = "md5")]
    Md5,
}

impl ChapAlgorithm {
    /// The strongest first.
    const ALL: [Self; 4] = [Self::Sha3, Self::Sha256, Self::Sha1, Self::Md5];

    fn word(self) -> &'static str {
        match self {
            Self::Sha3 => "sha3-256",
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
        }
    }

    fn algorithm(self) -> Algorithm {
        match self {
            Self::Sha3 => Algorithm::Sha3,
            Self::Sha256 => Algorithm::Sha256,
            Self::Sha1 => Algorithm::Sha1,
            Self::Md5 => Algorithm::Md5,
        }
    }
}

impl Frontend {
    /// What a request names; none if it names nothing.
    pub(super) fn of(value: v1::Frontend) -> Option<Self> {
        match value {
            v1::Frontend::Unspecified => None,
            v1::Frontend::Nvmf => Some(Self::Nvmf),
            v1::Frontend::Iscsi => Some(Self::Iscsi),
        }
    }
}

impl Frontends {
    /// The frontends once `request` is done.
    pub(super) fn export(&self, request: &v1::ExportVolumeRequest) -> Result<Self, ControlError> {
        let mut frontends = self.clone();
        match Frontend::of(request.frontend()) {
            None => return Err(ControlError::invalid("frontend", "one is needed: nvmf or iscsi")),
            Some(Frontend::Nvmf) => {
                if request.chap.is_some() {
                    return Err(ControlError::invalid("chap", "it is for iscsi only"));
                }
                let nvmf = frontends.nvmf.get_or_insert_default();
                if let Some(allowed) = &request.allowed {
                    nvmf.hosts = hosts(allowed, nqn)?;
                }
            }
            Some(Frontend::Iscsi) => {
                let iscsi = frontends.iscsi.get_or_insert_default();
                if let Some(allowed) = &request.allowed {
                    iscsi.initiators = hosts(allowed, iscsi_name)?;
                }
                if let Some(chap) = &request.chap {
                    iscsi.chap = Chap::parse(chap)?;
                }
                iscsi.access().map_err(|problem| ControlError::invalid("chap", problem))?;
            }
        }
        Ok(frontends)
    }

    /// The frontends without one, or without any.
    pub(super) fn unexport(&self, frontend: Option<Frontend>) -> Self {
        Self {
            nvmf: self.nvmf.clone().filter(|_| frontend == Some(Frontend::Iscsi)),
            iscsi: self.iscsi.clone().filter(|_| frontend == Some(Frontend::Nvmf)),
        }
    }
}

impl Nvmf {
    /// Who may connect.
    pub(crate) fn hosts(&self) -> Hosts {
        self.hosts.clone().map_or(Hosts::Any, Hosts::Named)
    }

    pub(super) fn describe_hosts(&self) -> Option<v1::HostList> {
        self.hosts.as_ref().map(host_list)
    }
}

impl Iscsi {
    /// Who may log in; if that cannot be said, why.
    pub(crate) fn access(&self) -> Result<Access, String> {
        let name = |text: &String| Name::parse(text).ok_or_else(|| format!("`{text}` is not an iSCSI name"));
        let initiators = self.initiators.as_ref().map(|names| names.iter().map(name).collect()).transpose()?;
        let chap = self.chap.as_ref().map(Chap::target_side).transpose()?.map(Arc::new);
        Ok(Access { initiators, chap })
    }

    pub(super) fn describe_initiators(&self) -> Option<v1::HostList> {
        self.initiators.as_ref().map(host_list)
    }

    pub(super) fn describe_chap(&self) -> Option<v1::ChapState> {
        self.chap.as_ref().map(|chap| v1::ChapState {
            initiator: chap.initiator.name.clone(),
            target: chap.target.as_ref().map_or_else(String::new, |target| target.name.clone()),
            algorithms: chap.algorithms.iter().map(|algorithm| algorithm.word().to_owned()).collect(),
        })
    }
}

impl Chap {
    fn parse(settings: &v1::ChapSettings) -> Result<Option<Self>, ControlError> {
        let user = |field: &str, given: &v1::ChapCredentials| {
            User::parse(given).map_err(|problem| ControlError::invalid(field, problem))
        };
        let target = settings.target.as_ref().map(|given| user("chap.target", given)).transpose()?;
        let algorithms = algorithms(&settings.algorithms)?;
        match &settings.initiator {
            Some(given) => Ok(Some(Self { initiator: user("chap.initiator", given)?, target, algorithms })),
            None if target.is_none() && settings.algorithms.is_empty() => Ok(None),
            None => Err(ControlError::invalid("chap.initiator", "initiators have to prove something first")),
        }
    }

    fn target_side(&self) -> Result<iscsi_target::Chap, String> {
        let target = self.target.as_ref().map(User::credentials).transpose()?;
        let algorithms: Vec<_> = self.algorithms.iter().map(|algorithm| algorithm.algorithm()).collect();
        iscsi_target::Chap::new(self.initiator.credentials()?, target, &algorithms).map_err(|error| error.to_string())
    }
}

impl User {
    fn parse(given: &v1::ChapCredentials) -> Result<Self, String> {
        let v1::ChapCredentials { name, secret } = given;
        if name.is_empty() || name.len() > LONGEST_CHAP_NAME || name.chars().any(char::is_control) {
            return Err(format!("a CHAP name has 1 to {LONGEST_CHAP_NAME} bytes and no control characters"));
        }
        if secret.chars().any(char::is_control) {
            return Err("a CHAP secret has no control characters, such as the end of a line".to_owned());
        }
        let user = Self { name: name.clone(), secret: SecretText(secret.clone()) };
        // Its length.
        user.credentials()?;
        Ok(user)
    }

    fn credentials(&self) -> Result<Credentials, String> {
        let secret = Secret::new(self.secret.0.as_bytes()).map_err(|weak| weak.to_string())?;
        Ok(Credentials { name: self.name.clone(), secret })
    }
}

fn algorithms(words: &[String]) -> Result<Vec<ChapAlgorithm>, ControlError> {
    let unknown = words.iter().find(|word| ChapAlgorithm::ALL.iter().all(|known| known.word() != word.as_str()));
    if let Some(word) = unknown {
        let problem = format!("`{}` is none of sha3-256, sha256, sha1, md5", word.escape_debug());
        return Err(ControlError::invalid("chap.algorithms", problem));
    }
    let wanted = |known: &ChapAlgorithm| words.is_empty() || words.iter().any(|word| word == known.word());
    Ok(ChapAlgorithm::ALL.into_iter().filter(wanted).collect())
}

/// The list of a request; none for any host.
fn hosts(
    allowed: &v1::AllowedHosts,
    parse: impl Fn(&str) -> Result<String, String>,
) -> Result<Option<BTreeSet<String>>, ControlError> {
    let invalid = |problem: String| ControlError::invalid("allowed", problem);
    match (allowed.any, allowed.names.len()) {
        (true, 0) => Ok(None),
        (true, _) => Err(invalid("any host, and these hosts only, exclude each other".to_owned())),
        (false, 0) => Err(invalid("names are needed; to let nobody in, end the export".to_owned())),
        (false, count) if count > MOST_HOSTS => Err(invalid(format!("{count} are more than {MOST_HOSTS}"))),
        (false, _) => {
            Ok(Some(allowed.names.iter().map(|name| parse(name).map_err(invalid)).collect::<Result<_, _>>()?))
        }
    }
}

fn nqn(text: &str) -> Result<String, String> {
    let good = text.starts_with("nqn.") && text.len() <= LONGEST_NQN && !text.chars().any(char::is_control);
    good.then(|| text.to_owned()).ok_or_else(|| format!("`{}` is not an NQN", text.escape_debug()))
}

fn iscsi_name(text: &str) -> Result<String, String> {
    let name = Name::parse(text).ok_or_else(|| format!("`{}` is not an iSCSI name", text.escape_debug()))?;
    Ok(name.as_str().to_owned())
}

fn host_list(names: &BTreeSet<String>) -> v1::HostList {
    v1::HostList { names: names.iter().cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(name: &str, secret: &str) -> Option<v1::ChapCredentials> {
        Some(v1::ChapCredentials { name: name.into(), secret: secret.into() })
    }

    fn request() -> v1::ExportVolumeRequest {
        v1::ExportVolumeRequest { frontend: v1::Frontend::Iscsi.into(), ..v1::ExportVolumeRequest::default() }
    }

    fn with_chap(chap: v1::ChapSettings) -> v1::ExportVolumeRequest {
        v1::ExportVolumeRequest { chap: Some(chap), ..request() }
    }

    fn allowing(names: &[&str]) -> v1::ExportVolumeRequest {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        v1::ExportVolumeRequest { allowed: Some(v1::AllowedHosts { any: false, names }), ..request() }
    }

    fn refused(request: &v1::ExportVolumeRequest) -> String {
        Frontends::default().export(request).expect_err("a bad request").to_string()
    }

    #[test]
    fn what_a_request_leaves_out_stays_as_it_was() {
        let chap = v1::ChapSettings { initiator: credentials("host", "a secret of hosts"), ..Default::default() };
        let first = Frontends::default().export(&with_chap(chap)).expect("good");
        let second = first.export(&allowing(&["iqn.2026-01.org:Host"])).expect("good");
        assert_eq!(second.export(&request()).expect("good"), second);
        let iscsi = second.iscsi.as_ref().expect("exported");
        assert!(iscsi.describe_chap().is_some_and(|chap| chap.initiator == "host" && chap.algorithms.len() == 4));
        assert_eq!(iscsi.describe_initiators().expect("a list").names, ["iqn.2026-01.org:host"]);
        assert!(second.nvmf.is_some());
        let none = with_chap(v1::ChapSettings::default());
        assert!(second.export(&none).expect("good").iscsi.is_some_and(|iscsi| iscsi.chap.is_none()));
        assert_eq!(second.unexport(Some(Frontend::Iscsi)), Frontends::default());
        assert_eq!(second.unexport(None), Frontends { nvmf: None, iscsi: None });
    }

    #[test]
    fn what_is_weak_or_does_not_go_together_is_refused() {
        let one_way = |secret: &str| v1::ChapSettings { initiator: credentials("host", secret), ..Default::default() };
        assert!(refused(&with_chap(one_way("eleven char"))).contains("at least 12"));
        assert!(refused(&with_chap(one_way(&"x".repeat(256)))).contains("at most 255"));
        assert!(refused(&with_chap(one_way("a secret with\n"))).contains("control characters"));
        let same = v1::ChapSettings { target: credentials("us", "a secret of hosts"), ..one_way("a secret of hosts") };
        assert!(refused(&with_chap(same)).contains("must differ"));
        let alone = v1::ChapSettings { target: credentials("us", "a secret of ours"), ..Default::default() };
        assert!(refused(&with_chap(alone)).starts_with("chap.initiator"));
        let other = v1::ChapSettings { algorithms: vec!["sha512".into()], ..one_way("a secret of hosts") };
        assert!(refused(&with_chap(other)).contains("sha512"));
        assert!(refused(&allowing(&["host"])).contains("not an iSCSI name"));
        assert!(refused(&allowing(&[])).contains("end the export"));
        let nvmf = v1::ExportVolumeRequest { frontend: v1::Frontend::Nvmf.into(), ..allowing(&["iqn.2026-01.org:h"]) };
        assert!(refused(&nvmf).contains("not an NQN"));
        assert!(refused(&v1::ExportVolumeRequest::default()).starts_with("frontend"));
    }

    #[test]
    fn a_record_is_as_before_and_prints_no_secret() {
        let old: Frontends = serde_json::from_str(r#"{"nvmf":{"hosts":null},"iscsi":null}"#).expect("readable");
        assert_eq!(old, Frontends::default());
        let chap = v1::ChapSettings {
            initiator: credentials("host", "a secret of hosts"),
            target: credentials("us", "a secret of ours"),
            algorithms: vec!["md5".into(), "sha3-256".into()],
        };
        let frontends = Frontends::default().export(&with_chap(chap)).expect("good");
        let text = serde_json::to_string(&frontends).expect("written");
        assert_eq!(
            text,
            r#"{"nvmf":{"hosts":null},"iscsi":{"initiators":null,"chap":{"initiator":{"name":"host","secret":"a secret of hosts"},"target":{"name":"us","secret":"a secret of ours"},"algorithms":["sha3-256","md5"]}}}"#
        );
        assert_eq!(serde_json::from_str::<Frontends>(&text).expect("readable"), frontends);
        let printed = format!("{frontends:?} {frontends:#?}");
        assert!(printed.contains("host") && !printed.contains("a secret"), "{printed}");
    }
}
