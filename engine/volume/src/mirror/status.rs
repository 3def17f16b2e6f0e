//! What a target tells of its replicas, and of what it copies to them.

use std::time::Duration;

use uuid::Uuid;

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
    /// A resync did not end, as nobody of the set can read blocks from this one on. They have to be written.
    pub unreadable_block: Option<u64>,
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
        let seconds = speed
            .filter(|speed| *speed > 0.0)
            .map(|speed| missed_bytes as f64 / speed);
        ResyncProgress {
            missed_regions,
            missed_bytes,
            copied_bytes: core.copied_bytes.get(),
            bytes_per_second: speed,
            time_left: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            unreadable_block: core.unreadable_block.get(),
        }
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
