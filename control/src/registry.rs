//! Changes of in-sync sets, asked for by targets.
//!
//! A change is a compare-and-swap: it is made if the caller is the target of the newest epoch and knows the
//! newest version. Everybody else learns that the world has moved on, and has to stop acknowledging.

use std::collections::BTreeSet;

use pollux_api::control::v1::{ChangeInSyncRequest, ReplicaState, Volume};

use crate::model::{Guarded, Kind, Record};
use crate::store::{Condition, Store, StoreError, Transaction};

/// How often a change is tried against others of the same volume.
const ATTEMPTS_MAX: usize = 16;

/// Why an in-sync set was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InSyncError {
    /// There is no such volume.
    #[error("there is no volume {0} with this identity")]
    NotFound(String),
    /// The caller is not its target any more, or not of this version.
    #[error(
        "volume {volume} is in epoch {epoch}, version {version}: the caller's are older, and it must not \
         acknowledge writes by them"
    )]
    Stale {
        /// The volume.
        volume: String,
        /// Its epoch.
        epoch: u64,
        /// Its version.
        version: u64,
    },
    /// The set is empty, or has something in it that is no replica of the volume.
    #[error("the in-sync set of volume {volume} cannot be so: {reason}")]
    Set {
        /// The volume.
        volume: String,
        /// Why not.
        reason: String,
    },
    /// It was changed by others again and again.
    #[error("volume {0} is changed by others all the time: ask again")]
    Contended(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes the in-sync set of a volume, and returns its new version.
///
/// `leader` is the condition under which this instance may decide.
///
/// # Errors
///
/// [`InSyncError`].
pub async fn change_in_sync(
    store: &dyn Store,
    leader: Option<&Condition>,
    request: &ChangeInSyncRequest,
) -> Result<u64, InSyncError> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = store.get(&Kind::Volume.key(&request.volume)).await?;
        let volume = entry.as_ref().map(Volume::read).transpose()?;
        let volume = volume
            .filter(|volume| volume.meta().uid == request.volume_uid)
            .ok_or_else(|| InSyncError::NotFound(request.volume.clone()))?;
        let changed = apply(&volume, request)?;
        let version = changed.status.as_ref().map_or(0, |status| status.version);
        if changed == volume {
            return Ok(version);
        }
        let mut transaction = Transaction::default();
        transaction.put(&changed);
        transaction.conditions.extend(leader.cloned());
        match store.commit(transaction).await {
            Ok(_) => return Ok(version),
            Err(StoreError::Conflict { key }) if key == volume.key() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(InSyncError::Contended(request.volume.clone()))
}

/// The volume with another in-sync set.
fn apply(volume: &Volume, request: &ChangeInSyncRequest) -> Result<Volume, InSyncError> {
    let name = || volume.name().to_owned();
    let mut changed = volume.clone();
    let status = changed.status.get_or_insert_default();
    let wanted: BTreeSet<&str> = request.in_sync_uids.iter().map(String::as_str).collect();
    if wanted.is_empty() || wanted.len() != request.in_sync_uids.len() {
        return Err(InSyncError::Set {
            volume: name(),
            reason: "it has to have at least one replica, and none twice".to_owned(),
        });
    }
    let known: BTreeSet<&str> = status
        .replicas
        .iter()
        .map(|replica| replica.uid.as_str())
        .collect();
    let now_in_sync = status
        .replicas
        .iter()
        .filter(|replica| replica.state() == ReplicaState::InSync)
        .map(|replica| replica.uid.as_str())
        .collect::<BTreeSet<_>>();
    let is_repeated = status.epoch == request.epoch
        && status.version == request.version.saturating_add(1)
        && now_in_sync == wanted;
    if is_repeated {
        return Ok(volume.clone());
    }
    if status.epoch != request.epoch || status.version != request.version {
        return Err(InSyncError::Stale {
            volume: name(),
            epoch: status.epoch,
            version: status.version,
        });
    }
    if let Some(stranger) = wanted.difference(&known).next() {
        return Err(InSyncError::Set {
            volume: name(),
            reason: format!("{stranger} is no replica of it"),
        });
    }
    let wanted: BTreeSet<String> = wanted.into_iter().map(str::to_owned).collect();
    for replica in &mut status.replicas {
        let state = match (wanted.contains(&replica.uid), replica.state()) {
            (true, _) => ReplicaState::InSync,
            (false, ReplicaState::InSync) => ReplicaState::Stale,
            (false, state) => state,
        };
        replica.state = state.into();
    }
    status.version += 1;
    Ok(changed)
}
