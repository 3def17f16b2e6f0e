//! A replica on the reactor that has it, and the export of its newest session.
//!
//! Invariants:
//! - There is one export at most: that of the newest grant, if it was for a target on another engine.
//! - What is exported besides the session are snapshots, which are read only and do not change.
//! - Between a grant and its export nothing is waited for, so that exports follow on each other as grants do.
//! - The name of an export has a random number that was never told before: whoever had an older session
//!   cannot reach a newer one by its name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pollux_nvme::target::{Hosts, NamespaceConfig, Subsystem, SubsystemConfig, Target, TargetError};
use pollux_pool::shared::OwnedDevice;
use pollux_reactor::random_u64;
use pollux_volume::membership::{Epoch, Membership};
use pollux_volume::metadata::AreaError;
use pollux_volume::metadata::codec::Label;
use pollux_volume::replica::{
    CommandError, PromiseError, ReplicaAnswer, ReplicaCommand, ReplicaHost, ReplicaPort,
};
use uuid::Uuid;

use super::Nqn;

/// What the names of exports begin with; the UUID of the replica and a random number follow.
const NQN_PREFIX: &str = "nqn.2026-11.io.pollux:replica";

/// The namespace of an export.
pub(super) const NAMESPACE_ID: u32 = 1;

/// Who is to be served after a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admitted {
    /// A target on this engine.
    Local,
    /// A target on another engine, that connects by this name.
    Host(Nqn),
}

/// A promise that was given.
pub struct Given {
    /// The session, for targets on this engine.
    pub device: Arc<OwnedDevice>,
    /// The subsystem that has it, for a target on another engine.
    pub subsystem: Option<Nqn>,
    /// See `Granted`.
    pub instance: u64,
    /// See `Granted`.
    pub settled: Option<Epoch>,
    /// See `Granted`.
    pub flush_failures: u64,
    /// See `Granted`.
    pub quiet: Duration,
}

/// What is served of a replica.
struct Export {
    epoch: Epoch,
    subsystem: Arc<Subsystem>,
    /// The namespaces of snapshots, by their names.
    snapshots: BTreeMap<Uuid, u32>,
}

/// See the module.
pub(super) struct Hosted {
    host: ReplicaHost,
    target: Arc<Target>,
    export: RefCell<Option<Export>>,
    /// The newest session, as long as somebody has it.
    session: RefCell<Weak<OwnedDevice>>,
    /// How large it is now, for those on other threads.
    data_blocks: Arc<AtomicU64>,
}

impl Hosted {
    pub(super) fn new(host: ReplicaHost, target: Arc<Target>) -> Self {
        let data_blocks = Arc::new(AtomicU64::new(host.label().data_blocks));
        Self {
            host,
            target,
            export: RefCell::new(None),
            session: RefCell::default(),
            data_blocks,
        }
    }

    pub(super) fn promised(&self) -> Epoch {
        self.host.promised()
    }

    /// What it is now: it may have grown since it was opened.
    pub(super) fn label(&self) -> Label {
        self.host.label()
    }

    /// How many blocks of data it has, which changes as it grows; to be read by any thread.
    pub(super) fn data_blocks(&self) -> Arc<AtomicU64> {
        self.data_blocks.clone()
    }

    /// The copy of the record of who takes part; nothing if no target ever gave it one.
    pub(super) async fn record(&self) -> Result<Option<Membership>, AreaError> {
        self.host.record().await
    }

    /// Promises an epoch, and has the session served to who is admitted, and to nobody else any more.
    pub(super) async fn promise(
        self: Rc<Self>,
        epoch: Epoch,
        admitted: Admitted,
    ) -> Result<Given, PromiseError> {
        let granted = self.host.promise(epoch).await?;
        self.retract();
        let replica = self.host.label().replica;
        let device = OwnedDevice::new(format!("replica/{replica}"), Some(replica), granted.session);
        *self.session.borrow_mut() = Arc::downgrade(&device);
        let subsystem = match &admitted {
            Admitted::Local => None,
            Admitted::Host(host) => match self.export(epoch, &device, host) {
                Ok(name) => Some(name),
                Err(error) => {
                    tracing::error!(%replica, epoch = epoch.0, %error, "a session could not be exported");
                    return Err(PromiseError::Unreachable);
                }
            },
        };
        tracing::info!(%replica, epoch = epoch.0, ?admitted, "promised");
        Ok(Given {
            device,
            subsystem,
            instance: granted.instance,
            settled: granted.settled,
            flush_failures: granted.flush_failures,
            quiet: granted.quiet,
        })
    }

    fn export(&self, epoch: Epoch, device: &Arc<OwnedDevice>, host: &Nqn) -> Result<Nqn, TargetError> {
        let replica = self.host.label().replica;
        let token = u128::from(random_u64()) << 64 | u128::from(random_u64());
        let config = SubsystemConfig {
            hosts: Hosts {
                allow_any: false,
                allowed: vec![host.to_string()],
            },
            ..SubsystemConfig::new(&format!("{NQN_PREFIX}:{replica}:{token:032x}"))
        };
        let subsystem = self.target.add_subsystem(&config)?;
        let name = subsystem.nqn().clone();
        *self.export.borrow_mut() = Some(Export {
            epoch,
            subsystem: subsystem.clone(),
            snapshots: BTreeMap::new(),
        });
        let namespace = NamespaceConfig {
            id: Some(NAMESPACE_ID),
            ..NamespaceConfig::default()
        };
        if let Err(error) = subsystem.add_namespace(device.clone(), &namespace) {
            self.retract();
            return Err(error.into());
        }
        Ok(name)
    }

    /// Ends the export, if there is one, and the connections to it.
    fn retract(&self) {
        let export = self.export.borrow_mut().take();
        if let Some(export) = export
            && let Err(error) = self.target.remove_subsystem(export.subsystem.nqn().as_str())
        {
            // Only a target that is stopping has none.
            tracing::debug!(%error, "an export was gone already");
        }
    }

    /// See [`ReplicaPort::command`].
    pub(super) async fn command(
        self: Rc<Self>,
        epoch: Epoch,
        command: ReplicaCommand,
    ) -> Result<ReplicaAnswer, CommandError> {
        if let ReplicaCommand::DeleteSnapshot { cut } = command {
            self.retract_snapshot(epoch, cut);
        }
        let answer = self.host.command(epoch, command).await;
        // It may have become larger before something went wrong.
        let data_blocks = self.host.label().data_blocks;
        self.data_blocks.store(data_blocks, Ordering::Relaxed);
        let answer = answer?;
        if matches!(command, ReplicaCommand::Grow { .. }) {
            // Whoever has the session waits for it to show its new size.
            let session = self.session.borrow().upgrade();
            if let Some(session) = session {
                session.refresh_size();
            }
        }
        Ok(answer)
    }

    /// A snapshot, for a target on this engine.
    pub(super) async fn open_snapshot(
        self: Rc<Self>,
        epoch: Epoch,
        cut: Uuid,
    ) -> Result<Arc<OwnedDevice>, CommandError> {
        let snapshot = self.host.open_snapshot(epoch, cut).await?;
        let replica = self.host.label().replica;
        Ok(OwnedDevice::new(
            format!("replica/{replica}@{cut}"),
            Some(cut),
            snapshot,
        ))
    }

    /// A snapshot as a namespace of the export, for the target that has the session: subsystem and
    /// namespace.
    pub(super) async fn export_snapshot(
        self: Rc<Self>,
        epoch: Epoch,
        cut: Uuid,
    ) -> Result<(Nqn, u32), CommandError> {
        let device = self.clone().open_snapshot(epoch, cut).await?;
        let mut export = self.export.borrow_mut();
        // There may have been another promise meanwhile.
        let export = export.as_mut().filter(|export| export.epoch == epoch);
        let export = export.ok_or(CommandError::NoSession)?;
        let name = export.subsystem.nqn().clone();
        if let Some(&id) = export.snapshots.get(&cut) {
            return Ok((name, id));
        }
        let added = export
            .subsystem
            .add_namespace(device, &NamespaceConfig::default());
        let id = added.map_err(|error| CommandError::Failed(error.to_string()))?;
        export.snapshots.insert(cut, id);
        Ok((name, id))
    }

    /// Exports a snapshot no more: what is exported is in use, and cannot be deleted.
    fn retract_snapshot(&self, epoch: Epoch, cut: Uuid) {
        let mut export = self.export.borrow_mut();
        let export = export.as_mut().filter(|export| export.epoch == epoch);
        if let Some(export) = export
            && let Some(id) = export.snapshots.remove(&cut)
            && let Err(error) = export.subsystem.remove_namespace(id)
        {
            tracing::debug!(%cut, %error, "a snapshot was not exported any more");
        }
    }

    /// Ends whoever is served, and serves nobody any more.
    pub(super) async fn close(&self) {
        self.host.close().await;
        self.retract();
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.retract();
    }
}
