//! The volumes that this engine serves, or shows to hosts as standbys.
//!
//! Each has a subsystem of its own, with one namespace whose identity is that of the volume. As a standby
//! its access state is inaccessible; as the target, once its mirror is open, optimized. It stays the same
//! subsystem and namespace through all changes of role, so that a host sees paths change and nothing else.
//!
//! Invariants:
//! - What is done to one volume is done one after the other ([`Turns`]), beside what is done to others: one
//!   that takes long to end holds up nobody else. Looking at volumes never waits for that.
//! - Access is optimized only while the mirror that is behind the namespace is open, as far as is known here.
//!   That nobody is served by a mirror of an older epoch is a matter of the mirror, not of the access state.
//! - A volume that is served in a later epoch than a command tells of is left alone by it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollux_api::control::v1::{ReplicaState, TargetConfig, TargetReplica, UnreadableReport};
use pollux_nvme::target::{
    ControllerIds, Hosts, NamespaceConfig, Subsystem, SubsystemConfig, SubsystemError, Target, TargetError,
};
use pollux_nvme::wire::log::AnaState;
use pollux_pool::shared::{Owned, OwnedDevice};
use pollux_reactor::{ReactorHandle, RemoteCallError, timeout};
use pollux_trace::{Origin, span};
use pollux_volume::membership::Membership;
use pollux_volume::mirror::{Mirror, MirrorOptions, OpenError};
use pollux_volume::qos::{Limits, Qos, Rate, Throttle};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::Instrument;
use uuid::Uuid;

use super::admission;
use super::pace::Beside;
use super::ports::Ports;
use super::record::{BLOCK_BYTES, RecordError, to_api, uuid};
use super::registry::Registry;
use super::reservations::{Reservations, Volume};
use super::store::ControlStore;
use super::switch::VolumeSwitch;
use super::wanted::Wanted;
use crate::engine::Engine;
use crate::replicas::REPLICAS_MAX;
use crate::turns::{Turn, Turns};

/// What the names of subsystems begin with; the UUID of the volume follows. The control plane tells hosts the
/// same.
const SUBSYSTEM_PREFIX: &str = "nqn.2026-11.io.pollux:volume:";

/// The one namespace of a subsystem.
const NAMESPACE_ID: u32 = 1;

/// Ways to a volume, each with identifiers of controllers of its own: one for each slot, and one for a target
/// without a replica.
const PATHS: u32 = 6;

/// How long commands under way may take to end when access ends.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a mirror may take to end in good order.
const WIND_DOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long all mirrors together may take to end when the engine stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Volumes to which something is done at a time: all that an engine may have replicas of, so that those that
/// take long to end do not hold up others.
const TURNS_AT_ONCE: u32 = REPLICAS_MAX as u32;

/// How often a mirror is asked whom it has given up.
const PACE_PERIOD: Duration = Duration::from_secs(10);

/// Largest size of a volume.
const SIZE_BYTES_MAX: u64 = 1 << 56;

/// Why a volume is not served or shown as it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// What was told makes no sense.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A later epoch is served.
    #[error("volume {volume} is served in epoch {served}, and this is of epoch {told}")]
    Older {
        /// The volume.
        volume: Uuid,
        /// The epoch in which it is served.
        served: u64,
        /// That of the command.
        told: u64,
    },
    /// The NVMe/TCP target refused.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its subsystem refused.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// The engine stops.
    #[error("the engine is stopping and takes no changes")]
    Stopping,
}

/// What targets are made with.
pub(super) struct Parts {
    /// Where it is measured what hosts use.
    pub(super) engine: Arc<Engine>,
    /// Where hosts connect.
    pub(super) target: Arc<Target>,
    /// How replicas are reached.
    pub(super) ports: Ports,
    /// The reactors, at least one.
    pub(super) reactors: Vec<ReactorHandle>,
    /// Who keeps the records.
    pub(super) registry: Registry,
    /// This node.
    pub(super) node: String,
    /// The times of mirrors.
    pub(super) options: MirrorOptions,
}

/// A volume that is shown.
struct Shown {
    volume: Uuid,
    path: u32,
    switch: Arc<VolumeSwitch>,
    throttle: Arc<Throttle>,
    subsystem: Arc<Subsystem>,
    reservations: Arc<Reservations>,
    state: Mutex<State>,
}

struct State {
    /// What the control plane told last.
    told: TargetConfig,
    role: Role,
}

/// What this engine is to a volume.
enum Role {
    /// One of those that show it.
    Standby,
    /// Its target soon; openings are counted, so that one that is not wanted any more is known.
    Opening(u64),
    /// Its target.
    Serving(Serving),
    /// Its target until what is under way has ended. To the control plane it is still the target, which opens
    /// the volume nowhere else meanwhile.
    Leaving(Serving),
}

/// A mirror that is open, or was until a moment ago.
#[derive(Clone)]
struct Serving {
    mirror: Arc<Owned<Mirror>>,
    device: Arc<OwnedDevice>,
    /// It is being made what it was told.
    settling: Arc<AtomicBool>,
    /// The replicas that the mirror knows how to reach: those that were told before it was opened, or when it
    /// was last made what it was told.
    known: Arc<Mutex<Vec<TargetReplica>>>,
    /// As the mirror told last.
    record: Arc<Mutex<Membership>>,
    /// What the mirror told last beside it.
    beside: Arc<Mutex<Beside>>,
}

impl Serving {
    /// On the reactor of the mirror.
    fn new(volume: Uuid, mirror: Mirror, known: Vec<TargetReplica>) -> Self {
        let record = Arc::new(Mutex::new(mirror.membership()));
        let beside = Arc::new(Mutex::new(Beside::of(&mirror)));
        let device = OwnedDevice::new(format!("mirror/{volume}"), Some(volume), mirror.device());
        Self {
            mirror: Owned::new(Rc::new(mirror)),
            device,
            settling: Arc::default(),
            known: Arc::new(Mutex::new(known)),
            record,
            beside,
        }
    }

    fn record(&self) -> Membership {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.clone()
    }

    fn known(&self) -> Vec<TargetReplica> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serving(&self) -> Option<Serving> {
        match &self.state().role {
            Role::Serving(serving) => Some(serving.clone()),
            Role::Standby | Role::Opening(_) | Role::Leaving(_) => None,
        }
    }

    /// Keeps the limits that were told, and shares the pool of its replica here, if it has one.
    fn limit(&self, targets: &Targets) {
        let device = targets.parts.ports.device_of(&self.state().told);
        let backends = targets.parts.engine.backends();
        let backend = device.and_then(|device| backends.of_device(&device));
        self.throttle.join(backend.as_ref());
        if let Err(error) = self.throttle.set(&limits(&self.state().told)) {
            tracing::warn!(volume = %self.volume, %error, "the limits stay as they were");
        }
    }

    /// Refuses what is of an older epoch than that which is served.
    fn check_epoch(&self, told: u64) -> Result<(), ServeError> {
        let served = self.serving().map_or(0, |serving| serving.record().epoch.0);
        match served > told {
            true => Err(ServeError::Older {
                volume: self.volume,
                served,
                told,
            }),
            false => Ok(()),
        }
    }

    /// As it is told to the control plane.
    fn report(&self) -> TargetConfig {
        let state = self.state();
        let mut config = state.told.clone();
        match &state.role {
            Role::Serving(serving) | Role::Leaving(serving) => {
                let record = to_api(&serving.record());
                config.standby = false;
                // What is told is what holds: limits that cannot be kept are told again.
                if self.throttle.qos() != limits(&config) {
                    config.qos = None;
                }
                config.epoch = record.epoch;
                config.version = record.version;
                config.size_bytes = self.switch.size_bytes();
                let is_there = |uid: &String| record.snapshots.iter().any(|entry| entry.uid == *uid);
                config.snapshot_uids.retain(is_there);
                for entry in record.snapshots {
                    if !config.snapshot_uids.contains(&entry.uid) {
                        config.snapshot_uids.push(entry.uid);
                    }
                }
                config.min_in_sync = record.min_in_sync;
                // Those that were told while it was opened, or settled, are told again.
                config.replicas = serving.known();
                for replica in &mut config.replicas {
                    let mut members = record.members.iter();
                    let member = members.find(|member| member.uid == replica.uid);
                    let state = member.map(pollux_api::control::v1::Member::state);
                    replica.in_sync = state == Some(ReplicaState::InSync);
                }
                config
            }
            Role::Standby | Role::Opening(_) => TargetConfig {
                volume_uid: config.volume_uid,
                volume: config.volume,
                epoch: config.epoch,
                size_bytes: config.size_bytes,
                hosts: config.hosts,
                other_paths: config.other_paths,
                path: config.path,
                standby: true,
                ..TargetConfig::default()
            },
        }
    }
}

/// See the module.
pub(super) struct Targets {
    parts: Parts,
    shown: Mutex<BTreeMap<Uuid, Arc<Shown>>>,
    /// Taken by whoever changes a volume, by its UUID.
    turns: Turns,
    /// How many times a volume was begun to be opened.
    openings: AtomicU64,
    /// The cluster has another lease than this engine: its targets would not wait long enough for each other.
    lease_differs: AtomicBool,
    /// Told when a report would say something else.
    changed: Arc<Notify>,
}

impl Targets {
    /// No volumes yet. `changed` is told when a report would say something else.
    pub(super) fn new(parts: Parts, changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            parts,
            shown: Mutex::default(),
            turns: Turns::new(TURNS_AT_ONCE),
            openings: AtomicU64::new(0),
            lease_differs: AtomicBool::new(false),
            changed,
        })
    }

    /// The cluster has this lease. With another one than the engine's no volume is opened.
    pub(super) fn check_lease(&self, lease: Duration) {
        let differs = lease != self.parts.options.lease;
        if self.lease_differs.swap(differs, Ordering::AcqRel) != differs && differs {
            let own = self.parts.options.lease;
            tracing::error!(
                ?lease,
                ?own,
                "the cluster has another lease: this engine opens no volume"
            );
        }
    }

    /// All volumes, as they are told to the control plane.
    pub(super) fn report(&self) -> Vec<TargetConfig> {
        self.shown().values().map(|shown| shown.report()).collect()
    }

    /// The replicas that mirrors here have given up as slow, and what they cannot read.
    pub(super) fn beside(&self) -> (Vec<String>, Vec<UnreadableReport>) {
        let shown: Vec<_> = self.shown().values().cloned().collect();
        let (mut given_up, mut unreadable) = (Vec::new(), Vec::new());
        for (volume, serving) in shown
            .iter()
            .filter_map(|shown| Some((shown.volume, shown.serving()?)))
        {
            let beside = serving.beside.lock().unwrap_or_else(PoisonError::into_inner);
            given_up.extend(beside.given_up.iter().map(Uuid::to_string));
            unreadable.extend(beside.unreadable(volume));
        }
        (given_up, unreadable)
    }

    /// The mirror of a volume that is served here.
    pub(super) fn mirror(&self, volume: Uuid) -> Option<Arc<Owned<Mirror>>> {
        let shown = self.shown().get(&volume).cloned()?;
        Some(shown.serving()?.mirror)
    }

    /// Serves or shows a volume as it is told. Opening it goes on in the background: reports show when it is
    /// served.
    ///
    /// # Errors
    ///
    /// [`ServeError`]; nothing has changed then, but that hosts may see the volume as a standby.
    pub(super) async fn ensure(self: &Arc<Self>, mut told: TargetConfig) -> Result<(), ServeError> {
        let volume = uuid(&told.volume_uid)?;
        check(&told)?;
        let secrets = admission::take_secrets(&mut told)?;
        let elsewhere = admission::elsewhere(&told)?;
        let turn = self.turn(volume).await.ok_or(ServeError::Stopping)?;
        let found = self.shown().get(&volume).cloned();
        if let Some(found) = &found {
            found.check_epoch(told.epoch)?;
        }
        let shown = match found {
            Some(shown) if shown.path == told.path => shown,
            Some(shown) => {
                self.take_down(&shown).await;
                self.put_up(volume, &told)?
            }
            None => self.put_up(volume, &told)?,
        };
        let known = shown.state().told.hosts.clone();
        admission::admit(&shown.subsystem, &known, &mut told.hosts, secrets)?;
        shown.subsystem.set_elsewhere(elsewhere);
        let serving = shown.serving();
        shown.state().told = told.clone();
        if serving.is_some() && !told.standby {
            shown.limit(self);
        }
        match serving {
            Some(_) if told.standby => self.step_down(&shown).await,
            Some(serving) if serving.record().epoch.0 == told.epoch => {
                if serving.known() != told.replicas || shown.report() != told {
                    self.settle(&shown, &serving, told)?;
                }
            }
            // Somebody else has opened it since.
            Some(_) => {
                self.step_down(&shown).await;
                self.begin(&shown);
            }
            None if told.standby => {
                shown.state().role = Role::Standby;
                shown.switch.resize(told.size_bytes);
            }
            None => {
                let is_opening = matches!(shown.state().role, Role::Opening(_));
                if !is_opening {
                    self.begin(&shown);
                }
            }
        }
        drop(turn);
        self.changed.notify_one();
        Ok(())
    }

    /// Neither serves nor shows a volume any more, unless it is served in a later epoch.
    ///
    /// # Errors
    ///
    /// [`ServeError::Record`], or [`ServeError::Stopping`].
    pub(super) async fn remove(&self, volume: &str, epoch: u64) -> Result<(), ServeError> {
        let volume = uuid(volume)?;
        let _turn = self.turn(volume).await.ok_or(ServeError::Stopping)?;
        let found = self.shown().get(&volume).cloned();
        if let Some(shown) = found
            && shown.check_epoch(epoch).is_ok()
        {
            self.take_down(&shown).await;
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Takes no more changes, and ends all mirrors, side by side: those that cannot end in good order in time
    /// end without. Hosts go to other paths, if there are any.
    pub(super) async fn close(self: &Arc<Self>) {
        // From here on nobody else changes anything.
        self.turns.close().await;
        let all: Vec<Arc<Shown>> = self.shown().values().cloned().collect();
        let mut ending = JoinSet::new();
        for shown in all {
            let targets = self.clone();
            ending.spawn(async move { targets.take_down(&shown).await });
        }
        let ended = async { while ending.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::warn!("some volumes are not closed in good order: the next targets make that good");
        }
    }

    /// Waits until nobody else does something to a volume; `None` once all are closed.
    async fn turn(&self, volume: Uuid) -> Option<Turn<'_>> {
        self.turns.take(&volume.to_string()).await
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Shown>>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a volume to hosts, as a standby for now.
    fn put_up(&self, volume: Uuid, told: &TargetConfig) -> Result<Arc<Shown>, ServeError> {
        let switch = VolumeSwitch::new(volume, told.size_bytes);
        let ids = u32::from(ControllerIds::MAX) / PATHS;
        let first = 1 + told.path * ids;
        let id = |id: u32| u16::try_from(id).unwrap_or(ControllerIds::MAX);
        let config = SubsystemConfig {
            // Nobody, until it is known by what they authenticate.
            hosts: Hosts {
                allow_any: false,
                allowed: Vec::new(),
            },
            asymmetric_access: true,
            controller_ids: ControllerIds {
                first: id(first),
                last: id(first + ids - 1),
            },
            ..SubsystemConfig::new(&format!("{SUBSYSTEM_PREFIX}{volume}"))
        };
        let reservations = Reservations::new(Volume {
            registry: self.parts.registry.clone(),
            runtime: tokio::runtime::Handle::current(),
            node: self.parts.node.clone(),
            name: told.volume.clone(),
            uuid: volume,
        });
        let target = &self.parts.target;
        let subsystem = target.add_subsystem_with_store(&config, reservations.clone())?;
        let namespace = NamespaceConfig {
            id: Some(NAMESPACE_ID),
            uuid: Some(volume),
            access: Some(AnaState::Inaccessible),
            ..NamespaceConfig::default()
        };
        let meters = self.parts.engine.meters();
        let (measured, throttle) = meters.wrap_volume(&told.volume, switch.clone());
        if let Err(error) = subsystem.add_namespace(measured, &namespace) {
            // Nobody has seen it.
            let _ = self.parts.target.remove_subsystem(subsystem.nqn().as_str());
            return Err(error.into());
        }
        let shown = Arc::new(Shown {
            volume,
            path: told.path,
            switch,
            throttle,
            subsystem,
            reservations,
            state: Mutex::new(State {
                told: TargetConfig {
                    hosts: Vec::new(),
                    ..told.clone()
                },
                role: Role::Standby,
            }),
        });
        self.shown().insert(volume, shown.clone());
        Ok(shown)
    }

    /// Takes a volume from hosts.
    async fn take_down(&self, shown: &Arc<Shown>) {
        self.step_down(shown).await;
        let nqn = shown.subsystem.nqn().clone();
        if let Err(error) = self.parts.target.remove_subsystem(nqn.as_str()) {
            tracing::debug!(subsystem = %nqn, %error, "a subsystem was gone already");
        }
        self.shown().remove(&shown.volume);
    }

    /// Ends being the target, or being on the way to it.
    async fn step_down(&self, shown: &Arc<Shown>) {
        let serving = {
            let mut state = shown.state();
            let Role::Serving(serving) = std::mem::replace(&mut state.role, Role::Standby) else {
                return;
            };
            state.role = Role::Leaving(serving.clone());
            serving
        };
        if let Err(error) = shown.subsystem.set_access(NAMESPACE_ID, AnaState::Inaccessible) {
            tracing::error!(volume = %shown.volume, %error, "hosts cannot be told");
        }
        // What is held has to be done, or refused, before the next target serves.
        shown.throttle.lift();
        let subsystem = shown.subsystem.clone();
        let ended = serving.mirror.call(move |mirror| async move {
            // What is under way ends if it can soon; with the mirror, it ends in any case.
            let quiesced = subsystem.quiesce(NAMESPACE_ID, QUIESCE_TIMEOUT).await;
            // The next target has nothing to make good then.
            let wound_down = timeout(WIND_DOWN_TIMEOUT, mirror.wind_down()).await;
            mirror.close();
            if !matches!(wound_down, Ok(Ok(()))) {
                tracing::debug!("a mirror ends with intents left");
            }
            quiesced
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(volume = %shown.volume, %error, "commands are cut off"),
            Err(error) => tracing::error!(volume = %shown.volume, %error, "the mirror cannot be closed"),
        }
        // Nothing is never refused.
        let _ = shown.switch.connect(None);
        shown.state().role = Role::Standby;
        tracing::info!(volume = %shown.volume, "serves the volume no more");
    }

    /// Has a mirror that serves become what it was told: its replicas, its size, its snapshots. What it is
    /// told meanwhile is told again, as reports do not show it.
    fn settle(&self, shown: &Shown, serving: &Serving, told: TargetConfig) -> Result<(), ServeError> {
        let routes = self.parts.ports.routes(&told)?;
        let wanted = Wanted::read(&told)?;
        if serving.settling.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (mirror, settling) = (serving.mirror.clone(), serving.settling.clone());
        let (volume, changed) = (shown.volume, self.changed.clone());
        let known = serving.known.clone();
        tokio::spawn(async move {
            let settled = mirror.call(move |mirror| async move {
                put(&known, told.replicas);
                wanted.settle(&mirror, &routes).await
            });
            match settled.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%volume, %error, "the volume is not yet as it is to be"),
                Err(error) => tracing::error!(%volume, %error, "a mirror cannot be told what is to be"),
            }
            settling.store(false, Ordering::Release);
            changed.notify_one();
        });
        Ok(())
    }

    /// Begins to open a volume.
    fn begin(self: &Arc<Self>, shown: &Arc<Shown>) {
        let opening = self.openings.fetch_add(1, Ordering::Relaxed);
        shown.state().role = Role::Opening(opening);
        let (targets, shown) = (self.clone(), shown.clone());
        // It goes on after whoever wants it was answered.
        let span = span!(parent: None, "open", volume_uid = %shown.volume);
        if let Some(origin) = Origin::current() {
            origin.adopt(&span);
        }
        tokio::spawn(async move { targets.open(shown, opening).await }.instrument(span));
    }

    async fn open(self: Arc<Self>, shown: Arc<Shown>, opening: u64) {
        let opened = self.open_mirror(&shown).await;
        let turn = self.turn(shown.volume).await;
        let is_wanted = turn.is_some() && matches!(shown.state().role, Role::Opening(now) if now == opening);
        match opened {
            Ok(serving) if is_wanted => match shown.switch.connect(Some(serving.device.clone())) {
                Ok(()) => {
                    shown.limit(&self);
                    shown.state().role = Role::Serving(serving.clone());
                    let volume = shown.state().told.volume.clone();
                    self.parts.engine.mirrors().insert(&volume, &serving.mirror);
                    if let Err(error) = shown.subsystem.set_access(NAMESPACE_ID, AnaState::Optimized) {
                        tracing::error!(volume = %shown.volume, %error, "hosts cannot be told");
                    }
                    let epoch = serving.record().epoch.0;
                    tracing::info!(volume = %shown.volume, epoch, "serves the volume");
                    self.clone().watch(shown, serving);
                }
                Err(error) => {
                    tracing::error!(
                        volume = %shown.volume, %error,
                        "its replicas are on devices that cannot do what hosts are told"
                    );
                    shown.state().role = Role::Standby;
                    end(&serving).await;
                }
            },
            Ok(serving) => end(&serving).await,
            Err(error) if is_wanted => {
                tracing::warn!(volume = %shown.volume, %error, "the volume is not open");
                shown.state().role = Role::Standby;
            }
            Err(error) => {
                tracing::debug!(volume = %shown.volume, %error, "not open, and not wanted any more")
            }
        }
        drop(turn);
        self.changed.notify_one();
    }

    /// Opens the mirror on the reactor that has the replica of this engine, so that its requests stay there.
    async fn open_mirror(&self, shown: &Shown) -> Result<Serving, OpeningError> {
        if self.lease_differs.load(Ordering::Acquire) {
            return Err(OpeningError::Lease);
        }
        let told = shown.state().told.clone();
        let routes = self.parts.ports.routes(&told)?;
        let reactor = self.parts.ports.reactor_of(&routes);
        let reactor = reactor.or_else(|| {
            let place = shown.volume.as_u128() % self.parts.reactors.len().max(1) as u128;
            self.parts.reactors.get(place as usize).cloned()
        });
        let reactor = reactor.ok_or(OpeningError::NoReactor)?;
        let store = ControlStore {
            registry: self.parts.registry.clone(),
            runtime: tokio::runtime::Handle::current(),
            node: self.parts.node.clone(),
            volume: told.volume.clone(),
            origin: Origin::current(),
        };
        let (options, volume) = (self.parts.options.clone(), shown.volume);
        let opened = reactor.call(move || async move {
            let ports = Ports::open(&routes);
            let mirror = Mirror::open(options, Rc::new(store), volume, &ports).await?;
            Ok::<_, OpeningError>(Serving::new(volume, mirror, told.replicas))
        });
        let serving = opened.await??;
        match self.adopt_reservations(shown, &serving).await {
            Ok(()) => Ok(serving),
            Err(error) => {
                end(&serving).await;
                Err(error)
            }
        }
    }

    /// Knows from now on which hosts are kept out, and which have not heard that caches were lost.
    async fn adopt_reservations(&self, shown: &Shown, serving: &Serving) -> Result<(), OpeningError> {
        let opened = serving.record();
        let record = shown.reservations.begin(opened.epoch.0).await?;
        let caches_lost = opened.caches_lost.map(|epoch| epoch.0);
        let adopted = shown
            .subsystem
            .adopt_reservations(NAMESPACE_ID, record.as_deref(), caches_lost);
        Ok(adopted.await?)
    }

    /// Follows a mirror until it has stopped, and then steps down.
    fn watch(self: Arc<Self>, shown: Arc<Shown>, serving: Serving) {
        tokio::spawn(async move {
            let (record, changed) = (serving.record.clone(), self.changed.clone());
            let (device, switch) = (serving.device.clone(), shown.switch.clone());
            let beside = serving.beside.clone();
            let watched = serving.mirror.call(move |mirror| async move {
                loop {
                    let newest = mirror.membership();
                    let version = newest.version;
                    device.resized(newest.size_blocks);
                    switch.resize(newest.size_bytes());
                    // With thousands of volumes one of them is looked at all the time: nobody is told what
                    // was told before.
                    if put(&record, newest) | put(&beside, Beside::of(&mirror)) {
                        changed.notify_one();
                    }
                    if let Some(reason) = mirror.stopped() {
                        return reason;
                    }
                    // Who is given up is no part of the record, nor what cannot be read.
                    let _ = timeout(PACE_PERIOD, mirror.changed_since(version)).await;
                }
            });
            match watched.await {
                Ok(reason) => tracing::info!(volume = %shown.volume, ?reason, "the mirror has stopped"),
                Err(error) => tracing::error!(volume = %shown.volume, %error, "the mirror is lost"),
            }
            // Whoever closes all ends this one too.
            let Some(turn) = self.turn(shown.volume).await else {
                return;
            };
            let is_current = shown
                .serving()
                .is_some_and(|current| Arc::ptr_eq(&current.mirror, &serving.mirror));
            if is_current {
                self.step_down(&shown).await;
            }
            drop(turn);
            self.changed.notify_one();
        });
    }
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpeningError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Reactor(#[from] RemoteCallError),
    #[error("the reservations of its hosts cannot be had: {0}")]
    Reservations(#[from] tonic::Status),
    #[error(transparent)]
    Adopt(#[from] SubsystemError),
    #[error("the engine has no reactor")]
    NoReactor,
    #[error("the cluster has another lease than this engine: use the same version everywhere")]
    Lease,
}

/// Puts a value into its place; whether it is another one than before.
fn put<T: PartialEq>(place: &Mutex<T>, value: T) -> bool {
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    let is_other = *place != value;
    *place = value;
    is_other
}

/// Ends a mirror that is not wanted.
async fn end(serving: &Serving) {
    let ended = serving.mirror.call(|mirror| async move { mirror.close() });
    if let Err(error) = ended.await {
        tracing::error!(%error, "a mirror cannot be closed");
    }
}

/// What hosts may ask.
fn limits(told: &TargetConfig) -> Qos {
    if let Some(qos) = &told.qos {
        return crate::grpc::qos::of_volume(qos);
    }
    // A control plane that knows totals only.
    Qos {
        total: Limits {
            operations: told.iops_max.map(Rate::new),
            bytes: told.bandwidth_bytes_max.map(Rate::new),
        },
        ..Qos::default()
    }
}

fn check(told: &TargetConfig) -> Result<(), RecordError> {
    if told.path >= PATHS {
        return Err(RecordError::Field("the path"));
    }
    let is_size = (1..=SIZE_BYTES_MAX).contains(&told.size_bytes)
        && told.size_bytes.is_multiple_of(u64::from(BLOCK_BYTES));
    match is_size {
        true => Ok(()),
        false => Err(RecordError::Field("the size")),
    }
}

#[cfg(test)]
mod tests;
