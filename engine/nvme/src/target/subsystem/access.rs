//! How this engine reaches each namespace, of those that other engines serve too (asymmetric namespace
//! access, NVMe Base 2.0, 8.1.3). Hosts with several paths send their commands where access is best, and
//! follow when it moves.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pollux_device::IoError;

use super::{Subsystem, SubsystemError};
use crate::target::config::TargetConfig;
use crate::target::controller::EventKind;
use crate::target::io::{BlockRange, Exclusive};
use crate::target::sync::lock;
use crate::wire::log::{AnaLog, AnaState};
use crate::wire::nqn::Nqn;

impl Subsystem {
    /// Changes how this engine reaches a namespace, and tells the hosts. Commands that come from now on are
    /// refused if the state says so; for those that came before see [`Subsystem::quiesce`].
    ///
    /// # Errors
    ///
    /// [`SubsystemError::NoNamespace`], and [`SubsystemError::NoAccessStates`] for a subsystem without
    /// [`asymmetric_access`](crate::target::SubsystemConfig::asymmetric_access).
    pub fn set_access(&self, id: u32, access: AnaState) -> Result<(), SubsystemError> {
        self.check_reports_access()?;
        let changed = {
            let state = lock(&self.state);
            let served = state.namespaces.get(&id);
            let served = served.ok_or_else(|| SubsystemError::NoNamespace {
                id,
                nqn: self.nqn.clone(),
            })?;
            let changed = served.namespace.set_access(access);
            if changed {
                self.access_changes.fetch_add(1, Ordering::Relaxed);
            }
            changed
        };
        if changed {
            tracing::info!(subsystem = %self.nqn, namespace = id, ?access, "access changed");
            self.raise(EventKind::AccessState);
        }
        Ok(())
    }

    /// How this engine reaches a namespace.
    ///
    /// # Errors
    ///
    /// [`SubsystemError::NoNamespace`].
    pub fn access(&self, id: u32) -> Result<AnaState, SubsystemError> {
        let namespace = self.namespace(id).ok_or_else(|| SubsystemError::NoNamespace {
            id,
            nqn: self.nqn.clone(),
        })?;
        Ok(namespace.access())
    }

    /// Waits until every command that came before has left the device of a namespace. After
    /// [`Subsystem::set_access`] to a state without access, nothing is at the device from then on until
    /// access is given back. To be called on a reactor.
    ///
    /// # Errors
    ///
    /// [`IoError::Gone`] without such a namespace, [`IoError::ResourceShortage`] when it took longer than
    /// `wait_max`.
    pub async fn quiesce(&self, id: u32, wait_max: Duration) -> Result<(), IoError> {
        let namespace = self.namespace(id).ok_or(IoError::Gone)?;
        let exclusive = Exclusive::acquire(namespace, BlockRange::new(0, u64::MAX), wait_max).await?;
        drop(exclusive);
        Ok(())
    }

    /// The access log as it is now.
    pub(crate) fn access_log(&self) -> AnaLog {
        let state = lock(&self.state);
        AnaLog {
            change_count: self.access_changes.load(Ordering::Relaxed),
            groups: state
                .namespaces
                .values()
                .map(|served| served.namespace.access_group())
                .collect(),
        }
    }

    pub(super) fn check_reports_access(&self) -> Result<(), SubsystemError> {
        if self.asymmetric_access {
            return Ok(());
        }
        Err(SubsystemError::NoAccessStates {
            nqn: self.nqn.clone(),
        })
    }
}

/// Hosts read the whole of the log in one transfer, and do without it if they cannot.
pub(super) fn check_log_fits(nqn: &Nqn, config: &TargetConfig) -> Result<(), SubsystemError> {
    if AnaLog::bytes_max(config.namespaces_max) <= u64::from(config.transfer_bytes_max) {
        return Ok(());
    }
    Err(SubsystemError::AccessLog {
        nqn: nqn.clone(),
        namespaces_max: config.namespaces_max,
        transfer_bytes_max: config.transfer_bytes_max,
    })
}
