//! A replica that begins as a copy of a snapshot of another one in the same pool.
//!
//! The copy is made under a name of its own, and gets that of a replica once it is one: a crash in between
//! leaves nothing that could be taken for it, and the next attempt begins anew.

use std::rc::Rc;

use pollux_device::Device;
use pollux_pool::{Pool, PoolError};
use pollux_volume::metadata::{Area, FormatOptions};
use pollux_volume::replica::PoolMedium;
use uuid::Uuid;

use super::{ReplicaInfo, Replicas, ReplicasError, replica_key, volume_name, volume_uri};
use crate::pools::PoolsError;

/// What the names of copies begin with that are no replicas yet.
const UNFINISHED_PREFIX: &str = "unfinished-";

/// A replica that is to be made of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClonedReplica {
    /// The volume that it is a copy of.
    pub volume: Uuid,
    /// Its own UUID, which no other replica ever had.
    pub replica: Uuid,
    /// The name of the pool.
    pub pool: String,
    /// The replica that has the snapshot.
    pub source: Uuid,
    /// What that replica knows the snapshot by.
    pub cut: Uuid,
}

/// The name of a copy that is no replica yet.
pub(super) fn unfinished_name(replica: Uuid) -> String {
    format!("{UNFINISHED_PREFIX}{replica}")
}

impl Replicas {
    /// Makes a replica of a snapshot, and opens it. One that is there already, of the same volume, is opened
    /// if it was not, and left as it is.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`].
    pub async fn clone_snapshot(&self, new: &ClonedReplica) -> Result<ReplicaInfo, ReplicasError> {
        let _turn = self.turn(&replica_key(new.replica)).await?;
        if let Ok(found) = self.find(new.replica) {
            return match found.label.volume == new.volume {
                true => found.describe().await,
                false => Err(ReplicasError::Exists {
                    replica: new.replica,
                    volume: found.label.volume,
                }),
            };
        }
        let (unfinished, name) = (unfinished_name(new.replica), volume_name(new.replica));
        let (copy, finished) = (unfinished.clone(), name.clone());
        let snapshot = PoolMedium::snapshot_name(new.source, new.cut);
        let begun = self.pools.with(&new.pool, move |pool: Rc<Pool>| async move {
            if pool.volume(&finished).is_ok() {
                return Ok(false);
            }
            match pool.delete(&copy).await {
                Ok(()) | Err(PoolError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            pool.clone_snapshot(&snapshot, &copy, 0).await?;
            Ok(true)
        });
        if begun.await? {
            self.make_replica(new, &unfinished).await?;
            let renamed = self.pools.with(&new.pool, move |pool: Rc<Pool>| async move {
                pool.rename(&unfinished, &name).await
            });
            renamed.await?;
        }
        let uri = volume_uri(&new.pool, new.replica)?;
        self.begin(uri, None).await
    }

    /// Makes a copy of one replica another one: its data stays, and everything else is new.
    async fn make_replica(&self, new: &ClonedReplica, copy: &str) -> Result<(), ReplicasError> {
        let pool = self.pools.get(&new.pool)?.shared;
        let device = pool.device(copy).await;
        let device = device.map_err(|error| PoolsError::of_shared(pool.name(), error))?;
        let options = FormatOptions::new(new.volume, new.replica);
        let made = pool.owner().call(move || async move {
            let queue = device.attach().await.map_err(|error| error.to_string())?;
            let made = Area::format_copy(queue, &options).await;
            made.map_err(|error| error.to_string())
        });
        made.await?.map_err(|why| ReplicasError::Unusable {
            device: format!("{}/{copy}", new.pool),
            why,
        })
    }
}
