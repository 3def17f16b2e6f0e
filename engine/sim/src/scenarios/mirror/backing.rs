//! What replicas are on: a drive of their own, or a volume of a pool on it, which has snapshots and grows.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, Device, Geometry};
use pollux_pool::shared::SharedPool;
use pollux_pool::{CreateOptions, Pool, PoolOptions, VolumeOptions};
use pollux_volume::metadata::{Area, FormatOptions};
use pollux_volume::replica::{PlainMedium, PoolMedium, ReplicaHost, ReplicaMedium};
use uuid::Uuid;

use crate::drive::SimDrive;

/// The volume of the pool that is the replica.
const NAME: &str = "replica";

/// Blocks of 4 KiB that such a volume has at first.
const POOL_VOLUME_BLOCKS: u64 = 160;

/// What a replica is on, and how large that shows itself to those who reach it over the network.
#[derive(Clone)]
pub(super) struct Backing {
    drive: Arc<SimDrive>,
    on_pool: bool,
    replica: Rc<Cell<Uuid>>,
    device: Rc<RefCell<Option<Rc<dyn BlockDevice>>>>,
    geometry: Rc<Cell<Geometry>>,
}

fn options() -> PoolOptions {
    PoolOptions {
        cache_bytes: 1 << 20,
        dirty_bytes: 1 << 18,
        commit_interval: Duration::from_millis(20),
        background: true,
        ..PoolOptions::default()
    }
}

impl Backing {
    pub(super) fn new(drive: Arc<SimDrive>, on_pool: bool, replica: Uuid) -> Self {
        Self {
            geometry: Rc::new(Cell::new(drive.geometry())),
            drive,
            on_pool,
            replica: Rc::new(Cell::new(replica)),
            device: Rc::default(),
        }
    }

    /// As the device is, or was when it was last seen: a volume of a pool grows.
    pub(super) fn geometry(&self) -> Geometry {
        if let Some(device) = self.device() {
            self.geometry.set(device.geometry());
        }
        self.geometry.get()
    }

    /// It is to be another replica, which is made of it next.
    pub(super) fn rename(&self, replica: Uuid) {
        self.replica.set(replica);
    }

    /// Makes a drive a replica.
    pub(super) async fn format(&self, options: &FormatOptions) -> Result<(), String> {
        let told = |error: &dyn std::error::Error| error.to_string();
        if self.on_pool {
            let queue = self.drive.clone().attach().await.map_err(|error| told(&error))?;
            let create = CreateOptions {
                overwrite: true,
                ..CreateOptions::default()
            };
            let pool = Pool::create("tank", vec![queue], &create, self::options()).await;
            let pool = pool.map_err(|error| told(&error))?;
            let made = pool
                .create_volume(NAME, &VolumeOptions::new(POOL_VOLUME_BLOCKS))
                .await;
            made.map_err(|error| told(&error))?;
            let volume = pool.open_volume(NAME).map_err(|error| told(&error))?;
            let area = Area::format(volume, options).await;
            area.map(drop).map_err(|error| told(&error))?;
            // Nothing of it goes on beside the engine that comes.
            return pool.export().await.map_err(|error| told(&error));
        }
        let (device, _) = self.open_device().await?;
        Area::format(device, options)
            .await
            .map(drop)
            .map_err(|error| told(&error))
    }

    async fn open_device(&self) -> Result<(Rc<dyn BlockDevice>, Rc<dyn ReplicaMedium>), String> {
        let told = |error: &dyn std::error::Error| error.to_string();
        let queue = self.drive.clone().attach().await.map_err(|error| told(&error))?;
        if !self.on_pool {
            self.geometry.set(queue.geometry());
            return Ok((queue, Rc::new(PlainMedium::new(self.drive.clone()))));
        }
        let (pool, _) = Pool::import(vec![queue], options())
            .await
            .map_err(|error| told(&error))?;
        let device = SharedPool::new(pool).device(NAME).await;
        let device = device.map_err(|error| told(&error))?;
        let medium = PoolMedium::new(device.clone(), self.replica.get());
        let queue = device.attach().await.map_err(|error| told(&error))?;
        self.geometry.set(queue.geometry());
        Ok((queue, Rc::new(medium)))
    }

    /// The host of the replica, as of a new process.
    pub(super) async fn open(&self) -> Result<ReplicaHost, String> {
        let (device, medium) = self.open_device().await?;
        *self.device.borrow_mut() = Some(device.clone());
        let host = ReplicaHost::open(device, medium).await;
        host.map_err(|error| error.to_string())
    }

    /// The device, while its engine runs.
    pub(super) fn device(&self) -> Option<Rc<dyn BlockDevice>> {
        self.device.borrow().clone()
    }

    /// The engine is gone.
    pub(super) fn close(&self) {
        *self.device.borrow_mut() = None;
    }
}
