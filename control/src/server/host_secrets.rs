//! The secrets that hosts of volumes authenticate by: kept apart from the volumes, and told to nobody but
//! engines.
//!
//! Invariants:
//! - A volume names secrets if and only if they are stored: both change in one transaction.
//! - Secrets that were stored do not change: others get another name. So an engine that tells the name tells
//!   which it has.

use pollux_api::control::v1::{HostSecrets, Metadata, StoredHostSecrets, Volume, engine_command::Command};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::model::{FieldError, Guarded, Kind, Record};
use crate::store::{Store, StoreError, Transaction, Write};

use super::Services;
use super::errors::CallError;
use super::records::{ATTEMPTS_MAX, contended};

/// Checks secrets that a call gives.
pub(super) fn check(secrets: Option<&HostSecrets>) -> Result<(), CallError> {
    let problems = secrets.map(HostSecrets::problems).unwrap_or_default();
    if problems.is_empty() {
        return Ok(());
    }
    let errors = problems.into_iter().map(|(field, why)| FieldError {
        field: format!("secrets.{field}"),
        description: why.to_owned(),
    });
    Err(CallError::Fields(errors.collect()))
}

fn is_same(left: &HostSecrets, right: &HostSecrets) -> bool {
    let host = left.host.as_bytes().ct_eq(right.host.as_bytes());
    let controller = left.controller.as_bytes().ct_eq(right.controller.as_bytes());
    bool::from(host & controller)
}

/// Forgets the secrets that some hosts of a volume are to authenticate by no more.
fn forget(secret_uid: &str, transaction: &mut Transaction) {
    if !secret_uid.is_empty() {
        transaction.writes.push(Write::Delete {
            key: Kind::HostSecrets.key(secret_uid),
        });
    }
}

impl Services {
    /// Lets a host use a volume as `admit` says, by these secrets, or by those of before.
    pub(super) async fn admit(
        &self,
        name: &str,
        host_nqn: &str,
        secrets: Option<&HostSecrets>,
        admit: impl Fn(&mut Volume) -> Result<(), CallError>,
    ) -> Result<Volume, CallError> {
        for _ in 0..ATTEMPTS_MAX {
            let present = self.find::<Volume>(name).await?;
            let mut changed = present.clone();
            admit(&mut changed)?;
            let beside = self.put_secrets(&mut changed, host_nqn, secrets).await?;
            if let Some(done) = self.replace(&present, changed, beside).await? {
                return Ok(done);
            }
        }
        Err(contended::<Volume>(name))
    }

    /// Has a host of a volume authenticate by secrets, if they are given; what is to be written beside the
    /// volume.
    async fn put_secrets(
        &self,
        volume: &mut Volume,
        host_nqn: &str,
        given: Option<&HostSecrets>,
    ) -> Result<Transaction, CallError> {
        let mut beside = Transaction::default();
        let volume_uid = volume.meta().uid.clone();
        let hosts = volume.spec.iter_mut().flat_map(|spec| &mut spec.hosts);
        let Some(host) = hosts.into_iter().find(|host| host.host_nqn == host_nqn) else {
            return Ok(beside);
        };
        let stored = match host.secret_uid.as_str() {
            "" => None,
            uid => match self.find::<StoredHostSecrets>(uid).await {
                Ok(stored) => stored.secrets,
                Err(CallError::NotFound { .. }) if given.is_none() => {
                    let why = "are not stored any more: give them again";
                    return Err(CallError::field("secrets", why));
                }
                Err(CallError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        let Some(given) = given else { return Ok(beside) };
        if stored.is_some_and(|stored| is_same(&stored, given)) {
            return Ok(beside);
        }
        forget(&host.secret_uid, &mut beside);
        host.secret_uid = Uuid::new_v4().to_string();
        beside.put(&StoredHostSecrets {
            metadata: Some(Metadata {
                name: host.secret_uid.clone(),
                created_unix_us: self.parts.clock.now_unix_us(),
                ..Metadata::default()
            }),
            volume_uid,
            host_nqn: host_nqn.to_owned(),
            secrets: Some(given.clone()),
        });
        Ok(beside)
    }

    /// Lets the hosts that are meant use a volume no more, and forgets their secrets.
    pub(super) async fn refuse(
        &self,
        name: &str,
        is_meant: impl Fn(&str) -> bool,
    ) -> Result<Volume, CallError> {
        for _ in 0..ATTEMPTS_MAX {
            let present = self.find::<Volume>(name).await?;
            let mut changed = present.clone();
            let mut beside = Transaction::default();
            let spec = changed.spec.get_or_insert_default();
            for host in spec.hosts.extract_if(.., |host| is_meant(&host.host_nqn)) {
                forget(&host.secret_uid, &mut beside);
            }
            spec.sharing.retain(|host, _| !is_meant(host));
            if let Some(done) = self.replace(&present, changed, beside).await? {
                return Ok(done);
            }
        }
        Err(contended::<Volume>(name))
    }
}

/// Adds the secrets of hosts to what an engine is told. Those that are not there any more are left out.
///
/// # Errors
///
/// The store cannot be read.
pub(crate) async fn attach(store: &dyn Store, command: &mut Command) -> Result<(), StoreError> {
    let Command::EnsureTarget(config) = command else {
        return Ok(());
    };
    for host in &mut config.hosts {
        if host.secret_uid.is_empty() {
            continue;
        }
        let entry = store.get(&Kind::HostSecrets.key(&host.secret_uid)).await?;
        let stored = entry.as_ref().map(StoredHostSecrets::read).transpose()?;
        // Those of another volume or host are none of this one.
        let stored = stored
            .filter(|stored| stored.volume_uid == config.volume_uid && stored.host_nqn == host.host_nqn);
        host.secrets = stored.and_then(|stored| stored.secrets);
    }
    Ok(())
}
