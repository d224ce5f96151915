//! Frames out of a stream of bytes that arrives in any pieces.

use crc_fast::{CrcAlgorithm, Digest};

use crate::{Frame, HEADER_SIZE, ProtocolError};

/// One step through the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A header, complete and checked. Its payload follows as [`Piece::Data`], if it has one.
    Begin(Frame),
    /// A part of the payload, not yet checked as a whole.
    Data(&'a [u8]),
    /// The payload is complete and its checksum right.
    End,
}

enum State {
    /// So many bytes of the header are here.
    Header(usize),
    /// So many bytes of the payload are missing; its checksum is to be this.
    Payload { missing: u32, checksum: u32 },
}

/// Cuts a stream into frames. Holds one header; payloads are handed through.
pub struct Decoder {
    header: [u8; HEADER_SIZE],
    state: State,
    digest: Digest,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { header: [0; HEADER_SIZE], state: State::Header(0), digest: Digest::new(CrcAlgorithm::Crc32Iscsi) }
    }
}

impl Decoder {
    /// The next piece in `input`, which is shortened by what was used. `None` when `input` is used up.
    ///
    /// Every Begin is followed by an End, whether there was a payload or not.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, ProtocolError> {
        match self.state {
            State::Header(have) => self.header(have, input),
            State::Payload { missing: 0, checksum } => self.end(checksum).map(Some),
            State::Payload { .. } if input.is_empty() => Ok(None),
            State::Payload { missing, checksum } => {
                let count = input.len().min(missing as usize);
                let (data, rest) = input.split_at(count);
                *input = rest;
                self.digest.update(data);
                // `count` is at most `missing`.
                self.state = State::Payload { missing: missing - count as u32, checksum };
                Ok(Some(Piece::Data(data)))
            }
        }
    }

    fn header<'a>(&mut self, have: usize, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, ProtocolError> {
        let count = input.len().min(HEADER_SIZE - have);
        let (bytes, rest) = input.split_at(count);
        *input = rest;
        self.header[have..have + count].copy_from_slice(bytes);
        if have + count < HEADER_SIZE {
            self.state = State::Header(have + count);
            return Ok(None);
        }
        let frame = Frame::decode(&self.header)?;
        self.digest.reset();
        self.state = State::Payload { missing: frame.payload_length, checksum: frame.payload_checksum };
        Ok(Some(Piece::Begin(frame)))
    }

    fn end(&mut self, expected: u32) -> Result<Piece<'static>, ProtocolError> {
        let found = match self.digest.get_amount() {
            0 => 0,
            // A 32-bit checksum in a wider type.
            _ => self.digest.finalize() as u32,
        };
        if found != expected {
            return Err(ProtocolError::PayloadChecksum);
        }
        self.state = State::Header(0);
        Ok(Piece::End)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::{Kind, checksum};

    fn frame_with(payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        let frame = Frame {
            length: length.into(),
            payload_length: length,
            payload_checksum: checksum(payload),
            ..Frame::new(Kind::Write)
        };
        [&frame.encode()[..], payload].concat()
    }

    /// What comes out when the stream arrives in pieces of `size` bytes: payloads, and how many frames ended.
    fn decoded(stream: &[u8], size: usize) -> Result<(Vec<u8>, usize), ProtocolError> {
        let (mut decoder, mut payload, mut ended) = (Decoder::default(), Vec::new(), 0);
        for mut input in stream.chunks(size) {
            while let Some(piece) = decoder.next(&mut input)? {
                match piece {
                    Piece::Begin(_) => {}
                    Piece::Data(data) => payload.extend_from_slice(data),
                    Piece::End => ended += 1,
                }
            }
        }
        Ok((payload, ended))
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_frames() {
        let stream = [frame_with(b"first"), Frame::new(Kind::Flush).encode().to_vec(), frame_with(&[3; 300])].concat();
        let whole = decoded(&stream, stream.len());
        assert_eq!(whole.as_ref().map(|(payload, ended)| (payload.len(), *ended)), Ok((305, 3)));
        for size in 1..200 {
            assert_eq!(decoded(&stream, size), whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_payload_changed_on_the_way_never_ends() {
        let mut stream = frame_with(b"stone");
        *stream.last_mut().expect("it is not empty") ^= 1;
        assert_eq!(decoded(&stream, 7), Err(ProtocolError::PayloadChecksum));
    }

    #[test]
    fn a_checksum_without_payload_is_refused() {
        let frame = Frame { payload_checksum: 1, ..Frame::new(Kind::Flush) };
        assert_eq!(decoded(&frame.encode(), 64), Err(ProtocolError::PayloadChecksum));
    }

    #[test]
    fn a_truncated_stream_is_neither_frame_nor_error() {
        let stream = frame_with(b"stone");
        for end in 0..stream.len() {
            assert_eq!(decoded(&stream[..end], 16).map(|(_, ended)| ended), Ok(0), "cut at {end}");
        }
    }
}
