//! Snapshots: cut on every replica of the set while changes are held, and there once the record has them.
//!
//! Invariants:
//! - A cut is attempted once under its name. Until the record has it, nobody takes it for a snapshot;
//!   whatever an attempt left behind has a name that no record has, and is swept away.
//! - While a cut is attempted no replica joins the set, and none that is owed snapshots begins to take
//!   writes.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::IoError;
use pollux_reactor::{random_u64, timeout};
use uuid::Uuid;

use super::connection::clock;
use super::gate::Hold;
use super::keeper::{WithReplica, join};
use super::{Core, Mirror, StopReason};
use crate::members::Change;
use crate::membership::{SNAPSHOTS_MAX, SlotNumber, SlotSet, SnapshotEntry};
use crate::replica::{CommandError, ReplicaAnswer, ReplicaCommand};

/// After an attempt that failed replicas are swept once more: by then what was on its way to their hosts has
/// arrived, or never will.
const LATE: Duration = Duration::from_secs(30);

/// Why there is no snapshot, or a change of one was not made. Nothing is left of it but what is swept away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Changes of the volume are held by somebody else.
    #[error("changes of the volume are held already: try again")]
    Busy,
    /// The hold ended before.
    #[error("the hold ended before all was done: try again, or with more time")]
    Expired,
    /// The set changed meanwhile.
    #[error("the set of replicas changed meanwhile: try again")]
    SetChanged,
    /// A replica of the set did not do it.
    #[error("replica {replica}: {error}")]
    Replica {
        /// Which one.
        replica: Uuid,
        /// What it said.
        error: CommandError,
    },
    /// It goes back to a snapshot.
    #[error("the volume is going back to a snapshot: wait until it has")]
    RollingBack,
    /// There is no such snapshot.
    #[error("the volume has no snapshot {0}")]
    NotFound(Uuid),
    /// There are too many.
    #[error("the volume has {SNAPSHOTS_MAX} snapshots, and no more are possible: delete one")]
    TooMany,
    /// The volume is not served, or its data could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// A snapshot that is on all replicas of the set, and that nobody knows of. Swept away if it is dropped.
pub struct Cut {
    core: Rc<Core>,
    cut: Uuid,
    held_by: SlotSet,
    owed_to: SlotSet,
}

impl Cut {
    fn begin(core: &Rc<Core>) -> Self {
        let cut = Uuid::from_u128(u128::from(random_u64()) << 64 | u128::from(random_u64() | 1));
        core.cuts.borrow_mut().push(cut);
        core.members.borrow_mut().begin_cut();
        Self {
            core: core.clone(),
            cut,
            held_by: SlotSet::EMPTY,
            owed_to: SlotSet::EMPTY,
        }
    }

    /// What replicas know it by.
    pub fn name(&self) -> Uuid {
        self.cut
    }

    /// Makes it a snapshot: it is there from then on, whatever happens. One of this name that is there
    /// already stays as it is.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]. When this is not waited for to its end, the record tells whether there is the
    /// snapshot.
    pub async fn commit(self, id: Uuid) -> Result<(), SnapshotError> {
        let entry = SnapshotEntry {
            id,
            cut: self.cut,
            held_by: self.held_by,
            owed_to: self.owed_to,
        };
        {
            let members = self.core.members.borrow();
            let record = members.record();
            if record.snapshot(id).is_some() {
                return Ok(());
            }
            if record.snapshots.len() >= SNAPSHOTS_MAX {
                return Err(SnapshotError::TooMany);
            }
        }
        self.core.decide(Change::AddSnapshot(entry)).await?;
        let found = self.core.members.borrow().record().snapshot(id);
        found.map(drop).ok_or(SnapshotError::SetChanged)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.core.cuts.borrow_mut().retain(|cut| *cut != self.cut);
        self.core.members.borrow_mut().end_cut();
        if !self.core.members.borrow().knows_cut(self.cut) {
            self.core.sweep_again_at.set(Some(clock() + LATE));
        }
        self.core.want_sweep();
        self.core.wake();
    }
}

impl Hold {
    /// Cuts a snapshot on every replica of the set. It is of the moment at which this was asked for.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; then nothing came of it.
    pub async fn cut(&self) -> Result<Cut, SnapshotError> {
        let core = &self.core;
        // A roll-back that begins from here on waits for the hold to end.
        if core.rolling_back().is_some() {
            return Err(SnapshotError::RollingBack);
        }
        let mut cut = Cut::begin(core);
        let settled = || {
            let members = core.members.borrow();
            let required = members.required();
            members.live().contains_all(required).then_some(required)
        };
        let required = self.until(settled).await?;
        let session = |slot| Some((slot, core.connection(slot)?));
        let sessions: Option<Vec<_>> = required.iter().map(session).collect();
        let sessions = sessions.ok_or(SnapshotError::SetChanged)?;
        // What was acknowledged and not flushed is in the snapshot: it must not be lost from a cache either.
        timeout(self.left(), core.flush())
            .await
            .map_err(|_| SnapshotError::Expired)??;
        let command = ReplicaCommand::CutSnapshot { cut: cut.cut };
        for (slot, result) in core.command_all(required, command, self).await {
            match result {
                Ok(_) => cut.held_by.insert(slot),
                Err(error) => return Err(core.replica_error(slot, error)),
            }
        }
        // One that was lost in between, and is back, has cut what it has now: not what it was to have.
        let members = core.members.borrow();
        let is_same = sessions
            .iter()
            .all(|(slot, session)| core.is_current(*slot, session));
        if !is_same || !members.live().contains_all(required) {
            return Err(SnapshotError::SetChanged);
        }
        if !self.is_in_force() {
            return Err(SnapshotError::Expired);
        }
        if !cut.held_by.contains_all(members.required()) {
            return Err(SnapshotError::SetChanged);
        }
        cut.owed_to = members.without_writes();
        drop(members);
        Ok(cut)
    }
}

impl Mirror {
    /// Makes a snapshot of the volume as it is at some moment from now on. One of this name that is there
    /// already is no error.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; then there is none.
    pub async fn snapshot(&self, id: Uuid) -> Result<(), SnapshotError> {
        if self.core.members.borrow().record().snapshot(id).is_some() {
            return self.core.confirm_epoch().await;
        }
        let hold = self.hold(self.core.options.hold_limit).await?;
        let cut = hold.cut().await?;
        drop(hold);
        cut.commit(id).await
    }

    /// Deletes a snapshot. One that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::RollingBack`] when the volume goes back to it; [`SnapshotError::Io`] when the volume
    /// is not served any more, or the store does not answer.
    pub async fn delete_snapshot(&self, id: Uuid) -> Result<(), SnapshotError> {
        let is_there = {
            let members = self.core.members.borrow();
            members.record().snapshot(id).is_some() && !members.is_proposing()
        };
        self.core.decide(Change::RemoveSnapshot(id)).await?;
        if self.core.members.borrow().record().snapshot(id).is_some() {
            return Err(SnapshotError::RollingBack);
        }
        self.core.want_sweep();
        match is_there {
            // The store has just said so.
            true => Ok(()),
            false => self.core.confirm_epoch().await,
        }
    }
}

/// Makes snapshots of several volumes that are all of one moment: of each volume its name is given. All or
/// none, unless the store fails in between; what is in the records then can be deleted by name.
///
/// # Errors
///
/// [`SnapshotError`] of the first that failed.
pub async fn snapshot_together(volumes: &[(&Mirror, Uuid)]) -> Result<(), SnapshotError> {
    let mut holds = Vec::with_capacity(volumes.len());
    for (mirror, _) in volumes {
        holds.push(mirror.hold(mirror.core.options.hold_limit).await?);
    }
    // From here on all are held, and each hold has to last until its volume is cut.
    let mut cuts = Vec::with_capacity(volumes.len());
    for hold in &holds {
        cuts.push(hold.cut().await?);
    }
    drop(holds);
    for (cut, (_, id)) in cuts.into_iter().zip(volumes) {
        if let Err(error) = cut.commit(*id).await {
            for (mirror, id) in volumes {
                mirror.delete_snapshot(*id).await?;
            }
            return Err(error);
        }
    }
    Ok(())
}

impl Core {
    /// Asks the store whether this is the newest target: else what the record says is of no use.
    async fn confirm_epoch(&self) -> Result<(), SnapshotError> {
        let loaded = timeout(self.options.store_timeout, self.store.load(self.volume())).await;
        match loaded {
            Ok(Ok(current)) if current.epoch == self.epoch => Ok(()),
            Ok(Ok(_)) => {
                self.stop(StopReason::Superseded);
                Err(SnapshotError::Io(IoError::Fenced))
            }
            Ok(Err(_)) | Err(_) => Err(SnapshotError::Io(IoError::NotReady)),
        }
    }

    /// Has the record changed, and waits until it is or the change is moot.
    pub(super) async fn decide(&self, change: Change) -> Result<(), IoError> {
        self.check_serving()?;
        self.members.borrow_mut().want(change);
        self.changed.wake();
        self.changed
            .until(|| {
                let open = self.members.borrow().wants(&change);
                (!open || self.stopped().is_some()).then_some(())
            })
            .await;
        self.check_serving()
    }

    /// Has hosts do something with their replicas, side by side, while a hold lasts.
    async fn command_all(
        &self,
        slots: SlotSet,
        command: ReplicaCommand,
        hold: &Hold,
    ) -> Vec<(SlotNumber, Result<ReplicaAnswer, CommandError>)> {
        let mut asked: Vec<(SlotNumber, WithReplica<_>)> = Vec::new();
        for slot in slots.iter() {
            let port = self.port(slot);
            let (epoch, wait_max) = (self.epoch, hold.left());
            asked.push((
                slot,
                Box::pin(async move {
                    let port = port.ok_or(CommandError::Unreachable)?;
                    let answer = timeout(wait_max, port.command(epoch, command)).await;
                    answer.unwrap_or(Err(CommandError::Unreachable))
                }),
            ));
        }
        join(asked).await
    }

    /// Has the host of one replica do something.
    pub(super) async fn command(
        &self,
        slot: SlotNumber,
        command: ReplicaCommand,
    ) -> Result<ReplicaAnswer, CommandError> {
        let port = self.port(slot);
        let port = port.ok_or(CommandError::Unreachable)?;
        let answer = timeout(self.options.promise_timeout, port.command(self.epoch, command)).await;
        answer.unwrap_or(Err(CommandError::Unreachable))
    }

    /// What a host said to a command, for whoever wanted it done. Who knows a newer target ends this one.
    pub(super) fn replica_error(&self, slot: SlotNumber, error: CommandError) -> SnapshotError {
        if matches!(error, CommandError::Superseded(_)) {
            self.stop(StopReason::Superseded);
            return SnapshotError::Io(IoError::Fenced);
        }
        let entry = self.members.borrow().record().replica(slot);
        let replica = entry.map_or(Uuid::nil(), |entry| entry.id);
        SnapshotError::Replica { replica, error }
    }

    pub(super) fn want_sweep(&self) {
        self.sweep_wanted.set(true);
        self.changed.wake();
    }

    /// Whether a cut is, or may become, a snapshot.
    fn is_known(&self, cut: Uuid) -> bool {
        self.cuts.borrow().contains(&cut) || self.members.borrow().knows_cut(cut)
    }

    /// Deletes what is of no snapshot on a replica, and takes note of snapshots that it does not have.
    /// Whether all was done.
    pub(super) async fn sweep_replica(&self, slot: SlotNumber) -> bool {
        // As it was before the replica was asked: what comes meanwhile is on it.
        let record = self.members.borrow().record().clone();
        let cuts = match self.command(slot, ReplicaCommand::ListSnapshots).await {
            Ok(ReplicaAnswer::Snapshots(cuts)) => cuts,
            Err(CommandError::Unsupported) => Vec::new(),
            Ok(ReplicaAnswer::Done | ReplicaAnswer::BadBlocks(_)) => return false,
            Err(error) => {
                self.replica_error(slot, error);
                return false;
            }
        };
        let lost = record
            .snapshots
            .iter()
            .filter(|entry| entry.held_by.contains(slot));
        for entry in lost.filter(|entry| !cuts.contains(&entry.cut)) {
            let (volume, snapshot) = (record.volume, entry.id);
            tracing::error!(%volume, %snapshot, slot = slot.index(), "a snapshot is lost");
            self.members.borrow_mut().want(Change::Lost(slot, entry.cut));
            self.changed.wake();
        }
        let mut is_clean = true;
        for cut in cuts {
            if !self.is_known(cut) {
                is_clean &= self
                    .command(slot, ReplicaCommand::DeleteSnapshot { cut })
                    .await
                    .is_ok();
            }
        }
        is_clean
    }
}

/// Deletes what attempts and deleted snapshots left on replicas; runs as long as the target.
pub(super) async fn sweep(core: Rc<Core>) {
    loop {
        let due = core
            .changed
            .until(|| (core.sweep_wanted.get() || core.stopped().is_some()).then_some(()));
        match core.sweep_again_at.get() {
            None => due.await,
            Some(at) => {
                if timeout(at.saturating_since(clock()), due).await.is_err() {
                    core.sweep_again_at.set(None);
                }
            }
        }
        if core.stopped().is_some() {
            return;
        }
        core.sweep_wanted.set(false);
        let mut is_clean = true;
        let readable = core.members.borrow().readable();
        for slot in readable.iter() {
            is_clean &= core.sweep_replica(slot).await;
        }
        if !is_clean {
            pollux_reactor::sleep(core.options.rejoin_pause).await;
            core.sweep_wanted.set(true);
        }
    }
}
