//! Two nodes and those who should not get in, in memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use certificates::{Authority, Issued, Request};
use tempfile::TempDir;

use crate::{Certificates, Files, Report, Role, Session, TlsError, Who};

/// The files of one node.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new(authority: &Authority, issued: &Issued) -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a folder") };
        place.put(issued);
        fs::write(place.path("ca.crt"), authority.pem()).expect("written");
        place
    }

    fn put(&self, issued: &Issued) {
        issued.write(self.folder.path(), "node").expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Files {
        Files {
            certificate: self.path("node.crt"),
            key: self.path("node.key"),
            ca: self.path("ca.crt"),
            crl: self.path("ca.crl").exists().then(|| self.path("ca.crl")),
        }
    }

    fn load(&self, node: &str, peers: &[&str]) -> Result<Arc<Certificates>, TlsError> {
        Certificates::load(self.files(), node, peers.iter().map(|peer| (*peer).to_owned()))
    }
}

fn uri(rest: &str) -> String {
    format!("spiffe://c.example/ashlar/{rest}")
}

fn node(name: &str) -> Request {
    Request::new(&uri(&format!("node/{name}")))
}

/// The certificates of node `a` or `b`, each of which has the other as a peer.
fn certificates(authority: &Authority, name: &str, issued: &Issued) -> Arc<Certificates> {
    Place::new(authority, issued).load(name, &["a", "b"]).expect("good")
}

/// What a session wrote goes to the other one, until both are silent. The first error ends it; the other side hears of it.
fn converse(client: &mut Session, server: &mut Session) -> Result<(), String> {
    let (mut to_server, mut to_client, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    client.send(&[], &mut to_server).map_err(|error| error.to_string())?;
    while !to_server.is_empty() || !to_client.is_empty() {
        let bytes = std::mem::take(&mut to_server);
        server.receive(&bytes, &mut plain, &mut to_client).map_err(|error| format!("server: {error}"))?;
        let bytes = std::mem::take(&mut to_client);
        client.receive(&bytes, &mut plain, &mut to_server).map_err(|error| format!("client: {error}"))?;
    }
    assert!(plain.is_empty() && client.is_established() && server.is_established());
    Ok(())
}

fn connect(client: &Arc<Certificates>, to: &str, server: &Arc<Certificates>) -> Result<(Session, Session), String> {
    let mut client = Session::connect(client, to).expect("a client");
    let mut server = Session::accept(server).expect("a server");
    converse(&mut client, &mut server).map(|()| (client, server))
}

fn send(from: &mut Session, to: &mut Session, parts: &[&[u8]]) -> Vec<u8> {
    let (mut sealed, mut plain, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    from.send(parts, &mut sealed).expect("sealed");
    // In pieces, as a network brings them.
    for piece in sealed.chunks(1000) {
        to.receive(piece, &mut plain, &mut answers).expect("opened");
    }
    assert!(answers.is_empty());
    plain
}

#[test]
fn what_one_node_says_the_other_hears_and_nobody_else() {
    let authority = Authority::new("ca");
    let (a, b) = (authority.issue(&node("a")), authority.issue(&node("b")));
    let (a, b) = (certificates(&authority, "a", &a), certificates(&authority, "b", &b));
    let (mut client, mut server) = connect(&a, "b", &b).expect("a connection");
    let data: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
    assert_eq!(send(&mut client, &mut server, &[b"head", b"", &data]), [b"head", &data[..]].concat());
    assert_eq!(send(&mut server, &mut client, &[b"answer"]), b"answer");
    let mut sealed = Vec::new();
    client.send(&[b"a word that is secret"], &mut sealed).expect("sealed");
    assert!(!sealed.windows(6).any(|window| window == b"secret"));
    // Changed on its way.
    sealed[20] ^= 1;
    assert!(server.receive(&sealed, &mut Vec::new(), &mut Vec::new()).is_err());
}

#[test]
fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (ours, theirs) = (Authority::new("ca"), Authority::new("ca"));
    let a = certificates(&ours, "a", &ours.issue(&node("a")));
    let b = certificates(&theirs, "b", &theirs.issue(&node("b")));
    let error = connect(&a, "b", &b).err().expect("the client refuses");
    assert!(error.starts_with("client: invalid peer certificate"), "{error}");
    // A client that would take anybody meets a server that does not.
    let place = Place::new(&theirs, &ours.issue(&node("a")));
    assert!(place.load("a", &["b"]).is_err(), "its own certificate is not of its authority");
    fs::write(place.path("ca.crt"), format!("{}{}", ours.pem(), theirs.pem())).expect("written");
    let both = place.load("a", &["b"]).expect("good");
    let error = connect(&both, "b", &b).err().expect("the server refuses");
    assert!(error.starts_with("server: invalid peer certificate"), "{error}");
}

#[test]
fn a_certificate_that_has_ended_starts_a_daemon_and_lets_nobody_in() {
    let authority = Authority::new("ca");
    let good = certificates(&authority, "b", &authority.issue(&node("b")));
    let ended = certificates(&authority, "a", &authority.issue(&node("a").expired()));
    assert!(ended.has_ended() && !good.has_ended());
    let error = connect(&ended, "b", &good).err().expect("the server refuses");
    assert!(error.starts_with("server:") && error.contains("expired"), "{error}");
    let error = connect(&good, "a", &ended).err().expect("the client refuses");
    assert!(error.starts_with("client:") && error.contains("Expired"), "{error}");
}

#[test]
fn a_node_is_known_by_its_name() {
    let authority = Authority::new("ca");
    let issue = |request: &Request| authority.issue(request);
    let a = certificates(&authority, "a", &issue(&node("a")));
    let b = certificates(&authority, "b", &issue(&node("b")));
    // Somebody else's node where b should be.
    let c = Place::new(&authority, &issue(&node("c"))).load("c", &["a"]).expect("good");
    let error = connect(&a, "b", &c).err().expect("the client refuses");
    assert!(error.contains("it is of node c, and node b is expected"), "{error}");
    // A node that is no peer.
    let error = connect(&c, "b", &b).err().expect("the server refuses");
    assert!(error.contains("it is of node c, which is no peer of this node"), "{error}");
    // Another cluster of the same authority.
    let request = Request::new("spiffe://d.example/ashlar/node/a");
    let other = Place::new(&authority, &issue(&request)).load("a", &["b"]).expect("good");
    let error = connect(&other, "b", &b).err().expect("both refuse");
    assert!(error.contains("it is of the domain c.example, and this is d.example"), "{error}");
    assert!(connect(&b, "a", &other).is_err());
    // An engine of this node itself.
    assert!(connect(&a, "a", &a).is_ok());
}

#[test]
fn usage_counts() {
    let authority = Authority::new("ca");
    let only_client = authority.issue(&Request { server: false, ..node("a") });
    let place = Place::new(&authority, &only_client);
    let error = place.load("a", &["b"]).expect_err("no server").to_string();
    assert!(error.contains("not good for a server"), "{error}");
    let only_server = certificates(&authority, "a", &authority.issue(&Request { client: false, ..node("a") }));
    let b = certificates(&authority, "b", &authority.issue(&node("b")));
    assert!(connect(&only_server, "b", &b).err().expect("the server refuses").starts_with("server:"));
    assert!(connect(&b, "a", &only_server).is_ok());
}

#[test]
fn what_was_taken_back_is_refused_on_both_sides() {
    let authority = Authority::new("ca");
    let (a, b) = (authority.issue(&node("a")), authority.issue(&node("b")));
    let free = certificates(&authority, "a", &a);
    let place = Place::new(&authority, &b);
    fs::write(place.path("ca.crl"), authority.revoke(&[])).expect("written");
    let b = place.load("b", &["a"]).expect("good");
    assert!(connect(&free, "b", &b).is_ok() && connect(&b, "a", &free).is_ok());
    fs::write(place.path("ca.crl"), authority.revoke(&[&a])).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    let error = connect(&free, "b", &b).err().expect("the server refuses");
    assert!(error.starts_with("server:") && error.contains("Revoked"), "{error}");
    let error = connect(&b, "a", &free).err().expect("the client refuses");
    assert!(error.starts_with("client:") && error.contains("Revoked"), "{error}");
    // Whether it was taken back nobody knows.
    fs::write(place.path("ca.crl"), Authority::new("other").revoke(&[])).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    assert!(connect(&free, "b", &b).is_err() && connect(&b, "a", &free).is_err());
}

#[test]
fn who_does_not_speak_tls_hears_an_alert() {
    let authority = Authority::new("ca");
    let b = certificates(&authority, "b", &authority.issue(&node("b")));
    for said in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0; 64], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3, 4, 5]] {
        let (mut server, mut plain, mut answer) = (Session::accept(&b).expect("a server"), Vec::new(), Vec::new());
        assert!(server.receive(said, &mut plain, &mut answer).is_err());
        assert!(plain.is_empty() && !server.is_established());
        assert_eq!(answer.first(), Some(&0x15), "an alert: {answer:?}");
    }
}

#[test]
fn new_files_count_for_new_connections() {
    let authority = Authority::new("ca");
    let a = certificates(&authority, "a", &authority.issue(&node("a")));
    let place = Place::new(&authority, &authority.issue(&node("b")));
    let b = place.load("b", &["a"]).expect("good");
    assert_eq!(b.refresh(false), None, "nothing has changed");
    // Another authority, as if the old one was given up.
    let other = Authority::new("another ca");
    place.put(&other.issue(&node("b")));
    assert!(matches!(b.refresh(false), Some(Report::Refused(_))), "the authority is still the old one");
    assert!(b.reload_failed() && connect(&a, "b", &b).is_ok());
    fs::write(place.path("ca.crt"), other.pem()).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    assert!(!b.reload_failed() && connect(&a, "b", &b).is_err());
    assert_eq!(b.refresh(true), Some(Report::Replaced), "asked for");
}

/// What a session makes of a word of the other one.
fn hears(from: &mut Session, to: &mut Session) -> Result<Vec<u8>, String> {
    let (mut sealed, mut plain) = (Vec::new(), Vec::new());
    from.send(&[b"a word"], &mut sealed).map_err(|error| error.to_string())?;
    to.receive(&sealed, &mut plain, &mut Vec::new()).map_err(|error| error.to_string())?;
    Ok(plain)
}

#[test]
fn a_connection_ends_with_what_it_was_let_in_by() {
    let authority = Authority::new("ca");
    let (a, c) = (authority.issue(&node("a")), authority.issue(&node("c")));
    let place = Place::new(&authority, &authority.issue(&node("b")));
    fs::write(place.path("ca.crl"), authority.revoke(&[])).expect("written");
    let b = place.load("b", &["a", "c"]).expect("good");
    let peer = |name: &str, issued: &Issued| Place::new(&authority, issued).load(name, &["b"]).expect("good");
    let (a_node, c_node) = (peer("a", &a), peer("c", &c));
    let (mut to_b, mut at_b) = connect(&a_node, "b", &b).expect("a connection");
    let (mut from_b, mut at_a) = connect(&b, "a", &a_node).expect("a connection");
    let (mut others, mut at_b_too) = connect(&c_node, "b", &b).expect("a connection");
    // Other files that say the same: nobody notices.
    place.put(&authority.issue(&node("b")));
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    assert_eq!(hears(&mut to_b, &mut at_b).as_deref(), Ok(&b"a word"[..]));
    assert_eq!(hears(&mut at_a, &mut from_b).as_deref(), Ok(&b"a word"[..]));
    fs::write(place.path("ca.crl"), authority.revoke(&[&a])).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    // Not a byte more goes either way, on the side that has the list; whoever else was let in stays.
    for (session, other) in [(&mut at_b, &mut to_b), (&mut from_b, &mut at_a)] {
        let said = hears(other, session).expect_err("taken back");
        assert!(said.contains("not good any more") && said.contains("Revoked"), "{said}");
        assert!(session.send(&[b"a word"], &mut Vec::new()).is_err());
    }
    assert_eq!(hears(&mut others, &mut at_b_too).as_deref(), Ok(&b"a word"[..]));
    // The authority itself is given up: nobody stays.
    let other = Authority::new("another ca");
    place.put(&other.issue(&node("b")));
    fs::write(place.path("ca.crt"), other.pem()).expect("written");
    fs::write(place.path("ca.crl"), other.revoke(&[])).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    assert!(hears(&mut others, &mut at_b_too).is_err_and(|said| said.contains("UnknownIssuer")));
}

#[test]
fn a_handshake_under_way_is_judged_by_what_is_in_use_at_its_end() {
    let authority = Authority::new("ca");
    let a = authority.issue(&node("a"));
    let free = certificates(&authority, "a", &a);
    let place = Place::new(&authority, &authority.issue(&node("b")));
    fs::write(place.path("ca.crl"), authority.revoke(&[])).expect("written");
    let b = place.load("b", &["a"]).expect("good");
    let (mut client, mut server) =
        (Session::connect(&free, "b").expect("a client"), Session::accept(&b).expect("a server"));
    fs::write(place.path("ca.crl"), authority.revoke(&[&a])).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    assert_eq!(converse(&mut client, &mut server), Ok(()), "it began before");
    assert!(hears(&mut client, &mut server).is_err_and(|said| said.contains("Revoked")));
}

#[test]
fn files_that_are_not_good_are_refused_as_a_whole_and_told_once() {
    let authority = Authority::new("ca");
    let a = certificates(&authority, "a", &authority.issue(&node("a")));
    let good = authority.issue(&node("b"));
    let place = Place::new(&authority, &good);
    let b = place.load("b", &["a"]).expect("good");
    let not_after = b.not_after();
    let refused = |what: &str, part: &str| {
        let report = b.refresh(false);
        assert!(matches!(&report, Some(Report::Refused(why)) if why.contains(part)), "{what}: {report:?}");
        assert_eq!(b.refresh(false), None, "{what}: told once");
        assert!(matches!(b.refresh(true), Some(Report::Refused(_))), "{what}: but to who asks");
        assert!(connect(&a, "b", &b).is_ok() && b.not_after() == not_after, "{what}: the old one is in use");
        assert!(b.problem().is_some_and(|problem| problem.contains(part)));
    };
    fs::set_permissions(place.path("node.key"), Permissions::from_mode(0o644)).expect("ours");
    refused("a key that all may read", "group or others");
    place.put(&authority.issue(&node("c")));
    refused("another node's certificate", "it is the certificate of node c, and this is node b");
    place.put(&authority.issue(&node("b").expired()));
    refused("one that has ended", "it has ended");
    place.put(&good);
    fs::write(place.path("node.key"), authority.issue(&node("b")).key_pem()).expect("written");
    refused("the key of another pair", "node.key");
    fs::write(place.path("node.crt"), "nothing").expect("written");
    refused("no certificate", "there is no certificate in PEM");
    place.put(&good);
    fs::remove_file(place.path("ca.crt")).expect("there");
    refused("no authority", "ca.crt");
    fs::write(place.path("ca.crt"), authority.pem()).expect("written");
    assert_eq!(b.refresh(false), Some(Report::Replaced));
    assert_eq!(b.problem(), None);
}

#[test]
fn a_client_of_the_api_is_who_its_certificate_says() {
    let authority = Authority::new("ca");
    let a = certificates(&authority, "a", &authority.issue(&node("a")));
    let who = |rest: &str| a.who(&authority.issue(&Request::new(&uri(rest))).certificate);
    assert_eq!(who("role/admin"), Ok(Who::Role(Role::Admin)));
    assert_eq!(who("role/read-only"), Ok(Who::Role(Role::ReadOnly)));
    assert_eq!(who("node/b"), Ok(Who::Node("b".to_owned())));
    assert!(who("node/c").is_err_and(|error| error.contains("no peer")));
    let elsewhere = authority.issue(&Request::new("spiffe://d.example/ashlar/role/admin"));
    assert!(a.who(&elsewhere.certificate).is_err_and(|error| error.contains("d.example")));
}
