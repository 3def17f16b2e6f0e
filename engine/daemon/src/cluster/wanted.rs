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

    /// Has a mirror become so. What cannot be done keeps nothing else from being done.
    ///
    /// # Errors
    ///
    /// [`SettleError`], the first: it is so in part.
    pub(super) async fn settle(&self, mirror: &Mirror, routes: &[(Uuid, Route)]) -> Result<(), SettleError> {
        mirror.follow(&Ports::open(routes), &self.leaving).await;
        // First those that go: there may be no room for another one before.
        let deleted = self.delete_snapshots(mirror).await;
        let taken = self.take_snapshots(mirror).await;
        let grown = match self.size_blocks > mirror.membership().size_blocks {
            true => mirror.grow(self.size_blocks).await,
            false => Ok(()),
        };
        deleted?;
        taken?;
        Ok(grown?)
    }

    async fn delete_snapshots(&self, mirror: &Mirror) -> Result<(), SnapshotError> {
        let record = mirror.membership();
        // Only what whoever said so knew of: a snapshot that was taken since is none that is not wanted.
        if self.version < record.version {
            return Ok(());
        }
        let mut deleted = Ok(());
        let there = record.snapshots.iter().map(|entry| entry.id);
        for id in there.filter(|id| !self.snapshots.contains(id)) {
            deleted = deleted.and(mirror.delete_snapshot(id).await);
        }
        deleted
    }

    async fn take_snapshots(&self, mirror: &Mirror) -> Result<(), SnapshotError> {
        for id in &self.snapshots {
            mirror.snapshot(*id).await?;
        }
        Ok(())
    }
}
