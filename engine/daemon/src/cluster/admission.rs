//! Which hosts a volume admits, by which secrets they authenticate, and where else they are told to look.
//!
//! Invariants:
//! - Secrets are in the subsystem alone, which wipes them: not in what was told, which is reported.
//! - A host that has to authenticate is admitted only while its secrets are in the subsystem.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pollux_api::control::v1::{HostSecrets, TargetConfig, TargetHost};
use pollux_nvme::auth::{Credentials, Methods, Secret, SecretError};
use pollux_nvme::target::{Hosts, Subsystem, SubsystemError};

use super::record::RecordError;

/// Secrets of hosts, by the names of the hosts.
pub(super) type Secrets = BTreeMap<String, Credentials>;

/// Takes the secrets out of what is told.
///
/// # Errors
///
/// [`RecordError::Field`] for what is no secret, and for secrets without a name.
pub(super) fn take_secrets(told: &mut TargetConfig) -> Result<Secrets, RecordError> {
    let mut secrets = Secrets::new();
    for host in &mut told.hosts {
        let Some(given) = host.secrets.take() else {
            continue;
        };
        if host.secret_uid.is_empty() {
            return Err(RecordError::Field("the name of the secrets of a host"));
        }
        let read = read(&given).map_err(|_| RecordError::Field("a secret of a host"))?;
        secrets.insert(host.host_nqn.clone(), read);
    }
    Ok(secrets)
}

/// Where the other engines that show a volume listen.
///
/// # Errors
///
/// [`RecordError::Field`] for what is no address.
pub(super) fn elsewhere(told: &TargetConfig) -> Result<Vec<SocketAddr>, RecordError> {
    let addresses = told.other_paths.iter().map(|path| path.parse());
    let addresses: Result<_, std::net::AddrParseError> = addresses.collect();
    addresses.map_err(|_| RecordError::Field("the address of another path"))
}

fn read(given: &HostSecrets) -> Result<Credentials, SecretError> {
    let controller = match given.controller.as_str() {
        "" => None,
        controller => Some(Secret::parse(controller)?),
    };
    Ok(Credentials {
        host: Secret::parse(&given.host)?,
        controller,
        methods: Methods::default(),
    })
}

/// Admits these hosts to a subsystem, and no others. `known` are those that were admitted before. Takes those
/// out that cannot be admitted: their secrets are neither given nor known.
///
/// # Errors
///
/// [`SubsystemError`] for a name that is none: nobody is admitted then who was not before.
pub(super) fn admit(
    subsystem: &Subsystem,
    known: &[TargetHost],
    hosts: &mut Vec<TargetHost>,
    mut secrets: Secrets,
) -> Result<(), SubsystemError> {
    let is_known = |host: &TargetHost| {
        let mut known = known.iter();
        known.any(|known| known.host_nqn == host.host_nqn && known.secret_uid == host.secret_uid)
    };
    hosts.retain(|host| {
        let is_admitted =
            host.secret_uid.is_empty() || secrets.contains_key(&host.host_nqn) || is_known(host);
        if !is_admitted {
            let (host, subsystem) = (&host.host_nqn, subsystem.nqn());
            tracing::warn!(%subsystem, host, "not admitted: its secrets are not known here");
        }
        is_admitted
    });
    // Before they can connect.
    for host in hosts.iter() {
        match (host.secret_uid.is_empty(), secrets.remove(&host.host_nqn)) {
            (true, _) => subsystem.set_credentials(&host.host_nqn, None)?,
            (false, Some(credentials)) => subsystem.set_credentials(&host.host_nqn, Some(credentials))?,
            // Known from before.
            (false, None) => {}
        }
    }
    let read_only = hosts.iter().filter(|host| host.read_only);
    let read_only: Vec<String> = read_only.map(|host| host.host_nqn.clone()).collect();
    subsystem.set_read_only_hosts(&read_only)?;
    subsystem.set_hosts(&Hosts {
        allow_any: false,
        allowed: hosts.iter().map(|host| host.host_nqn.clone()).collect(),
    })?;
    for gone in known {
        if !hosts.iter().any(|host| host.host_nqn == gone.host_nqn) {
            subsystem.set_credentials(&gone.host_nqn, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
