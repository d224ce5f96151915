//! An iSCSI initiator: the protocol's other end on a socket that blocks, one command after the other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use iscsi_target_protocol::chap::Challenge;
use iscsi_target_protocol::initiator::connection::{Command, Connection, Data, Event, Session};
use iscsi_target_protocol::initiator::login::{self, Login, Options};
use iscsi_target_protocol::negotiation::Parameters;
use iscsi_target_protocol::wire::{LoginStatus, Name};

use crate::PATIENCE;

/// Who the tests are, unless they say otherwise.
pub const INITIATOR: &str = "iqn.2026-01.org.example:host";

/// Bytes of a block of the tests' volumes.
const BLOCK: u32 = 4096;
const PAUSE: Duration = Duration::from_millis(50);

/// A session of one connection.
pub struct Initiator {
    stream: TcpStream,
    session: Session,
    connection: Connection,
    unread: Vec<u8>,
}

/// What became of a command.
#[derive(Debug)]
pub struct Answer {
    /// SCSI status.
    pub status: u8,
    /// Sense data, in the fixed format.
    pub sense: Vec<u8>,
    /// What was read.
    pub data: Vec<u8>,
}

impl Answer {
    /// The data of a command that succeeded.
    pub fn good(self) -> anyhow::Result<Vec<u8>> {
        ensure!(self.status == 0, "{self:x?}");
        Ok(self.data)
    }

    /// Sense key, and code with qualifier, of one that did not.
    pub fn why(&self) -> anyhow::Result<(u8, u16)> {
        ensure!(self.status == 2 && self.sense.len() >= 14, "{self:x?}");
        Ok((self.sense[2] & 0xf, u16::from_be_bytes([self.sense[12], self.sense[13]])))
    }
}

/// How to log in to `target` with no proof of who one is.
pub fn login_options(target: &str, initiator: &str) -> anyhow::Result<Options> {
    let name = |text: &str| Name::parse(text).with_context(|| format!("{text} is no name"));
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&random.to_be_bytes());
    Ok(Options {
        initiator: name(initiator)?,
        target: Some(name(target)?),
        isid: [0x80, 0, 0, 0, 0, 1],
        tsih: 0,
        cid: 0,
        offer: Parameters::target(),
        chap: None,
        challenge: Challenge { identifier: 1, bytes },
    })
}

impl Initiator {
    /// Logs in; the target's refusal is no error.
    pub fn login(portal: SocketAddr, options: &Options) -> anyhow::Result<Result<Self, LoginStatus>> {
        let mut stream = TcpStream::connect(portal)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut login = Login::new(options.clone(), 1);
        let (mut out, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        login.start(&mut out);
        loop {
            stream.write_all(&std::mem::take(&mut out))?;
            let length = stream.read(&mut chunk)?;
            ensure!(length > 0, "the target closed the connection");
            let mut input = &chunk[..length];
            match login.receive(&mut input, &mut out).map_err(|violation| anyhow::anyhow!("{violation:?}"))? {
                Some(login::Event::Complete) => {
                    let unread = input.to_vec();
                    let (session, connection) = login.finish();
                    return Ok(Ok(Self { stream, session, connection, unread }));
                }
                Some(login::Event::Refused { status, .. }) => return Ok(Err(status)),
                Some(login::Event::Distrusted) => bail!("the target did not prove who it is"),
                None => {}
            }
        }
    }

    /// Logs in as a host that waits for a node that comes back, and takes note of the first unit attention.
    pub fn attach(portal: SocketAddr, options: &Options) -> anyhow::Result<Self> {
        let limit = Instant::now() + PATIENCE;
        loop {
            match Self::login(portal, options) {
                Ok(Ok(mut initiator)) => {
                    initiator.command(&[0], Data::None, &[])?;
                    return Ok(initiator);
                }
                Ok(Err(LoginStatus::Unavailable)) => {
                    ensure!(Instant::now() < limit, "the target does not come within {PATIENCE:?}");
                }
                Ok(Err(status)) => bail!("the login is refused: {status:?}"),
                Err(error) => ensure!(Instant::now() < limit, "no login within {PATIENCE:?}: {error:#}"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What discovery tells an initiator, as it comes.
    pub fn discover(portal: SocketAddr, initiator: &str) -> anyhow::Result<String> {
        let options = Options { target: None, ..login_options(initiator, initiator)? };
        let mut session = Self::login(portal, &options)?.map_err(|status| anyhow::anyhow!("{status:?}"))?;
        let mut out = Vec::new();
        session.connection.send_text(&mut session.session, b"SendTargets=All\0", &mut out).context("no room")?;
        session.stream.write_all(&out)?;
        let mut text = None;
        while text.is_none() {
            session.turn(|event| {
                if let Event::Text { text: told, .. } = event {
                    text = Some(told);
                }
            })?;
        }
        Ok(String::from_utf8(text.unwrap_or_default())?)
    }

    /// Carries out a command of LUN 0.
    pub fn command(&mut self, cdb: &[u8], data: Data, bytes: &[u8]) -> anyhow::Result<Answer> {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        let command = Command { lun: 0, cdb: whole, data, immediate: false };
        let mut out = Vec::new();
        let submitted = self.connection.submit(&mut self.session, &command, &mut out).context("no room")?;
        let now = submitted.immediate_data as usize;
        if now > 0 {
            out.extend_from_slice(&bytes[..now]);
            self.connection.write_data_end([&bytes[..now]], &mut out);
        }
        self.stream.write_all(&out)?;
        let (mut received, mut ended) = (Vec::new(), None);
        while ended.is_none() {
            // Unasked data goes before anything is awaited.
            let mut out = Vec::new();
            while let Some(range) = self.connection.write_data_header(submitted.slot, &mut out) {
                let payload = &bytes[range.start as usize..range.end as usize];
                out.extend_from_slice(payload);
                self.connection.write_data_end([payload], &mut out);
            }
            self.stream.write_all(&out)?;
            self.turn(|event| match event {
                Event::Data { bytes, .. } => received.extend_from_slice(bytes),
                Event::Completed { status, sense, .. } => ended = Some((status, sense)),
                _ => {}
            })?;
        }
        let (status, sense) = ended.unwrap_or_default();
        Ok(Answer { status, sense, data: received })
    }

    /// Reads blocks.
    pub fn read(&mut self, block: u32, count: u16) -> anyhow::Result<Answer> {
        self.command(&transfer(0x28, block, count), Data::Receive(u32::from(count) * BLOCK), &[])
    }

    /// Writes whole blocks.
    pub fn write(&mut self, block: u32, bytes: &[u8]) -> anyhow::Result<Answer> {
        let count = u16::try_from(bytes.len() / BLOCK as usize)?;
        self.command(&transfer(0x2a, block, count), Data::Send(u32::try_from(bytes.len())?), bytes)
    }

    /// A page of vital product data.
    pub fn page(&mut self, code: u8) -> anyhow::Result<Vec<u8>> {
        self.command(&[0x12, 1, code, 1, 0, 0], Data::Receive(256), &[])?.good()
    }

    /// The number of blocks.
    pub fn blocks(&mut self) -> anyhow::Result<u64> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
        let data = self.command(&cdb, Data::Receive(32), &[])?.good()?;
        let last = data.first_chunk().context("no capacity")?;
        Ok(u64::from_be_bytes(*last) + 1)
    }

    /// Whether the target has ended the session, or does so soon.
    pub fn is_ended(&mut self) -> bool {
        self.command(&[0], Data::None, &[]).is_err()
    }

    /// Takes what comes next.
    fn turn(&mut self, mut handle: impl FnMut(Event<'_>)) -> anyhow::Result<()> {
        if self.unread.is_empty() {
            let mut chunk = vec![0; 256 << 10];
            let length = self.stream.read(&mut chunk)?;
            ensure!(length > 0, "the target closed the connection");
            chunk.truncate(length);
            self.unread = chunk;
        }
        let chunk = std::mem::take(&mut self.unread);
        let (mut input, mut out) = (&chunk[..], Vec::new());
        loop {
            let event = self.connection.receive(&mut self.session, &mut input, &mut out);
            match event.map_err(|violation| anyhow::anyhow!("{violation:?}"))? {
                Some(event) => handle(event),
                None => break,
            }
        }
        Ok(self.stream.write_all(&out)?)
    }
}

fn transfer(code: u8, block: u32, count: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = code;
    cdb[2..6].copy_from_slice(&block.to_be_bytes());
    cdb[7..9].copy_from_slice(&count.to_be_bytes());
    cdb
}
