//! The replicas of volumes that this engine has, by their UUIDs, each on one reactor.
//!
//! A replica is a device with a reserved area at its start (see `pollux_volume::metadata`): a volume of a
//! pool that is made for it and named after it, or any device of its own. How targets get at one:
//!
//! - On this engine by [`Replicas::local_port`], from any reactor.
//! - From another engine by [`RemoteReplica`]: a call of `pollux.engine.v1.Replicas`, and then a connection
//!   to the subsystem that it names.
//!
//! Invariants:
//!
//! - What is done to one replica, or to one device, is done one after the other ([`Turns`]); others are
//!   opened, made and removed beside it. Looking one up never waits for that.
//! - A device is made a replica only while it is blank: what once was a replica is never emptied by being
//!   made again.
//! - Whoever is served by a replica got the newest promise of it: the export of the one before is gone when
//!   the next is told ([`hosted`]).

mod blocks;
mod calls;
mod clone;
mod error;
mod hosted;
mod local;
mod open;
mod remote;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pollux_device::{Device, DeviceUri, Registry};
use pollux_nvme::target::Target;
use pollux_nvme::wire::nqn::Nqn;
use pollux_pool::layout::volume::VolumeKind;
use pollux_pool::shared::{Owned, OwnedDevice};
use pollux_pool::{Pool, PoolError, VolumeOptions};
use pollux_reactor::ReactorHandle;
use pollux_reactor::net::Address;
use pollux_volume::membership::{Epoch, Membership};
use pollux_volume::metadata::codec::Label;
use pollux_volume::metadata::{AreaLayout, BLOCK_BYTES, FormatOptions, REGION_BLOCKS};
use pollux_volume::replica::{CommandError, PoolMedium, PromiseError, ReplicaAnswer, ReplicaCommand};
use uuid::Uuid;

use crate::patience::{while_in_use, while_users_leave};
use crate::pools::{self, Pools, PoolsError};
use crate::turns::{Turn, Turns};
pub use blocks::{BlocksAsked, BlocksPage, ByteRange};
pub use calls::Calls;
pub use clone::ClonedReplica;
use clone::unfinished_name;
pub use error::ReplicasError;
use hosted::Hosted;
pub use hosted::{Admitted, Given};
pub use local::LocalReplica;
use open::Source;
pub use remote::{RemoteReplica, SessionOptions};

/// Replicas that an engine has at most.
pub const REPLICAS_MAX: usize = 4096;

/// Replicas to which something is done at a time.
const TURNS_AT_ONCE: u32 = 64;

/// What the names of volumes of pools that are replicas begin with; the UUID of the replica follows.
const VOLUME_PREFIX: &str = "replica-";

/// Where a replica is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a volume of a pool, made for it.
    InPool {
        /// The name of the pool.
        pool: String,
        /// Bytes of data that it is to have room for.
        data_bytes: u64,
    },
    /// On a device of its own.
    Device(DeviceUri),
}

/// A replica that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReplica {
    /// The volume that it is a copy of.
    pub volume: Uuid,
    /// Its own UUID, which no other replica ever had.
    pub replica: Uuid,
    /// Where it is to be.
    pub place: Place,
}

/// What is known of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Which, and of which volume.
    pub label: Label,
    /// Its device.
    pub uri: DeviceUri,
    /// The newest epoch that it promised.
    pub promised: Epoch,
}

impl ReplicaInfo {
    /// Bytes of data that it has room for.
    pub fn data_bytes(&self) -> u64 {
        self.label.data_blocks.saturating_mul(BLOCK_BYTES as u64)
    }
}

/// A replica, and what it knows of its volume.
#[derive(Debug)]
pub struct SurveyedReplica {
    /// Its device.
    pub uri: DeviceUri,
    /// Which, and of which volume.
    pub label: Label,
    /// The newest epoch that it promised.
    pub promised: Epoch,
    /// Its copy of the record of who takes part, if a target ever gave it one; or why that cannot be read.
    pub record: Result<Option<Membership>, String>,
}

/// A replica that is open.
#[derive(Clone)]
struct Replica {
    uri: DeviceUri,
    /// As it was when it was opened: its size may be another one by now, see [`Replica::label`].
    label: Label,
    data_blocks: Arc<AtomicU64>,
    hosted: Arc<Owned<Hosted>>,
    device: Arc<dyn Device>,
}

/// See the module.
pub struct Replicas {
    registry: Registry,
    pools: Arc<Pools>,
    target: Arc<Target>,
    reactors: Vec<ReactorHandle>,
    listeners: Vec<Address>,
    open: Mutex<BTreeMap<Uuid, Replica>>,
    /// Those that are closed, and whose devices are not free yet: they are there until they are removed.
    removing: Mutex<BTreeMap<Uuid, (DeviceUri, Label)>>,
    turns: Turns,
    /// How many were opened: the next that may live anywhere goes to the next reactor.
    opened: AtomicUsize,
}

impl Replicas {
    /// No replicas yet. `registry` opens their devices, volumes of `pools` too; targets on other engines
    /// reach them by `target`, which listens at `listeners`.
    pub fn new(
        registry: Registry,
        pools: Arc<Pools>,
        target: Arc<Target>,
        reactors: Vec<ReactorHandle>,
        listeners: Vec<Address>,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            pools,
            target,
            reactors,
            listeners,
            open: Mutex::default(),
            removing: Mutex::default(),
            turns: Turns::new(TURNS_AT_ONCE),
            opened: AtomicUsize::new(0),
        })
    }

    /// Where targets on other engines connect.
    pub fn listeners(&self) -> &[Address] {
        &self.listeners
    }

    /// Makes a replica and opens it. One that is there already, of the same volume, is opened if it was not,
    /// and left as it is.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`].
    pub async fn create(&self, new: &NewReplica) -> Result<ReplicaInfo, ReplicasError> {
        let mut turn = self.turn(&replica_key(new.replica)).await?;
        if let Ok(found) = self.find(new.replica) {
            return match found.label.volume == new.volume {
                true => found.describe().await,
                false => Err(ReplicasError::Exists {
                    replica: new.replica,
                    volume: found.label.volume,
                }),
            };
        }
        let options = FormatOptions::new(new.volume, new.replica);
        match &new.place {
            Place::Device(uri) => {
                turn.also(&uri.to_string()).await;
                self.begin(uri.clone(), Some(options)).await
            }
            Place::InPool { pool, data_bytes } => {
                self.make_volume(pool, new.replica, *data_bytes).await?;
                self.begin(volume_uri(pool, new.replica)?, Some(options)).await
            }
        }
    }

    /// Opens the replica that a device is.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`].
    pub async fn open(&self, uri: DeviceUri) -> Result<ReplicaInfo, ReplicasError> {
        let _turn = self.turn(&key_of(&uri)).await?;
        self.begin(uri, None).await
    }

    /// Waits until nobody else does something to a replica or a device.
    async fn turn(&self, key: &str) -> Result<Turn<'_>, ReplicasError> {
        self.turns.take(key).await.ok_or(ReplicasError::Closed)
    }

    /// Opens all replicas that are in a pool. One that cannot be opened is logged and left out: the others
    /// are well without it.
    ///
    /// # Errors
    ///
    /// [`ReplicasError::Pool`].
    pub async fn open_in_pool(&self, pool: &str) -> Result<(), ReplicasError> {
        if self.pools.get(pool)?.report.read_only {
            tracing::warn!(pool, "replicas in it are not opened: the pool is read-only");
            return Ok(());
        }
        let names = self.pools.with(pool, |pool| async move {
            let all = pool.volumes().into_iter();
            let volumes = all.filter(|entry| entry.kind == VolumeKind::Volume);
            Ok(volumes.map(|entry| entry.name).collect::<Vec<_>>())
        });
        let names = names.await?;
        for replica in names.iter().filter_map(|name| replica_of(name)) {
            let uri = volume_uri(pool, replica)?;
            if self.find(replica).is_err()
                && let Err(error) = self.open(uri).await
            {
                tracing::error!(%replica, pool, %error, "a replica could not be opened");
            }
        }
        Ok(())
    }

    /// Opens a device, makes it a replica if it is to be one and is blank, and takes charge of it.
    async fn begin(
        &self,
        uri: DeviceUri,
        format: Option<FormatOptions>,
    ) -> Result<ReplicaInfo, ReplicasError> {
        if self.open_replicas().len() >= REPLICAS_MAX {
            return Err(ReplicasError::Full);
        }
        let (reactor, source) = self.source(&uri)?;
        let attempt = || {
            let (pools, target, uri) = (self.pools.clone(), self.target.clone(), uri.clone());
            let source = source.clone();
            let opening = reactor.call(move || open::open(source, pools, target, uri, format));
            async move { opening.await? }
        };
        let replica = while_in_use(attempt, ReplicasError::is_device_in_use).await?;
        let info = replica.describe().await?;
        let mut open = self.open_replicas();
        if let Some(other) = open.get(&replica.label.replica) {
            return Err(ReplicasError::Exists {
                replica: other.label.replica,
                volume: other.label.volume,
            });
        }
        tracing::info!(
            replica = %info.label.replica,
            volume = %info.label.volume,
            device = %info.uri,
            promised = info.promised.0,
            "replica open"
        );
        open.insert(replica.label.replica, replica);
        Ok(info)
    }

    /// Where a device comes from, and the reactor that the replica is to live on: that of its pool, so that
    /// its requests stay on it.
    fn source(&self, uri: &DeviceUri) -> Result<(ReactorHandle, Source), ReplicasError> {
        if uri.scheme() == pools::SCHEME
            && let Ok((pool, volume)) = pools::names(uri)
        {
            let pool = self.pools.get(&pool)?.shared;
            return Ok((pool.owner().clone(), Source::Pool(pool, volume)));
        }
        let next = self.opened.fetch_add(1, Ordering::Relaxed) % self.reactors.len().max(1);
        let reactor = self.reactors.get(next).cloned();
        let reactor = reactor.ok_or(ReplicasError::NoReactor)?;
        Ok((reactor, Source::Registry(self.registry.clone())))
    }

    async fn make_volume(&self, pool: &str, replica: Uuid, data_bytes: u64) -> Result<(), ReplicasError> {
        let block_bytes = BLOCK_BYTES as u64;
        let unusable = |why: String| ReplicasError::Unusable {
            device: format!("pool://{pool}/{VOLUME_PREFIX}{replica}"),
            why,
        };
        if data_bytes == 0 || !data_bytes.is_multiple_of(block_bytes) {
            let why = format!("{data_bytes} is no size: give a multiple of {block_bytes}");
            return Err(unusable(why));
        }
        let layout = AreaLayout::for_data(data_bytes / block_bytes, REGION_BLOCKS);
        let size_blocks = layout
            .map_err(|error| unusable(error.to_string()))?
            .total_blocks();
        let name = volume_name(replica);
        let options = VolumeOptions {
            uuid: Some(replica),
            ..VolumeOptions::new(size_blocks)
        };
        let made = self.pools.with(pool, move |pool| async move {
            match pool.create_volume(&name, &options).await {
                Err(PoolError::Exists { .. }) => pool.volume(&name),
                made => made,
            }
        });
        let found = made.await?.size_blocks;
        match found == size_blocks {
            true => Ok(()),
            false => Err(unusable(format!(
                "it has {found} blocks of {block_bytes} bytes, and {size_blocks} are asked for: replicas \
                 keep their size"
            ))),
        }
    }

    /// Ends whoever uses a replica, and removes it with its data; whether it was there.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`]: it is in use by nobody then, and may be there still.
    pub async fn remove(&self, replica: Uuid) -> Result<bool, ReplicasError> {
        if let Ok(found) = self.find(replica) {
            self.removing()
                .insert(replica, (found.uri.clone(), found.label()));
        }
        let removed = self.try_remove(replica).await?;
        self.removing().remove(&replica);
        Ok(removed)
    }

    fn removing(&self) -> MutexGuard<'_, BTreeMap<Uuid, (DeviceUri, Label)>> {
        self.removing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn try_remove(&self, replica: Uuid) -> Result<bool, ReplicasError> {
        let mut turn = self.turn(&replica_key(replica)).await?;
        let device = self.find(replica).ok().map(|found| key_of(&found.uri));
        if let Some(key) = device.filter(|key| *key != replica_key(replica)) {
            turn.also(&key).await;
        }
        let removed = self.open_replicas().remove(&replica);
        if let Some(found) = &removed {
            found
                .hosted
                .call(|hosted| async move { hosted.close().await })
                .await?;
            tracing::info!(%replica, volume = %found.label.volume, "replica closed, to be removed");
        }
        match removed {
            Some(found) => match pools::names(&found.uri) {
                Ok((pool, volume)) if found.uri.scheme() == pools::SCHEME => {
                    drop(found);
                    self.delete_volume(&pool, &volume, replica).await
                }
                _ => open::wipe(found).await.map(|()| true),
            },
            // Perhaps one that could not be opened.
            None => {
                let mut removed = false;
                for pool in self.pools.all() {
                    for volume in [volume_name(replica), unfinished_name(replica)] {
                        let pool = pool.shared.name();
                        removed |= self.delete_volume(pool, &volume, replica).await?;
                    }
                }
                Ok(removed)
            }
        }
    }

    /// Deletes the volume of a replica and its snapshots; whether it was there.
    async fn delete_volume(&self, pool: &str, volume: &str, replica: Uuid) -> Result<bool, ReplicasError> {
        let attempt = || {
            let volume = volume.to_owned();
            self.pools.with(pool, move |pool: Rc<Pool>| async move {
                let all = pool.volumes().into_iter();
                let snapshots = all.filter(|entry| entry.kind == VolumeKind::Snapshot);
                for snapshot in snapshots.filter(|entry| PoolMedium::is_snapshot_of(replica, &entry.name)) {
                    pool.delete(&snapshot.name).await?;
                }
                match pool.delete(&volume).await {
                    Ok(()) => Ok(true),
                    Err(PoolError::NotFound { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            })
        };
        Ok(while_users_leave(attempt, PoolsError::is_volume_in_use).await?)
    }

    /// The replicas that are open, by UUID.
    ///
    /// # Errors
    ///
    /// A reactor that does not answer.
    pub async fn list(&self) -> Result<Vec<ReplicaInfo>, ReplicasError> {
        let all: Vec<Replica> = self.open_replicas().values().cloned().collect();
        let mut described = Vec::with_capacity(all.len());
        for replica in all {
            described.push(replica.describe().await?);
        }
        Ok(described)
    }

    /// The replicas that are open, with what they know of their volumes.
    pub async fn survey(&self) -> Vec<SurveyedReplica> {
        let all: Vec<Replica> = self.open_replicas().values().cloned().collect();
        let mut surveyed = Vec::with_capacity(all.len());
        for replica in all {
            let asked = replica.hosted.call(|hosted| async move {
                let record = hosted.record().await.map_err(|error| error.to_string());
                (hosted.label(), hosted.promised(), record)
            });
            let (label, promised, record) = match asked.await {
                Ok(answered) => answered,
                Err(error) => (replica.label, Epoch(0), Err(error.to_string())),
            };
            surveyed.push(SurveyedReplica {
                uri: replica.uri,
                label,
                promised,
                record,
            });
        }
        surveyed
    }

    /// Asks a replica for a promise; from any executor. Whoever is served by an older one is so no more.
    ///
    /// # Errors
    ///
    /// [`PromiseError`]; [`PromiseError::Unreachable`] when there is no such replica of this volume.
    pub async fn promise(
        &self,
        volume: Uuid,
        replica: Uuid,
        epoch: Epoch,
        admitted: Admitted,
    ) -> Result<Given, PromiseError> {
        let hosted = self
            .hosted(volume, replica)
            .map_err(|_| PromiseError::Unreachable)?;
        let called = hosted.call(move |hosted| hosted.promise(epoch, admitted));
        called.await.map_err(|_| PromiseError::Unreachable)?
    }

    /// Has a replica do something as a whole; from any executor. See `ReplicaPort::command`.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`CommandError::Unreachable`] when there is no such replica of this volume.
    pub async fn command(
        &self,
        volume: Uuid,
        replica: Uuid,
        epoch: Epoch,
        command: ReplicaCommand,
    ) -> Result<ReplicaAnswer, CommandError> {
        let hosted = self.hosted(volume, replica)?;
        let called = hosted.call(move |hosted| hosted.command(epoch, command));
        called.await.map_err(|_| CommandError::Unreachable)?
    }

    /// A snapshot of a replica as a device of this engine.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub(super) async fn open_snapshot(
        &self,
        volume: Uuid,
        replica: Uuid,
        epoch: Epoch,
        cut: Uuid,
    ) -> Result<Arc<OwnedDevice>, CommandError> {
        let hosted = self.hosted(volume, replica)?;
        let called = hosted.call(move |hosted| hosted.open_snapshot(epoch, cut));
        called.await.map_err(|_| CommandError::Unreachable)?
    }

    /// A snapshot of a replica, served to the target that has the session: subsystem and namespace.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn export_snapshot(
        &self,
        volume: Uuid,
        replica: Uuid,
        epoch: Epoch,
        cut: Uuid,
    ) -> Result<(Nqn, u32), CommandError> {
        let hosted = self.hosted(volume, replica)?;
        let called = hosted.call(move |hosted| hosted.export_snapshot(epoch, cut));
        called.await.map_err(|_| CommandError::Unreachable)?
    }

    fn hosted(&self, volume: Uuid, replica: Uuid) -> Result<Arc<Owned<Hosted>>, CommandError> {
        let found = self
            .find(replica)
            .ok()
            .filter(|found| found.label.volume == volume);
        Ok(found.ok_or(CommandError::Unreachable)?.hosted)
    }

    /// The way of a target on this engine to a replica; it is looked for at each promise.
    pub fn local_port(self: &Arc<Self>, volume: Uuid, replica: Uuid) -> LocalReplica {
        LocalReplica::new(self.clone(), volume, replica)
    }

    /// Whether a replica is open here.
    ///
    /// # Errors
    ///
    /// [`ReplicasError::NotFound`].
    pub fn check_open(&self, replica: Uuid) -> Result<(), ReplicasError> {
        self.find(replica).map(drop)
    }

    /// The replicas that are open, by their UUIDs, with their devices, as they are now. Nobody is asked.
    pub fn all(&self) -> Vec<(DeviceUri, Label)> {
        let mut all = self.removing().clone();
        for (id, replica) in self.open_replicas().iter() {
            all.insert(*id, (replica.uri.clone(), replica.label()));
        }
        all.into_values().collect()
    }

    /// The reactor that has a replica, if it is open here.
    pub fn reactor_of(&self, replica: Uuid) -> Option<ReactorHandle> {
        let found = self.find(replica).ok()?;
        Some(found.hosted.owner().clone())
    }

    /// The device of a replica, if it is open here.
    pub fn device_of(&self, replica: Uuid) -> Option<DeviceUri> {
        Some(self.find(replica).ok()?.uri)
    }

    /// Ends whoever uses replicas, and opens none from now on.
    pub async fn close(&self) {
        self.turns.close().await;
        let all = std::mem::take(&mut *self.open_replicas());
        for (id, replica) in all {
            let closed = replica.hosted.call(|hosted| async move { hosted.close().await });
            if let Err(error) = closed.await {
                tracing::error!(replica = %id, %error, "a replica is left as after a crash");
            }
        }
    }

    fn find(&self, replica: Uuid) -> Result<Replica, ReplicasError> {
        let found = self.open_replicas().get(&replica).cloned();
        found.ok_or(ReplicasError::NotFound { replica })
    }

    fn open_replicas(&self) -> MutexGuard<'_, BTreeMap<Uuid, Replica>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// What it is now, as far as can be told without asking.
    fn label(&self) -> Label {
        Label {
            data_blocks: self.data_blocks.load(Ordering::Relaxed),
            ..self.label
        }
    }

    async fn describe(&self) -> Result<ReplicaInfo, ReplicasError> {
        let told = self
            .hosted
            .call(|hosted| async move { (hosted.label(), hosted.promised()) });
        let (label, promised) = told.await?;
        Ok(ReplicaInfo {
            label,
            uri: self.uri.clone(),
            promised,
        })
    }
}

/// What is done to a replica takes turns by this.
fn replica_key(replica: Uuid) -> String {
    replica.to_string()
}

/// What is done to a device takes turns by this: by its replica, where its name says which.
fn key_of(uri: &DeviceUri) -> String {
    let volume = pools::names(uri).ok().filter(|_| uri.scheme() == pools::SCHEME);
    let replica = volume.and_then(|(_, volume)| replica_of(&volume));
    replica.map_or_else(|| uri.to_string(), replica_key)
}

fn volume_name(replica: Uuid) -> String {
    format!("{VOLUME_PREFIX}{replica}")
}

/// The replica that a volume of a pool is named after.
fn replica_of(volume: &str) -> Option<Uuid> {
    let replica: Uuid = volume.strip_prefix(VOLUME_PREFIX)?.parse().ok()?;
    // In the one form that is made here.
    (volume_name(replica) == volume).then_some(replica)
}

fn volume_uri(pool: &str, replica: Uuid) -> Result<DeviceUri, ReplicasError> {
    let pool = utf8_percent_encode(pool, NON_ALPHANUMERIC);
    let uri = format!("{}://{pool}/{}", pools::SCHEME, volume_name(replica));
    Ok(DeviceUri::parse(&uri).map_err(pollux_device::OpenError::from)?)
}

#[cfg(test)]
mod tests;
