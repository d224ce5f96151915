//! A device of plain memory.

use std::cell::RefCell;

use reactor::Pages;

use crate::{BlockDevice, Buffer, Error, ErrorKind, Geometry, Outcome, Range, Reply, Request, Segments};

/// Keeps its content in memory for as long as it lives.
pub struct MemoryDevice {
    geometry: Geometry,
    content: RefCell<Pages>,
}

impl MemoryDevice {
    /// Zeroes of this geometry.
    pub fn new(geometry: Geometry) -> Result<Self, Error> {
        let content =
            Pages::for_random_access(geometry.size()).map_err(|error| Error::with_detail(ErrorKind::NoSpace, error))?;
        Ok(Self { geometry, content: RefCell::new(content) })
    }

    fn perform(&self, request: Request) -> Outcome {
        self.geometry.check(&request)?;
        let mut content = self.content.borrow_mut();
        match request {
            Request::Read { range } => {
                let buffer = Buffer::try_new(range.length as usize).ok_or(ErrorKind::Busy)?;
                return Ok(filled(buffer, &content[bytes(range)]));
            }
            Request::Write { offset, data, .. } => {
                content[bytes(Range { offset, length: data.len() as u64 })].copy_from_slice(&data);
            }
            Request::WriteZeroes { range, .. } => content[bytes(range)].fill(0),
            Request::Unmap { ranges } => ranges.into_iter().for_each(|range| content[bytes(range)].fill(0)),
            Request::Compare { offset, data } => {
                if content[bytes(Range { offset, length: data.len() as u64 })] != data[..] {
                    return Err(ErrorKind::CompareMismatch.into());
                }
            }
            Request::Flush => {}
        }
        Ok(Segments::none())
    }
}

fn filled(mut buffer: Buffer, bytes: &[u8]) -> Segments {
    buffer.copy_from_slice(bytes);
    Segments::from(buffer.freeze())
}

/// Offsets checked against the geometry fit: the content has that size.
fn bytes(range: Range) -> std::ops::Range<usize> {
    range.offset as usize..range.end() as usize
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, request: Request, reply: Reply) {
        reply.complete(self.perform(request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Completions, Slice};

    fn run(device: &MemoryDevice, request: Request) -> Outcome {
        let completions = Completions::new();
        device.submit(request, Reply::new(completions.clone(), 0));
        let mut done = Vec::new();
        completions.take(&mut done);
        done.remove(0).1
    }

    fn device() -> MemoryDevice {
        MemoryDevice::new(Geometry::new(64 << 10, 512).expect("a good size")).expect("enough memory")
    }

    #[test]
    fn what_was_written_is_read_until_unmapped() {
        let device = device();
        run(&device, Request::write(512, Slice::from(&[5; 1024][..]))).expect("written");
        assert!(run(&device, Request::read(1024, 512)).expect("read").equals(&[5; 512]));
        let ranges = [Range { offset: 1024, length: 512 }].into_iter().collect();
        run(&device, Request::Unmap { ranges }).expect("unmapped");
        assert!(run(&device, Request::read(1024, 512)).expect("read").equals(&[0; 512]));
        assert!(run(&device, Request::read(512, 512)).expect("read").equals(&[5; 512]));
    }

    #[test]
    fn compare_tells_equal_from_different() {
        let device = device();
        let same = Request::Compare { offset: 0, data: Slice::zeroes(512) };
        assert!(run(&device, same).is_ok());
        let other = Request::Compare { offset: 0, data: Slice::from(&[1; 512][..]) };
        assert_eq!(run(&device, other).map_err(|error| error.kind()).err(), Some(ErrorKind::CompareMismatch));
    }

    #[test]
    fn a_request_beyond_the_end_changes_nothing() {
        let device = device();
        let outcome = run(&device, Request::write((64 << 10) - 512, Slice::from(&[5; 1024][..])));
        assert_eq!(outcome.map_err(|error| error.kind()).err(), Some(ErrorKind::InvalidRange));
        assert!(run(&device, Request::read((64 << 10) - 512, 512)).expect("read").equals(&[0; 512]));
    }
}
