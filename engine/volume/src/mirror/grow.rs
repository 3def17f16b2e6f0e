//! Making a volume larger while it is used: first all replicas, then the region map, then the record.

use std::cell::Cell;
use std::time::Duration;

use pollux_device::{Geometry, IoError};
use pollux_reactor::{sleep, timeout};

use super::connection::clock;
use super::keeper::{WithReplica, join};
use super::snapshot::SnapshotError;
use super::{Core, Mirror};
use crate::members::Change;
use crate::membership::{SlotNumber, VOLUME_BYTES_MAX};
use crate::metadata::BLOCK_BYTES;
use crate::replica::{CommandError, ReplicaCommand};

/// How often a session is asked whether it shows its new size.
const SIZE_PAUSE: Duration = Duration::from_millis(5);

/// Why a volume was not made larger. It is what it was; replicas may be larger than it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrowError {
    /// Volumes never shrink, and have a largest size.
    #[error("a volume of {from} blocks cannot become one of {to}: it only grows, up to 64 PiB")]
    Size {
        /// Blocks that it has.
        from: u64,
        /// Blocks asked for.
        to: u64,
    },
    /// Somebody else makes it larger.
    #[error("the volume is being made larger already: try again")]
    Busy,
    /// A replica of the set cannot be made larger, or the volume is not served.
    #[error(transparent)]
    Replica(#[from] SnapshotError),
}

impl Mirror {
    /// Makes the volume larger: so many blocks in all. The new ones read as zeros. The size it has is no
    /// error.
    ///
    /// # Errors
    ///
    /// [`GrowError`].
    pub async fn grow(&self, size_blocks: u64) -> Result<(), GrowError> {
        let core = &self.core;
        let geometry = core.geometry.get();
        let from = geometry.blocks;
        let blocks_max = VOLUME_BYTES_MAX / u64::from(geometry.block_bytes);
        if size_blocks < from || size_blocks > blocks_max {
            return Err(GrowError::Size {
                from,
                to: size_blocks,
            });
        }
        if core.growing.replace(true) {
            return Err(GrowError::Busy);
        }
        let growing = Growing {
            core,
            size_before: Cell::new(core.size_wanted.get()),
        };
        Ok(core.grow(size_blocks, &growing).await?)
    }
}

/// Ends a growth, also for whoever does not wait for it to its end.
struct Growing<'a> {
    core: &'a Core,
    /// What returning replicas needed before; less than all that may be in the record.
    size_before: Cell<u64>,
}

impl Growing<'_> {
    /// From here on the record may have the new size.
    fn is_decided(&self) {
        self.size_before.set(self.core.size_wanted.get());
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.core.growing.set(false);
        // What came to nothing keeps no replica out that cannot become as large.
        self.core.size_wanted.set(self.size_before.get());
    }
}

impl Core {
    /// Blocks of 4 KiB that a replica needs for data.
    pub(super) fn data_blocks_of(&self, size_blocks: u64) -> u64 {
        let bytes = size_blocks.saturating_mul(u64::from(self.geometry.get().block_bytes));
        bytes.div_ceil(BLOCK_BYTES as u64)
    }

    async fn grow(&self, size_blocks: u64, growing: &Growing<'_>) -> Result<(), SnapshotError> {
        let required = self.members.borrow().required();
        let mut grown: Vec<(SlotNumber, WithReplica<_>)> = Vec::new();
        let data_blocks = self.data_blocks_of(size_blocks);
        for slot in required.iter() {
            let port = self.port(slot);
            let (epoch, wait_max) = (self.epoch, self.options.promise_timeout);
            grown.push((
                slot,
                Box::pin(async move {
                    let port = port.ok_or(CommandError::Unreachable)?;
                    let growing = port.command(epoch, ReplicaCommand::Grow { data_blocks });
                    timeout(wait_max, growing)
                        .await
                        .unwrap_or(Err(CommandError::Unreachable))
                }),
            ));
        }
        for (slot, result) in join(grown).await {
            if let Err(error) = result {
                return Err(self.replica_error(slot, error));
            }
            self.refresh(slot, data_blocks).await?;
        }
        // Whoever comes back from now on is made as large; who is on the way begins again.
        self.size_wanted.set(self.size_wanted.get().max(size_blocks));
        let syncing = self.members.borrow().syncing();
        if let Some(slot) = syncing {
            tracing::debug!(
                slot = slot.index(),
                "its resync begins again, for the volume grows"
            );
            self.fail(slot);
        }
        let stamp = {
            let members = self.members.borrow();
            if !required.contains_all(members.required()) {
                return Err(SnapshotError::SetChanged);
            }
            let absent = members.record().members().without(members.live());
            let regions = size_blocks.div_ceil(self.region_blocks);
            self.regions.borrow_mut().extend(regions as usize, absent)
        };
        self.map_changed.wake();
        self.map_written
            .until(|| {
                let durable = self.regions.borrow().is_durable(stamp);
                (durable || self.stopped().is_some()).then_some(())
            })
            .await;
        growing.is_decided();
        self.decide(Change::Size(size_blocks)).await?;
        Ok(())
    }

    /// Serves the volume as large as the record says that it is.
    pub(super) fn take_size(&self) {
        let size_blocks = self.members.borrow().record().size_blocks;
        let geometry = self.geometry.get();
        if geometry.blocks != size_blocks {
            self.geometry.set(Geometry {
                blocks: size_blocks,
                ..geometry
            });
            tracing::info!(volume = %self.volume(), size_blocks, "the volume has grown");
        }
    }

    /// Waits until the session of a replica shows its new size, and reads the reserved area again.
    async fn refresh(&self, slot: SlotNumber, data_blocks: u64) -> Result<(), SnapshotError> {
        let connection = self.connection(slot).ok_or(SnapshotError::SetChanged)?;
        let started = clock();
        loop {
            self.check_serving()?;
            let refreshed = timeout(self.options.request_timeout, connection.area.refresh()).await;
            if matches!(refreshed, Ok(Ok(()))) && connection.area.layout().data_blocks() >= data_blocks {
                return Ok(());
            }
            if clock().saturating_since(started) > self.options.promise_timeout {
                return Err(SnapshotError::Io(IoError::NotReady));
            }
            sleep(SIZE_PAUSE).await;
        }
    }
}
