//! Logins: who gets in, who does not, and what they are told.

use std::sync::Arc;

use iscsi_target_protocol::chap::{Algorithm, Challenge, Credentials, Secret};
use iscsi_target_protocol::initiator::login::{self as initiator, Chap, Event, Login, Options};
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::target::access::{self, Access};
use iscsi_target_protocol::target::connection::Limits;
use iscsi_target_protocol::target::login as target;
use iscsi_target_protocol::wire::LoginStatus;

use crate::util::{
    INITIATOR, Pair, Setting, TARGET, TARGET_CHALLENGE, log_in, name, numbered, options, refusal, refused, with_chap,
};

fn credentials(user: &str, secret: &str) -> Credentials {
    Credentials { name: user.into(), secret: Secret::new(secret.as_bytes()).expect("a strong secret") }
}

const OURS: (&str, &str) = ("initiator", "initiator's secret");
const THEIRS: (&str, &str) = ("target", "the target's secret");

fn chap(ours: (&str, &str), theirs: Option<(&str, &str)>, algorithms: &[Algorithm]) -> Chap {
    Chap {
        initiator: credentials(ours.0, ours.1),
        target: theirs.map(|(user, secret)| credentials(user, secret)),
        algorithms: algorithms.into(),
    }
}

fn access(mutual: bool, algorithms: &[Algorithm]) -> Access {
    let target = mutual.then(|| credentials(THEIRS.0, THEIRS.1));
    let chap =
        access::Chap::new(credentials(OURS.0, OURS.1), target, algorithms).expect("credentials that go together");
    Access { initiators: None, chap: Some(Arc::new(chap)) }
}

/// Whether a login with these options is complete at the target and at the initiator.
fn succeeds(options: Options, access: &Access, fragment: usize) -> bool {
    let mut login = Login::new(options, 1);
    let (_, complete, mut out) = log_in(&mut login, Limits::default(), access, None, fragment);
    let Some(complete) = complete else { return false };
    complete.open(1, 0, &mut out);
    login.receive(&mut &out[..], &mut Vec::new()) == Ok(Some(Event::Complete))
}

#[test]
fn every_algorithm_proves_both_ends_one_way_and_mutually() {
    for algorithm in Algorithm::ALL {
        for mutual in [false, true] {
            let theirs = mutual.then_some(THEIRS);
            let options = with_chap(chap(OURS, theirs, &[algorithm]));
            for fragment in [1, 7, usize::MAX] {
                assert!(succeeds(options.clone(), &access(true, &Algorithm::ALL), fragment), "{algorithm:?}");
            }
        }
    }
}

#[test]
fn wrong_secrets_and_names_are_refused_alike() {
    let access = access(true, &Algorithm::ALL);
    let failed = refused(LoginStatus::AuthenticationFailure);
    let all = &Algorithm::ALL;
    assert_eq!(refusal(with_chap(chap((OURS.0, "another's secret"), None, all)), &access), failed);
    assert_eq!(refusal(with_chap(chap(("someone", OURS.1), None, all)), &access), failed);
    assert_eq!(refusal(options(), &access), failed, "no authentication at all");
}

#[test]
fn a_target_that_cannot_prove_itself_is_left() {
    let theirs = Some((THEIRS.0, "not what it has"));
    let options = with_chap(chap(OURS, theirs, &[Algorithm::Sha256]));
    assert_eq!(refusal(options, &access(true, &Algorithm::ALL)), Event::Distrusted);
    let options = with_chap(chap(OURS, Some(("another", THEIRS.1)), &[Algorithm::Sha256]));
    assert_eq!(refusal(options, &access(true, &Algorithm::ALL)), Event::Distrusted, "the right secret, another's name");
    let options = with_chap(chap(OURS, Some(THEIRS), &[Algorithm::Sha256]));
    let failed = refused(LoginStatus::AuthenticationFailure);
    assert_eq!(refusal(options, &access(false, &Algorithm::ALL)), failed, "mutual, but it has no secret");
}

#[test]
fn only_allowed_algorithms_are_used() {
    let options = with_chap(chap(OURS, None, &[Algorithm::Md5, Algorithm::Sha1]));
    let failed = refused(LoginStatus::AuthenticationFailure);
    assert_eq!(refusal(options.clone(), &access(false, &[Algorithm::Sha256, Algorithm::Sha3])), failed);
    assert!(succeeds(options, &access(false, &[Algorithm::Sha1]), usize::MAX));
}

#[test]
fn our_own_challenge_sent_back_is_refused() {
    let chap = chap(OURS, Some(THEIRS), &[Algorithm::Sha256]);
    let options = Options { challenge: Challenge { identifier: 1, ..TARGET_CHALLENGE }, ..with_chap(chap) };
    let failed = refused(LoginStatus::AuthenticationFailure);
    assert_eq!(refusal(options, &access(true, &Algorithm::ALL)), failed);
}

#[test]
fn only_initiators_on_the_list_get_in() {
    let listed =
        |names: &[&str]| Access { initiators: Some(names.iter().map(|text| name(text)).collect()), chap: None };
    assert!(succeeds(options(), &listed(&[INITIATOR]), usize::MAX));
    let failed = refused(LoginStatus::AuthorizationFailure);
    assert_eq!(refusal(options(), &listed(&["iqn.2026-01.org:other"])), failed);
    assert_eq!(refusal(options(), &listed(&[])), failed);
}

#[test]
fn a_driver_can_refuse_and_redirect() {
    let told = |act: &dyn Fn(&mut target::Login, &mut Vec<u8>)| {
        let mut login = Login::new(options(), 1);
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        login.start(&mut bytes);
        let mut target = target::Login::new(Limits::default(), 1);
        assert_eq!(target.receive(&mut &bytes[..], &mut out), Ok(Some(target::Event::Identified)));
        let identity = target.identity();
        assert_eq!((identity.initiator.as_str(), identity.target.clone()), (INITIATOR, Some(name(TARGET))));
        act(&mut target, &mut out);
        assert!(target.receive(&mut &[][..], &mut out).is_err(), "the login is over");
        login.receive(&mut &out[..], &mut Vec::new()).unwrap().unwrap()
    };
    assert_eq!(told(&|login, out| login.refuse(LoginStatus::NotFound, out)), refused(LoginStatus::NotFound));
    let moved = |permanently: bool| told(&|login, out| login.redirect("[2001:db8::1]:3260,2", permanently, out));
    let address = Some("[2001:db8::1]:3260,2".to_owned());
    let expected = |status| Event::Refused { status, address: address.clone() };
    assert_eq!(moved(false), expected(LoginStatus::MovedTemporarily));
    assert_eq!(moved(true), expected(LoginStatus::MovedPermanently));
}

#[test]
fn both_ends_agree_on_the_same_values() {
    let offer = Parameters {
        max_burst: 20_000,
        first_burst: 10_000,
        time_to_wait: 9,
        outstanding_r2t: 2,
        ..Parameters::target()
    };
    let pair = Pair::open(Setting { offer, ..Setting::default() });
    let (ours, theirs) = (pair.links[0].target.parameters(), pair.links[0].initiator.parameters());
    let swapped = Parameters { receive_segment: theirs.send_segment, send_segment: theirs.receive_segment, ..*theirs };
    assert_eq!(*ours, swapped);
    assert_eq!((ours.max_burst, ours.first_burst, ours.time_to_wait, ours.outstanding_r2t), (20_000, 10_000, 9, 2));
    assert_eq!(ours.time_to_retain, 0);
}

#[test]
fn connections_of_a_session_deliver_their_commands_in_order() {
    let mut pair = Pair::open(Setting::default());
    pair.join(1);
    pair.join(2);
    for number in 0..30 {
        pair.submit(usize::from(number) % 3, &numbered(number), &[]).unwrap();
    }
    // The last connection is read first: it has to wait for the others.
    pair.deliver_to_target(2).unwrap();
    assert_eq!(pair.begun, [0_u8; 0]);
    assert!(pair.links[2].target.is_waiting());
    pair.deliver_to_target(1).unwrap();
    assert!(pair.links[1].target.is_waiting());
    pair.run();
    assert_eq!(pair.begun, (0..30).collect::<Vec<u8>>());
    assert_eq!(pair.links.iter().map(|link| link.replies.len()).collect::<Vec<_>>(), [10, 10, 10]);
}

#[test]
fn an_initiator_refuses_answers_that_it_did_not_offer() {
    let mut login = initiator::Login::new(Options { offer: Parameters::default(), ..options() }, 1);
    let mut bytes = Vec::new();
    login.start(&mut bytes);
    // T, from operational to full feature; HeaderDigest was offered as None.
    let text = b"HeaderDigest=CRC32C\0";
    let mut answer = vec![0x23, 0x87, 0, 0, 0, 0, 0, text.len() as u8];
    answer.resize(48, 0);
    answer.extend_from_slice(text);
    assert_eq!(login.receive(&mut &answer[..], &mut Vec::new()), Ok(Some(Event::Distrusted)));
}
