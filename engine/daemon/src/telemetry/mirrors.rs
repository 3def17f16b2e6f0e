//! The volumes that this engine is the target of, and what their mirrors tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pollux_pool::shared::Owned;
use pollux_volume::mirror::{Mirror, MirrorCounters, ReplicaStatus, ResyncProgress, RollBackProgress};

/// What a mirror tells.
#[derive(Debug, Clone)]
pub struct MirrorStatus {
    /// The name of the volume.
    pub volume: String,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// How far resync is.
    pub progress: ResyncProgress,
    /// How far it has gone back to a snapshot; `None` when it does not.
    pub roll_back: Option<RollBackProgress>,
    /// What the mirror did.
    pub counters: MirrorCounters,
}

/// The mirrors, as long as anybody uses them.
#[derive(Default)]
pub struct Mirrors(Mutex<BTreeMap<String, Weak<Owned<Mirror>>>>);

impl Mirrors {
    /// A volume is served by this mirror from now on.
    pub fn insert(&self, volume: &str, mirror: &Arc<Owned<Mirror>>) {
        // A map of names is never left half done.
        let mut mirrors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mirrors.retain(|_, mirror| mirror.strong_count() > 0);
        mirrors.insert(volume.to_owned(), Arc::downgrade(mirror));
    }

    /// What all of them tell, by name; those that have stopped tell nothing.
    pub async fn read(&self) -> Vec<MirrorStatus> {
        let present: Vec<_> = {
            let mirrors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let present = mirrors.iter();
            present
                .filter_map(|(volume, mirror)| Some((volume.clone(), mirror.upgrade()?)))
                .collect()
        };
        let mut told = Vec::with_capacity(present.len());
        for (volume, mirror) in present {
            let asked = mirror.call(|mirror| async move {
                let is_serving = mirror.stopped().is_none();
                is_serving.then(|| MirrorStatus {
                    volume,
                    replicas: mirror.replicas(),
                    progress: mirror.resync_progress(),
                    roll_back: mirror.roll_back_progress(),
                    counters: mirror.counters(),
                })
            });
            if let Ok(Some(status)) = asked.await {
                told.push(status);
            }
        }
        told
    }
}
