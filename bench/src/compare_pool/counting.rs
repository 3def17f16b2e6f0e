//! A device that counts what it is asked to write.

use std::cell::Cell;
use std::rc::Rc;

use pollux_device::{BlockDevice, Completion, Geometry, Request};

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Writes.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
}

/// See the module.
pub struct Counting {
    device: Rc<dyn BlockDevice>,
    counts: Cell<Counts>,
}

impl Counting {
    /// Counts from here on.
    pub fn new(device: Rc<dyn BlockDevice>) -> Self {
        Self {
            device,
            counts: Cell::default(),
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }
}

impl BlockDevice for Counting {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        if let Request::Write { from, .. } = &request {
            let mut counts = self.counts.get();
            counts.writes += 1;
            counts.written_bytes += from.len_bytes() as u64;
            self.counts.set(counts);
        }
        self.device.submit(request)
    }
}
