//! A batch: one write to the journal, with the records of everyone who waited for it.

use super::fields::{Reader, put_u32, put_u64, u32_at, u64_at};
use super::record::Record;
use super::superblock::MAX_COUNTER;
use super::{BLOCK, Flaw, HEADER, Header};

pub(crate) const MAGIC: [u8; 8] = *b"ASHLJRNL";

/// Bytes before the first record.
pub(crate) const BATCH_HEADER: usize = HEADER + 24;

/// The longest batch in bytes, so that recovery can read any with one buffer.
pub(crate) const MAX_BATCH: usize = 128 << 10;

/// What a batch says besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    /// Its number: one more than that of the batch before it.
    pub(crate) sequence: u64,
    /// The open of the store that wrote it.
    pub(crate) session: u64,
    /// When this batch was written, batches up to this one were durable, and the data they speak of.
    pub(crate) durable_through: u64,
}

/// Builds the bytes of a batch for the disk offset `address`, a multiple of 4 KiB long.
pub(crate) fn encode<'a>(
    head: &BatchHead,
    format_id: [u8; 16],
    address: u64,
    records: impl Iterator<Item = &'a Record>,
    into: &mut Vec<u8>,
) {
    into.clear();
    into.resize(BATCH_HEADER, 0);
    let mut count = 0;
    for record in records {
        record.encode(into);
        count += 1;
    }
    put_u64(into, 64, head.session);
    put_u64(into, 72, head.durable_through);
    put_u32(into, 80, count);
    Header { magic: MAGIC, kind: 0, address, sequence: head.sequence, format_id }.seal(into);
    into.resize(into.len().next_multiple_of(BLOCK as usize), 0);
}

/// A batch that was read: its records are decoded one by one.
pub(crate) struct Batch<'a> {
    pub(crate) head: BatchHead,
    /// Bytes on disk.
    pub(crate) length: u64,
    count: u32,
    reader: Reader<'a>,
}

impl<'a> Batch<'a> {
    /// Checks the batch that starts at `bytes[0]`, read from the disk offset `address`.
    pub(crate) fn open(bytes: &'a [u8], format_id: [u8; 16], address: u64) -> Result<Self, Flaw> {
        let (header, length) = Header::open(bytes, MAGIC, address)?;
        if header.format_id != format_id {
            return Err(Flaw::FormatId);
        }
        if !(BATCH_HEADER..=MAX_BATCH).contains(&length) {
            return Err(Flaw::Content("a batch has an impossible length"));
        }
        if header.sequence > MAX_COUNTER {
            return Err(Flaw::Content("a batch has an impossible number"));
        }
        Ok(Self {
            head: BatchHead {
                sequence: header.sequence,
                session: u64_at(bytes, 64),
                durable_through: u64_at(bytes, 72),
            },
            length: (length as u64).next_multiple_of(BLOCK),
            count: u32_at(bytes, 80),
            reader: Reader::new(&bytes[BATCH_HEADER..length]),
        })
    }

    /// All records; those of unknown types that may be skipped are left out.
    pub(crate) fn records(mut self) -> Result<Vec<Record>, Flaw> {
        let mut records = Vec::new();
        for _ in 0..self.count {
            records.extend(Record::decode(&mut self.reader)?);
        }
        match self.reader.is_empty() {
            true => Ok(records),
            false => Err(Flaw::Content("a batch is longer than its records")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: BatchHead = BatchHead { sequence: 12, session: 3, durable_through: 10 };

    fn batch() -> Vec<u8> {
        let mut bytes = Vec::new();
        let records = [Record::MapDrop { map: 1 }, Record::MapClear { map: 2, first: 3, count: 4 }];
        encode(&HEAD, [7; 16], 40960, records.iter(), &mut bytes);
        bytes
    }

    #[test]
    fn a_batch_comes_back_as_it_was() {
        let bytes = batch();
        assert_eq!(bytes.len(), 4096);
        let batch = Batch::open(&bytes, [7; 16], 40960).expect("just encoded");
        assert_eq!((batch.head, batch.length), (HEAD, 4096));
        let records = batch.records().expect("just encoded");
        assert_eq!(records, [Record::MapDrop { map: 1 }, Record::MapClear { map: 2, first: 3, count: 4 }]);
    }

    #[test]
    fn batches_of_another_place_or_format_are_refused() {
        assert_eq!(Batch::open(&batch(), [7; 16], 4096).err(), Some(Flaw::Address(40960)));
        assert_eq!(Batch::open(&batch(), [8; 16], 40960).err(), Some(Flaw::FormatId));
    }

    #[test]
    fn an_empty_batch_is_a_marker() {
        let mut bytes = Vec::new();
        encode(&HEAD, [7; 16], 0, [].iter(), &mut bytes);
        let batch = Batch::open(&bytes, [7; 16], 0).expect("just encoded");
        assert_eq!(batch.records(), Ok(Vec::new()));
    }

    /// Two versions must agree on these bytes: a change here is a format break.
    #[test]
    fn a_batch_has_its_documented_bytes() {
        let bytes = batch();
        assert_eq!(&bytes[..8], b"ASHLJRNL");
        assert_eq!(u64_at(&bytes, 24), 12);
        assert_eq!((u64_at(&bytes, 64), u64_at(&bytes, 72), u32_at(&bytes, 80)), (3, 10, 2));
        assert_eq!(bytes[88..96], [4, 0, 4, 0, 1, 0, 0, 0]);
        assert_eq!(u32_at(&bytes, 48), 88 + 8 + 28);
    }
}
