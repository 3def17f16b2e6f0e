//! What the discovery service tells: subsystems, the ports that lead to them, and referrals.
//!
//! Invariant: `generation` changes after every change of what any host could be told, and every discovery
//! controller whose host asked for it is told then.

mod log_page;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::config::{PortConfig, ReferralConfig};
use super::controller::EventKind;
use super::subsystem::Subsystem;
use super::sync::lock;
use crate::wire::nqn::Nqn;
pub(crate) use log_page::log_page;

/// Ports and referrals that a target can have.
pub(crate) const PORTS_MAX: usize = 256;
pub(crate) const REFERRALS_MAX: usize = 256;

/// Another discovery service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Referral {
    pub(crate) port_id: u16,
    pub(crate) address: SocketAddr,
    pub(crate) nqn: Nqn,
}

#[derive(Default)]
struct State {
    subsystems: BTreeMap<Nqn, Arc<Subsystem>>,
    ports: BTreeMap<u16, PortConfig>,
    referrals: Vec<Referral>,
}

/// Why a port or referral could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// The port exists.
    #[error("port {0} exists: choose another identifier")]
    PortExists(u16),
    /// There is no such port.
    #[error("there is no port {0}")]
    NoPort(u16),
    /// There is no such referral.
    #[error("there is no referral to {0}")]
    NoReferral(SocketAddr),
    /// The name of a referral is no NVMe Qualified Name.
    #[error("{0}")]
    Name(#[from] crate::wire::nqn::NqnError),
    /// There are too many.
    #[error("there are {0} already: remove one first")]
    Full(usize),
}

/// See the module.
pub(crate) struct Directory {
    generation: AtomicU64,
    discovery: OnceLock<Arc<Subsystem>>,
    state: Mutex<State>,
}

impl Directory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            generation: AtomicU64::new(1),
            discovery: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// Makes the discovery subsystem known. Once.
    pub(crate) fn set_discovery(&self, subsystem: Arc<Subsystem>) {
        let _ = self.discovery.set(subsystem);
    }

    /// A subsystem, or the discovery subsystem, by its name.
    pub(crate) fn find(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        if nqn.is_discovery() {
            return self.discovery.get().cloned();
        }
        lock(&self.state).subsystems.get(nqn).cloned()
    }

    /// Every subsystem but the discovery subsystem, by name.
    pub(crate) fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        lock(&self.state).subsystems.values().cloned().collect()
    }

    /// Adds a subsystem; says whether its name was free.
    pub(crate) fn add(&self, subsystem: Arc<Subsystem>) -> bool {
        {
            let mut state = lock(&self.state);
            if subsystem.nqn.is_discovery() || state.subsystems.contains_key(&subsystem.nqn) {
                return false;
            }
            state.subsystems.insert(subsystem.nqn.clone(), subsystem);
        }
        self.changed();
        true
    }

    /// Takes a subsystem out.
    pub(crate) fn take(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        let subsystem = lock(&self.state).subsystems.remove(nqn)?;
        self.changed();
        Some(subsystem)
    }

    pub(crate) fn add_port(&self, port: PortConfig) -> Result<(), DirectoryError> {
        {
            let mut state = lock(&self.state);
            if state.ports.contains_key(&port.id) {
                return Err(DirectoryError::PortExists(port.id));
            }
            if state.ports.len() >= PORTS_MAX {
                return Err(DirectoryError::Full(PORTS_MAX));
            }
            state.ports.insert(port.id, port);
        }
        self.changed();
        Ok(())
    }

    pub(crate) fn remove_port(&self, id: u16) -> Result<(), DirectoryError> {
        lock(&self.state)
            .ports
            .remove(&id)
            .ok_or(DirectoryError::NoPort(id))?;
        self.changed();
        Ok(())
    }

    pub(crate) fn add_referral(&self, config: &ReferralConfig) -> Result<(), DirectoryError> {
        let nqn = match &config.nqn {
            Some(nqn) => nqn.parse()?,
            None => Nqn::discovery(),
        };
        {
            let mut state = lock(&self.state);
            if state.referrals.len() >= REFERRALS_MAX {
                return Err(DirectoryError::Full(REFERRALS_MAX));
            }
            state.referrals.push(Referral {
                port_id: config.port_id,
                address: config.address,
                nqn,
            });
        }
        self.changed();
        Ok(())
    }

    pub(crate) fn remove_referral(&self, address: SocketAddr) -> Result<(), DirectoryError> {
        {
            let mut state = lock(&self.state);
            let before = state.referrals.len();
            state.referrals.retain(|referral| referral.address != address);
            if state.referrals.len() == before {
                return Err(DirectoryError::NoReferral(address));
            }
        }
        self.changed();
        Ok(())
    }

    /// Changes with the contents.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What hosts could be told has changed.
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(discovery) = self.discovery.get() {
            discovery.raise(EventKind::DiscoveryLog);
        }
    }

    /// The ports as a host that reached this target by an address is told of them.
    pub(crate) fn ports_for(&self, reached: Option<IpAddr>) -> Vec<(u16, SocketAddr)> {
        lock(&self.state)
            .ports
            .values()
            .map(|port| (port.id, port.address_for(reached)))
            .collect()
    }

    pub(crate) fn referrals(&self) -> Vec<Referral> {
        lock(&self.state).referrals.clone()
    }
}
