//! The pools of this process: opened on their devices, each on one reactor, and exported at the end.
//!
//! Invariants:
//!
//! - Pools are opened and closed one after the other (`changes`); looking at what is open never waits for
//!   that.
//! - Two pools that are open have different names.
//! - A pool that is exported is taken out of the list first: nobody finds it any more.

mod devices;
mod drains;
mod error;
mod inspect;
mod look;
mod memory;
mod opener;
mod watch;
mod worn_out;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pollux_device::{BlockDevice, ByteSize, Device, DeviceUri, OpenError, Registry};
use pollux_pool::shared::SharedPool;
use pollux_pool::{CheckReport, CreateOptions, ImportReport, Pool, PoolError, PoolOptions};
use pollux_reactor::ReactorHandle;
use uuid::Uuid;

use crate::patience::{while_in_use, while_users_leave};
use crate::settings::PoolSettings;
use crate::telemetry::{Meters, Role};
pub use devices::NewDevice;
pub(crate) use devices::{HowFar, Removal, Waiting};
pub use error::PoolsError;
pub(crate) use error::is_in_use;
use memory::Remembered;
pub use memory::{Memory, MemoryError};
pub(crate) use opener::names;
pub use opener::{PoolOpener, SCHEME};
pub(crate) use watch::watch;
pub(crate) use worn_out::WornOut;

/// A pool that is open.
#[derive(Clone)]
pub struct OpenPool {
    /// The pool.
    pub shared: SharedPool,
    /// Its devices, as they were given.
    pub uris: Arc<[DeviceUri]>,
    devices: Arc<[Arc<dyn Device>]>,
    /// As the settings name them; none if they do not name it.
    named: Arc<[String]>,
    /// What their labels call them, in the same order.
    ids: Arc<[Uuid]>,
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
    meters: Meters,
    /// The pool that is being closed.
    leaving: Mutex<Option<OpenPool>>,
    drains: drains::Drains,
    memory: Memory,
    /// They are those of an engine, and not of one command.
    keeps_open: bool,
}

/// A pool that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPool {
    /// Its name.
    pub name: String,
    /// Its devices, and how it uses this machine.
    pub settings: PoolSettings,
    /// Those of the devices whose content may be lost.
    pub overwrite: Vec<String>,
    /// Bytes of its journal; what suits the first device if not given.
    pub journal: Option<ByteSize>,
}

/// The devices of a pool that is to be opened.
struct Devices {
    uris: Vec<DeviceUri>,
    /// Nothing may be written to them.
    read_only: bool,
}

/// Why nothing could be made of devices, which are told by their place.
enum Refusal {
    Pool(PoolError),
    Holds { device: usize, what: String },
}

impl<E: Into<PoolError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Pool(error.into())
    }
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
        Self::build(registry, reactors, Memory::default(), false)
    }

    /// The same for an engine, which keeps pools open: what calls make of them is remembered, and what was
    /// interrupted in them goes on.
    pub fn of_engine(registry: Registry, reactors: Vec<ReactorHandle>, memory: Memory) -> Arc<Self> {
        Self::build(registry, reactors, memory, true)
    }

    fn build(
        registry: Registry,
        reactors: Vec<ReactorHandle>,
        memory: Memory,
        keeps_open: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            reactors,
            open: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            meters: Meters::default(),
            leaving: Mutex::default(),
            drains: drains::Drains::default(),
            memory,
            keeps_open,
        })
    }

    /// The drives that pools are on, as they are measured.
    pub fn meters(&self) -> &Meters {
        &self.meters
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

    /// Opens the pool that devices hold. One that is open on these devices already is returned.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub async fn import(&self, settings: &PoolSettings) -> Result<OpenPool, PoolsError> {
        let mut changes = self.changes.lock().await;
        let uris = parse(&settings.devices)?;
        let read_only = settings.read_only;
        if let Some(open) = self.all().into_iter().find(|pool| pool.is_on(&uris)) {
            // One that can only be read is as it would be again.
            let is_other = open.report.read_only != read_only && open.report.unknown_features == 0;
            return match is_other {
                false => Ok(open),
                true => Err(PoolsError::OpenOtherwise {
                    name: open.shared.name().to_owned(),
                    read_only: open.report.read_only,
                }),
            };
        }
        let options = options(settings);
        let act = move |devices: Vec<Rc<dyn BlockDevice>>| async move {
            // What may not be written to can be looked at.
            let is_protected = |device: &Rc<dyn BlockDevice>| device.geometry().read_only;
            Ok(match read_only || devices.iter().any(is_protected) {
                true => Pool::import_read_only(devices, options).await?,
                false => Pool::import(devices, options).await?,
            })
        };
        let devices = Devices { uris, read_only };
        self.begin(&mut changes, devices, act).await
    }

    /// Opens a pool of the settings, on the devices that it has by now if calls have changed them.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub async fn import_named(&self, settings: &PoolSettings) -> Result<OpenPool, PoolsError> {
        let pool = match self.memory.devices_of(settings).await {
            None => self.import(settings).await?,
            Some(devices) => {
                let now = PoolSettings {
                    devices,
                    ..settings.clone()
                };
                let pool = self.import(&now).await?;
                tracing::warn!(
                    pool = pool.shared.name(),
                    "devices of the pool came or went by calls: the settings should name those that it has"
                );
                pool
            }
        };
        if let Some(open) = self.open().get_mut(pool.shared.name()) {
            open.named = settings.devices.clone().into();
        }
        let name = pool.shared.name();
        if self.memory.has(name).await {
            // They may name it since a call had opened it.
            self.remember(name).await;
        }
        Ok(pool)
    }

    /// Opens the pools that calls had made or opened. One that cannot be opened is told, and remembered.
    pub async fn import_remembered(&self) -> Vec<OpenPool> {
        let mut opened = Vec::new();
        for settings in self.memory.unnamed().await {
            match self.import(&settings).await {
                Ok(pool) => opened.push(pool),
                Err(error) => tracing::error!(%error, "a pool that was open before cannot be opened"),
            }
        }
        opened
    }

    /// Remembers a pool that a call has made, opened or changed, to be opened so again after a restart
    /// until it is exported or destroyed.
    pub async fn remember(&self, name: &str) {
        let Ok(pool) = self.get(name) else { return };
        let remembered = Remembered {
            name: name.to_owned(),
            named: pool.named.to_vec(),
            devices: pool.uris.iter().map(|uri| uri.reveal().to_owned()).collect(),
            read_only: pool.report.read_only && pool.report.unknown_features == 0,
        };
        if let Err(error) = self.memory.keep(remembered).await {
            tracing::error!(pool = name, %error, "after a restart the pool is not opened as it is now");
        }
    }

    async fn forget(&self, name: &str) {
        if let Err(error) = self.memory.forget(name).await {
            tracing::error!(pool = name, %error, "after a restart the pool is opened again");
        }
    }

    /// Makes a pool and opens it. One of this name that is open on these devices already is returned.
    ///
    /// # Errors
    ///
    /// [`PoolsError`]: nothing was written, unless it is of a device that failed, or of one that may be
    /// overwritten.
    pub async fn create(&self, new: &NewPool) -> Result<OpenPool, PoolsError> {
        let mut changes = self.changes.lock().await;
        let uris = parse(&new.settings.devices)?;
        let overwrite = parse(&new.overwrite)?;
        if let Some(stranger) = overwrite.iter().find(|uri| !uris.contains(uri)) {
            return Err(PoolsError::NotADevice {
                uri: stranger.to_string(),
            });
        }
        match self.get(&new.name) {
            Ok(open) if open.is_on(&uris) => return Ok(open),
            Ok(_) => {
                return Err(PoolsError::NameTaken {
                    name: new.name.clone(),
                });
            }
            Err(_) => {}
        }
        let given_up: Vec<bool> = uris.iter().map(|uri| overwrite.contains(uri)).collect();
        let (name, options) = (new.name.clone(), options(&new.settings));
        let create = CreateOptions {
            journal_bytes: new.journal.map_or(0, |size| size.0),
            // What may not be is refused before.
            overwrite: true,
        };
        let act = move |devices: Vec<Rc<dyn BlockDevice>>| async move {
            inspect::prepare(&devices, &given_up).await?;
            let pool = Pool::create(&name, devices, &create, options).await?;
            let report = ImportReport {
                was_exported: true,
                ..ImportReport::default()
            };
            Ok((pool, report))
        };
        let devices = Devices {
            uris,
            read_only: false,
        };
        self.begin(&mut changes, devices, act).await
    }

    /// Opens devices on the next reactor, and what `act` makes of them.
    async fn begin<F>(
        &self,
        changes: &mut Changes,
        Devices { uris, read_only }: Devices,
        act: impl FnOnce(Vec<Rc<dyn BlockDevice>>) -> F + Send + 'static,
    ) -> Result<OpenPool, PoolsError>
    where
        F: Future<Output = Result<(Rc<Pool>, ImportReport), Refusal>> + 'static,
    {
        if changes.closed {
            return Err(PoolsError::Closed);
        }
        let next = changes.opened % self.reactors.len().max(1);
        let reactor = self.reactors.get(next).ok_or(PoolsError::NoReactor)?;
        let devices = match read_only {
            true => {
                let protected: Vec<_> = uris.iter().map(without_writes).collect();
                self.open_devices(reactor, &protected).await?
            }
            false => self.open_devices(reactor, &uris).await?,
        };
        let names: Vec<String> = self.open().keys().cloned().collect();
        let (attached, labelled) = (devices.clone(), devices.clone());
        let called = reactor.call(move || async move {
            let (pool, report) = act(attach(attached).await?).await?;
            if names.iter().any(|name| name == pool.name()) {
                pool.export().await?;
                return Ok(Err(pool.name().to_owned()));
            }
            let ids = ids_of(labelled).await?;
            Ok(Ok((SharedPool::new(pool), report, ids)))
        });
        let made = called.await?;
        let made = made.map_err(|refusal| PoolsError::of_devices(&uris, refusal))?;
        let (shared, report, ids) = made.map_err(|name| PoolsError::NameTaken { name })?;
        changes.opened += 1;
        let pool = OpenPool {
            shared,
            uris: uris.into(),
            devices: devices.into(),
            named: Arc::default(),
            ids: ids.into(),
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
            opened.push(self.meters.wrap(Role::Drive, &drive_name(uri), device));
        }
        Ok(opened)
    }

    /// Has the owner of a pool do something with it.
    ///
    /// # Errors
    ///
    /// [`PoolsError::Pool`].
    pub async fn with<F, T>(
        &self,
        name: &str,
        act: impl FnOnce(Rc<Pool>) -> F + Send + 'static,
    ) -> Result<T, PoolsError>
    where
        F: Future<Output = Result<T, PoolError>> + 'static,
        T: Send + 'static,
    {
        let pool = self.get(name)?.shared;
        let done = pool.call(act).await?;
        done.map_err(|source| PoolsError::of_pool(name, source))
    }

    /// Refuses a pool that is in use.
    ///
    /// # Errors
    ///
    /// [`PoolsError::InUse`], [`PoolsError::NotOpen`].
    pub async fn check_unused(&self, name: &str) -> Result<(), PoolsError> {
        self.refuse_in_use(&self.get(name)?).await
    }

    /// Walks all metadata of a pool that is not in use, by `check`.
    ///
    /// # Errors
    ///
    /// [`PoolsError::InUse`] and those of the pool.
    pub(crate) async fn check<F>(
        &self,
        name: &str,
        check: impl FnOnce(Rc<Pool>) -> F + Send + 'static,
    ) -> Result<CheckReport, PoolsError>
    where
        F: Future<Output = Result<CheckReport, PoolError>> + 'static,
    {
        let _one_at_a_time = self.changes.lock().await;
        let pool = self.get(name)?;
        self.refuse_in_use(&pool).await?;
        let check = move |pool: Rc<Pool>| async move {
            // What goes on giving back space in the background would be told as wrong.
            pool.reclaim().await?;
            check(pool).await
        };
        self.with(name, check).await
    }

    /// Closes a pool in good order: everything is durable, and its devices can be given to others.
    ///
    /// # Errors
    ///
    /// [`PoolsError::InUse`]; with [`PoolsError::Export`] the pool is closed all the same, and can be
    /// imported again.
    pub async fn export(&self, name: &str) -> Result<(), PoolsError> {
        let _one_at_a_time = self.changes.lock().await;
        self.take(name).await?;
        self.forget(name).await;
        Ok(())
    }

    /// Closes a pool and wipes its labels: its data is lost.
    ///
    /// # Errors
    ///
    /// [`PoolsError::InUse`]; with [`PoolsError::Devices`] some of its devices may have no label any more.
    pub async fn destroy(&self, name: &str) -> Result<(), PoolsError> {
        let _one_at_a_time = self.changes.lock().await;
        if self.get(name)?.report.read_only {
            return Err(PoolsError::of_pool(name, PoolError::ReadOnly));
        }
        let pool = self.take(name).await?;
        self.forget(name).await;
        let devices = pool.devices.to_vec();
        let wiped = pool.shared.owner().call(move || async move {
            Pool::destroy(attach(devices).await?).await?;
            Ok::<_, Refusal>(())
        });
        let wiped = wiped.await?;
        wiped.map_err(|refusal| PoolsError::of_devices(&pool.uris, refusal))?;
        tracing::info!(pool = name, "pool destroyed");
        Ok(())
    }

    /// Closes a pool that is not in use.
    async fn take(&self, name: &str) -> Result<OpenPool, PoolsError> {
        let pool = self.get(name)?;
        *self.leaving() = Some(pool.clone());
        let taken = self.take_unused(name, pool).await;
        *self.leaving() = None;
        taken
    }

    async fn take_unused(&self, name: &str, pool: OpenPool) -> Result<OpenPool, PoolsError> {
        // First, so that no volume of it can be opened from now on.
        self.open().remove(name);
        if let Err(error) = self.refuse_in_use(&pool).await {
            self.open().insert(name.to_owned(), pool);
            return Err(error);
        }
        self.drains.end(name).await;
        close(&pool).await?;
        Ok(pool)
    }

    /// The pools that are open, one that may be closed soon among them.
    fn all_and_leaving(&self) -> Vec<OpenPool> {
        // In this order: else one that leaves in between is in neither.
        let mut pools = self.all();
        pools.extend(self.leaving().clone());
        pools
    }

    fn leaving(&self) -> MutexGuard<'_, Option<OpenPool>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a pool whose volumes are in use, after waiting a moment for users that are leaving.
    async fn refuse_in_use(&self, pool: &OpenPool) -> Result<(), PoolsError> {
        let attempt = || async {
            let volumes = pool.shared.call(|pool| async move { pool.opened() }).await?;
            let name = pool.shared.name().to_owned();
            match volumes.is_empty() {
                true => Ok(()),
                false => Err(PoolsError::InUse { name, volumes }),
            }
        };
        while_users_leave(attempt, |error| matches!(error, PoolsError::InUse { .. })).await
    }

    /// Closes all pools, and opens none from now on.
    ///
    /// # Errors
    ///
    /// The first pool that could not be exported; the others are.
    pub async fn close(&self) -> Result<(), PoolsError> {
        let mut changes = self.changes.lock().await;
        changes.closed = true;
        let pools = std::mem::take(&mut *self.open());
        let mut outcome = Ok(());
        for pool in pools.values() {
            self.drains.end(pool.shared.name()).await;
            if let Err(error) = close(pool).await {
                tracing::error!(%error, "a pool is left as after a crash");
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, OpenPool>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenPool {
    /// The URI of the device that is called so.
    pub(crate) fn uri_of(&self, id: Uuid) -> Option<&DeviceUri> {
        let at = self.ids.iter().position(|known| *known == id)?;
        self.uris.get(at)
    }

    /// Whether its devices are these, in any order.
    fn is_on(&self, uris: &[DeviceUri]) -> bool {
        self.uris.len() == uris.len() && uris.iter().all(|uri| self.uris.contains(uri))
    }
}

/// A device of a pool to which nothing is to be written: opened so that it cannot be, where its driver can.
fn without_writes(uri: &DeviceUri) -> DeviceUri {
    match uri.scheme() {
        "uring" => uri.or_parameter("readonly", "true"),
        _ => uri.clone(),
    }
}

/// What a drive is called in metrics: its URI, without what it was opened with.
fn drive_name(uri: &DeviceUri) -> String {
    let text = uri.to_string();
    text.split('?').next().unwrap_or_default().to_owned()
}

/// Leaves a pool in good order, whoever still has volumes of it open.
async fn close(pool: &OpenPool) -> Result<(), PoolsError> {
    let name = pool.shared.name();
    let exported = pool.shared.call(|pool| async move { pool.export().await });
    exported.await?.map_err(|source| PoolsError::Export {
        name: name.to_owned(),
        source: source.into(),
    })?;
    tracing::info!(pool = name, "pool exported");
    Ok(())
}

/// A queue to each device, on the current reactor.
async fn attach(devices: Vec<Arc<dyn Device>>) -> Result<Vec<Rc<dyn BlockDevice>>, PoolError> {
    let mut attached = Vec::new();
    for device in devices {
        attached.push(device.attach().await?);
    }
    Ok(attached)
}

/// What the labels of devices call them; nothing for one that has none any more.
async fn ids_of(devices: Vec<Arc<dyn Device>>) -> Result<Vec<Uuid>, PoolError> {
    let mut ids = Vec::new();
    for device in attach(devices).await? {
        let label = Pool::label(device).await;
        ids.push(label.map_or(Uuid::nil(), |label| label.device));
    }
    Ok(ids)
}

fn parse(uris: &[String]) -> Result<Vec<DeviceUri>, PoolsError> {
    let parsed = uris.iter().map(|uri| DeviceUri::parse(uri));
    Ok(parsed.collect::<Result<_, _>>().map_err(OpenError::from)?)
}

/// What time it is, in seconds of Unix time.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// How a pool uses this machine.
fn options(settings: &PoolSettings) -> PoolOptions {
    PoolOptions {
        cache_bytes: usize::try_from(settings.cache.0).unwrap_or(usize::MAX),
        dirty_bytes: usize::try_from(settings.dirty.0).unwrap_or(usize::MAX),
        commit_interval: Duration::from_millis(settings.commit_interval_ms),
        scrub_interval: Duration::from_secs(settings.scrub_every_hours.saturating_mul(3600)),
        scrub_bytes_per_second: settings.scrub_rate.0,
        opened_seconds: unix_seconds(),
        ..PoolOptions::default()
    }
}

/// Tells what opening a pool found.
fn tell(pool: &OpenPool) {
    let report = &pool.report;
    tracing::info!(
        pool = pool.shared.name(),
        devices = pool.uris.len(),
        reactor = %pool.shared.owner().id(),
        in_order = report.was_exported,
        journal_blocks = report.journal_blocks,
        records = report.records,
        newer_blocks = report.newer_blocks,
        read_only = report.read_only,
        "pool open"
    );
    if report.unknown_features != 0 {
        tracing::warn!(
            pool = pool.shared.name(),
            features = format_args!("{:#x}", report.unknown_features),
            "the pool uses features that this engine does not know: it is open read-only"
        );
    }
    if !report.unreadable.is_empty() {
        tracing::error!(
            pool = pool.shared.name(),
            blocks = report.unreadable.len(),
            "blocks that were being overwritten when the pool was left cannot be read"
        );
    }
}
