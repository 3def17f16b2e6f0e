//! A device of a pool that was imported read-only: whatever is wrong above it, nothing is written.

use std::rc::Rc;

use pollux_device::{BlockDevice, Completion, Geometry, IoError, Request};

/// See the module.
pub(crate) struct Protected(pub(crate) Rc<dyn BlockDevice>);

impl BlockDevice for Protected {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: true,
            // Nothing comes into it from here.
            volatile_write_cache: false,
            ..self.0.geometry()
        }
    }

    fn submit(&self, request: Request) -> Completion {
        match request {
            Request::Read { .. } | Request::Compare { .. } => self.0.submit(request),
            Request::Flush => Completion::done(),
            Request::Write { .. } | Request::Deallocate { .. } | Request::WriteZeroes { .. } => {
                Completion::failed(IoError::ReadOnly)
            }
        }
    }
}
