//! Keeping the record true: proposals to the store, copies on the replicas, and replicas of the set that are
//! back while there is none.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use pollux_reactor::{sleep, timeout};

use super::connection::{ConnectError, Connection, Verdict, clock};
use super::{Core, StopReason};
use crate::membership::{Membership, SlotNumber, SlotSet, StoreError};
use crate::metadata::AreaError;
use crate::replica::PromiseError;

/// Something that is done with one replica, off the data path.
pub(super) type WithReplica<T> = Pin<Box<dyn Future<Output = T>>>;

/// Waits for all, side by side.
pub(super) async fn join<T>(started: Vec<(SlotNumber, WithReplica<T>)>) -> Vec<(SlotNumber, T)> {
    let mut waiting: Vec<(SlotNumber, Option<WithReplica<T>>)> = started
        .into_iter()
        .map(|(slot, future)| (slot, Some(future)))
        .collect();
    let mut ended = Vec::with_capacity(waiting.len());
    poll_fn(|context| {
        for (slot, future) in &mut waiting {
            let Some(running) = future else { continue };
            if let Poll::Ready(output) = running.as_mut().poll(context) {
                ended.push((*slot, output));
                *future = None;
            }
        }
        match waiting.iter().all(|(_, future)| future.is_none()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    ended
}

/// Runs as long as the target.
pub(super) async fn keep(core: Rc<Core>) {
    // Since when another opening would do better.
    let mut vain_since = None;
    loop {
        core.changed
            .until(|| {
                let members = core.members.borrow();
                let due = members.stopped().is_some() || members.is_lost() || members.has_proposal();
                due.then_some(())
            })
            .await;
        if core.stopped().is_some() {
            return;
        }
        let is_lost = core.members.borrow().is_lost();
        vain_since = match is_lost && core.recover().await {
            true => vain_since.or_else(|| Some(clock())),
            false => None,
        };
        if vain_since.is_some_and(|since| clock().saturating_since(since) >= 2 * core.options.promise_timeout)
        {
            core.stop(StopReason::LastLost);
        }
        let next = core.members.borrow_mut().propose();
        if let Some(next) = next {
            core.propose(next).await;
        }
    }
}

impl Core {
    async fn propose(&self, next: Membership) {
        let swap = self.store.compare_and_swap(next.clone());
        let result = timeout(self.options.store_timeout, swap).await;
        match result.unwrap_or(Err(StoreError::Unavailable)) {
            Ok(()) => self.accept(next).await,
            Err(StoreError::Conflict(current)) => {
                let is_ours = self.members.borrow_mut().refused((*current).clone());
                match is_ours {
                    true => self.accept(*current).await,
                    false => self.wake(),
                }
            }
            Err(StoreError::Unavailable) => sleep(self.options.retry_pause).await,
            // So it is while a volume is deleted: its replicas may be gone before its target is told.
            Err(error @ StoreError::NoVolume(_)) => {
                tracing::warn!(volume = %next.volume, %error, "the volume is served no more");
                self.stop(StopReason::StoreRefused);
            }
            Err(error @ StoreError::Invalid(_)) => {
                tracing::error!(volume = %next.volume, %error, "the store refuses the record");
                self.stop(StopReason::StoreRefused);
            }
        }
    }

    /// The store has a proposal: it counts once the replicas of its set have a copy.
    async fn accept(&self, next: Membership) {
        let live = self.members.borrow().live();
        self.copy_record(&next, next.in_sync().and(live)).await;
        let joined = next.in_sync().without(self.members.borrow().record().in_sync());
        self.members.borrow_mut().accepted();
        self.take_size();
        self.count(|counters| counters.joins += joined.len() as u64);
        let in_sync = next.in_sync().len();
        tracing::info!(volume = %next.volume, version = next.version, in_sync, "the set changed");
        self.wake();
    }

    /// Puts copies of the record on replicas. One that does not take it has failed.
    pub(super) async fn copy_record(&self, record: &Membership, slots: SlotSet) {
        let mut copies: Vec<(SlotNumber, WithReplica<_>)> = Vec::new();
        for slot in slots.iter() {
            let Some(connection) = self.connection(slot) else {
                continue;
            };
            let (record, wait_max) = (record.clone(), self.options.request_timeout);
            copies.push((
                slot,
                Box::pin(async move {
                    let written = connection.in_time(wait_max, connection.area.write_record(&record));
                    let written = written.await;
                    (connection, written)
                }),
            ));
        }
        for (slot, (connection, result)) in join(copies).await {
            if let Err(error) = result {
                self.judge_area(slot, &connection, &error);
            }
        }
    }

    /// What an error of the reserved area of a replica means. The last replica cannot go on without.
    pub(super) fn judge_area(&self, slot: SlotNumber, connection: &Rc<Connection>, error: &AreaError) {
        let error = match error {
            AreaError::Io(error) => *error,
            AreaError::Missing(_) | AreaError::Codec(_) | AreaError::Layout(_) => {
                pollux_device::IoError::Internal
            }
        };
        match self.judge(slot, connection, error) {
            Verdict::Changed | Verdict::Again => {}
            Verdict::NoSpace | Verdict::Final(_) => {
                if self.fail(slot) == crate::members::Failed::Last {
                    self.stop(StopReason::CacheLost);
                }
            }
        }
    }

    /// Every replica of the set has lost its session: the first that is back, and has lost nothing else, will
    /// do. One that had failed before the last one did will not, as it lacks what was done since. But none of
    /// that was acknowledged, and so it will do for another opening: whether there is one, and none that will
    /// do here.
    async fn recover(&self) -> bool {
        let (record, lost) = {
            let members = self.members.borrow();
            (members.record().clone(), members.record().in_sync())
        };
        let mut attempts: Vec<(SlotNumber, WithReplica<_>)> = Vec::new();
        for slot in lost.iter() {
            let Some(port) = self.port(slot) else {
                continue;
            };
            let (record, wait_max) = (record.clone(), self.options.promise_timeout);
            attempts.push((
                slot,
                Box::pin(async move { Connection::establish(&port, &record, slot, wait_max).await }),
            ));
        }
        let mut restarted = SlotSet::EMPTY;
        let mut is_another_there = false;
        for (slot, result) in join(attempts).await {
            match result {
                Ok((connection, _))
                    if self
                        .connection(slot)
                        .is_some_and(|old| connection.continues(&old)) =>
                {
                    self.connect(slot, Some(Rc::new(connection)));
                    self.members.borrow_mut().recover(slot);
                    self.wake();
                    if !self.members.borrow().is_lost() {
                        return false;
                    }
                }
                Ok((connection, _)) => {
                    is_another_there |= self.lives(slot) == Some(connection.life());
                    restarted.insert(slot);
                }
                Err(ConnectError::Promise(PromiseError::Superseded(_))) => {
                    self.stop(StopReason::Superseded);
                }
                Err(error) => tracing::debug!(slot = slot.index(), %error, "the replica is not back"),
            }
        }
        // One that failed before the last one did may lack something, whether it was restarted or not.
        let is_hopeless = |slot: SlotNumber| restarted.contains(slot) || self.connection(slot).is_none();
        if lost.iter().all(is_hopeless) {
            self.stop(StopReason::CacheLost);
            return false;
        }
        sleep(self.options.retry_pause).await;
        is_another_there
    }
}
