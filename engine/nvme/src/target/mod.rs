//! The NVMe/TCP target: connections that move bytes, and queues that execute commands.
//!
//! The two meet in [`queue`]. [`connection`] knows PDUs and nothing of controllers; everything else here
//! knows controllers, namespaces and commands and nothing of PDUs:
//!
//! - A [`Target`] has [`Subsystem`]s, which have namespaces and hosts; it decides about Connect commands
//!   and places each connection on a reactor.
//! - `controller` is the state of one association, `admin` executes its admin commands, `io` those of I/O
//!   queues, `discovery` tells hosts what there is.

mod admin;
mod authentication;
mod config;
mod connect;
pub mod connection;
mod controller;
mod discovery;
mod io;
mod namespace;
mod placement;
pub mod queue;
mod refusal;
mod reservation;
mod subsystem;
mod sync;
mod turn;
mod watch;

#[cfg(test)]
mod tests;

pub use admin::tell_allocated;
pub use config::{
    ConfigError, ControllerIds, Hosts, NamespaceConfig, PortConfig, ReferralConfig, SubsystemConfig,
    TargetConfig,
};
pub use discovery::DirectoryError;
pub use placement::ReactorLoad;
pub use reservation::{FileReservationStore, ReservationStore, Saving, StoreError};
pub use subsystem::{Subsystem, SubsystemError};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pollux_reactor::{ReactorHandle, sleep};

use crate::wire::nqn::Nqn;
use discovery::Directory;
use placement::Placement;

/// Why a target could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A setting is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A subsystem's settings are no good.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// The name is taken, or is that of the discovery service.
    #[error("subsystem {0} exists: choose another name, or remove it first")]
    SubsystemExists(Nqn),
    /// There is no such subsystem.
    #[error("there is no subsystem {0:?}")]
    NoSubsystem(String),
    /// A port or referral could not be changed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Connections have nowhere to live.
    #[error("a target needs a reactor: give it one at least")]
    NoReactors,
}

/// Subsystems, and the hosts that use them. Shared by all threads.
pub struct Target {
    config: Arc<TargetConfig>,
    reactors: Vec<ReactorHandle>,
    placement: Arc<Placement>,
    directory: Arc<Directory>,
    store: Option<Arc<dyn ReservationStore>>,
}

impl Target {
    /// A target without subsystems, but with its discovery service, whose connections live on these reactors.
    ///
    /// # Errors
    ///
    /// [`TargetError::Config`], [`TargetError::NoReactors`].
    pub fn new(config: TargetConfig, reactors: Vec<ReactorHandle>) -> Result<Arc<Self>, TargetError> {
        Self::with_store(config, reactors, None)
    }

    /// The same, with a place where reservations are kept that persist through a loss of power. Without one
    /// hosts are told that none can.
    ///
    /// # Errors
    ///
    /// [`TargetError::Config`], [`TargetError::NoReactors`].
    pub fn with_store(
        config: TargetConfig,
        reactors: Vec<ReactorHandle>,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Arc<Self>, TargetError> {
        config.check()?;
        if reactors.is_empty() {
            return Err(TargetError::NoReactors);
        }
        let config = Arc::new(config);
        let directory = Directory::new();
        let discovery = SubsystemConfig::new(Nqn::discovery().as_str());
        let discovery = Subsystem::new(
            &discovery,
            config.clone(),
            reactors.clone(),
            Arc::downgrade(&directory),
            None,
        )?;
        directory.set_discovery(discovery);
        Ok(Arc::new(Self {
            config,
            placement: Placement::new(reactors.clone()),
            reactors,
            directory,
            store,
        }))
    }

    /// Its settings.
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// Adds a subsystem without namespaces.
    ///
    /// # Errors
    ///
    /// [`TargetError::SubsystemExists`], [`TargetError::Subsystem`].
    pub fn add_subsystem(&self, config: &SubsystemConfig) -> Result<Arc<Subsystem>, TargetError> {
        self.add(config, self.store.clone())
    }

    /// The same with a place of its own where reservations are kept.
    ///
    /// # Errors
    ///
    /// [`TargetError::SubsystemExists`], [`TargetError::Subsystem`].
    pub fn add_subsystem_with_store(
        &self,
        config: &SubsystemConfig,
        store: Arc<dyn ReservationStore>,
    ) -> Result<Arc<Subsystem>, TargetError> {
        self.add(config, Some(store))
    }

    fn add(
        &self,
        config: &SubsystemConfig,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Arc<Subsystem>, TargetError> {
        let subsystem = Subsystem::new(
            config,
            self.config.clone(),
            self.reactors.clone(),
            Arc::downgrade(&self.directory),
            store,
        )?;
        if !self.directory.add(subsystem.clone()) {
            return Err(TargetError::SubsystemExists(subsystem.nqn.clone()));
        }
        Ok(subsystem)
    }

    /// A subsystem by its name.
    pub fn subsystem(&self, nqn: &str) -> Option<Arc<Subsystem>> {
        self.directory
            .find(&nqn.parse().ok()?)
            .filter(|subsystem| !subsystem.nqn.is_discovery())
    }

    /// Every subsystem, by name.
    pub fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        self.directory.subsystems()
    }

    /// Removes a subsystem and disconnects its hosts.
    ///
    /// # Errors
    ///
    /// [`TargetError::NoSubsystem`].
    pub fn remove_subsystem(&self, nqn: &str) -> Result<(), TargetError> {
        let subsystem = nqn.parse().ok().and_then(|nqn| self.directory.take(&nqn));
        let subsystem = subsystem.ok_or_else(|| TargetError::NoSubsystem(nqn.to_owned()))?;
        subsystem.remove("the subsystem was removed");
        Ok(())
    }

    /// Makes a port known to hosts that ask the discovery service. Listening on it is up to the caller.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::PortExists`], [`DirectoryError::Full`].
    pub fn add_port(&self, port: PortConfig) -> Result<(), TargetError> {
        Ok(self.directory.add_port(port)?)
    }

    /// Tells hosts of a port no more.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::NoPort`].
    pub fn remove_port(&self, id: u16) -> Result<(), TargetError> {
        Ok(self.directory.remove_port(id)?)
    }

    /// Makes another discovery service known to hosts.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::Name`], [`DirectoryError::Full`].
    pub fn add_referral(&self, referral: &ReferralConfig) -> Result<(), TargetError> {
        Ok(self.directory.add_referral(referral)?)
    }

    /// Tells hosts of another discovery service no more.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::NoReferral`].
    pub fn remove_referral(&self, address: SocketAddr) -> Result<(), TargetError> {
        Ok(self.directory.remove_referral(address)?)
    }

    /// How many connections each reactor has, in the order in which they were given.
    pub fn loads(&self) -> Vec<ReactorLoad> {
        self.placement.loads()
    }

    /// Disconnects every host, admits no more, waits until nothing is at a device, and flushes every
    /// namespace. Returns whether every flush succeeded. To be called on a reactor. It takes as long as the
    /// devices do: a caller that cannot wait gives it a timeout.
    pub async fn shut_down(&self) -> bool {
        const REASON: &str = "the target shuts down";
        const PAUSE: Duration = Duration::from_millis(5);
        let subsystems = self.subsystems();
        let discovery = self.directory.find(&Nqn::discovery());
        for subsystem in subsystems.iter().chain(&discovery) {
            subsystem.close(REASON);
        }
        let mut flushed = true;
        for subsystem in &subsystems {
            while subsystem.queues() > 0 {
                sleep(PAUSE).await;
            }
            flushed &= io::flush_all(subsystem).await;
        }
        flushed
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Target")
            .field("loads", &self.loads())
            .finish_non_exhaustive()
    }
}
