//! Cuts a byte stream that arrives in arbitrary pieces into PDUs, and frames PDUs that go out. Both ends
//! of a connection use it.
//!
//! ```text
//!            8 bytes            HLEN, digest, padding        no data
//! Common ──────────────▶ Rest ─────────────────────▶ Common ◀───┐
//!                          │ data                               │
//!                          ▼        last byte, no digest        │
//!                        Data ──────────────────────────────────┤
//!                          │ last byte, digest agreed           │
//!                          ▼            4 bytes                 │
//!                       Trailer ────────────────────────────────┘
//! ```

use crate::sink::HeaderSink;
use crate::wire::bytes::{array_at, u32_at};
use crate::wire::digest::{DIGEST_SIZE, RunningDigest, digest_of};
use crate::wire::pdu::{
    COMMON_HEADER_SIZE, CommonHeader, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FatalError, PduType, TERMINATE_DATA_MAX,
    field,
};

/// Longest part of a PDU that precedes its data: PDO is one byte.
const HEADER_MAX: usize = 256;

/// Which digests a connection agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Every header is followed by its CRC-32C.
    pub header: bool,
    /// All data is followed by its CRC-32C.
    pub data: bool,
}

impl Digests {
    fn header_size(self) -> usize {
        if self.header { DIGEST_SIZE } else { 0 }
    }

    fn data_size(self) -> usize {
        if self.data { DIGEST_SIZE } else { 0 }
    }
}

/// The next thing in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A whole header, its digest verified; `data_length` bytes of data follow. The bytes are in [`Reader::header`].
    Header { pdu_type: PduType, flags: u8, data_length: u32 },
    /// Some of the data.
    Data(&'a [u8]),
    /// The data is complete; `intact` unless its digest differs.
    DataEnd { intact: bool },
}

enum State {
    Common,
    Rest { needed: usize, data_length: u32 },
    Data { remaining: u32, digest: Option<RunningDigest> },
    Trailer { digest: u32, bytes: [u8; DIGEST_SIZE], filled: usize },
}

/// Reassembles headers, hands out data, verifies both.
pub(crate) struct Reader {
    digests: Digests,
    state: State,
    /// The current header, padding included; the bytes up to `filled` are from the stream.
    header: [u8; HEADER_MAX],
    filled: usize,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { digests: Digests::default(), state: State::Common, header: [0; HEADER_MAX], filled: 0 }
    }

    /// Digests agreed on from the next PDU on.
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// The first `N` bytes of the header that [`Piece::Header`] announced.
    pub(crate) fn header<const N: usize>(&self) -> [u8; N] {
        array_at(&self.header, 0)
    }

    /// What arrived of the current header, as much as a termination request quotes.
    pub(crate) fn quote(&self) -> &[u8] {
        &self.header[..self.filled.min(TERMINATE_DATA_MAX)]
    }

    /// Bytes of the current PDU's data that have not come yet.
    #[inline]
    pub(crate) fn missing_data(&self) -> u32 {
        if let State::Data { remaining, .. } = self.state { remaining } else { 0 }
    }

    /// Takes data that is in its place already, without the input.
    ///
    /// # Panics
    /// If it is more than is missing.
    pub(crate) fn take_data(&mut self, data: &[u8]) {
        let State::Data { remaining, digest } = &mut self.state else { panic!("no data is missing") };
        *remaining = remaining.checked_sub(data.len() as u32).expect("not more than is missing");
        if let Some(digest) = digest {
            digest.update(data);
        }
    }

    /// Consumes input up to the next piece; `None` when more input is needed. `limit` says how much data a PDU of a
    /// type may carry now, or why the type may not come at all.
    pub(crate) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        limit: impl Fn(PduType) -> Result<u32, FatalError>,
    ) -> Result<Option<Piece<'a>>, FatalError> {
        loop {
            match &mut self.state {
                State::Common => {
                    if !self.fill(input, COMMON_HEADER_SIZE) {
                        return Ok(None);
                    }
                    let (needed, data_length) = self.check_common(limit)?;
                    self.state = State::Rest { needed, data_length };
                    return self.finish_header(input);
                }
                State::Rest { .. } => return self.finish_header(input),
                State::Data { remaining: 0, digest } => match digest {
                    None => {
                        self.next_pdu();
                        return Ok(Some(Piece::DataEnd { intact: true }));
                    }
                    Some(digest) => {
                        let digest = digest.value();
                        self.state = State::Trailer { digest, bytes: [0; DIGEST_SIZE], filled: 0 };
                    }
                },
                State::Data { .. } if input.is_empty() => return Ok(None),
                State::Data { remaining, .. } => {
                    let length = input.len().min(*remaining as usize);
                    let (data, rest) = input.split_at(length);
                    *input = rest;
                    self.take_data(data);
                    return Ok(Some(Piece::Data(data)));
                }
                State::Trailer { digest, bytes, filled } => {
                    take(input, bytes, filled, DIGEST_SIZE);
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

    fn finish_header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FatalError> {
        let State::Rest { needed, data_length } = self.state else { unreachable!("called in this state only") };
        if !self.fill(input, needed) {
            return Ok(None);
        }
        let common = CommonHeader::parse(&self.header());
        self.verify_header(&common)?;
        if data_length == 0 {
            self.next_pdu();
        } else {
            let digest = carries_digests(common.pdu_type) && self.digests.data;
            self.state = State::Data { remaining: data_length, digest: digest.then(RunningDigest::new) };
        }
        // `check_common` let only known types pass.
        let Some(pdu_type) = PduType::from_byte(common.pdu_type) else {
            return Err(FatalError::InvalidHeaderField(field::PDU_TYPE));
        };
        Ok(Some(Piece::Header { pdu_type, flags: common.flags, data_length }))
    }

    fn next_pdu(&mut self) {
        self.state = State::Common;
        self.filled = 0;
    }

    /// Takes input until `needed` bytes of the header are here.
    fn fill(&mut self, input: &mut &[u8], needed: usize) -> bool {
        take(input, &mut self.header, &mut self.filled, needed);
        self.filled >= needed
    }

    /// Validates the common header before any of its lengths is used: how many bytes precede the data, and how many
    /// bytes of data there are.
    fn check_common(&self, limit: impl Fn(PduType) -> Result<u32, FatalError>) -> Result<(usize, u32), FatalError> {
        let invalid = FatalError::InvalidHeaderField;
        let common = CommonHeader::parse(&self.header());
        let pdu_type = PduType::from_byte(common.pdu_type).ok_or(invalid(field::PDU_TYPE))?;
        let data_limit = limit(pdu_type)?;
        if usize::from(common.header_length) != pdu_type.header_size() {
            return Err(invalid(field::HLEN));
        }
        let digests = if carries_digests(common.pdu_type) { self.digests } else { Digests::default() };
        if (common.flags & FLAG_HEADER_DIGEST != 0) != digests.header {
            return Err(invalid(field::FLAGS));
        }
        let header_end = pdu_type.header_size() + digests.header_size();
        let total = common.length as usize;
        if total < header_end {
            return Err(invalid(field::PLEN));
        }
        if total == header_end {
            return Ok((header_end, 0));
        }
        self.check_data(&common, pdu_type, header_end, digests, data_limit)
    }

    /// The part of [`Self::check_common`] for PDUs longer than their header.
    fn check_data(
        &self,
        common: &CommonHeader,
        pdu_type: PduType,
        header_end: usize,
        digests: Digests,
        data_limit: u32,
    ) -> Result<(usize, u32), FatalError> {
        let invalid = FatalError::InvalidHeaderField;
        let terminates = matches!(pdu_type, PduType::HostTerminate | PduType::ControllerTerminate);
        // A termination request quotes a header right behind its own; PDO is reserved there.
        let data_start = if terminates { header_end } else { usize::from(common.data_offset) };
        if data_start < header_end || !data_start.is_multiple_of(4) {
            return Err(invalid(field::PDO));
        }
        if (common.flags & FLAG_DATA_DIGEST != 0) != digests.data {
            return Err(invalid(field::FLAGS));
        }
        let data_length = (common.length as usize)
            .checked_sub(data_start + digests.data_size())
            .filter(|length| (1..=data_limit as usize).contains(length))
            .ok_or(invalid(field::PLEN))?;
        // Not above `data_limit`, which is 32 bits wide.
        Ok((data_start, data_length as u32))
    }

    fn verify_header(&self, common: &CommonHeader) -> Result<(), FatalError> {
        if !self.digests.header || !carries_digests(common.pdu_type) {
            return Ok(());
        }
        let length = usize::from(common.header_length);
        let received = u32_at(&self.header, length);
        if digest_of(&self.header[..length]) == received {
            Ok(())
        } else {
            Err(FatalError::HeaderDigestError(received))
        }
    }
}

/// Initialize and termination PDUs never carry digests (TCP 3.3.1).
fn carries_digests(pdu_type: u8) -> bool {
    pdu_type > PduType::ControllerTerminate as u8
}

/// Moves bytes from `input` into `to[*filled..needed]`.
fn take(input: &mut &[u8], to: &mut [u8], filled: &mut usize, needed: usize) {
    let length = input.len().min(needed.saturating_sub(*filled));
    let (now, rest) = input.split_at(length);
    to[*filled..*filled + length].copy_from_slice(now);
    *filled += length;
    *input = rest;
}

/// Frames outgoing PDUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) digests: Digests,
    /// Bytes that the other end wants data aligned to in a PDU, a multiple of 4 of at most 128.
    pub(crate) data_alignment: usize,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { digests: Digests::default(), data_alignment: 4 }
    }

    /// The common header of a PDU with `data_length` bytes of data.
    pub(crate) fn common(&self, pdu_type: PduType, flags: u8, data_length: u32) -> CommonHeader {
        let header_end = pdu_type.header_size() + self.digests.header_size();
        let mut common = CommonHeader {
            pdu_type: pdu_type as u8,
            flags: flags | if self.digests.header { FLAG_HEADER_DIGEST } else { 0 },
            header_length: pdu_type.header_size() as u8,
            data_offset: 0,
            length: header_end as u32,
        };
        if data_length > 0 {
            let data_start = header_end.next_multiple_of(self.data_alignment);
            common.data_offset = data_start as u8;
            common.length = data_start as u32 + data_length + self.digests.data_size() as u32;
            common.flags |= if self.digests.data { FLAG_DATA_DIGEST } else { 0 };
        }
        common
    }

    /// Writes a header that [`Self::common`] opened, its digest and the padding before its data.
    pub(crate) fn write<const N: usize>(&self, header: [u8; N], sink: &mut impl HeaderSink) {
        sink.push(&header);
        let mut end = N;
        if self.digests.header {
            sink.push(&digest_of(&header).to_le_bytes());
            end += DIGEST_SIZE;
        }
        let data_offset = usize::from(header[3]);
        if data_offset > end {
            const PADDING: [u8; HEADER_MAX] = [0; HEADER_MAX];
            sink.push(&PADDING[..data_offset - end]);
        }
    }

    /// Writes the digest of data that was just queued, if one is agreed on.
    pub(crate) fn write_data_digest<'a>(
        &self,
        payload: impl IntoIterator<Item = &'a [u8]>,
        sink: &mut impl HeaderSink,
    ) {
        if self.digests.data {
            let mut digest = RunningDigest::new();
            payload.into_iter().for_each(|piece| digest.update(piece));
            sink.push(&digest.value().to_le_bytes());
        }
    }
}
