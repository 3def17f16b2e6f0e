//! What a volume that is served is to be: which replicas it has, how large it is, which snapshots there are.

use pollux_api::control::v1::TargetConfig;
use pollux_volume::mirror::{GrowError, Mirror, SnapshotError};
use uuid::Uuid;

use super::ports::{Ports, Route};
use super::record::{BLOCK_BYTES, RecordError, uuid};

/// Why a volume is not what it is to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettleError {
    /// A snapshot was not taken or deleted.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It was not made larger.
    #[error(transparent)]
    Grow(#[from] GrowError),
}

/// See the module.
pub(super) struct Wanted {
    /// The version of the record that it was made from.
    version: u64,
    size_blocks: u64,
    leaving: Vec<Uuid>,
    snapshots: Vec<Uuid>,
}

impl Wanted {
    /// What was told.
    ///
    /// # Errors
    ///
    /// [`RecordError::Uuid`].
    pub(super) fn read(told: &TargetConfig) -> Result<Self, RecordError> {
        let leaving = told.replicas.iter().filter(|replica| replica.leaving);
        let leaving = leaving.map(|replica| uuid(&replica.uid));
        let snapshots = told.snapshot_uids.iter().map(|uid| uuid(uid));
        Ok(Self {
            version: told.version,
            size_blocks: told.size_bytes / u64::from(BLOCK_BYTES),
            leaving: leaving.collect::<Result<_, _>>()?,
            snapshots: snapshots.collect::<Result<_, _>>()?,
        })
    }

    /// Has a mirror become so.
    ///
    /// # Errors
    ///
    /// [`SettleError`]: it is so in part.
    pub(super) async fn settle(&self, mirror: &Mirror, routes: &[(Uuid, Route)]) -> Result<(), SettleError> {
        mirror.follow(&Ports::open(routes), &self.leaving).await;
        for id in &self.snapshots {
            mirror.snapshot(*id).await?;
        }
        let record = mirror.membership();
        // Only what whoever said so knew of: a snapshot that was taken since is none that is not wanted.
        if self.version >= record.version {
            for entry in record
                .snapshots
                .iter()
                .filter(|entry| !self.snapshots.contains(&entry.id))
            {
                mirror.delete_snapshot(entry.id).await?;
            }
        }
        if self.size_blocks > record.size_blocks {
            mirror.grow(self.size_blocks).await?;
        }
        Ok(())
    }
}
