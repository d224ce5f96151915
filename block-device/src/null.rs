//! A device that keeps nothing: what the path above it costs by itself.

use crate::{BlockDevice, Geometry, Reply, Request, Segments};

/// Answers at once: reads are zeroes, writes are forgotten.
pub struct NullDevice {
    geometry: Geometry,
}

impl NullDevice {
    /// A null device of this geometry.
    pub const fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl BlockDevice for NullDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&self, request: Request, reply: Reply) {
        reply.complete(self.geometry.check(&request).map(|()| answer(&request)));
    }
}

fn answer(request: &Request) -> Segments {
    let mut segments = Segments::none();
    if let Request::Read { range } = request {
        // Checked against the longest transfer, which a usize holds.
        segments.push_zeroes(range.length as usize);
    }
    segments
}
