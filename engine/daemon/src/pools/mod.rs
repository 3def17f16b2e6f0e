//! The pools of this process: opened on their devices, each on one reactor, and exported at the end.
//!
//! Invariants:
//!
//! - Pools are opened and closed one after the other (`changes`); looking at what is open never waits for
//!   that.
//! - Two pools that are open have different names.
//! - A pool that is exported is taken out of the list first: nobody finds it any more.

mod error;
mod opener;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollux_device::{BlockDevice, Device, DeviceUri, OpenError, Registry};
use pollux_pool::shared::SharedPool;
use pollux_pool::{ImportReport, Pool, PoolError, PoolOptions};
use pollux_reactor::ReactorHandle;

use crate::patience::while_in_use;
use crate::settings::PoolSettings;
pub use error::PoolsError;
pub(crate) use error::is_in_use;
pub use opener::{PoolOpener, SCHEME};

/// A pool that is open.
#[derive(Clone, Debug)]
pub struct OpenPool {
    /// The pool.
    pub shared: SharedPool,
    /// Its devices, as they were given.
    pub devices: Arc<[DeviceUri]>,
    /// What opening it found; nothing for one that was made here.
    pub report: Arc<ImportReport>,
}

/// The pools of this process.
pub struct Pools {
    /// What pools are made of. Not pools: one in the other would wait for itself.
    registry: Registry,
    reactors: Vec<ReactorHandle>,
    open: Mutex<BTreeMap<String, OpenPool>>,
    changes: tokio::sync::Mutex<Changes>,
}

/// What whoever changes the pools has to itself.
#[derive(Default)]
struct Changes {
    /// How many pools were opened: the next goes to the next reactor.
    opened: usize,
    closed: bool,
}

impl Pools {
    /// No pools yet. Their devices are opened by `registry`, which should know no pools.
    pub fn new(registry: Registry, reactors: Vec<ReactorHandle>) -> Arc<Self> {
        Arc::new(Self {
            registry,
            reactors,
            open: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
        })
    }

    /// The pools that are open, by name.
    pub fn all(&self) -> Vec<OpenPool> {
        self.open().values().cloned().collect()
    }

    /// A pool by its name.
    ///
    /// # Errors
    ///
    /// [`PoolsError::NotOpen`].
    pub fn get(&self, name: &str) -> Result<OpenPool, PoolsError> {
        let open = self.open();
        open.get(name).cloned().ok_or_else(|| PoolsError::NotOpen {
            name: name.to_owned(),
            open: open.keys().cloned().collect(),
        })
    }

    /// Opens the pool that devices hold.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub async fn import(&self, settings: &PoolSettings) -> Result<OpenPool, PoolsError> {
        let mut changes = self.changes.lock().await;
        let options = options(settings);
        let act = move |devices| async move {
            let (pool, report) = Pool::import(devices, options).await?;
            Ok((pool, report))
        };
        self.begin(&mut changes, &settings.devices, act).await
    }

    /// Opens devices on the next reactor, and what `act` makes of them.
    async fn begin<F>(
        &self,
        changes: &mut Changes,
        uris: &[String],
        act: impl FnOnce(Vec<Rc<dyn BlockDevice>>) -> F + Send + 'static,
    ) -> Result<OpenPool, PoolsError>
    where
        F: Future<Output = Result<(Rc<Pool>, ImportReport), PoolError>> + 'static,
    {
        if changes.closed {
            return Err(PoolsError::Closed);
        }
        let uris: Vec<DeviceUri> = parse(uris)?;
        let next = changes.opened % self.reactors.len().max(1);
        let reactor = self.reactors.get(next).ok_or(PoolsError::NoReactor)?;
        let opened = self.open_devices(reactor, &uris).await?;
        let about = |source| PoolsError::of_devices(&uris, source);
        let names: Vec<String> = self.open().keys().cloned().collect();
        let called = reactor.call(move || async move {
            let mut devices = Vec::new();
            for device in opened {
                devices.push(device.attach().await?);
            }
            let (pool, report) = act(devices).await?;
            if names.iter().any(|name| name == pool.name()) {
                pool.export().await?;
                return Ok(Err(pool.name().to_owned()));
            }
            Ok(Ok((SharedPool::new(pool), report)))
        });
        let (shared, report) = match called.await?.map_err(about)? {
            Ok(made) => made,
            Err(name) => return Err(PoolsError::NameTaken { name }),
        };
        changes.opened += 1;
        let pool = OpenPool {
            shared,
            devices: uris.into(),
            report: report.into(),
        };
        tell(&pool);
        self.open().insert(pool.shared.name().to_owned(), pool.clone());
        Ok(pool)
    }

    /// Opens devices one by one, waiting for those that a process that was killed still holds.
    async fn open_devices(
        &self,
        reactor: &ReactorHandle,
        uris: &[DeviceUri],
    ) -> Result<Vec<Arc<dyn Device>>, PoolsError> {
        let mut opened = Vec::new();
        for uri in uris {
            let attempt = || {
                let (registry, uri) = (self.registry.clone(), uri.clone());
                let opening = reactor.call(move || async move { registry.open(&uri).await });
                async move { Ok::<_, PoolsError>(opening.await??) }
            };
            let device = while_in_use(attempt, PoolsError::is_device_in_use).await?;
            opened.push(device);
        }
        Ok(opened)
    }

    /// Closes a pool in good order: everything is durable, and its devices can be given to others. Its
    /// volumes should not be in use any more; those that are fail from now on.
    ///
    /// # Errors
    ///
    /// [`PoolsError`]: the pool is closed all the same, and can be imported again.
    pub async fn export(&self, name: &str) -> Result<(), PoolsError> {
        let _one_at_a_time = self.changes.lock().await;
        self.export_one(name).await
    }

    async fn export_one(&self, name: &str) -> Result<(), PoolsError> {
        let pool = self.get(name)?;
        self.open().remove(name);
        let exported = pool.shared.call(|pool| async move { pool.export().await });
        exported.await?.map_err(|source| PoolsError::Export {
            name: name.to_owned(),
            source: source.into(),
        })?;
        tracing::info!(pool = name, "pool exported");
        Ok(())
    }

    /// Closes all pools, and opens none from now on. Whether all could be exported.
    pub async fn close(&self) -> bool {
        let mut changes = self.changes.lock().await;
        changes.closed = true;
        let names: Vec<String> = self.open().keys().cloned().collect();
        let mut all = true;
        for name in names {
            if let Err(error) = self.export_one(&name).await {
                tracing::error!(%error, "a pool is left as after a crash");
                all = false;
            }
        }
        all
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, OpenPool>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(uris: &[String]) -> Result<Vec<DeviceUri>, PoolsError> {
    let parsed = uris.iter().map(|uri| DeviceUri::parse(uri));
    Ok(parsed.collect::<Result<_, _>>().map_err(OpenError::from)?)
}

/// How a pool uses this machine.
fn options(settings: &PoolSettings) -> PoolOptions {
    PoolOptions {
        cache_bytes: usize::try_from(settings.cache.0).unwrap_or(usize::MAX),
        dirty_bytes: usize::try_from(settings.dirty.0).unwrap_or(usize::MAX),
        commit_interval: Duration::from_millis(settings.commit_interval_ms),
        ..PoolOptions::default()
    }
}

/// Tells what opening a pool found.
fn tell(pool: &OpenPool) {
    let report = &pool.report;
    tracing::info!(
        pool = pool.shared.name(),
        devices = pool.devices.len(),
        reactor = %pool.shared.owner().id(),
        in_order = report.was_exported,
        journal_blocks = report.journal_blocks,
        records = report.records,
        newer_blocks = report.newer_blocks,
        "pool open"
    );
    if !report.unreadable.is_empty() {
        tracing::error!(
            pool = pool.shared.name(),
            blocks = report.unreadable.len(),
            "blocks that were being overwritten when the pool was left cannot be read"
        );
    }
}
