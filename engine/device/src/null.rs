//! `null:///NAME?size=1TiB&block=4096`: takes writes and forgets them, reads zeros.
//!
//! It measures the stack above it. Parameters: `size` (required), `block` (512 or 4096, the default).

use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::allocation::{self, AllocationQuery};
use crate::completion::Completion;
use crate::error::IoError;
use crate::events::{DeviceEvent, Publisher, Subscription};
use crate::geometry::Geometry;
use crate::grow::{GrowError, Growing};
use crate::registry::{OpenError, Opener, Opening, Registry};
use crate::request::{Reply, Request};
use crate::uri::{ByteSize, DeviceUri};
use crate::{Attaching, BlockDevice, Device};

/// The block size of devices of this crate that are given none, in bytes.
pub(crate) const DEFAULT_BLOCK_BYTES: u32 = 4096;

/// A device without a medium.
#[derive(Debug)]
pub struct NullDevice {
    name: String,
    /// The geometry but for the block count.
    geometry: Geometry,
    blocks: AtomicU64,
    publisher: Publisher,
}

impl NullDevice {
    /// A device of this name and geometry.
    pub fn new(name: impl Into<String>, geometry: Geometry) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            geometry: Geometry {
                deallocates: false,
                ..geometry
            },
            blocks: AtomicU64::new(geometry.blocks),
            publisher: Publisher::default(),
        })
    }

    fn set_bytes(&self, bytes: u64) -> Result<(), GrowError> {
        let blocks = Geometry::new(bytes, self.geometry.block_bytes)?.blocks;
        let before = self.blocks.fetch_max(blocks, Ordering::Relaxed);
        match before.cmp(&blocks) {
            std::cmp::Ordering::Less => self.publisher.publish(DeviceEvent::Resized),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => {
                return Err(GrowError::Shrink {
                    from_bytes: self.geometry().bytes(),
                    to_bytes: bytes,
                });
            }
        }
        Ok(())
    }
}

impl Device for NullDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn attach(self: Arc<Self>) -> Attaching {
        let queue: Rc<dyn BlockDevice> = Rc::new(NullQueue { device: self });
        Box::pin(ready(Ok(queue)))
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        Box::pin(ready(self.set_bytes(bytes)))
    }
}

struct NullQueue {
    device: Arc<NullDevice>,
}

impl BlockDevice for NullQueue {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        if let Err(error) = request.check(&self.device.geometry()) {
            return Completion::failed(error);
        }
        match request {
            Request::Read { into, .. } => Completion::ready(Ok(Reply::zeros(into))),
            Request::Compare { with, .. } => {
                let zeros = with
                    .pieces()
                    .iter()
                    .all(|piece| piece.iter().all(|&byte| byte == 0));
                Completion::ready(if zeros {
                    Ok(Reply::Done)
                } else {
                    Err(IoError::CompareFailed)
                })
            }
            Request::Write { .. }
            | Request::Flush
            | Request::Deallocate { .. }
            | Request::WriteZeroes { .. } => Completion::done(),
        }
    }

    fn allocation(&self, block: u64, blocks: u64, _runs_max: usize) -> AllocationQuery {
        allocation::all(&self.device.geometry(), block, blocks, false)
    }
}

/// Opens `null` devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullOpener;

impl Opener for NullOpener {
    fn open<'a>(&'a self, _registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(ready(open(uri)))
    }
}

fn open(uri: &DeviceUri) -> Result<Arc<dyn Device>, OpenError> {
    let mut parameters = uri.local_parameters()?;
    let name = uri.name()?;
    let size = parameters.require::<ByteSize>("size")?;
    let block_bytes = parameters.take("block")?.unwrap_or(DEFAULT_BLOCK_BYTES);
    parameters.finish()?;
    let geometry = Geometry::new(size.0, block_bytes).map_err(|error| OpenError::failed(uri, error))?;
    Ok(NullDevice::new(name, geometry))
}
