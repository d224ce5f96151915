//! What breaks the protocol costs its connection, and nobody else anything.

use std::rc::Rc;
use std::time::Duration;

use reactor::TcpStream;

use crate::util::{BLOCK, Client, SOON, Stage, address, options};

#[test]
fn half_open_logins_are_bounded_and_end() {
    let stage = Stage::memory(1);
    let streams = stage.host(async {
        let mut streams = Vec::new();
        for _ in 0..1000 {
            // Those beyond the bound are closed at once.
            streams.push(TcpStream::connect(address()).await.expect("a connection"));
        }
        streams
    });
    stage.world.run_for(Duration::from_secs(20));
    stage.host(async move {
        let mut client = Client::ready(1).await;
        client.read(0, 1).await.unwrap().good();
        for stream in streams {
            let ended = stream.receive().await.map_or(true, |chunk| chunk.is_empty());
            assert!(ended, "a login has a time limit");
        }
    });
}

#[test]
fn bytes_that_are_no_iscsi_end_their_connection_only() {
    let stage = Stage::memory(2);
    stage.host(async {
        let mut good = Client::ready(1).await;
        let bad = Client::ready(2).await;
        bad.stream.push_copy(&[0xff; 4096]);
        bad.stream.flush();
        let before_login = TcpStream::connect(address()).await.unwrap();
        before_login.push_copy(&[0xff; 4096]);
        before_login.flush();
        reactor::sleep(SOON).await;
        good.write(0, &vec![1; BLOCK as usize]).await.unwrap().good();
        for stream in [&bad.stream, &before_login] {
            while let Ok(chunk) = stream.receive().await
                && !chunk.is_empty()
            {}
        }
        assert!(Client::login(options(2)).await.is_ok());
    });
    assert_eq!(stage.on_target(|target| target.sessions().len()), 2);
}

/// An initiator that has gone without a word is noticed, and its session ends.
#[test]
fn a_silent_initiator_is_dropped() {
    let stage = Stage::memory(3);
    let client = stage.host(async { Client::ready(1).await });
    assert_eq!(stage.on_target(|target| target.sessions().len()), 1);
    // It reads nothing any more, so it answers no ping.
    stage.world.run_for(Duration::from_secs(40));
    assert_eq!(stage.on_target(|target| target.sessions().len()), 0);
    drop(Rc::new(client));
}
