//! Cuts a byte stream that arrives in arbitrary pieces into PDUs, and frames PDUs that go out. Both ends
//! of a connection use it.
//!
//! ```text
//!          48 bytes     additional headers, digest      no data
//! Basic ──────────▶ Rest ─────────────────────▶ Basic ◀──────────┐
//!                     │ data                                     │
//!                     ▼   last byte          no digest           │
//!                   Data ──────────▶ Padding ────────────────────┤
//!                                       │ digest agreed          │
//!                                       ▼            4 bytes     │
//!                                    Trailer ────────────────────┘
//! ```

use crate::sink::HeaderSink;
use crate::violation::Violation;
use crate::wire::bytes::array_at;
use crate::wire::digest::{DIGEST_SIZE, RunningDigest, digest_of};
use crate::wire::pdu::{ADDITIONAL_MAX, HEADER_SIZE, Header, additional_length, data_length, padding, set_data_length};

/// Most bytes of a PDU that precede its data.
const HEADERS_MAX: usize = HEADER_SIZE + ADDITIONAL_MAX + DIGEST_SIZE;

/// Which digests a connection agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Headers are followed by their CRC-32C.
    pub header: bool,
    /// Data is followed by its CRC-32C.
    pub data: bool,
}

/// The next thing in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// All headers, their digest verified; so many bytes of data follow. The bytes are in [`Reader::header`].
    Header { data_length: u32 },
    /// Some of the data.
    Data(&'a [u8]),
    /// The data is complete; `intact` unless its digest differs. Comes after every header with data.
    DataEnd { intact: bool },
}

enum State {
    Basic,
    Rest,
    Data { remaining: u32, padding: usize, digest: Option<RunningDigest> },
    Padding { remaining: usize, digest: Option<RunningDigest> },
    Trailer { digest: u32, bytes: [u8; DIGEST_SIZE], filled: usize },
}

/// Reassembles headers, hands out data, verifies both.
pub(crate) struct Reader {
    digests: Digests,
    state: State,
    /// The current headers; the bytes up to `filled` are from the stream.
    headers: [u8; HEADERS_MAX],
    filled: usize,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { digests: Digests::default(), state: State::Basic, headers: [0; HEADERS_MAX], filled: 0 }
    }

    /// Digests agreed on from the next PDU on.
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// The basic header that [`Piece::Header`] announced.
    pub(crate) fn header(&self) -> Header {
        array_at(&self.headers, 0)
    }

    /// The additional headers that came with it.
    pub(crate) fn additional(&self) -> &[u8] {
        &self.headers[HEADER_SIZE..HEADER_SIZE + additional_length(&self.header())]
    }

    /// Consumes input up to the next piece; `None` when more input is needed. `limit` says how much data a PDU may carry
    /// now, or why it may not come at all.
    #[inline]
    pub(crate) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        limit: impl Fn(&Header) -> Result<u32, Violation>,
    ) -> Result<Option<Piece<'a>>, Violation> {
        loop {
            match &mut self.state {
                State::Basic => {
                    if !self.fill(input, HEADER_SIZE) {
                        return Ok(None);
                    }
                    let header = self.header();
                    if data_length(&header) > limit(&header)? {
                        return Err(Violation::DataTooLong);
                    }
                    self.state = State::Rest;
                }
                State::Rest => {
                    let end = HEADER_SIZE + additional_length(&self.header());
                    let digest_size = if self.digests.header { DIGEST_SIZE } else { 0 };
                    if !self.fill(input, end + digest_size) {
                        return Ok(None);
                    }
                    return self.finish_headers(end).map(Some);
                }
                State::Data { remaining: 0, padding, digest } => {
                    self.state = State::Padding { remaining: *padding, digest: *digest };
                }
                State::Data { .. } if input.is_empty() => return Ok(None),
                State::Data { remaining, digest, .. } => {
                    let length = input.len().min(*remaining as usize);
                    let data = take(input, length);
                    *remaining -= length as u32;
                    if let Some(digest) = digest {
                        digest.update(data);
                    }
                    return Ok(Some(Piece::Data(data)));
                }
                State::Padding { remaining: 0, digest: None } => {
                    self.next_pdu();
                    return Ok(Some(Piece::DataEnd { intact: true }));
                }
                State::Padding { remaining: 0, digest: Some(digest) } => {
                    let digest = digest.value();
                    self.state = State::Trailer { digest, bytes: [0; DIGEST_SIZE], filled: 0 };
                }
                State::Padding { .. } if input.is_empty() => return Ok(None),
                State::Padding { remaining, digest } => {
                    let length = input.len().min(*remaining);
                    let bytes = take(input, length);
                    *remaining -= length;
                    if let Some(digest) = digest {
                        digest.update(bytes);
                    }
                }
                State::Trailer { digest, bytes, filled } => {
                    fill(input, bytes, filled, DIGEST_SIZE);
                    if *filled < DIGEST_SIZE {
                        return Ok(None);
                    }
                    let intact = u32::from_le_bytes(*bytes) == *digest;
                    self.next_pdu();
                    return Ok(Some(Piece::DataEnd { intact }));
                }
            }
        }
    }

    /// All headers are here, `end` bytes and their digest.
    fn finish_headers<'a>(&mut self, end: usize) -> Result<Piece<'a>, Violation> {
        if self.digests.header {
            let received = u32::from_le_bytes(array_at(&self.headers, end));
            if digest_of(&self.headers[..end]) != received {
                return Err(Violation::HeaderDigest);
            }
        }
        let data_length = data_length(&self.header());
        if data_length == 0 {
            self.next_pdu();
        } else {
            let digest = self.digests.data.then(RunningDigest::new);
            self.state = State::Data { remaining: data_length, padding: padding(data_length), digest };
        }
        Ok(Piece::Header { data_length })
    }

    fn next_pdu(&mut self) {
        self.state = State::Basic;
        self.filled = 0;
    }

    /// Takes input until `needed` bytes of the headers are here.
    fn fill(&mut self, input: &mut &[u8], needed: usize) -> bool {
        fill(input, &mut self.headers, &mut self.filled, needed);
        self.filled >= needed
    }
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (now, rest) = input.split_at(length);
    *input = rest;
    now
}

/// Moves bytes from `input` into `to[*filled..needed]`.
fn fill(input: &mut &[u8], to: &mut [u8], filled: &mut usize, needed: usize) {
    let length = input.len().min(needed.saturating_sub(*filled));
    to[*filled..*filled + length].copy_from_slice(take(input, length));
    *filled += length;
}

/// Frames outgoing PDUs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Writer {
    pub(crate) digests: Digests,
}

impl Writer {
    /// Writes a header, `length` bytes of data to follow, and its digest.
    pub(crate) fn write(&self, mut header: Header, length: u32, sink: &mut impl HeaderSink) {
        set_data_length(&mut header, length);
        sink.push(&header);
        if self.digests.header {
            sink.push(&digest_of(&header).to_le_bytes());
        }
    }

    /// Writes what follows data: padding, and the digest if one is agreed on.
    pub(crate) fn write_data_end<'a>(&self, payload: impl IntoIterator<Item = &'a [u8]>, sink: &mut impl HeaderSink) {
        let mut digest = self.digests.data.then(RunningDigest::new);
        let mut length = 0_usize;
        for piece in payload {
            length += piece.len();
            if let Some(digest) = &mut digest {
                digest.update(piece);
            }
        }
        // Only the last two bits matter.
        let filling = &[0; 3][..padding(length as u32)];
        if !filling.is_empty() {
            sink.push(filling);
        }
        if let Some(mut digest) = digest {
            digest.update(filling);
            sink.push(&digest.value().to_le_bytes());
        }
    }

    /// Writes a header and data of our own.
    pub(crate) fn write_with_data(&self, header: Header, data: &[u8], sink: &mut impl HeaderSink) {
        // Our own data is at most a segment long.
        self.write(header, data.len() as u32, sink);
        if !data.is_empty() {
            sink.push(data);
            self.write_data_end([data], sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const ALL: [Digests; 4] = [
        Digests { header: false, data: false },
        Digests { header: true, data: false },
        Digests { header: false, data: true },
        Digests { header: true, data: true },
    ];

    /// Two PDUs: one with `data`, one without.
    fn stream(digests: Digests, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let writer = Writer { digests };
        writer.write_with_data([1; HEADER_SIZE].map(|_| 0), data, &mut out);
        writer.write([0; HEADER_SIZE], 0, &mut out);
        out
    }

    fn read(digests: Digests, stream: &[u8], fragment: usize) -> Result<Vec<Vec<u8>>, Violation> {
        let mut reader = Reader::new();
        reader.set_digests(digests);
        let mut pdus = Vec::new();
        for chunk in stream.chunks(fragment) {
            let mut input = chunk;
            while let Some(piece) = reader.next(&mut input, |_| Ok(64))? {
                match piece {
                    Piece::Header { .. } => pdus.push(Vec::new()),
                    Piece::Data(bytes) => pdus.last_mut().unwrap().extend_from_slice(bytes),
                    Piece::DataEnd { intact: true } => {}
                    Piece::DataEnd { intact: false } => pdus.last_mut().unwrap().clear(),
                }
            }
            assert!(input.is_empty());
        }
        Ok(pdus)
    }

    #[test]
    fn pdus_come_through_whatever_the_fragments() {
        for digests in ALL {
            for data in [&b""[..], b"a", b"abcd", b"abcdefg"] {
                let stream = stream(digests, data);
                assert!(stream.len().is_multiple_of(4));
                for fragment in [1, 3, 47, 49, usize::MAX] {
                    let pdus = read(digests, &stream, fragment);
                    assert_eq!(pdus, Ok(Vec::from([data.to_vec(), Vec::new()])), "{digests:?}, {fragment}");
                }
            }
        }
    }

    #[test]
    fn damage_is_found_by_the_digest_that_covers_it() {
        let digests = Digests { header: true, data: true };
        let good = stream(digests, b"abcde");
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            let result = read(digests, &bad, usize::MAX);
            match index {
                // TotalAHSLength and DataSegmentLength say where the digest is: others are read instead of it.
                4..8 => assert_ne!(result, Ok(Vec::from([b"abcde".to_vec(), Vec::new()]))),
                0..52 => assert_eq!(result, Err(Violation::HeaderDigest), "byte {index}"),
                // Data, padding, digest.
                52..64 => assert_eq!(result, Ok(Vec::from([Vec::new(), Vec::new()])), "byte {index}"),
                _ => assert!(result.is_err() || result.unwrap().len() < 2, "byte {index}"),
            }
        }
    }

    #[test]
    fn lengths_are_checked_before_they_are_used() {
        let mut header = [0; HEADER_SIZE];
        set_data_length(&mut header, 65);
        assert_eq!(read(Digests::default(), &header, 48), Err(Violation::DataTooLong));
        set_data_length(&mut header, 0);
        header[4] = 255;
        let mut bytes = header.to_vec();
        bytes.resize(HEADER_SIZE + ADDITIONAL_MAX, 0);
        assert_eq!(read(Digests::default(), &bytes, 48), Ok(Vec::from([Vec::new()])), "the longest headers");
    }
}
