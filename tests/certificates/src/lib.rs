//! Certificates for tests: authorities, what they issue, and what they take back. X.509 as RFC 5280 has it, with keys for ECDSA on
//! P-256; just enough for what a test wants to be right or wrong.

#![forbid(unsafe_code)]

mod der;

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::der::{bits, boolean, context, integer, octets, oid, sequence, set, time, utf8};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An authority: signs certificates and revocation lists.
#[derive(Debug)]
pub struct Authority {
    name: String,
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its URI names.
    pub uris: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// For servers.
    pub server: bool,
    /// For clients.
    pub client: bool,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// PKCS #8.
    pub key: Vec<u8>,
    serial: u32,
}

impl Request {
    /// A certificate for servers and clients with this URI name and loopback's address, valid for a day.
    pub fn new(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            addresses: vec![IpAddr::from([127, 0, 0, 1])],
            server: true,
            client: true,
            not_after: SystemTime::now() + DAY,
        }
    }

    /// The same, but it ended an hour ago.
    pub fn expired(self) -> Self {
        Self { not_after: SystemTime::now() - DAY / 24, ..self }
    }
}

impl Authority {
    /// A new one, with a key of its own.
    pub fn new(name: &str) -> Self {
        let (key, _) = new_key();
        let extensions = [
            extension(&[2, 5, 29, 19], true, &sequence(&[boolean(true)])),
            // keyCertSign and cRLSign.
            extension(&[2, 5, 29, 15], true, &[0x03, 0x02, 0x01, 0x06]),
        ];
        let valid = (SystemTime::now() - 2 * DAY, SystemTime::now() + 2 * DAY);
        let body = body(1, name, valid, name, key.public_key().as_ref(), &extensions);
        let certificate = signed(&body, &key);
        Self { name: name.to_owned(), key, certificate }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// Issues a certificate.
    pub fn issue(&self, request: &Request) -> Issued {
        static SERIAL: AtomicU32 = AtomicU32::new(2);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let (key, document) = new_key();
        let uris = request.uris.iter().map(|uri| context(6, uri.as_bytes()));
        let addresses = request.addresses.iter().map(|address| match address {
            IpAddr::V4(address) => context(7, &address.octets()),
            IpAddr::V6(address) => context(7, &address.octets()),
        });
        let names: Vec<_> = uris.chain(addresses).collect();
        let purposes = [(request.server, 1), (request.client, 2)];
        let purposes: Vec<_> =
            purposes.iter().filter(|(wanted, _)| *wanted).map(|(_, id)| oid(&[1, 3, 6, 1, 5, 5, 7, 3, *id])).collect();
        let mut extensions = vec![extension(&[2, 5, 29, 37], false, &sequence(&purposes))];
        if !names.is_empty() {
            extensions.push(extension(&[2, 5, 29, 17], false, &sequence(&names)));
        }
        let valid = (SystemTime::now() - 2 * DAY, request.not_after);
        let body = body(serial, &self.name, valid, "test", key.public_key().as_ref(), &extensions);
        Issued { certificate: signed(&body, &self.key), key: document, serial }
    }

    /// The list of certificates that it has taken back, as PEM.
    pub fn revoke(&self, revoked: &[&Issued]) -> String {
        let now = SystemTime::now();
        let entries: Vec<_> =
            revoked.iter().map(|issued| sequence(&[integer(issued.serial), time(now - DAY)])).collect();
        let mut parts = vec![integer(1), algorithm(), name(&self.name), time(now - DAY), time(now + DAY)];
        if !entries.is_empty() {
            parts.push(sequence(&entries));
        }
        let number = extension(&[2, 5, 29, 20], false, &integer(1));
        parts.push(context(0x20, &sequence(&[number])));
        pem("X509 CRL", &signed(&sequence(&parts), &self.key))
    }
}

impl Issued {
    /// Writes `NAME.crt`, and `NAME.key` that only its owner may read.
    pub fn write(&self, folder: &Path, name: &str) -> io::Result<()> {
        let key = folder.join(format!("{name}.key"));
        fs::write(&key, self.key_pem())?;
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        fs::write(folder.join(format!("{name}.crt")), self.pem())
    }

    /// The certificate, as PEM.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// The key, as PEM.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }
}

fn new_key() -> (EcdsaKeyPair, Vec<u8>) {
    let random = SystemRandom::new();
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a source of randomness");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random);
    (key.expect("it was just made"), document.as_ref().to_vec())
}

/// TBSCertificate.
fn body(
    serial: u32,
    issuer: &str,
    valid: (SystemTime, SystemTime),
    subject: &str,
    key: &[u8],
    extensions: &[Vec<u8>],
) -> Vec<u8> {
    let curve = [oid(&[1, 2, 840, 10045, 2, 1]), oid(&[1, 2, 840, 10045, 3, 1, 7])];
    sequence(&[
        context(0x20, &integer(2)),
        integer(serial),
        algorithm(),
        name(issuer),
        sequence(&[time(valid.0), time(valid.1)]),
        name(subject),
        sequence(&[sequence(&curve), bits(key)]),
        context(0x23, &sequence(extensions)),
    ])
}

fn signed(body: &[u8], key: &EcdsaKeyPair) -> Vec<u8> {
    let signature = key.sign(&SystemRandom::new(), body).expect("a source of randomness");
    sequence(&[body.to_vec(), algorithm(), bits(signature.as_ref())])
}

/// ecdsa-with-SHA256.
fn algorithm() -> Vec<u8> {
    sequence(&[oid(&[1, 2, 840, 10045, 4, 3, 2])])
}

fn name(common: &str) -> Vec<u8> {
    sequence(&[set(&[sequence(&[oid(&[2, 5, 4, 3]), utf8(common)])])])
}

fn extension(id: &[u32], critical: bool, content: &[u8]) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if critical {
        parts.push(boolean(true));
    }
    parts.push(octets(content));
    sequence(&parts)
}

fn pem(label: &str, content: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in content.chunks(48) {
        line.chunks(3).for_each(|three| base64(three, &mut text));
        text.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "-----END {label}-----");
    text
}

fn base64(bytes: &[u8], text: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = bytes.iter().enumerate().fold(0_u32, |bits, (index, byte)| bits | u32::from(*byte) << (16 - 8 * index));
    for place in 0..4 {
        let letter = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
        text.push(if place <= bytes.len() { letter.into() } else { '=' });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_its_rfc() {
        let encoded = |text: &str| {
            let mut encoded = String::new();
            text.as_bytes().chunks(3).for_each(|three| base64(three, &mut encoded));
            encoded
        };
        let all: Vec<_> = ["f", "fo", "foo", "foob", "fooba", "foobar"].into_iter().map(encoded).collect();
        assert_eq!(all, ["Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
