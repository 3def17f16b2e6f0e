//! Which hosts may connect to a subsystem, changed live.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{State, Subsystem, SubsystemError};
use crate::auth::Credentials;
use crate::target::config::Hosts;
use crate::target::controller::Controller;
use crate::target::reservation::HostId;
use crate::target::sync::lock;
use crate::wire::nqn::Nqn;

/// Ports of other targets that hosts are told of.
const ELSEWHERE_MAX: usize = 64;

impl Subsystem {
    /// Sets which hosts may connect. Those connected that no longer may are disconnected.
    ///
    /// # Errors
    ///
    /// A name that is no NVMe Qualified Name; nothing changed then.
    pub fn set_hosts(&self, hosts: &Hosts) -> Result<(), SubsystemError> {
        let allowed = parse_names(&hosts.allowed)?;
        self.change_hosts(|state| {
            state.allow_any_host = hosts.allow_any;
            state.allowed_hosts = allowed;
        });
        Ok(())
    }

    /// Sets which hosts may not write: their writes are refused from now on, those under way end as they
    /// would have. It says nothing about which hosts may connect.
    ///
    /// # Errors
    ///
    /// A name that is no NVMe Qualified Name; nothing changed then.
    pub fn set_read_only_hosts(&self, hosts: &[String]) -> Result<(), SubsystemError> {
        let read_only = parse_names(hosts)?;
        let mut state = lock(&self.state);
        self.has_read_only_hosts
            .store(!read_only.is_empty(), Ordering::Relaxed);
        state.read_only_hosts = read_only;
        Ok(())
    }

    /// Whether a host that is connected may not write.
    #[inline]
    pub(crate) fn refuses_writes_of(&self, host: &HostId) -> bool {
        self.has_read_only_hosts.load(Ordering::Relaxed) && self.is_read_only_host(host)
    }

    #[cold]
    #[inline(never)]
    fn is_read_only_host(&self, host: &HostId) -> bool {
        let state = lock(&self.state);
        let mut controllers = state.controllers.values();
        controllers.any(|controller| {
            controller.host.id == *host && state.read_only_hosts.contains(&controller.host.nqn)
        })
    }

    /// Lets a host connect.
    ///
    /// # Errors
    ///
    /// The name is no NVMe Qualified Name.
    pub fn add_host(&self, host: &str) -> Result<(), SubsystemError> {
        let host = host.parse()?;
        self.change_hosts(|state| {
            state.allowed_hosts.insert(host);
        });
        Ok(())
    }

    /// Takes a host off the list. Unless any host may connect, its controllers end.
    ///
    /// # Errors
    ///
    /// The name is no NVMe Qualified Name.
    pub fn remove_host(&self, host: &str) -> Result<(), SubsystemError> {
        let host: Nqn = host.parse()?;
        self.change_hosts(|state| {
            state.allowed_hosts.remove(&host);
        });
        Ok(())
    }

    /// Which hosts may connect.
    pub fn hosts(&self) -> Hosts {
        let state = lock(&self.state);
        Hosts {
            allow_any: state.allow_any_host,
            allowed: state.allowed_hosts.iter().map(Nqn::to_string).collect(),
        }
    }

    fn change_hosts(&self, change: impl FnOnce(&mut State)) {
        let refused: Vec<_> = {
            let mut state = lock(&self.state);
            change(&mut state);
            let refused = |controller: &&Arc<Controller>| !state.allows(&controller.host.nqn);
            state.controllers.values().filter(refused).cloned().collect()
        };
        for controller in refused {
            controller.end("the host may no longer connect");
        }
        if let Some(directory) = self.directory.upgrade() {
            directory.changed();
        }
    }

    /// Sets where other targets listen that show the same subsystem to hosts: the discovery service tells of
    /// them as of its own ports. No more than 64 count.
    pub fn set_elsewhere(&self, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(ELSEWHERE_MAX);
        if std::mem::replace(&mut lock(&self.state).elsewhere, addresses.clone()) == addresses {
            return;
        }
        if let Some(directory) = self.directory.upgrade() {
            directory.changed();
        }
    }

    /// Where other targets listen that show the same subsystem.
    pub(crate) fn elsewhere(&self) -> Vec<SocketAddr> {
        lock(&self.state).elsewhere.clone()
    }

    /// Sets the secrets by which a host and this subsystem authenticate to each other, or none: then the host
    /// does not have to. Whoever is connected stays so, as it was admitted by what held then.
    ///
    /// # Errors
    ///
    /// The name is no NVMe Qualified Name.
    pub fn set_credentials(
        &self,
        host: &str,
        credentials: Option<Credentials>,
    ) -> Result<(), SubsystemError> {
        let host = host.parse()?;
        let mut state = lock(&self.state);
        match credentials {
            Some(credentials) => state.credentials.insert(host, Arc::new(credentials)),
            None => state.credentials.remove(&host),
        };
        Ok(())
    }

    /// The secrets of a host, if it has to authenticate.
    pub(crate) fn credentials(&self, host: &Nqn) -> Option<Arc<Credentials>> {
        lock(&self.state).credentials.get(host).cloned()
    }

    /// Whether a host may connect.
    pub(crate) fn allows(&self, host: &Nqn) -> bool {
        lock(&self.state).allows(host)
    }
}

impl State {
    fn allows(&self, host: &Nqn) -> bool {
        self.allow_any_host || self.allowed_hosts.contains(host)
    }
}

pub(super) fn parse_names(names: &[String]) -> Result<BTreeSet<Nqn>, SubsystemError> {
    names
        .iter()
        .map(|name| name.parse().map_err(SubsystemError::Name))
        .collect()
}
