//! Sending requests to replicas, and judging what they answer.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_reactor::{Instant, Reactor, Signal, sleep, timeout};

use super::holes::tells_hole;
use super::{Core, StopReason};
use crate::members::Failed;
use crate::membership::{Epoch, SlotNumber, SlotSet};
use crate::metadata::{Area, AreaError, AreaLayout};
use crate::replica::{PromiseError, ReplicaPort};

/// The session of a replica.
pub(super) struct Connection {
    pub(super) session: Rc<dyn BlockDevice>,
    pub(super) area: Area,
    pub(super) instance: u64,
    /// The newest epoch of which a flush was done in this life of the host, when it promised.
    pub(super) settled: Option<Epoch>,
    /// Flushes that had failed in this life of the host.
    pub(super) flush_failures: u64,
    /// How long the older sessions had been silent when this one was granted.
    pub(super) quiet: Duration,
    pub(super) is_local: bool,
    /// It has a copy of the record: some target has had it since it was made a replica.
    pub(super) has_record: bool,
    /// Where data begins, in blocks of the session.
    first_block: u64,
    /// When the newest request that it answered was sent: it had promised to nobody else then.
    confirmed_at: Cell<Instant>,
    /// It is of no more use: nobody waits for its answers.
    is_ended: Cell<bool>,
    ending: Signal,
}

/// See [`Connection::life`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    instance: u64,
    flush_failures: u64,
}

/// The clock, read now and not at the start of the turn: the lease depends on it.
pub(super) fn clock() -> Instant {
    Reactor::current().driver().now()
}

/// A request so many blocks further on.
fn moved(request: Request, by: u64) -> Request {
    match request {
        Request::Read { block, into } => Request::Read {
            block: block + by,
            into,
        },
        Request::Write {
            block,
            from,
            force_unit_access,
        } => Request::Write {
            block: block + by,
            from,
            force_unit_access,
        },
        Request::Flush => Request::Flush,
        Request::Deallocate { block, blocks } => Request::Deallocate {
            block: block + by,
            blocks,
        },
        Request::WriteZeroes {
            block,
            blocks,
            options,
        } => Request::WriteZeroes {
            block: block + by,
            blocks,
            options,
        },
        Request::Compare { block, with } => Request::Compare {
            block: block + by,
            with,
        },
    }
}

/// Why a replica could not be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// It did not promise.
    #[error(transparent)]
    Promise(#[from] PromiseError),
    /// Its reserved area cannot be used.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// The device is another replica, or one of another volume.
    #[error("the device is not the replica that it should be: nothing was written to it")]
    Foreign,
    /// The device is too small, or of another block size.
    #[error("the device does not have the size or the block size of the volume")]
    Geometry,
}

impl Connection {
    /// Gets the promise of a replica, and makes sure that it is the one. Nothing is written but the promise.
    pub(super) async fn establish(
        port: &Rc<dyn ReplicaPort>,
        record: &crate::membership::Membership,
        slot: SlotNumber,
        wait_max: Duration,
    ) -> Result<(Self, Vec<u8>), ConnectError> {
        let establishing = async {
            let started = clock();
            let granted = port.promise(record.epoch).await?;
            let area = Area::open(granted.session.clone()).await?;
            let label = area.label();
            let is_right = record
                .replica(slot)
                .is_some_and(|entry| entry.id == label.replica);
            if !is_right || label.volume != record.volume {
                return Err(ConnectError::Foreign);
            }
            let geometry = granted.session.geometry();
            let bytes = label
                .data_blocks
                .saturating_mul(crate::metadata::BLOCK_BYTES as u64);
            if geometry.block_bytes != record.block_bytes || bytes < record.size_bytes() {
                return Err(ConnectError::Geometry);
            }
            let ratio = AreaLayout::ratio_of(&geometry).map_err(AreaError::from)?;
            let first_block = area.layout().area_blocks() * ratio;
            // Also to know which slot of each structure is to be written next.
            let has_record = area.read_record().await?.is_some();
            Ok(Self {
                session: granted.session,
                area,
                instance: granted.instance,
                settled: granted.settled,
                flush_failures: granted.flush_failures,
                quiet: granted.quiet,
                is_local: port.is_local(),
                has_record,
                first_block,
                confirmed_at: Cell::new(started),
                is_ended: Cell::new(false),
                ending: Signal::default(),
            })
        };
        let silent = |_| ConnectError::from(PromiseError::Unreachable);
        let connection = timeout(wait_max, establishing).await.map_err(silent)??;
        // The map of a large volume is long: it is waited for as long as it goes on.
        let mut map = Vec::new();
        loop {
            let reading = connection.area.read_map_part(&mut map);
            if !timeout(wait_max, reading).await.map_err(silent)?? {
                return Ok((connection, map));
            }
        }
    }

    /// Whether its host has lived since the time of an older target, and has lost nothing from its cache.
    pub(super) fn has_kept_all_since(&self, epoch: Option<Epoch>) -> bool {
        epoch.is_some() && self.settled == epoch && self.flush_failures == 0
    }

    /// The life of the host, and flushes that had failed in it: as long as both are the same, nothing was
    /// lost from the cache.
    pub(super) fn life(&self) -> Life {
        Life {
            instance: self.instance,
            flush_failures: self.flush_failures,
        }
    }

    /// Whether this is the same life of the host, in which nothing was lost from the cache meanwhile.
    pub(super) fn continues(&self, before: &Self) -> bool {
        self.life() == before.life()
    }

    /// Blocks of the volume in a region.
    pub(super) fn region_blocks(&self) -> u64 {
        let bytes = self.area.label().region_blocks * crate::metadata::BLOCK_BYTES as u64;
        bytes / u64::from(self.session.geometry().block_bytes)
    }

    /// Where data begins, in blocks of the session.
    pub(super) fn first_block(&self) -> u64 {
        self.first_block
    }

    /// Starts a request for blocks of the volume.
    pub(super) fn submit(&self, request: Request) -> Completion {
        self.session.submit(moved(request, self.first_block))
    }

    /// Whether it tells of nothing stored in blocks of the volume; `None` without an answer in time.
    pub(super) async fn is_hole(&self, block: u64, blocks: u64, wait_max: Duration) -> Option<bool> {
        tells_hole(&*self.session, self.first_block + block, blocks, wait_max).await
    }

    pub(super) fn confirmed_at(&self) -> Instant {
        self.confirmed_at.get()
    }

    pub(super) fn confirm(&self, sent_at: Instant) {
        self.confirmed_at.set(self.confirmed_at.get().max(sent_at));
    }

    /// Another one has its place, or none.
    pub(super) fn end(&self) {
        self.is_ended.set(true);
        self.ending.wake();
    }

    /// What is done with the reserved area, for as long as it may take, and the session is of use. Off the
    /// data path.
    pub(super) async fn in_time<T>(
        &self,
        wait_max: Duration,
        act: impl Future<Output = Result<T, AreaError>>,
    ) -> Result<T, AreaError> {
        let mut act = std::pin::pin!(timeout(wait_max, act));
        let mut ended = std::pin::pin!(self.ending.until(|| self.is_ended.get().then_some(())));
        poll_fn(|context| {
            if let Poll::Ready(result) = act.as_mut().poll(context) {
                return Poll::Ready(result.unwrap_or(Err(IoError::TimedOut.into())));
            }
            ended.as_mut().poll(context).map(|()| Err(IoError::Gone.into()))
        })
        .await
    }

    /// Sends a request, and gives it up when it takes too long.
    pub(super) async fn send(&self, request: Request, wait_max: Duration) -> Result<Reply, IoError> {
        let sent_at = clock();
        let result = timeout(wait_max, self.submit(request)).await;
        let result = result.unwrap_or(Err(IoError::TimedOut));
        if result.is_ok() {
            self.confirm(sent_at);
        }
        result
    }
}

/// What an answer means for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The replica is well and could not do it now.
    Again,
    /// The replica has no room.
    NoSpace,
    /// The replica is out, or soon back: whoever still needs it looks at the members again.
    Changed,
    /// The last replica says so, and nobody else knows better.
    Final(IoError),
}

/// Since when a request is tried again for a replica that is on its way back, and short of resources.
#[derive(Debug, Default)]
pub(super) struct Patience(Option<Instant>);

/// The session is of no more use, as against a request that it could not do.
pub(super) fn is_session_lost(error: IoError) -> bool {
    matches!(
        error,
        IoError::Gone | IoError::PathDown | IoError::TimedOut | IoError::Aborted
    )
}

impl Core {
    /// Whether a session with a replica is the one that there is now.
    pub(super) fn is_current(&self, slot: SlotNumber, connection: &Rc<Connection>) -> bool {
        let current = self.connection(slot);
        current.is_some_and(|current| Rc::ptr_eq(&current, connection))
    }

    /// Whether the host of a replica has lost nothing from its cache since an epoch.
    pub(super) fn has_kept_all_since(&self, slot: SlotNumber, epoch: Option<Epoch>) -> bool {
        let connection = self.connection(slot);
        connection.is_some_and(|found| found.has_kept_all_since(epoch))
    }

    /// What an error of a replica means. Whatever is no matter of the moment takes the replica out; the last
    /// one stays.
    pub(super) fn judge(&self, slot: SlotNumber, connection: &Rc<Connection>, error: IoError) -> Verdict {
        match error {
            IoError::ResourceShortage | IoError::NotReady => return Verdict::Again,
            IoError::Fenced => {
                self.stop(StopReason::Superseded);
                return Verdict::Changed;
            }
            // An answer of a session that is no more.
            _ if !self.is_current(slot, connection) => return Verdict::Changed,
            IoError::CapacityExceeded if self.members.borrow().required().contains(slot) => {
                return Verdict::NoSpace;
            }
            _ => {}
        }
        tracing::debug!(slot = slot.index(), %error, "replica answered with an error");
        match self.fail(slot) {
            Failed::Out | Failed::Ignored => Verdict::Changed,
            Failed::Last if is_session_lost(error) => {
                // It may be back with all it had. If another one joins before, it is out, and lacks whatever
                // is being written.
                self.regions.borrow_mut().fail(slot);
                self.members.borrow_mut().lose(slot);
                self.wake();
                Verdict::Changed
            }
            Failed::Last => Verdict::Final(error),
        }
    }

    /// A replica is short of resources, and is asked again. One of the set is waited for, however long that
    /// takes; one on its way back as long as any request may take, or hosts would wait for what nobody needs.
    pub(super) fn bear(&self, slot: SlotNumber, patience: &mut Patience) {
        if self.members.borrow().required().contains(slot) {
            return;
        }
        let since = *patience.0.get_or_insert_with(clock);
        if clock().saturating_since(since) >= self.options.request_timeout {
            tracing::warn!(volume = %self.volume(), slot = slot.index(), "a replica is short of resources");
            self.fail(slot);
        }
    }

    /// The lease: after every replica of the set has answered something that was sent at this moment or
    /// later, reads are allowed for the lease time. `None` when one has no session.
    fn confirmed_at(&self) -> Option<Instant> {
        let required = self.members.borrow().required();
        let mut earliest: Option<Instant> = None;
        for slot in required.iter() {
            let at = self.connection(slot)?.confirmed_at();
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
        }
        earliest
    }

    pub(super) fn is_leased(&self) -> bool {
        let confirmed = self.confirmed_at();
        confirmed.is_some_and(|at| clock().saturating_since(at) < self.options.lease)
    }

    /// Waits until what was read before this was called may be passed on: nobody can have taken the volume
    /// over before.
    pub(super) async fn confirm_lease(&self) -> Result<(), IoError> {
        // Those that have answered since. Only the others are asked again: else replicas that are short of
        // memory in turn would be asked for ever.
        let mut confirmed = SlotSet::EMPTY;
        loop {
            self.check_serving()?;
            if self.is_leased() {
                return Ok(());
            }
            let (required, live) = {
                let members = self.members.borrow();
                (members.required(), members.live())
            };
            if required.and(live).is_empty() || !live.contains_all(required) {
                // One is on its way out of the set, or back.
                self.changed
                    .until(|| {
                        let members = self.members.borrow();
                        let settled = members.live().contains_all(members.required());
                        (settled || members.stopped().is_some()).then_some(())
                    })
                    .await;
                continue;
            }
            let bytes = self.geometry.get().block_bytes as usize;
            let answers = self
                .send_all(required.without(confirmed), || Request::Read {
                    // Any block will do: the session answers, or does not.
                    block: 0,
                    into: super::read::memory(bytes),
                })
                .await;
            let mut again = false;
            for (slot, connection, result) in answers {
                match result {
                    Ok(_) => confirmed.insert(slot),
                    Err(error) => again |= self.judge(slot, &connection, error) != Verdict::Changed,
                }
            }
            // All were asked after the data was read, however long they took.
            if confirmed.contains_all(self.members.borrow().required()) {
                return self.check_serving();
            }
            if again {
                sleep(self.options.retry_pause).await;
            }
        }
    }
}
