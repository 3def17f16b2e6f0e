//! Opening a volume: a new epoch, promises, one truth, and then service.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{Geometry, IoError};
use pollux_reactor::{Instant, Reactor, Signal, Task, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::asked::Looks;
use super::connection::{ConnectError, Connection, clock};
use super::doubts::{Doubts, Trust};
use super::holes::Mutes;
use super::keeper::{self, WithReplica, join};
use super::priority::Priority;
use super::slow;
use super::{
    Core, Mirror, MirrorCounters, MirrorOptions, bad_blocks, map_writer, resync, roll_back, snapshot,
};
use crate::locks::RangeLocks;
use crate::members::{Change, Members};
use crate::membership::{
    Epoch, Membership, MembershipStore, REPLICAS_MAX, ReplicaState, SlotNumber, SlotSet, StoreError,
};
use crate::metadata::{INTENT, missed_bit};
use crate::regions::RegionMap;
use crate::replica::{PromiseError, ReplicaPort};

/// How often a swap that met another one, or whose outcome is not known, is tried again while opening.
const SWAPS_MAX: u32 = 100;

/// The epoch of a volume that was never opened.
const FIRST_EPOCH: Epoch = Epoch(1);

/// Why a volume was not opened. Nothing is lost by trying again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The store has no such volume, or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another target opens it at the same time, or has.
    #[error("a newer target has the volume: this one must not serve it")]
    Superseded,
    /// No replica of the set can be reached: nothing else has all data.
    #[error("no replica that is in sync can be reached: bring one back")]
    NoReplica,
    /// Those that can be reached were never had by any target, and others of the set, which cannot, may have
    /// been: they have the data then.
    #[error("only blank replicas can be reached, and another one may have the data: bring it back")]
    Blank,
    /// The replicas do not fit together.
    #[error("the replicas have regions of different sizes")]
    RegionSize,
    /// All replicas failed while it was opened.
    #[error("the replicas failed while the volume was opened: {0}")]
    Io(#[from] IoError),
}

/// A replica of the set that has promised.
struct Promised {
    slot: SlotNumber,
    connection: Rc<Connection>,
    map: Vec<u8>,
}

/// The promises of those of the set that could be reached.
struct Promises {
    of: Vec<Promised>,
    /// The lease of the target before has run out by then.
    lease_over: Instant,
}

struct Opening {
    options: MirrorOptions,
    store: Rc<dyn MembershipStore>,
    ports: [Option<Rc<dyn ReplicaPort>>; REPLICAS_MAX],
}

impl Mirror {
    /// Opens a volume: from then on this is its target, and no older one changes anything any more. `ports`
    /// tell how each replica is reached, by its name; one that is missing counts as unreachable.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub async fn open(
        options: MirrorOptions,
        store: Rc<dyn MembershipStore>,
        volume: Uuid,
        ports: &[(Uuid, Rc<dyn ReplicaPort>)],
    ) -> Result<Self, OpenError> {
        let mut opening = Opening {
            options,
            store,
            ports: [const { None }; REPLICAS_MAX],
        };
        let (record, old_epoch) = opening.take_epoch(volume).await?;
        for slot in record.members().iter() {
            let id = record.replica(slot).map(|entry| entry.id);
            let port = ports.iter().find(|(name, _)| Some(*name) == id);
            if let Some(place) = opening.ports.get_mut(slot.index()) {
                *place = port.map(|(_, port)| port.clone());
            }
        }
        let (promised, record) = opening.promises(record, old_epoch).await?;
        let core = Rc::new(opening.core(record, promised)?);
        let mut mirror = Self {
            core: core.clone(),
            _tasks: Vec::new(),
        };
        let reactor = Reactor::current();
        mirror._tasks.push(reactor.spawn(keeper::keep(core.clone())));
        mirror._tasks.push(reactor.spawn(map_writer::write(core.clone())));
        let settling = core.begin_service().await?;
        mirror._tasks.extend(settling);
        mirror
            ._tasks
            .push(reactor.spawn(map_writer::retire(core.clone())));
        mirror._tasks.push(reactor.spawn(snapshot::sweep(core.clone())));
        mirror
            ._tasks
            .push(reactor.spawn(roll_back::go_back(core.clone())));
        mirror._tasks.push(reactor.spawn(slow::watch(core.clone())));
        mirror._tasks.push(reactor.spawn(bad_blocks::watch(core.clone())));
        mirror._tasks.push(reactor.spawn(resync::bring_back(core)));
        Ok(mirror)
    }
}

impl Opening {
    /// Raises the epoch in the store; the record then, and the epoch before.
    async fn take_epoch(&self, volume: Uuid) -> Result<(Membership, Epoch), OpenError> {
        let mut last = StoreError::Unavailable;
        for _ in 0..SWAPS_MAX {
            // Anew each time: whether an earlier attempt or somebody else was successful cannot be told.
            let loaded = timeout(self.options.store_timeout, self.store.load(volume)).await;
            let result = match loaded.unwrap_or(Err(StoreError::Unavailable)) {
                Ok(before) => {
                    let next = before.next_epoch();
                    let swap = self.store.compare_and_swap(next.clone());
                    let swapped = timeout(self.options.store_timeout, swap).await;
                    swapped
                        .unwrap_or(Err(StoreError::Unavailable))
                        .map(|()| (next, before.epoch))
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(found) => return Ok(found),
                Err(error @ (StoreError::Unavailable | StoreError::Conflict(_))) => last = error,
                Err(error) => return Err(error.into()),
            }
            sleep(self.options.retry_pause).await;
        }
        Err(last.into())
    }

    /// The promises of those of the set that can be reached; the others are no longer of it then.
    async fn promises(
        &self,
        record: Membership,
        old_epoch: Epoch,
    ) -> Result<(Promises, Membership), OpenError> {
        let mut attempts: Vec<(SlotNumber, WithReplica<_>)> = Vec::new();
        for slot in record.in_sync().iter() {
            let Some(port) = self.ports.get(slot.index()).cloned().flatten() else {
                continue;
            };
            let (record, wait_max) = (record.clone(), self.options.promise_timeout);
            attempts.push((
                slot,
                Box::pin(async move { Connection::establish(&port, &record, slot, wait_max).await }),
            ));
        }
        let mut promised = Vec::new();
        for (slot, result) in join(attempts).await {
            match result {
                Ok((connection, map)) => promised.push(Promised {
                    slot,
                    connection: Rc::new(connection),
                    map,
                }),
                Err(ConnectError::Promise(PromiseError::Superseded(_))) => return Err(OpenError::Superseded),
                Err(error) => {
                    tracing::warn!(volume = %record.volume, slot = slot.index(), %error, "no promise");
                }
            }
        }
        let promised_at = clock();
        promised.sort_by_key(|found| found.slot);
        let slots: SlotSet = promised.iter().map(|found| found.slot).collect();
        if slots.is_empty() {
            return Err(OpenError::NoReplica);
        }
        let mut lost = record.in_sync().without(slots);
        // A target puts a copy of the record on all of the set before it writes anything else. One without
        // was made anew under its old name, and has nothing of the volume; unless all are so, as at first.
        let blank = promised.iter().filter(|found| !found.connection.has_record);
        let mut blank: SlotSet = blank.map(|found| found.slot).collect();
        if blank == slots {
            if old_epoch > FIRST_EPOCH && !lost.is_empty() {
                return Err(OpenError::Blank);
            }
            blank = SlotSet::EMPTY;
        }
        promised.retain(|found| !blank.contains(found.slot));
        lost = lost.or(blank);
        // A lease takes an answer of every replica of the set. One that promised has told how long ago it can
        // have given the last.
        let quiet = promised.iter().map(|found| found.connection.quiet).max();
        let left = lease_wait(self.options.lease).saturating_sub(quiet.unwrap_or_default());
        let promises = Promises {
            lease_over: after(promised_at, left),
            of: promised,
        };
        if lost.is_empty() {
            return Ok((promises, record));
        }
        // The old target may read from those for as long as its lease. They are in the set until then:
        // whoever takes over from this one meanwhile has to wait as well.
        sleep_until(promises.lease_over).await;
        let record = self.drop_from_set(record, lost, blank).await?;
        Ok((promises, record))
    }

    /// Takes replicas out of the set; of those that are blank nothing counts.
    async fn drop_from_set(
        &self,
        record: Membership,
        lost: SlotSet,
        blank: SlotSet,
    ) -> Result<Membership, OpenError> {
        let mut next = record.next();
        for slot in lost.iter() {
            let state = match blank.contains(slot) {
                true => ReplicaState::Empty,
                false => ReplicaState::Behind,
            };
            next = next.with_state(slot, state);
        }
        for _ in 0..SWAPS_MAX {
            let swap = self.store.compare_and_swap(next.clone());
            match timeout(self.options.store_timeout, swap)
                .await
                .unwrap_or(Err(StoreError::Unavailable))
            {
                Ok(()) => return Ok(next),
                Err(StoreError::Conflict(current)) if *current == next => return Ok(next),
                Err(StoreError::Conflict(_)) => return Err(OpenError::Superseded),
                Err(StoreError::Unavailable) => sleep(self.options.retry_pause).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Unavailable.into())
    }

    fn core(self, record: Membership, promises: Promises) -> Result<Core, OpenError> {
        let promised = promises.of;
        let first = promised.first().ok_or(OpenError::NoReplica)?;
        let region_blocks = first.connection.region_blocks();
        if promised
            .iter()
            .any(|found| found.connection.region_blocks() != region_blocks)
        {
            return Err(OpenError::RegionSize);
        }
        let regions = record.size_blocks.div_ceil(region_blocks);
        let map = join_maps(&record, &promised, regions as usize);
        // Of hosts that have lived since it was written, what they show is also what they have.
        let kept_all = promised
            .iter()
            .map(|found| found.connection.settled)
            .max()
            .flatten();
        let is_durable = |range: Range<usize>, bytes: &[u8]| {
            promised.iter().all(|found| {
                let is_same = found.map.get(range.clone()) == Some(bytes);
                is_same && found.connection.has_kept_all_since(kept_all)
            })
        };
        let map = RegionMap::new(map, is_durable);
        let geometry = geometry(&record, &promised);
        let slots = promised.iter().map(|found| found.slot).collect();
        let mut connections = [const { None }; REPLICAS_MAX];
        for found in promised {
            if let Some(place) = connections.get_mut(found.slot.index()) {
                *place = Some(found.connection);
            }
        }
        let looks = Looks::new(self.options.request_timeout);
        Ok(Core {
            options: self.options,
            store: self.store,
            ports: RefCell::new(self.ports),
            leaving: Cell::default(),
            epoch: record.epoch,
            geometry: Cell::new(geometry),
            region_blocks,
            locks: RangeLocks::default(),
            doubts: Doubts::default(),
            old_lease_over: promises.lease_over,
            members: RefCell::new(Members::new(record, slots)),
            regions: RefCell::new(map),
            connections: RefCell::new(connections),
            lives: RefCell::default(),
            mapped: Cell::new(None),
            gate: Rc::default(),
            cuts: RefCell::new(Vec::new()),
            // What an older target left.
            sweep_wanted: Cell::new(true),
            sweep_again_at: Cell::default(),
            growing: Cell::new(false),
            size_wanted: Cell::new(geometry.blocks),
            changed: Signal::default(),
            map_changed: Signal::default(),
            map_written: Signal::default(),
            copied_bytes: Cell::new(0),
            gone_back: Cell::default(),
            priority: Priority::default(),
            looks,
            paces: Rc::default(),
            slow: Cell::default(),
            mutes: Mutes::default(),
            silent: Mutes::default(),
            unreadable: RefCell::default(),
            unreadable_blocks: Cell::default(),
            is_idle: Cell::new(true),
            sending: Signal::default(),
            counters: Cell::new(MirrorCounters::default()),
        })
    }
}

/// How long after the last answer to an old target its lease has run out for sure. Clocks run at rates within
/// 1/16 of true time: of a lease, the slowest one makes 16/15, and the fastest one measures that as 17/15.
fn lease_wait(lease: Duration) -> Duration {
    lease.saturating_add(lease / 7)
}

fn after(instant: Instant, span: Duration) -> Instant {
    let nanoseconds = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Instant::from_nanos(instant.as_nanos().saturating_add(nanoseconds))
}

/// What the replicas that promised know together. Whoever is absent misses everything that has an intent.
fn join_maps(record: &Membership, promised: &[Promised], regions: usize) -> Vec<u8> {
    let behind = record.members().without(record.in_sync());
    let missed = behind.iter().map(missed_bit).fold(0, |bits, bit| bits | bit);
    let mut map = vec![0; regions];
    for found in promised {
        for (joined, byte) in map.iter_mut().zip(&found.map) {
            // Bits of those in sync are left over from earlier times, and mean nothing.
            *joined |= byte & (INTENT | missed);
        }
    }
    for byte in &mut map {
        if *byte & INTENT != 0 {
            *byte |= missed;
        }
    }
    map
}

/// The volume as the replicas can serve it together.
fn geometry(record: &Membership, promised: &[Promised]) -> Geometry {
    let mut volume = Geometry {
        block_bytes: record.block_bytes,
        blocks: record.size_blocks,
        optimal_blocks: 1,
        transfer_blocks_max: u32::MAX,
        memory_align_bytes: 1,
        // Also where none of these has a cache: one that joins later may have one, and hosts ask only once.
        volatile_write_cache: true,
        atomic_write_blocks: u32::MAX,
        deallocates: true,
        metadata_bytes: 0,
        read_only: false,
    };
    for found in promised {
        let one = found.connection.session.geometry();
        volume.optimal_blocks = volume.optimal_blocks.max(one.optimal_blocks);
        volume.transfer_blocks_max = volume.transfer_blocks_max.min(one.transfer_blocks_max);
        volume.memory_align_bytes = volume.memory_align_bytes.max(one.memory_align_bytes);
        volume.atomic_write_blocks = volume.atomic_write_blocks.min(one.atomic_write_blocks);
        volume.deallocates &= one.deallocates;
    }
    volume
}

impl Core {
    /// Puts the copy of the record and the whole region map on all replicas, and has what an old target left
    /// different made the same. Where all hosts of replicas have kept what they were given, the volume is
    /// served meanwhile; else a flush has to reach what is written anew, and that comes first.
    async fn begin_service(self: &Rc<Self>) -> Result<Vec<Task<()>>, OpenError> {
        let (record, live) = {
            let members = self.members.borrow();
            (members.record().clone(), members.live())
        };
        self.copy_record(&record, live).await;
        let trust = self.trust();
        let regions = self.regions.borrow().intents().len();
        tracing::info!(
            volume = %record.volume, epoch = record.epoch.0, in_sync = live.len(), regions,
            is_served = trust.in_all,
            "opening"
        );
        self.doubt();
        let is_served = trust.in_all;
        let workers = self.settle(&Rc::new(trust));
        if !is_served {
            self.all_made_good().await?;
        }
        if self.has_lost_caches() {
            tracing::warn!(
                volume = %record.volume, epoch = record.epoch.0, regions,
                "no replica in sync has kept all that was in its cache: what was acknowledged and not \
                 flushed may be gone, and hosts are told so by a flush that fails"
            );
            // Before any replica can say of itself that it has kept all since this epoch: whoever opens the
            // volume next would believe that, and let hosts believe so too.
            self.decide(Change::CachesLost).await?;
            // What is lost may have been done by then, and an older target may yet acknowledge it.
            sleep_until(self.old_lease_over).await;
        }
        // From this on hosts of replicas can tell that they have kept all since this epoch.
        self.flush().await?;
        let stamp = match is_served {
            true => self.regions.borrow().now(),
            false => self.regions.borrow_mut().retire_all(),
        };
        self.map_changed.wake();
        self.map_written
            .until(|| {
                let durable = self.regions.borrow().is_durable(stamp);
                (durable || self.stopped().is_some()).then_some(())
            })
            .await;
        self.check_serving()?;
        Ok(workers)
    }

    /// Who has lost nothing from caches: whoever was flushed for the newest target that served, and has
    /// lived since. A target flushes all of the set before it serves, so that nobody who is in the set and
    /// has lived can lack the epoch of the last one that did.
    fn trust(&self) -> Trust {
        // All that promised, be their sessions lost by now: of none it would be true that all have kept all.
        let mut sources: Vec<SlotNumber> = self.members.borrow().record().in_sync().iter().collect();
        let settled = |slot: SlotNumber| self.connection(slot).and_then(|found| found.settled);
        let newest = sources.iter().filter_map(|&slot| settled(slot)).max();
        sources.sort_by_key(|&slot| {
            let is_local = self.connection(slot).is_some_and(|found| found.is_local);
            (Reverse(settled(slot)), !is_local, slot)
        });
        let has_kept_all = |&slot: &SlotNumber| self.has_kept_all_since(slot, newest);
        Trust {
            in_all: sources.iter().all(has_kept_all),
            sources,
            newest,
        }
    }
}
