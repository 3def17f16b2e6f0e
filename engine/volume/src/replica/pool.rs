//! Replicas on volumes of a pool.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, Device};
use pollux_pool::shared::{SharedError, SharedPool, VolumeDevice};
use pollux_pool::{Pool, PoolError};
use uuid::Uuid;

use super::medium::grow_device;
use super::{CommandError, MediumFuture, ReplicaMedium};

/// The volume of a pool that is a replica. Its snapshots are snapshots of the pool, with names made of the
/// name of the replica and their own; nobody else uses such names.
pub struct PoolMedium {
    pool: SharedPool,
    device: Arc<VolumeDevice>,
    replica: Uuid,
}

impl PoolMedium {
    /// Of a volume that is the replica with this name.
    pub fn new(device: Arc<VolumeDevice>, replica: Uuid) -> Self {
        Self {
            pool: device.pool().clone(),
            device,
            replica,
        }
    }

    /// The name in the pool of a snapshot of a replica.
    pub fn snapshot_name(replica: Uuid, cut: Uuid) -> String {
        format!("{}@{}", replica.as_simple(), cut.as_simple())
    }

    /// Whether a name in the pool is that of a snapshot of a replica.
    pub fn is_snapshot_of(replica: Uuid, name: &str) -> bool {
        Self::cut_of(replica, name).is_some()
    }

    /// The snapshot of a replica that has a name in the pool.
    fn cut_of(replica: Uuid, name: &str) -> Option<Uuid> {
        let (of, cut) = name.split_once('@')?;
        (Uuid::try_parse(of) == Ok(replica)).then(|| Uuid::try_parse(cut).ok())?
    }

    /// Has the owner of the pool do something.
    fn call<T, F>(&self, act: impl FnOnce(Rc<Pool>) -> F + Send + 'static) -> MediumFuture<T>
    where
        F: Future<Output = Result<T, PoolError>> + 'static,
        T: Send + 'static,
    {
        let pool = self.pool.clone();
        Box::pin(async move {
            let result = pool.call(act).await;
            let done = result.map_err(|error| error_of(SharedError::Reactor(error)))?;
            done.map_err(|error| error_of(SharedError::Pool(error)))
        })
    }
}

/// What an error of a pool means.
fn error_of(error: SharedError) -> CommandError {
    match error {
        SharedError::Pool(PoolError::Device(error)) => CommandError::Io(error),
        SharedError::Pool(PoolError::NoSpace) => CommandError::NoSpace,
        other => CommandError::Failed(other.to_string()),
    }
}

impl ReplicaMedium for PoolMedium {
    fn cut(&self, cut: Uuid) -> MediumFuture<()> {
        let (of, name) = (self.device.uuid(), Self::snapshot_name(self.replica, cut));
        self.call(move |pool| async move {
            // By what it is: it may have been given another name.
            let found = pool.volumes().into_iter().find(|entry| Some(entry.uuid) == of);
            let volume = found.ok_or(PoolError::Closed)?;
            match pool.snapshot(&volume.name, &name, 0).await {
                Ok(_) | Err(PoolError::Exists { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn delete(&self, cut: Uuid) -> MediumFuture<()> {
        let name = Self::snapshot_name(self.replica, cut);
        self.call(move |pool| async move {
            match pool.delete(&name).await {
                Ok(()) | Err(PoolError::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self) -> MediumFuture<Vec<Uuid>> {
        let replica = self.replica;
        self.call(move |pool| async move {
            let names = pool.volumes().into_iter();
            Ok(names
                .filter_map(|entry| Self::cut_of(replica, &entry.name))
                .collect())
        })
    }

    fn open(&self, cut: Uuid) -> MediumFuture<Rc<dyn BlockDevice>> {
        let (pool, name) = (self.pool.clone(), Self::snapshot_name(self.replica, cut));
        Box::pin(async move {
            let snapshot = match pool.device(&name).await {
                Ok(snapshot) => snapshot,
                Err(SharedError::Pool(PoolError::NotFound { .. })) => {
                    return Err(CommandError::NoSnapshot(cut));
                }
                Err(error) => return Err(error_of(error)),
            };
            Ok(snapshot.attach().await?)
        })
    }

    fn grow(&self, bytes: u64) -> MediumFuture<()> {
        Box::pin(grow_device(self.device.clone(), bytes))
    }

    fn bad_blocks(&self) -> MediumFuture<Vec<u64>> {
        let of = self.device.uuid();
        self.call(move |pool| async move {
            // By what it is, as for a snapshot.
            let found = pool.volumes().into_iter().find(|entry| Some(entry.uuid) == of);
            Ok(found.map_or_else(Vec::new, |volume| pool.suspected_blocks(&volume.name)))
        })
    }
}
