//! Who a certificate is of: its one URI name, `spiffe://DOMAIN/ashlar/…`.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Who somebody is, in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub domain: String,
    /// Who.
    pub who: Who,
}

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The node of this name.
    Node(String),
    /// Whoever has this role.
    Role(Role),
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Change nothing.
    ReadOnly,
}

impl Identity {
    /// Who a certificate is of, if it says so in one way only. Nothing of the certificate is verified here.
    ///
    /// # Errors
    /// When it says nothing, or something else; the text says what.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let parsed = EndEntityCert::try_from(certificate).map_err(|error| format!("not a certificate: {error}"))?;
        let uris: Vec<_> = parsed.valid_uri_names().collect();
        match &uris[..] {
            [uri] => Self::parse(uri).ok_or_else(|| format!("`{uri}` names neither a node nor a role")),
            [] => Err("the certificate has no URI name".to_owned()),
            _ => Err(format!("the certificate has {} URI names, not one", uris.len())),
        }
    }

    fn parse(uri: &str) -> Option<Self> {
        let (domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
        if domain.is_empty() || !domain.bytes().all(is_plain) {
            return None;
        }
        let who = match path.strip_prefix("ashlar/")?.split_once('/')? {
            ("node", name) if is_name(name) => Who::Node(name.to_owned()),
            ("role", "admin") => Who::Role(Role::Admin),
            ("role", "read-only") => Who::Role(Role::ReadOnly),
            _ => return None,
        };
        Some(Self { domain: domain.to_owned(), who })
    }
}

/// A node's name as the daemon allows it.
fn is_name(name: &str) -> bool {
    (1..64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.who, self.domain)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Role(role) => write!(f, "role {}", role.as_str()),
        }
    }
}

impl Role {
    /// As in the certificate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ReadOnly => "read-only",
        }
    }
}

#[cfg(test)]
mod tests {
    use certificates::{Authority, Request};

    use super::*;

    fn of(uris: &[&str]) -> Result<Identity, String> {
        let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        let issued = Authority::new("ca").issue(&Request { uris, ..Request::new("") });
        Identity::of(&issued.certificate.into())
    }

    #[test]
    fn one_uri_names_a_node_or_a_role() {
        let who = |uri| of(&[uri]).map(|identity| (identity.domain, identity.who));
        let in_c = |who| Ok(("c.example".to_owned(), who));
        assert_eq!(who("spiffe://c.example/ashlar/node/b-1.x_Y"), in_c(Who::Node("b-1.x_Y".into())));
        assert_eq!(who("spiffe://c.example/ashlar/role/admin"), in_c(Who::Role(Role::Admin)));
        assert_eq!(who("spiffe://c.example/ashlar/role/read-only"), in_c(Who::Role(Role::ReadOnly)));
    }

    #[test]
    fn anything_else_is_nobody() {
        for uri in [
            "spiffe://c/ashlar/role/root",
            "spiffe://c/ashlar/role/admin/",
            "spiffe://c/ashlar/role/Admin",
            "spiffe://c/ashlar/node/",
            "spiffe://c/ashlar/node/a/b",
            "spiffe://c/ashlar/node/a%62",
            "spiffe://c/x/ashlar/role/admin",
            "spiffe:///ashlar/role/admin",
            "spiffe://C/ashlar/role/admin",
            "https://c/ashlar/role/admin",
            "",
        ] {
            let identity = of(&[uri]);
            assert!(identity.is_err(), "{uri}: {identity:?}");
        }
        let long = format!("spiffe://c/ashlar/node/{}", "a".repeat(64));
        assert!(of(&[&long]).is_err());
        assert!(of(&[]).is_err());
        let admin = "spiffe://c/ashlar/role/admin";
        assert!(of(&[admin, admin]).is_err() && of(&[admin, "https://c"]).is_err());
        assert!(Identity::of(&vec![1, 2, 3].into()).is_err());
    }
}
