//! A target that means harm: whatever it sends, the initiator ends that connection with a clear error, in bounded time.

use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::{CommandError, ConnectError, ConnectionError, Controller, Options, Status};
use nvmf_target_protocol::wire::pdu::FatalError;
use reactor::{Slice, TcpListener};

use crate::fake::{BLOCK, Manner};
use crate::{Stage, connect, options};

/// A PDU's common header.
fn header(pdu_type: u8, flags: u8, header_length: u8, data_offset: u8, length: u32) -> Vec<u8> {
    let mut bytes = vec![pdu_type, flags, header_length, data_offset];
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes
}

/// A C2HData header for a command with `data` bytes at `offset`.
fn controller_data(command_id: u16, offset: u32, data: u32) -> Vec<u8> {
    let mut bytes = header(7, 0b1100, 24, 24, 24 + data);
    bytes.extend_from_slice(&command_id.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&data.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn ready_to_transfer(command_id: u16, offset: u32, length: u32) -> Vec<u8> {
    let mut bytes = header(9, 0, 24, 0, 24);
    bytes.extend_from_slice(&command_id.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn response(command_id: u16) -> Vec<u8> {
    let mut bytes = header(5, 0, 24, 0, 24);
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(&command_id.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes
}

#[test]
fn bytes_instead_of_an_answer_end_the_connection_with_their_reason() {
    let stage = Stage::new();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no PDU type", vec![0x77; 200]),
        ("a command", header(4, 0, 72, 0, 72)),
        ("a header of another length", header(7, 0, 99, 24, 4096)),
        ("a length below the header's", header(5, 0, 24, 0, 3)),
        ("a length of 4 GiB", header(5, 0, 24, 0, u32::MAX)),
        ("a second ICResp", header(1, 0, 128, 0, 128)),
        ("a response to a command never sent", response(0x0bad)),
        ("data for a command never sent", controller_data(0x0bad, 0, 64)),
        ("R2T for a command never sent", ready_to_transfer(0x0bad, 0, 64)),
        ("a header digest that was not agreed on", header(5, 1, 24, 0, 28)),
    ];
    for (name, bytes) in cases {
        let fake = Rc::clone(&stage.fake);
        stage.host(async move {
            *fake.manner.borrow_mut() = Manner::Raw(bytes);
            let controller = connect(options()).await.expect("connected");
            let start = reactor::now();
            assert_eq!(controller.read(0, BLOCK).await.err(), Some(CommandError::Lost), "{name}");
            let failure = controller.failure();
            let blamed = matches!(failure, Some(ConnectError::Connection(ConnectionError::Protocol(_))));
            assert!(blamed, "{name}: {failure:?}");
            assert!(reactor::now() - start < Duration::from_secs(1), "{name}");
        });
    }
}

#[test]
fn data_outside_of_what_a_command_asked_for_is_never_taken() {
    let stage = Stage::new();
    // The first command of a queue after its Connect has index 0, in whatever generation.
    let ids = (0..64u16).map(|generation| generation << 10);
    for id in ids {
        for bytes in [controller_data(id, 0, 1 << 30), controller_data(id, 4096, 4096), ready_to_transfer(id, 0, 1)] {
            let fake = Rc::clone(&stage.fake);
            stage.host(async move {
                *fake.manner.borrow_mut() = Manner::Raw(bytes);
                let controller = connect(options()).await.expect("connected");
                assert_eq!(controller.read(0, BLOCK).await.err(), Some(CommandError::Lost));
                assert!(matches!(controller.failure(), Some(ConnectError::Connection(ConnectionError::Protocol(_)))));
            });
        }
    }
}

#[test]
fn a_termination_request_is_reported_with_its_reason() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let request = FatalError::DataOutOfRange
            .encode(nvmf_target_protocol::wire::pdu::PduType::ControllerTerminate, 0)
            .to_vec();
        *fake.manner.borrow_mut() = Manner::Raw(request);
        let controller = connect(options()).await.expect("connected");
        assert_eq!(controller.flush().await, Err(CommandError::Lost));
        assert_eq!(controller.failure(), Some(ConnectionError::Terminated(FatalError::DataOutOfRange).into()));
    });
}

#[test]
fn damaged_data_fails_its_command_only() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let controller = connect(Options { data_digest: true, ..options() }).await.expect("connected");
        *fake.manner.borrow_mut() = Manner::FlippedBits;
        let error = controller.read(0, BLOCK).await.err();
        let expected = CommandError::Status { status: Status::TransientTransportError, result: 0 };
        assert_eq!(error, Some(expected));
        *fake.manner.borrow_mut() = Manner::Proper;
        assert!(controller.read(0, BLOCK).await.is_ok());
    });
}

#[test]
fn success_without_all_the_data_is_no_success() {
    let stage = Stage::new();
    let fake = Rc::clone(&stage.fake);
    stage.host(async move {
        let controller = connect(options()).await.expect("connected");
        *fake.manner.borrow_mut() = Manner::ShortReads;
        assert_eq!(controller.read(0, BLOCK).await.err(), Some(CommandError::ShortData));
    });
}

#[test]
fn garbage_from_the_first_byte_on_fails_the_connect() {
    let stage = Stage::new();
    let port = stage.world.add_node([10, 0, 0, 3].into());
    for garbage in [vec![], vec![1], vec![0xff; 4096], header(1, 0, 128, 0, 128), header(3, 0, 24, 0, 24)] {
        let bytes = garbage.clone();
        let listening = stage.world.spawn(port, async move {
            let listener = TcpListener::bind(([10, 0, 0, 3], 4420).into()).expect("a free address");
            let stream = listener.accept().await.expect("a connection");
            stream.push(Slice::from(&bytes[..]));
            stream.flush();
            // Longer than the initiator waits.
            reactor::sleep(Duration::from_secs(60)).await;
        });
        stage.world.run_for(Duration::from_millis(1));
        let error = stage.host(async {
            let options = Options { connect_timeout: Duration::from_secs(2), ..options() };
            let error = Controller::connect(([10, 0, 0, 3], 4420).into(), "nqn.x", options).await.err();
            reactor::yield_now().await;
            error
        });
        assert!(error.is_some(), "{garbage:?}");
        stage.world.run_until(|| listening.is_done(), Duration::from_secs(90));
    }
    // I40: the one task that asks.
    assert_eq!(stage.host(async { reactor::task_count() }), 1);
}
