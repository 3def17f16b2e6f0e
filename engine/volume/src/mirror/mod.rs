//! The target: a block device over the replicas of a volume.
//!
//! Invariants (`docs/decisions/replication.md` says why they are enough):
//! - Requests that overlap are done one after the other, reads beside reads.
//! - Data is sent to a replica only while the intent of its region is durable on all of the set.
//! - A write is acknowledged when all of the set have it, as the store has confirmed the set.
//! - A read is answered only when, after the data was read, the lease had not run out; and so is a change,
//!   after it was done.

mod asked;
mod bad_blocks;
mod connection;
mod doubts;
mod follow;
mod gate;
mod give;
mod grow;
mod held;
mod holes;
mod keeper;
mod map_writer;
mod open;
mod priority;
mod read;
mod resync;
mod roll_back;
mod short;
mod slow;
mod snapshot;
mod speed;
mod status;
mod wind_down;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, Completion, Geometry, IoError, Reply, Request};
use pollux_reactor::{Instant, Signal, Task, Unabandoned};
use uuid::Uuid;

use crate::locks::RangeLocks;
pub use crate::members::StopReason;
use crate::members::{Failed, Members};
use crate::membership::{Epoch, Membership, MembershipStore, REPLICAS_MAX, SlotNumber, SlotSet};
use crate::regions::RegionMap;
use crate::replica::ReplicaPort;
use asked::Looks;
use connection::{Connection, Life, clock};
use doubts::Doubts;
use gate::Gate;
pub use gate::Hold;
pub use grow::GrowError;
use holes::Mutes;
pub use open::OpenError;
use priority::Priority;
use roll_back::GoneBack;
use slow::Paces;
pub use slow::{Pace, SlowOptions};
pub use snapshot::{Cut, SnapshotError, snapshot_together};
pub use status::{ReplicaStatus, ResyncProgress, RollBackProgress, Unreadable};
pub use wind_down::WindDownError;

/// Bytes that are copied or compared under one lock.
const CHUNK_BYTES: u64 = 128 << 10;

/// The times of a target.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    /// How long an answer of every replica allows reads. All targets of a volume need the same.
    pub lease: Duration,
    /// A replica that takes longer than this for a request has failed.
    pub request_timeout: Duration,
    /// How long a promise is waited for.
    pub promise_timeout: Duration,
    /// How long an answer of the store is waited for.
    pub store_timeout: Duration,
    /// The pause before the store, or a replica that is short of resources, is asked again.
    pub retry_pause: Duration,
    /// The pause between two attempts to bring a replica back.
    pub rejoin_pause: Duration,
    /// Intents of regions without a write for as long as this, up to twice as long, are retired.
    pub retire_interval: Duration,
    /// How long changes are held for a snapshot, or for the volume to be closed, at most.
    pub hold_limit: Duration,
    /// How fast a resync copies at most, in bytes a second; `None` for as fast as it can. It gives way to
    /// hosts in any case.
    pub resync_bytes_per_second: Option<u64>,
    /// How fast a resync copies at least, in bytes a second, whatever hosts notice of it.
    pub resync_bytes_per_second_min: u64,
    /// How often the hosts of replicas are asked for blocks that they have found bad.
    pub bad_blocks_interval: Duration,
    /// When a replica is too slow.
    pub slow: SlowOptions,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            promise_timeout: Duration::from_secs(5),
            store_timeout: Duration::from_secs(2),
            retry_pause: Duration::from_millis(20),
            rejoin_pause: Duration::from_secs(1),
            retire_interval: Duration::from_secs(5),
            hold_limit: Duration::from_secs(2),
            resync_bytes_per_second: None,
            resync_bytes_per_second_min: 8 << 20,
            bad_blocks_interval: Duration::from_secs(60),
            slow: SlowOptions::default(),
        }
    }
}

/// What a target did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MirrorCounters {
    /// Blocks ranges that were bad on one replica and written anew from another.
    pub repairs: u64,
    /// Replicas that failed.
    pub failures: u64,
    /// Replicas that joined the set.
    pub joins: u64,
    /// Blocks of the region map written, on all replicas.
    pub map_writes: u64,
    /// Replicas that were taken out since they were far slower than others.
    pub slow: u64,
    /// Times at which the last replica of the set did what no healthy one does.
    pub last_failures: u64,
    /// Writes for which a replica of the set had no room.
    pub no_room: u64,
    /// Those of them that were taken back on all others.
    pub taken_back: u64,
    /// Chunks that were not the same on all replicas when the volume was opened.
    pub differences: u64,
    /// Blocks of which a copy of the volume made holes, as nothing was stored of them, or zeros.
    pub holes: u64,
    /// Blocks that a copy of a snapshot passed over, or made holes, as they were holes of the snapshot.
    pub snapshot_holes: u64,
    /// Snapshots that were given to replicas that had been away.
    pub snapshots_given: u64,
    /// Times at which a replica went without snapshots that it was owed.
    pub snapshots_forgiven: u64,
    /// Roll-backs that were done.
    pub roll_backs: u64,
}

pub(crate) struct Core {
    options: MirrorOptions,
    store: Rc<dyn MembershipStore>,
    /// How the replica in each slot is reached.
    ports: RefCell<[Option<Rc<dyn ReplicaPort>>; REPLICAS_MAX]>,
    /// Those that are to be out of the set, and to stay so.
    leaving: Cell<SlotSet>,
    epoch: Epoch,
    /// It grows.
    geometry: Cell<Geometry>,
    /// Blocks of the volume in a region.
    region_blocks: u64,
    locks: RangeLocks,
    doubts: Doubts,
    /// The lease of the target before has run out by then.
    old_lease_over: Instant,
    members: RefCell<Members>,
    regions: RefCell<RegionMap>,
    connections: RefCell<[Option<Rc<Connection>>; REPLICAS_MAX]>,
    /// The lives in which replicas had been when they failed last.
    lives: RefCell<[Option<Life>; REPLICAS_MAX]>,
    /// The one under resync takes the blocks of the region map.
    mapped: Cell<Option<SlotNumber>>,
    gate: Rc<Gate>,
    /// Snapshots that are attempted.
    cuts: RefCell<Vec<Uuid>>,
    /// There may be something on replicas that is of no snapshot.
    sweep_wanted: Cell<bool>,
    /// So may be then, after an attempt that failed.
    sweep_again_at: Cell<Option<Instant>>,
    /// The volume is being made larger.
    growing: Cell<bool>,
    /// The size, in blocks, that returning replicas need.
    size_wanted: Cell<u64>,
    /// The members or their sessions changed.
    changed: Signal,
    /// The region map changed.
    map_changed: Signal,
    /// More of the region map is durable.
    map_written: Signal,
    copied_bytes: Cell<u64>,
    /// How far this target has gone back to a snapshot.
    gone_back: Cell<Option<GoneBack>>,
    priority: Priority,
    looks: Rc<Looks>,
    paces: Rc<Paces>,
    /// Those that are far slower than others: they are not read from if there is another one.
    slow: Cell<SlotSet>,
    /// Those that did not answer when they were asked for holes.
    mutes: Mutes,
    /// Those that did not answer when a snapshot was read from them.
    silent: Mutes,
    /// How often snapshots could not be read while they were given to a replica, by their cuts.
    unreadable: RefCell<BTreeMap<Uuid, u32>>,
    /// What nobody of the set can read, as the last resync found that came to its end.
    unreadable_blocks: Cell<Option<Unreadable>>,
    /// Nothing was sent to replicas for a while; what is sent next wakes who judges them.
    is_idle: Cell<bool>,
    sending: Signal,
    counters: Cell<MirrorCounters>,
}

impl Core {
    fn connection(&self, slot: SlotNumber) -> Option<Rc<Connection>> {
        self.connections.borrow().get(slot.index()).cloned().flatten()
    }

    fn lives(&self, slot: SlotNumber) -> Option<Life> {
        self.lives.borrow().get(slot.index()).copied().flatten()
    }

    fn port(&self, slot: SlotNumber) -> Option<Rc<dyn ReplicaPort>> {
        self.ports.borrow().get(slot.index()).cloned().flatten()
    }

    fn connect(&self, slot: SlotNumber, connection: Option<Rc<Connection>>) {
        let before = match self.connections.borrow_mut().get_mut(slot.index()) {
            Some(place) => std::mem::replace(place, connection),
            None => return,
        };
        before.into_iter().for_each(|before| before.end());
    }

    fn count(&self, change: impl FnOnce(&mut MirrorCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Wakes everybody, to look again.
    fn wake(&self) {
        self.changed.wake();
        self.map_changed.wake();
        self.map_written.wake();
        self.sending.wake();
        self.gate.wake();
        self.doubts.wake();
    }

    fn stop(&self, reason: StopReason) {
        if self.members.borrow().stopped().is_none() {
            tracing::warn!(volume = %self.volume(), epoch = self.epoch.0, ?reason, "target stops");
            self.members.borrow_mut().stop(reason);
        }
        self.wake();
    }

    fn volume(&self) -> Uuid {
        self.members.borrow().record().volume
    }

    /// The error of every request once the target has stopped.
    fn stopped(&self) -> Option<IoError> {
        Some(match self.members.borrow().stopped()? {
            StopReason::Superseded => IoError::Fenced,
            StopReason::CacheLost | StopReason::LastLost | StopReason::StoreRefused | StopReason::Closed => {
                IoError::Gone
            }
        })
    }

    fn check_serving(&self) -> Result<(), IoError> {
        self.stopped().map_or(Ok(()), Err)
    }

    /// A replica is out: what it may miss is marked before anything else happens.
    fn out(&self, slot: SlotNumber) {
        let id = self.members.borrow().record().replica(slot).map(|entry| entry.id);
        tracing::warn!(volume = %self.volume(), replica = ?id, "replica failed");
        self.count(|counters| counters.failures += 1);
        self.regions.borrow_mut().fail(slot);
        self.forget_slowness(slot);
        if self.mapped.get() == Some(slot) {
            self.mapped.set(None);
        }
        let life = self.connection(slot).map(|lost| lost.life());
        if let Some(place) = self.lives.borrow_mut().get_mut(slot.index()) {
            *place = life;
        }
        self.connect(slot, None);
        self.wake();
    }

    /// A replica failed with more than a request: see [`Failed`]. The last one stays, whatever it did.
    fn fail(&self, slot: SlotNumber) -> Failed {
        let failed = self.members.borrow_mut().fail(slot);
        match failed {
            Failed::Out => self.out(slot),
            Failed::Last => self.count(|counters| counters.last_failures += 1),
            Failed::Ignored => {}
        }
        failed
    }

    fn bytes_of_regions(&self, regions: u64) -> u64 {
        let geometry = self.geometry.get();
        let region_bytes = self.region_blocks.saturating_mul(geometry.block_bytes.into());
        regions.saturating_mul(region_bytes).min(geometry.bytes())
    }

    /// Blocks that are copied or compared under one lock.
    fn chunk_blocks(&self) -> u64 {
        let geometry = self.geometry.get();
        (CHUNK_BYTES / u64::from(geometry.block_bytes))
            .min(u64::from(geometry.transfer_blocks_max))
            .max(1)
    }

    fn region_of(&self, block: u64) -> u64 {
        block / self.region_blocks
    }
}

/// See the module. The volume stops being served when it is dropped.
pub struct Mirror {
    core: Rc<Core>,
    /// Ended with the mirror.
    _tasks: Vec<Task<()>>,
}

impl Mirror {
    /// The record as the store has confirmed it.
    pub fn membership(&self) -> Membership {
        self.core.members.borrow().record().clone()
    }

    /// Why it does no more I/O; `None` while it does.
    pub fn stopped(&self) -> Option<StopReason> {
        self.core.members.borrow().stopped()
    }

    /// Ends the service at once: every later request fails. What was begun on replicas is ended by the next
    /// target; see [`Mirror::wind_down`].
    pub fn close(&self) {
        self.core.stop(StopReason::Closed);
    }

    /// What it did.
    pub fn counters(&self) -> MirrorCounters {
        self.core.counters.get()
    }

    /// The volume as a block device. It fails once the mirror is dropped.
    pub fn device(&self) -> Rc<dyn BlockDevice> {
        Rc::new(MirrorDevice(self.core.clone()))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.core.stop(StopReason::Closed);
    }
}

struct MirrorDevice(Rc<Core>);

impl BlockDevice for MirrorDevice {
    fn geometry(&self) -> Geometry {
        self.0.geometry.get()
    }

    fn submit(&self, request: Request) -> Completion {
        if let Err(error) = request
            .check(&self.0.geometry.get())
            .and_then(|()| self.0.check_serving())
        {
            return Completion::failed(error);
        }
        let core = self.0.clone();
        // What a resync must not make much longer.
        let began = clock();
        match request {
            Request::Read { block, into } => Completion::from_future(async move {
                let result = core.read(block, into).await.map(Reply::Data);
                core.priority.served(clock().saturating_since(began));
                result
            }),
            Request::Compare { block, with } => {
                Completion::from_future(async move { core.compare(block, &with).await.map(|()| Reply::Done) })
            }
            Request::Write {
                block,
                from,
                force_unit_access,
            } => match core.start_write(block, from, force_unit_access, began) {
                Ok(completion) => completion,
                Err(from) => Completion::from_future(Unabandoned::new(async move {
                    let write = Request::Write {
                        block,
                        from,
                        force_unit_access,
                    };
                    let result = core.change(write).await.map(|()| Reply::Done);
                    core.priority.served(clock().saturating_since(began));
                    result
                })),
            },
            // What was begun has to be ended, or replicas would differ with nobody to say so.
            request @ (Request::WriteZeroes { .. } | Request::Deallocate { .. } | Request::Flush) => {
                Completion::from_future(Unabandoned::new(async move {
                    core.change(request).await.map(|()| Reply::Done)
                }))
            }
        }
    }
}
