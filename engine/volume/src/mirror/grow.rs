//! Making a volume larger while it is used: first all replicas, then the region map, then the record.

use std::cell::Cell;
use std::time::Duration;

use pollux_device::IoError;
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
        // Also for whoever does not wait for it to its end.
        let _growing = Growing(&core.growing);
        Ok(core.grow(size_blocks).await?)
    }
}

struct Growing<'a>(&'a Cell<bool>);

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Core {
    /// Blocks of 4 KiB that a replica needs for data.
    pub(super) fn data_blocks_of(&self, size_blocks: u64) -> u64 {
        let bytes = size_blocks.saturating_mul(u64::from(self.geometry.get().block_bytes));
        bytes.div_ceil(BLOCK_BYTES as u64)
    }

    async fn grow(&self, size_blocks: u64) -> Result<(), SnapshotError> {
        // Whoever comes back from now on is made as large.
        self.size_wanted.set(size_blocks);
        let syncing = self.members.borrow().syncing();
        if let Some(slot) = syncing {
            tracing::debug!(
                slot = slot.index(),
                "its resync begins again, for the volume grows"
            );
            self.fail(slot);
        }
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
        self.decide(Change::Size(size_blocks)).await?;
        let size_blocks = self.members.borrow().record().size_blocks;
        self.geometry.set(pollux_device::Geometry {
            blocks: size_blocks,
            ..self.geometry.get()
        });
        tracing::info!(volume = %self.volume(), size_blocks, "the volume has grown");
        Ok(())
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
