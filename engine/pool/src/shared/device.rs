//! A volume or snapshot as a device of the process.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pollux_device::events::{Publisher, Subscription};
use pollux_device::{Attaching, BlockDevice, Device, Geometry, GeometryError, GrowError, Growing};
use uuid::Uuid;

use super::forward::Forwarding;
use super::owned::Owned;
use super::{SharedError, SharedPool};
use crate::layout::BLOCK_BYTES;
use crate::volume::Volume;

/// A volume or snapshot as all reactors know it. It is in use as long as there is one of these: it cannot be
/// deleted, rolled back or made smaller.
pub struct VolumeDevice {
    name: String,
    uuid: Uuid,
    pool: SharedPool,
    volume: Arc<Owned<Volume>>,
    /// The geometry but for the block count, which is `blocks`.
    geometry: Geometry,
    has_lost_caches: bool,
    blocks: Arc<AtomicU64>,
    publisher: Publisher,
}

/// What its owner tells of a volume.
struct Opened {
    volume: Arc<Owned<Volume>>,
    uuid: Uuid,
    geometry: Geometry,
    has_lost_caches: bool,
    blocks: Arc<AtomicU64>,
    publisher: Publisher,
}

impl VolumeDevice {
    pub(super) async fn open(pool: &SharedPool, name: &str) -> Result<Arc<Self>, SharedError> {
        let wanted = name.to_owned();
        let opened = pool.call(move |pool| async move {
            let volume = pool.open_volume(&wanted)?;
            let (blocks, publisher) = volume.size();
            Ok::<_, SharedError>(Opened {
                uuid: volume.uuid()?,
                geometry: volume.geometry(),
                has_lost_caches: volume.has_lost_caches(),
                blocks,
                publisher,
                volume: Owned::new(volume),
            })
        });
        let Opened {
            volume,
            uuid,
            geometry,
            has_lost_caches,
            blocks,
            publisher,
        } = opened.await??;
        Ok(Arc::new(Self {
            name: format!("{}/{name}", pool.name()),
            uuid,
            pool: pool.clone(),
            volume,
            geometry,
            has_lost_caches,
            blocks,
            publisher,
        }))
    }

    /// The pool it is in.
    pub fn pool(&self) -> &SharedPool {
        &self.pool
    }
}

impl Device for VolumeDevice {
    /// The name of the pool and that of the volume, with a slash in between.
    fn name(&self) -> &str {
        &self.name
    }

    /// The UUID of the volume, which is the same after a restart, and after a change of its name.
    fn uuid(&self) -> Option<Uuid> {
        Some(self.uuid)
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            if let Some(volume) = self.volume.here() {
                return Ok(volume as Rc<dyn BlockDevice>);
            }
            let forwarding = Forwarding::begin(&self.volume, self.geometry, &self.blocks).await?;
            Ok(Rc::new(forwarding) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn has_lost_caches(&self) -> bool {
        self.has_lost_caches
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        Box::pin(async move {
            let geometry = self.geometry();
            let block_bytes = BLOCK_BYTES as u32;
            if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
                return Err(GeometryError::Size { bytes, block_bytes }.into());
            }
            if geometry.read_only {
                return Err(GrowError::Unsupported);
            }
            let blocks = bytes / BLOCK_BYTES as u64;
            let grown = self.volume.call(move |volume| async move {
                // Now: it may have been given another name.
                let entry = volume.entry()?;
                if blocks < entry.size_blocks {
                    return Ok(Some(entry.size_blocks));
                }
                volume.pool().resize(&entry.name, blocks, false).await?;
                Ok::<_, crate::pool::PoolError>(None)
            });
            match grown
                .await
                .map_err(GrowError::failed)?
                .map_err(GrowError::failed)?
            {
                None => Ok(()),
                Some(blocks) => Err(GrowError::Shrink {
                    from_bytes: blocks * BLOCK_BYTES as u64,
                    to_bytes: bytes,
                }),
            }
        })
    }
}
