//! What a target tells of its replicas, of what it copies to them, and of the way back to a snapshot.

use std::time::Duration;

use uuid::Uuid;

use super::speed::time_left;
use super::{Mirror, Pace};
use crate::membership::ReplicaState;

/// How far resync is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ResyncProgress {
    /// Regions that replicas out of the set still miss, added up.
    pub missed_regions: u64,
    /// The bytes of these regions.
    pub missed_bytes: u64,
    /// Bytes copied since the volume was opened.
    pub copied_bytes: u64,
    /// Bytes copied in a second, while something is copied and for long enough to tell.
    pub bytes_per_second: Option<f64>,
    /// How long it will take at this speed, if all that is missed has to be copied.
    pub time_left: Option<Duration>,
    /// What nobody of the set can read; `None` if no resync has told yet.
    pub unreadable: Option<Unreadable>,
}

/// Blocks that nobody of the set can read. A replica stays out until they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unreadable {
    /// The first one.
    pub first_block: u64,
    /// How many were seen, which may be fewer than there are: of a region no chunk is looked at behind the
    /// first with such a block. 0 if there are none.
    pub blocks: u64,
}

/// How far a volume has gone back to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RollBackProgress {
    /// The name of the roll-back.
    pub id: Uuid,
    /// The snapshot.
    pub snapshot: Uuid,
    /// Bytes that are what the snapshot has. Each target begins from the start, and so does one that could
    /// not go on.
    pub compared_bytes: u64,
    /// All bytes that are compared.
    pub size_bytes: u64,
    /// Bytes compared in a second, once that is known.
    pub bytes_per_second: Option<f64>,
    /// How long the rest will take at this speed.
    pub time_left: Option<Duration>,
}

/// A replica as the target sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Which.
    pub id: Uuid,
    /// What it is by the record.
    pub state: ReplicaState,
    /// How fast it is, compared with the others.
    pub pace: Pace,
    /// How long it took for a request in the newest window that says something.
    pub mean: Option<Duration>,
    /// Bytes of the regions that it misses.
    pub missed_bytes: u64,
    /// Data is being copied to it.
    pub is_resyncing: bool,
}

impl Mirror {
    /// How far resync is.
    pub fn resync_progress(&self) -> ResyncProgress {
        let core = &self.core;
        let members = core.members.borrow();
        let regions = core.regions.borrow();
        let behind = members.record().members().without(members.record().in_sync());
        let missed_regions = behind.iter().map(|slot| regions.missed(slot)).sum();
        let missed_bytes = core.bytes_of_regions(missed_regions);
        let speed = members.syncing().and_then(|_| core.priority.speed());
        ResyncProgress {
            missed_regions,
            missed_bytes,
            copied_bytes: core.copied_bytes.get(),
            bytes_per_second: speed,
            time_left: time_left(missed_bytes, speed),
            unreadable: match behind.is_empty() {
                true => Some(Unreadable::default()),
                false => core.unreadable_blocks.get(),
            },
        }
    }

    /// How far the volume has gone back to a snapshot; `None` when it does not go back to one.
    pub fn roll_back_progress(&self) -> Option<RollBackProgress> {
        let core = &self.core;
        let wanted = core.rolling_back()?;
        let (blocks, speed) = core.gone_back(wanted.id);
        let geometry = core.geometry.get();
        let compared_bytes = blocks * u64::from(geometry.block_bytes);
        let size_bytes = geometry.bytes();
        Some(RollBackProgress {
            id: wanted.id,
            snapshot: wanted.snapshot,
            compared_bytes,
            size_bytes,
            bytes_per_second: speed,
            time_left: time_left(size_bytes.saturating_sub(compared_bytes), speed),
        })
    }

    /// All replicas.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        let core = &self.core;
        let members = core.members.borrow();
        let record = members.record();
        let of = |slot| {
            let entry = record.replica(slot)?;
            let (pace, mean) = core.pace(slot);
            let missed_regions = match record.in_sync().contains(slot) {
                true => 0,
                false => core.regions.borrow().missed(slot),
            };
            Some(ReplicaStatus {
                id: entry.id,
                state: entry.state,
                pace,
                mean,
                missed_bytes: core.bytes_of_regions(missed_regions),
                is_resyncing: members.syncing() == Some(slot),
            })
        };
        record.members().iter().filter_map(of).collect()
    }
}
