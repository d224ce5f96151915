//! How initiators find targets, come, go and come back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use iscsi_target::{Access, Algorithm, Chap, Credentials, Secret};
use iscsi_target_protocol::initiator::connection::Data;
use iscsi_target_protocol::initiator::login::{Chap as Proof, Options};
use iscsi_target_protocol::wire::LoginStatus;

use crate::util::{BLOCK, Client, NoLogin, SOON, Scripted, Stage, identity, initiator, options};

const TEST_UNIT_READY: &[u8] = &[0];

async fn refused(options: Options) -> NoLogin {
    Client::login(options).await.err().expect("no login")
}

#[test]
fn an_initiator_discovers_what_it_may_log_in_to() {
    let access = Access { initiators: Some([initiator(1)].into()), chap: None };
    let stage = Stage::with_access(1, Scripted::new(), access);
    stage.host(async {
        let discovery = |number| Options { target: None, ..options(number) };
        let mut client = Client::login(discovery(1)).await.unwrap();
        let text = client.targets().await.unwrap();
        let name = identity().name;
        assert_eq!(text, format!("TargetName={name}\0TargetAddress=10.0.0.1:3260,1\0"));
        let mut stranger = Client::login(discovery(2)).await.unwrap();
        assert_eq!(stranger.targets().await.unwrap(), "", "not for strangers");
        assert_eq!(client.logout().await.unwrap(), 0);
        assert_eq!(refused(options(2)).await, NoLogin::Refused(LoginStatus::AuthorizationFailure));
    });
}

#[test]
fn an_unknown_target_is_not_found_unless_it_may_still_come() {
    let stage = Stage::memory(2);
    let directory = Arc::clone(&stage.directory);
    stage.host(async move {
        let unknown = || Options { target: Some(initiator(9)), ..options(1) };
        assert_eq!(refused(unknown()).await, NoLogin::Refused(LoginStatus::NotFound));
        directory.set_starting(true);
        assert_eq!(refused(unknown()).await, NoLogin::Refused(LoginStatus::Unavailable));
    });
}

#[test]
fn an_initiator_proves_who_it_is() {
    fn credentials(name: &str, text: &[u8]) -> Credentials {
        Credentials { name: name.to_owned(), secret: Secret::new(text).unwrap() }
    }
    let chap = Chap::new(
        credentials("host", b"the host's secret"),
        Some(credentials("volume", b"the volume's own")),
        &[Algorithm::Sha256],
    );
    let access = Access { initiators: None, chap: Some(Arc::new(chap.unwrap())) };
    let stage = Stage::with_access(3, Scripted::new(), access);
    stage.host(async move {
        let proof = |text: &[u8], target: Option<&[u8]>| {
            let target = target.map(|text| credentials("volume", text));
            let algorithms = Algorithm::ALL.to_vec();
            let chap = Some(Arc::new(Proof { initiator: credentials("host", text), target, algorithms }));
            Options { chap, ..options(1) }
        };
        assert_eq!(refused(options(1)).await, NoLogin::Refused(LoginStatus::AuthenticationFailure));
        let wrong = refused(proof(b"another secret..", None)).await;
        assert_eq!(wrong, NoLogin::Refused(LoginStatus::AuthenticationFailure));
        assert!(Client::login(proof(b"the host's secret", None)).await.is_ok());
        assert!(Client::login(proof(b"the host's secret", Some(b"the volume's own"))).await.is_ok(), "mutual");
        assert_eq!(refused(proof(b"the host's secret", Some(b"not the volume's"))).await, NoLogin::Broken);
    });
}

/// I16: what an old session left at the device is answered before the new one is served.
#[test]
fn a_session_that_comes_again_waits_for_what_it_left() {
    let device = Scripted::new();
    let stage = Stage::new(4, Rc::clone(&device) as Rc<_>);
    let old = stage.host(async {
        let mut client = Client::ready(1).await;
        client.submit_write(0, &vec![1; BLOCK as usize]);
        client
    });
    device.holds.set(true);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&seen);
    // The write is on its way; now the same initiator logs in again.
    stage.world.run_for(SOON);
    let _again = stage.world.spawn(stage.host, async move {
        let client = Client::login(options(1)).await;
        told.borrow_mut().push(client.is_ok());
        drop(client);
    });
    stage.world.run_for(SOON);
    assert_eq!((device.held(), seen.borrow().len()), (1, 0), "it waits");
    device.release();
    stage.world.run_for(SOON);
    assert_eq!(*seen.borrow(), [true]);
    drop(old);
}

#[test]
fn two_connections_are_one_session_in_order() {
    let stage = Stage::memory(5);
    stage.host(async {
        let mut first = Client::ready(1).await;
        let session = Rc::clone(&first.session);
        let mut second = Client::join(Options { cid: 1, ..options(1) }, &session).await.unwrap();
        for number in 0..50 {
            let bytes = vec![number; BLOCK as usize];
            let (one, other) = if number % 2 == 0 { (&mut first, &mut second) } else { (&mut second, &mut first) };
            // Sent without waiting: the later number may come first.
            let read = one.submit(&[0x28, 0, 0, 0, 0, number, 0, 0, 1], Data::Receive(BLOCK), &[]);
            let write = other.submit_write(number, &bytes);
            other.answer(write).await.unwrap().good();
            assert_eq!(one.answer(read).await.unwrap().good().len(), BLOCK as usize);
        }
        assert_eq!(second.read(7, 1).await.unwrap().good(), vec![7; BLOCK as usize]);
    });
    let peers = stage.on_target(|target| target.sessions().iter().map(|session| session.peers.len()).sum::<usize>());
    assert_eq!(peers, 2);
}

#[test]
fn a_logout_ends_the_session_and_a_stopped_target_all_of_them() {
    let stage = Stage::memory(6);
    stage.host(async {
        let mut client = Client::ready(1).await;
        assert_eq!(client.logout().await.unwrap(), 0);
        assert!(client.turn().await.is_err(), "closed");
    });
    assert_eq!(stage.on_target(|target| target.sessions().len()), 0);
    let mut client = stage.host(async { Client::ready(2).await });
    let target = Rc::clone(&stage.target);
    stage.world.block_on(stage.target_node, async move { target.stop().await });
    stage.host(async move {
        assert!(client.command(TEST_UNIT_READY, Data::None, &[]).await.is_err());
        assert_eq!(refused(options(2)).await, NoLogin::Refused(LoginStatus::NotFound));
    });
}
