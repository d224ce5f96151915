//! Whole sessions, recorded between both ends and decoded by somebody else: Wireshark's tshark. It is left out where that is not
//! installed; `cargo xtask test` installs it where it can.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use iscsi_initiator::{Algorithm, LogicalUnit, Options, discover};
use iscsi_target::{Access, Directory, ListenerOptions};
use reactor::simulated::World;
use reactor::{Slice, TcpListener, TcpStream};

use crate::capture::{self, Direction, Passed};
use crate::{BLOCK, SIZE, export, guarded, identity, pattern, proving};

const TARGET: ([u8; 4], u16) = ([10, 0, 0, 1], 3260);
const HOST: [u8; 4] = [10, 0, 0, 2];
/// Passes everything on and remembers it.
const RELAY: ([u8; 4], u16) = ([10, 0, 0, 3], 3260);

type Recording = Rc<RefCell<Vec<Passed>>>;

/// What an initiator with these options and this target say to each other, from discovery to logout.
fn record(access: Access, options: Options) -> Vec<Passed> {
    let world = World::new(1);
    let [target, host, relay] = [TARGET.0, HOST, RELAY.0].map(|address| world.add_node(address.into()));
    world.boot(target, move || async move {
        let _kept = export(&Directory::new(), ListenerOptions::new(TARGET.into()), access.clone());
        std::future::pending::<()>().await;
    });
    let recording = Recording::default();
    let taken = Rc::clone(&recording);
    world.block_on(relay, async move { listen(&taken) });
    world.block_on(host, story(options));
    recording.take()
}

fn listen(recording: &Recording) {
    let listener = TcpListener::bind(RELAY.into()).expect("a free port");
    let recording = Rc::clone(recording);
    reactor::spawn(async move {
        let mut connection = 0;
        while let Ok(initiator) = listener.accept().await {
            let target = TcpStream::connect(TARGET.into()).await.expect("a target");
            for (from, to, direction) in
                [(initiator.clone(), target.clone(), Direction::ToTarget), (target, initiator, Direction::ToInitiator)]
            {
                reactor::spawn(pass(from, to, connection, direction, Rc::clone(&recording)));
            }
            connection += 1;
        }
    });
}

async fn pass(from: TcpStream, to: TcpStream, connection: usize, direction: Direction, recording: Recording) {
    while let Ok(chunk) = from.receive().await
        && !chunk.is_empty()
    {
        recording.borrow_mut().push(Passed { connection, direction, bytes: chunk.to_vec() });
        to.push_copy(&chunk);
        to.flush();
    }
    to.close();
}

/// Something of everything that the initiator does.
async fn story(options: Options) {
    let targets = discover(RELAY.into(), &options).await.expect("discovered");
    assert_eq!(targets[0].name, identity().name);
    let options = Options { queues: 2, connections_per_session: 2, ..options };
    let unit = LogicalUnit::connect(RELAY.into(), &identity().name, options).await.expect("connected");
    for length in [4096, 300 << 10, 3 << 20] {
        unit.write(0, pattern(length), true).await.expect("written");
        assert!(unit.read(0, length).await.expect("read")[..] == pattern(length)[..]);
    }
    unit.flush().await.expect("flushed");
    unit.unmap(&[(0, 8192), (65_536, 4096)]).await.expect("given back");
    unit.write_same(0, 1 << 20, Slice::zeroes(BLOCK as usize), true).await.expect("zeroed");
    unit.compare_and_write(0, &[0; BLOCK as usize], &[1; BLOCK as usize]).await.expect("they were zeroes");
    unit.compare_and_write(0, &[0; BLOCK as usize], &[2; BLOCK as usize]).await.expect_err("they are not any more");
    unit.write(SIZE, Slice::zeroes(BLOCK as usize), false).await.expect_err("beyond the end");
    // Pings, both ways.
    reactor::sleep(Duration::from_secs(60)).await;
    unit.disconnect().await;
}

/// Decodes a recording and tells how often each opcode came; fails on whatever looks wrong to it.
fn decode(name: &str, passed: &[Passed]) -> Option<BTreeMap<u8, usize>> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pcap"));
    capture::write(&path, passed).expect("a capture");
    let fields = ["iscsi.opcode", "_ws.malformed", "_ws.expert.severity", "_ws.expert.message"];
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r"]).arg(&path).args(["-d", "tcp.port==3260,iscsi", "-T", "fields", "-E", "separator=|"]);
    tshark.args(fields.iter().flat_map(|field| ["-e", *field]));
    let output = match tshark.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("left out: tshark: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut opcodes = BTreeMap::new();
    for (line, number) in String::from_utf8_lossy(&output.stdout).lines().zip(1..) {
        let [found, malformed, severities, messages] = line.split('|').collect::<Vec<_>>()[..] else {
            panic!("packet {number}: {line}")
        };
        assert_eq!(malformed, "", "{name}: packet {number} is malformed: {messages}");
        // PI_WARN and PI_ERROR of Wireshark's expert information.
        let is_bad = |severity: &str| severity.parse::<u32>().is_ok_and(|severity| severity >= 0x0060_0000);
        assert!(!severities.split(',').any(is_bad), "{name}: packet {number}: {messages}");
        for opcode in found.split(',').filter(|opcode| !opcode.is_empty()) {
            let digits = opcode.trim_start_matches("0x");
            *opcodes.entry(u8::from_str_radix(digits, 16).expect("an opcode")).or_insert(0) += 1;
        }
    }
    Some(opcodes)
}

/// Opcodes of all PDUs in a recording without digests, by our own count: what a stranger has to find.
fn count(passed: &[Passed]) -> BTreeMap<u8, usize> {
    let mut streams = BTreeMap::<(usize, bool), Vec<u8>>::new();
    for passed in passed {
        let stream = streams.entry((passed.connection, passed.direction == Direction::ToTarget)).or_default();
        stream.extend_from_slice(&passed.bytes);
    }
    let mut opcodes = BTreeMap::new();
    for stream in streams.into_values() {
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let data = u32::from_be_bytes([0, rest[5], rest[6], rest[7]]) as usize;
            *opcodes.entry(rest[0] & 0x3f).or_insert(0) += 1;
            rest = &rest[48 + usize::from(rest[4]) * 4 + data.next_multiple_of(4)..];
        }
    }
    opcodes
}

#[test]
fn a_stranger_reads_a_session_as_we_do() {
    let passed = record(Access::default(), Options::default());
    let ours = count(&passed);
    // All of the initiator's but task management and SNACK, all of the target's but the answer to it, Async and Reject.
    let expected = [0x00, 0x01, 0x03, 0x04, 0x05, 0x06, 0x20, 0x21, 0x23, 0x24, 0x25, 0x26, 0x31];
    assert_eq!(ours.keys().copied().collect::<Vec<_>>(), expected);
    if let Some(theirs) = decode("plain", &passed) {
        let kinds = |opcodes: BTreeMap<u8, usize>| opcodes.into_keys().collect::<Vec<_>>();
        assert_eq!(kinds(theirs), kinds(ours));
    }
}

#[test]
fn a_stranger_finds_nothing_wrong_with_digests() {
    for (name, header_digest, data_digest) in [("header", true, false), ("data", false, true), ("both", true, true)] {
        decode(name, &record(Access::default(), Options { header_digest, data_digest, ..Options::default() }));
    }
}

#[test]
fn a_stranger_finds_nothing_wrong_with_chap() {
    for algorithm in Algorithm::ALL {
        let options = proving(b"the host's secret", Some(b"the volume's own"), algorithm);
        decode(&format!("chap-{}", algorithm as u8), &record(guarded(), options));
    }
}
