//! Peers that are no hosts: each loses its own connection and nothing else.

use std::time::Duration;

use nvmf_target_protocol::host::command::Command;
use nvmf_target_protocol::wire::Status;
use reactor::{TcpStream, sleep};

use crate::util::{BLOCK, Client, SOON, Stage, address};

/// Sends `bytes` and returns everything that comes until the end.
async fn say(bytes: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(address()).await.unwrap();
    stream.push_copy(bytes);
    stream.flush();
    let mut heard = Vec::new();
    while let Ok(chunk) = stream.receive().await {
        if chunk.is_empty() {
            break;
        }
        heard.extend_from_slice(&chunk);
    }
    heard
}

#[test]
fn garbage_is_answered_with_its_fault_and_the_end() {
    let stage = Stage::memory(1);
    stage.host(async {
        let (_admin, id) = Client::admin(0).await.unwrap();
        let mut io = Client::io(1, id).await.unwrap();
        let heard = say(b"GET / HTTP/1.1\r\nHost: target\r\n\r\n").await;
        assert_eq!(heard[..2], [0x03, 0], "C2HTermReq");
        assert_eq!(heard[8..14], [1, 0, 0, 0, 0, 0], "an invalid PDU type");
        let read = io.command(&Command::read(1, 0, 1, BLOCK), &[]).await.unwrap();
        assert_eq!(read.status(), Status::Success, "others do not notice");
    });
}

#[test]
fn garbage_on_a_queue_ends_that_queue_only() {
    let stage = Stage::memory(2);
    stage.host(async {
        let (mut admin, id) = Client::admin(0).await.unwrap();
        let mut good = Client::io(1, id).await.unwrap();
        let mut bad = Client::io(2, id).await.unwrap();
        bad.stream.push_copy(&[0xff; 72]);
        assert!(bad.command(&Command::flush(1), &[]).await.is_err());
        assert_eq!(good.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success);
        assert_eq!(admin.command(&Command::keep_alive(), &[]).await.unwrap().status(), Status::Success);
        let mut again = Client::io(2, id).await.unwrap();
        assert_eq!(again.command(&Command::flush(1), &[]).await.unwrap().status(), Status::Success);
    });
}

#[test]
fn those_who_never_finish_their_greeting_are_left() {
    let stage = Stage::memory(3);
    let silent = stage.world.spawn(stage.host, say(&[]));
    let slow = stage.world.spawn(stage.host, async {
        let stream = TcpStream::connect(address()).await.unwrap();
        // An ICReq, a byte a second.
        for byte in [0x00, 0, 0x80, 0, 0x80, 0, 0, 0].into_iter().chain([0; 120]) {
            stream.push_copy(&[byte]);
            stream.flush();
            sleep(Duration::from_secs(1)).await;
            if stream.drained(0).await.is_err() {
                return;
            }
        }
        panic!("never left");
    });
    stage.world.run_for(Duration::from_secs(9));
    assert!(!silent.is_done());
    stage.world.run_for(Duration::from_secs(3));
    assert!(silent.is_done());
    assert!(stage.world.run_until(|| slow.is_done(), Duration::from_secs(5)));
}

/// I40: failing peers leave nothing behind.
#[test]
fn many_failing_connections_leave_tasks_and_sockets_where_they_were() {
    let stage = Stage::memory(4);
    let tasks = |stage: &Stage| stage.on_target(|_| reactor::task_count());
    let (tasks_before, sockets_before) = (tasks(&stage), stage.world.open_sockets(stage.target));
    for _ in 0..10 {
        stage.host(async {
            for round in 0..100u32 {
                match round % 4 {
                    0 => drop(say(&[0xff; 64]).await),
                    1 => drop(TcpStream::connect(address()).await.unwrap()),
                    2 => drop(Client::open().await.unwrap()),
                    _ => drop(Client::admin(1000).await.unwrap()),
                }
            }
        });
        stage.world.run_for(SOON);
    }
    stage.world.run_for(Duration::from_secs(20));
    assert_eq!(tasks(&stage), tasks_before);
    assert_eq!(stage.world.open_sockets(stage.target), sockets_before);
    assert_eq!(stage.on_target(|subsystem| subsystem.controllers()), []);
}

#[test]
fn too_many_greetings_at_once_are_turned_away() {
    let stage = Stage::memory(5);
    stage.host(async {
        let mut silent = Vec::new();
        for _ in 0..256 {
            silent.push(TcpStream::connect(address()).await.unwrap());
        }
        sleep(SOON).await;
        assert!(Client::open().await.is_err(), "one too many");
        drop(silent);
        sleep(SOON).await;
        assert!(Client::open().await.is_ok());
    });
}
