//! Peers that lie, and bytes that are none of the protocol: an error, never a panic, and memory within the credits.

use proptest::prelude::*;
use replica_protocol::{
    Chain, Client, ClientEvent, Command, Extents, Flags, Frame, Grant, Hashes, Kind, MAX_ATTACHED, MAX_MEMBERSHIP,
    MAX_NOTE, MAX_TRANSFER, Membership, Notes, Open, ProtocolError, Server, ServerEvent, State, Status, checksum,
};

const OPEN: Open = Open { replica: [1; 16], volume: [2; 16], instance: [3; 16], epoch: 9 };
const GRANT: Grant = Grant {
    epoch: 9,
    size: 1 << 20,
    block_size: 512,
    atomic_write: 512,
    allocation_unit: 4096,
    state: State::Complete,
};

/// A server and a client past the grant.
fn serving(requests: u32) -> (Server, Client<u32>) {
    let (mut server, mut client) = (Server::new(requests, 0), Client::default());
    let hello = client.hello([3; 16], "a");
    assert!(matches!(server.handle(&mut &hello[..]), Ok(Some(ServerEvent::Hello(_)))));
    let welcome = server.welcome("b");
    assert!(matches!(client.handle(&mut &welcome[..]), Ok(Some(ClientEvent::Welcome(_)))));
    let open = client.open(&OPEN);
    assert!(matches!(server.handle(&mut &open[..]), Ok(Some(ServerEvent::Open(_)))));
    let grant = server.grant(&GRANT);
    assert!(matches!(client.handle(&mut &grant[..]), Ok(Some(ClientEvent::Granted(_)))));
    (server, client)
}

fn with_payload(frame: Frame, payload: &[u8]) -> Vec<u8> {
    let frame = Frame { payload_length: payload.len() as u32, payload_checksum: checksum(payload), ..frame };
    [&frame.encode()[..], payload].concat()
}

/// What a server says to these bytes: the first error, or none.
fn server_error(server: &mut Server, bytes: &[u8]) -> Option<ProtocolError> {
    let mut input = bytes;
    loop {
        match server.handle(&mut input) {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    }
}

fn client_error(client: &mut Client<u32>, bytes: &[u8]) -> Option<ProtocolError> {
    let mut input = bytes;
    loop {
        match client.handle(&mut input) {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    }
}

#[test]
fn nothing_but_hello_begins() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Hello) {
        let length = u32::from(kind == Kind::Write);
        let frame = Frame { length: length.into(), payload_length: length, ..Frame::new(kind) };
        let error = server_error(&mut Server::new(4, 0), &frame.encode());
        assert_eq!(error, Some(ProtocolError::Unexpected(kind as u8)), "{kind:?}");
    }
}

#[test]
fn versions_that_do_not_meet_end_the_greeting() {
    let mut hello = Client::<()>::default().hello([3; 16], "a");
    // Rewrite the range of versions to 2 to 5, and both checksums.
    hello[64..68].copy_from_slice(&[2, 0, 5, 0]);
    let payload = hello.split_off(64);
    let frame = with_payload(Frame::new(Kind::Hello), &payload);
    assert_eq!(server_error(&mut Server::new(4, 0), &frame), Some(ProtocolError::Version(5)));
}

#[test]
fn a_slot_beyond_the_credits_or_in_use_is_an_overrun() {
    let flush = |request| Frame { request, epoch: 9, ..Frame::new(Kind::Flush) }.encode();
    let (mut server, _) = serving(4);
    assert_eq!(server_error(&mut server, &flush(4)), Some(ProtocolError::CreditOverrun));
    let (mut server, _) = serving(4);
    assert_eq!(server_error(&mut server, &flush(0x1_0003)), None);
    assert_eq!(server_error(&mut server, &flush(0x2_0003)), Some(ProtocolError::CreditOverrun));
}

#[test]
fn more_bytes_than_granted_is_an_overrun() {
    let (mut server, _) = serving(4);
    let read =
        |request| Frame { request, epoch: 9, length: u64::from(MAX_TRANSFER), ..Frame::new(Kind::Read) }.encode();
    assert_eq!(server_error(&mut server, &read(0)), None);
    assert_eq!(server_error(&mut server, &read(1)), Some(ProtocolError::CreditOverrun));
}

#[test]
fn an_answer_to_nothing_is_an_error() {
    let (_, mut client) = serving(4);
    let answer = Frame { request: 0x1_0000, ..Frame::new(Kind::Answer) }.encode();
    assert_eq!(client_error(&mut client, &answer), Some(ProtocolError::UnknownRequest(0x1_0000)));
}

#[test]
fn an_answer_counts_once_and_only_for_its_own_request() {
    let (mut server, mut client) = serving(1);
    let (first, _) = client.start(&Command::Flush, 1).expect("there is credit");
    assert_eq!(server_error(&mut server, &first), None);
    let request = Frame::decode(&first).expect("our own").request;
    let answer = server.answer(request, Status::Good, std::iter::empty()).expect("in flight");
    assert!(server.answer(request, Status::Good, std::iter::empty()).is_none());
    assert_eq!(client_error(&mut client, &answer), None);
    client.start(&Command::Flush, 2).expect("credit came back");
    // The first answer once more: the slot is in use again, by another request.
    assert_eq!(client_error(&mut client, &answer), Some(ProtocolError::UnknownRequest(request)));
}

#[test]
fn read_data_is_exactly_as_long_as_asked() {
    for length in [0, 7, 9] {
        let (_, mut client) = serving(4);
        let (header, _) = client.start(&Command::Read { offset: 0, length: 8 }, 1).expect("there is credit");
        let request = Frame::decode(&header).expect("our own").request;
        let answer = with_payload(Frame { request, ..Frame::new(Kind::Answer) }, &vec![0; length]);
        assert_eq!(client_error(&mut client, &answer), Some(ProtocolError::PayloadLength(length as u32)));
    }
}

#[test]
fn the_rest_of_an_answer_that_arrives_after_the_end_is_an_error() {
    // I16
    for (command, kept) in
        [(Command::Read { offset: 0, length: 8 }, 0), (Command::Read { offset: 0, length: 8 }, 3), (Command::Chain, 3)]
    {
        let (_, mut client) = serving(4);
        let (header, _) = client.start(&command, 1).expect("there is credit");
        let request = Frame::decode(&header).expect("our own").request;
        let answer = with_payload(Frame { request, ..Frame::new(Kind::Answer) }, &[0; 8]);
        let (first, rest) = answer.split_at(header.len() + kept);
        assert_eq!(client_error(&mut client, first), None);
        assert_eq!(client.end(), [1]);
        assert_eq!(client_error(&mut client, rest), Some(ProtocolError::Malformed), "{command:?}, {kept}");
    }
}

#[test]
fn the_words_of_an_error_are_short_utf8() {
    let (_, mut client) = serving(4);
    let (header, _) = client.start(&Command::Flush, 1).expect("there is credit");
    let frame = Frame {
        request: Frame::decode(&header).expect("our own").request,
        status: Status::Internal,
        ..Frame::new(Kind::Answer)
    };
    assert_eq!(client_error(&mut client, &with_payload(frame, &[0xff])), Some(ProtocolError::Malformed));
    let (_, mut client) = serving(4);
    client.start(&Command::Flush, 1).expect("there is credit");
    let error = client_error(&mut client, &with_payload(frame, &[b'x'; 1025]));
    assert_eq!(error, Some(ProtocolError::PayloadLength(1025)));
}

#[test]
fn credits_that_cannot_work_are_refused() {
    for (requests, bytes) in [(0u32, 1u64 << 30), (70_000, 1 << 30), (4, 1)] {
        let mut payload = vec![1, 0, 0, 0];
        payload.extend(requests.to_le_bytes());
        payload.extend(bytes.to_le_bytes());
        payload.push(0);
        let mut client = Client::default();
        let welcome = with_payload(Frame::new(Kind::Welcome), &payload);
        assert_eq!(client_error(&mut client, &welcome), Some(ProtocolError::BadCredits));
    }
}

#[test]
fn a_grant_of_another_epoch_is_refused() {
    let mut client = Client::<u32>::default();
    let mut server = Server::new(4, 0);
    let hello = client.hello([3; 16], "a");
    assert_eq!(server_error(&mut server, &hello), None);
    assert_eq!(client_error(&mut client, &server.welcome("b")), None);
    let open = client.open(&OPEN);
    assert_eq!(server_error(&mut server, &open), None);
    let grant = server.grant(&Grant { epoch: 8, ..GRANT });
    assert_eq!(client_error(&mut client, &grant), Some(ProtocolError::Malformed));
}

#[test]
fn lists_that_lie_about_their_length_are_malformed() {
    let count = u32::MAX.to_le_bytes();
    assert_eq!(Chain::parse(&[&count[..], &[0; 4]].concat()), Err(ProtocolError::Malformed));
    assert_eq!(Extents::parse(&[&count[..], &[0; 12]].concat()), Err(ProtocolError::Malformed));
    let mut wrapping = vec![1, 0, 0, 0, 0, 0, 0, 0];
    wrapping.extend([0xff; 24]);
    wrapping.extend([0; 8]);
    assert_eq!(Extents::parse(&wrapping), Err(ProtocolError::Malformed));
    assert_eq!(Hashes::parse(&[0; 15]), Err(ProtocolError::Malformed));
    assert_eq!(Notes::parse(&[&count[..], &[0; 4]].concat()), Err(ProtocolError::Malformed));
}

#[test]
fn notes_are_in_order_and_short() {
    let listed = |places: [u8; 2], length: u32| {
        let mut payload = vec![2, 0, 0, 0, 0, 0, 0, 0];
        for place in places {
            payload.extend([place, 1, 0, 0]);
            payload.extend(length.to_le_bytes());
            payload.extend(vec![7; length as usize]);
        }
        Notes::parse(&payload)
    };
    assert!(listed([0, 16], MAX_NOTE).is_ok());
    for (places, length) in [([1, 1], 4), ([2, 1], 4), ([0, 17], 4), ([0, 1], MAX_NOTE + 1)] {
        assert_eq!(listed(places, length), Err(ProtocolError::Malformed), "{places:?} {length}");
    }
}

#[test]
fn requests_for_hashes_and_notes_that_make_no_sense_are_malformed() {
    let hashes = |granule: u32| {
        let (mut server, _) = serving(4);
        let payload = [&[4; 16][..], &granule.to_le_bytes(), &[0; 4]].concat();
        server_error(&mut server, &with_payload(Frame { epoch: 9, length: 8192, ..Frame::new(Kind::Hashes) }, &payload))
    };
    assert_eq!(hashes(4096), None);
    for granule in [0, 512, 5000, 2 << 20] {
        assert_eq!(hashes(granule), Some(ProtocolError::Malformed), "{granule}");
    }
    let note = |place, length: u32| {
        let (mut server, _) = serving(4);
        let frame = Frame { epoch: 9, offset: place, ..Frame::new(Kind::SetNote) };
        server_error(&mut server, &with_payload(frame, &vec![1; length as usize]))
    };
    assert_eq!(note(16, MAX_NOTE), None);
    assert_eq!(note(17, 1), Some(ProtocolError::Malformed));
    assert_eq!(note(0, MAX_NOTE + 1), Some(ProtocolError::PayloadLength(MAX_NOTE + 1)));
}

#[test]
fn a_copy_of_the_membership_is_neither_empty_nor_long() {
    let set = |content: u32, attached: u32| {
        let (mut server, _) = serving(4);
        let frame = Frame { epoch: 9, length: attached.into(), ..Frame::new(Kind::SetMembership) };
        let bytes = match content {
            0 if attached == 0 => frame.encode().to_vec(),
            _ => with_payload(frame, &vec![1; (content + attached) as usize]),
        };
        server_error(&mut server, &bytes)
    };
    assert_eq!(set(MAX_MEMBERSHIP, 0), None);
    assert_eq!(set(MAX_MEMBERSHIP, MAX_ATTACHED), None);
    for (content, attached) in [(0, 0), (0, 1), (MAX_MEMBERSHIP + 1, 0), (1, MAX_ATTACHED + 1)] {
        assert_eq!(set(content, attached), Some(ProtocolError::Malformed), "{content} and {attached}");
    }
    let most = MAX_MEMBERSHIP + MAX_ATTACHED;
    assert_eq!(set(most + 1, 0), Some(ProtocolError::PayloadLength(most + 1)));
}

#[test]
fn a_copy_that_is_told_says_how_long_it_is() {
    let told = |content: u32, known: u32, rest: usize| {
        let mut payload = vec![0; 8];
        payload.extend(content.to_le_bytes());
        payload.extend(known.to_le_bytes());
        payload.resize(16 + rest, 1);
        Membership::parse(&payload)
    };
    let malformed = Err(ProtocolError::Malformed);
    assert_eq!(Membership::parse(&[1; 15]), malformed);
    assert!(told(MAX_MEMBERSHIP, 1, (MAX_MEMBERSHIP + MAX_ATTACHED) as usize).is_ok());
    assert_eq!(told(2, 1, 1), malformed, "cut off");
    assert_eq!(told(2, 0, 3), malformed, "bytes of what is not known");
    assert_eq!(told(2, 2, 2), malformed);
    assert_eq!(told(MAX_MEMBERSHIP + 1, 1, MAX_MEMBERSHIP as usize + 1), malformed);
    assert_eq!(told(1, 1, MAX_ATTACHED as usize + 2), malformed);
}

#[test]
fn a_pong_is_good_or_fenced_and_nothing_else() {
    let pong = |status| {
        let (_, mut client) = serving(4);
        client_error(&mut client, &with_payload(Frame { status, ..Frame::new(Kind::Pong) }, &[0; 16]))
    };
    assert_eq!(pong(Status::Good), None);
    assert_eq!(pong(Status::Fenced), None);
    assert_eq!(pong(Status::Busy), Some(ProtocolError::Malformed));
}

#[test]
fn unmaps_without_or_with_half_a_range_are_malformed() {
    for length in [0, 15, 24] {
        let (mut server, _) = serving(4);
        let frame = Frame { epoch: 9, ..Frame::new(Kind::Unmap) };
        let bytes = if length == 0 { frame.encode().to_vec() } else { with_payload(frame, &vec![0; length]) };
        assert_eq!(server_error(&mut server, &bytes), Some(ProtocolError::Malformed), "{length} bytes");
    }
}

#[test]
fn requests_after_close_are_unexpected() {
    let (mut server, client) = serving(4);
    assert_eq!(server_error(&mut server, &client.close()), None);
    let flush = Frame { epoch: 9, ..Frame::new(Kind::Flush) }.encode();
    assert_eq!(server_error(&mut server, &flush), Some(ProtocolError::Unexpected(Kind::Flush as u8)));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(Kind::ALL.to_vec());
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    (kinds, any::<(bool, bool, u8, u16, u64, u64)>(), payload).prop_map(
        |(kind, (fua, unmap, epoch, request, offset, length), payload)| {
            let frame = Frame {
                flags: Flags { fua, unmap },
                request: u64::from(request % 8),
                epoch: u64::from(epoch % 2) * 9,
                offset: offset % 5,
                length: if kind == Kind::Write { payload.len() as u64 } else { length % 9000 },
                ..Frame::new(kind)
            };
            if payload.is_empty() { frame.encode().to_vec() } else { with_payload(frame, &payload) }
        },
    )
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), size in 1usize..300) {
        let (mut server, mut client) = serving(4);
        for piece in bytes.chunks(size) {
            if server_error(&mut server, piece).is_some() {
                break;
            }
        }
        for piece in bytes.chunks(size) {
            if client_error(&mut client, piece).is_some() {
                break;
            }
        }
    }

    #[test]
    fn well_formed_nonsense_never_panics(frames in prop::collection::vec(any_frame(), 1..30)) {
        let (mut server, mut client) = serving(4);
        for name in 0..3 {
            client.start(&Command::Read { offset: 0, length: 100 }, name).expect("there is credit");
        }
        for frame in &frames {
            if server_error(&mut server, frame).is_some() {
                break;
            }
        }
        for frame in &frames {
            if client_error(&mut client, frame).is_some() {
                break;
            }
        }
        prop_assert!(server.in_flight() <= 4);
    }
}
