//! The files of a certificate.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::{TlsError, private};

/// Bytes that are read of a file: authorities of a whole company have less.
const LIMIT: u64 = 4 << 20;

/// Where certificate, key and authorities are; all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, then intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that the other side's certificate may be of.
    pub ca: PathBuf,
    /// Lists of certificates that these have taken back.
    pub crl: Option<PathBuf>,
}

/// What is in them.
pub(crate) struct Content {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    pub(crate) revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// What shows that files are others than before.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<Seen>>);

/// A file without its content.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    /// A link that was turned to another file may find the same times there.
    number: u64,
    size: u64,
    mode: u32,
    times: [i64; 4],
}

impl Files {
    pub(crate) fn read(&self) -> Result<Content, TlsError> {
        let key = private::read(&self.key, LIMIT)?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            // What the parser says could quote the key.
            .map_err(|_| TlsError::content(&self.key, "there is no private key in PEM in it"))?;
        Ok(Content {
            chain: all(&self.certificate, "certificate")?,
            key,
            authorities: all(&self.ca, "certificate")?,
            revoked: self.crl.as_deref().map(|path| all(path, "revocation list")).transpose()?.unwrap_or_default(),
        })
    }

    /// Without reading them.
    pub(crate) fn stamp(&self) -> Stamp {
        let paths = [Some(&self.certificate), Some(&self.key), Some(&self.ca), self.crl.as_ref()];
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
            Some(Seen { number: found.ino(), size: found.size(), mode: found.mode(), times })
        };
        Stamp(paths.into_iter().flatten().map(stamp).collect())
    }
}

/// All objects of one kind in a file; at least one.
fn all<T: PemObject>(path: &Path, kind: &str) -> Result<Vec<T>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).map_err(unreadable)?.take(LIMIT).read_to_end(&mut text).map_err(unreadable)?;
    let all: Vec<T> = T::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::content(path, format!("it is not PEM: {error}")))?;
    match all.is_empty() {
        true => Err(TlsError::content(path, format!("there is no {kind} in PEM in it"))),
        false => Ok(all),
    }
}
