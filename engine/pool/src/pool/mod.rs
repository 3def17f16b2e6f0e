//! A pool: everything that its volumes have in common, owned by one reactor.
//!
//! Invariants:
//! - What is in memory is what the last checkpoint has and the records since then change, and nothing else.
//!   A record is appended in the same step, without waiting in between, in which memory changes.
//! - A checkpoint closes a generation in one such step, so it holds all records before the place where the
//!   journal was cut then, and none after it.
//! - The generation that is open is higher than every birth and every closed one.
//! - Once something failed that a checkpoint or the journal needs, the pool is *stopped*: reads go on, and
//!   nothing is acknowledged any more that would have to be durable.

mod check;
mod checkpoint;
mod counted;
mod create;
mod devices;
mod error;
mod import;
mod intents;
mod labels;
mod leaves;
mod look;
mod maintenance;
mod manage;
mod pages;
mod reclaim;
mod replay;
mod scrub;
mod suspects;
mod table;
mod thick;
mod usage;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};
use std::time::Duration;

use arrayvec::ArrayVec;
use pollux_device::IoError;
use pollux_reactor::Signal;
use uuid::Uuid;

use crate::allocator::SpaceCounts;
use crate::cache::{Metadata, PageCache};
use crate::device::PoolDevice;
use crate::journal::{COPIES_MAX, Journal, JournalCopy, RingPosition};
use crate::layout::label::Label;
use crate::layout::page::{ALLOCATION_LEAF_EXTENTS, PageKind, VOLUME_LEAF_ENTRIES};
use crate::layout::scrub::ScrubRecord;
use crate::layout::slot::SlotView;
use crate::layout::superblock::{DeviceEntry, Superblock};
use crate::layout::{DEVICES_MAX, EXTENT_BYTES, PagePointer};
use crate::space::PoolSpace;
use crate::tree::{Generations, Passed, Shape, Tree};
use crate::volume::{Head, Hold};

pub use check::{CheckProgress, CheckReport, Misplaced};
pub use create::CreateOptions;
use devices::Successor;
pub use devices::{DeviceStatus, DrainProgress, Drained, Grown, ReplaceProgress, Replaced, Unreadable};
pub use error::PoolError;
pub use import::{ImportReport, LostBlock};
pub(crate) use intents::{Intents, REGION_SLOTS, Use};
use leaves::Leaves;
pub(crate) use leaves::{Leaf, WholeExtent};
pub(crate) use maintenance::{Admitted, Claim};
pub use manage::VolumeOptions;
pub(crate) use pages::Load;
pub use scrub::{ScrubOptions, ScrubProgress, ScrubReport};
use suspects::Suspects;
pub(crate) use table::{MAP_SHAPE, SLOTS_MAX, Table};
pub use usage::Usage;

/// The tree of the table of volumes.
const VOLUMES_SHAPE: Shape = Shape {
    kind: PageKind::Volumes,
    height: 4,
    leaf_entries: VOLUME_LEAF_ENTRIES,
};

/// The tree of the allocation state of a device.
const ALLOCATION_SHAPE: Shape = Shape {
    kind: PageKind::Allocation,
    height: 4,
    leaf_entries: ALLOCATION_LEAF_EXTENTS,
};

/// How a pool uses its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// Memory for metadata that is on the devices too, in bytes.
    pub cache_bytes: usize,
    /// Memory for metadata that is not yet, in bytes: a checkpoint begins before it is used up.
    pub dirty_bytes: usize,
    /// Pages that a checkpoint writes at a time, 1 at least: fewer leave more of the devices to volumes, and
    /// make checkpoints longer.
    pub checkpoint_writes: usize,
    /// How long a change that nobody flushes may stay in memory only.
    pub commit_interval: Duration,
    /// Whether checkpoints and the deletion of volumes are done in the background, and scrubs. Without,
    /// whoever has the pool calls [`Pool::checkpoint`], [`Pool::reclaim`] and [`Pool::scrub`]: tests do.
    pub background: bool,
    /// How long after the end of a scrub the next one begins by itself; zero for never.
    pub scrub_interval: Duration,
    /// Bytes that such scrubs read a second, at most; 0 for no limit.
    pub scrub_bytes_per_second: u64,
    /// What time it is when the pool is opened, in seconds since 1970: scrubs tell when they were.
    pub opened_seconds: u64,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            dirty_bytes: 64 << 20,
            checkpoint_writes: 64,
            commit_interval: Duration::from_millis(100),
            background: true,
            scrub_interval: Duration::ZERO,
            scrub_bytes_per_second: 0,
            opened_seconds: 0,
        }
    }
}

/// How much of a pool is used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of its devices.
    pub total_bytes: u64,
    /// Free for any data now.
    pub free_bytes: u64,
    /// Set aside for data of thick volumes that is not written yet, and for its metadata.
    pub set_aside_bytes: u64,
    /// Freed, and free after the next checkpoints.
    pub freeing_bytes: u64,
    /// Extents that hold metadata, without journal and labels.
    pub metadata_bytes: u64,
    /// What all volumes would take if they were full: beyond `total_bytes` is overcommitted.
    pub provisioned_bytes: u64,
}

/// What happened to a pool since its import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Checkpoints.
    pub checkpoints: u64,
    /// Pages that checkpoints wrote, each to two places.
    pub pages_written: u64,
    /// Pages that were read.
    pub pages_read: u64,
    /// Blocks that did not match their checksum.
    pub checksum_mismatches: u64,
}

/// See the module.
pub struct Pool {
    uuid: Uuid,
    name: String,
    options: PoolOptions,
    /// By number.
    devices: RefCell<Vec<Option<PoolDevice>>>,
    /// Their labels, by number.
    labels: RefCell<Vec<Option<Label>>>,
    /// Devices are being added, removed or grown.
    changing_devices: Cell<bool>,
    /// Nobody waits for that any more: what was begun comes to its end.
    change_is_ending: Cell<bool>,
    /// Fired when that has ended.
    change_ended: Signal,
    /// A device that is to take the place of another one.
    successor: RefCell<Option<Successor>>,
    journal: Rc<Journal>,
    state: RefCell<State>,
    /// Fired when a checkpoint has ended.
    checkpoint_done: Signal,
    /// Fired when there may be records that nobody has committed.
    recorded: Signal,
    /// Fired when a write that was admitted has ended.
    admission: Signal,
    /// Fired when there may be space to be given back, and when somebody is done with that.
    wanted: Signal,
    reclaiming: Cell<bool>,
    scrubbing: Cell<bool>,
    closed: Cell<bool>,
    /// Nothing is written to any device.
    read_only: bool,
    /// The last volume that may lack what was acknowledged and not flushed; 0 for none.
    lost_caches_of: Cell<u64>,
    /// Devices that are not there, a bit for each number.
    absent: u32,
    /// Somebody writes a superblock.
    superblock_held: Cell<bool>,
    /// Fired when nobody does any more.
    superblock_free: Signal,
    /// Devices whose copies of the journal are not to count, a bit for each number.
    uncounted: Cell<u32>,
    /// The last checkpoint was begun, or made: no other one may follow.
    sealed: Cell<bool>,
    /// When it was opened.
    opened: pollux_reactor::Instant,
    /// Keep writes from beginning once the pool is closed.
    drained: RefCell<Vec<Hold>>,
}

/// What a pool in memory is made of.
struct Parts {
    name: String,
    options: PoolOptions,
    /// By number.
    devices: Vec<Option<PoolDevice>>,
    /// By number.
    labels: Vec<Option<Label>>,
    copies: ArrayVec<JournalCopy, COPIES_MAX>,
    superblock: Superblock,
    space: PoolSpace,
    /// Where the journal, which is empty, goes on.
    journal_start: RingPosition,
    read_only: bool,
}

pub(crate) struct State {
    pub(crate) space: PoolSpace,
    pub(crate) cache: PageCache,
    pub(crate) table: Table,
    pub(crate) intents: Intents,
    /// The opened volumes.
    pub(crate) heads: HashMap<u64, Weak<Head>>,
    /// Slots in which blocks of own extents were deallocated, and when the records of that are durable: until
    /// then nothing is written to the places. By volume and slot.
    pub(crate) emptied: HashMap<(u64, u64), u64>,
    /// Pages being read, by the address of their first copy.
    pub(crate) loads: HashMap<u64, Rc<Load>>,
    pub(crate) counters: PoolCounters,
    volumes: Option<PagePointer>,
    allocation: BTreeMap<u8, Option<PagePointer>>,
    generations: Generations,
    /// The last one that is durable.
    superblock: Superblock,
    /// The devices as the next checkpoint has them, by number.
    members: ArrayVec<DeviceEntry, DEVICES_MAX>,
    /// What was the size, in extents, of devices that have become larger and whose labels do not say so yet.
    sizes_before: BTreeMap<u8, u64>,
    /// Checkpoints that were asked for; those that have ended.
    checkpoints_wanted: u64,
    checkpoints_done: u64,
    checkpoint_running: bool,
    /// Writes that are sure to have room for the pages they change.
    writes_admitted: u64,
    /// Leaves of maps that were used lately.
    leaves: Leaves,
    /// Kept entries that were gone over: they hold nothing of their own any more that none of their children
    /// does, and nothing else either if this is set.
    trimmed: HashMap<u64, bool>,
    /// `maps_changed` when they were last to be gone over again since space was short.
    looked_for_space: u64,
    stopped: Option<IoError>,
    /// How far a scrub has come, or what the last one found; durable with each checkpoint.
    scrub: ScrubRecord,
    /// Blocks that were found bad, for whoever has them elsewhere.
    suspects: Suspects,
    /// What volumes use, as it was counted when `maps_changed` and the version of the table were those.
    usages: HashMap<u64, (u64, u64, Usage)>,
    /// A number that changes whenever a slot of any volume has other extents.
    maps_changed: u64,
    /// A thick volume whose covered slots are being counted.
    recount: Option<thick::Recount>,
}

impl State {
    /// What trees work on.
    pub(crate) fn metadata(&mut self) -> Metadata<'_> {
        Metadata {
            cache: &mut self.cache,
            space: &mut self.space,
        }
    }

    pub(crate) fn generations(&self) -> Generations {
        self.generations
    }

    fn volumes_tree(&self) -> Tree {
        Tree {
            shape: VOLUMES_SHAPE,
            id: 0,
            root: self.volumes,
            parent_generation: 0,
            passed: Passed::default(),
        }
    }

    fn allocation_tree(&self, device: u8) -> Tree {
        Tree {
            shape: ALLOCATION_SHAPE,
            id: device.into(),
            root: self.allocation.get(&device).copied().flatten(),
            parent_generation: 0,
            passed: Passed::default(),
        }
    }

    /// The leaf of a slot, if there is one and the way to it is in memory.
    #[inline]
    pub(crate) fn leaf(&mut self, volume: u64, slot: u64) -> Option<Leaf> {
        let version = self.table.version();
        let known = self.leaves.get(volume, slot, version);
        match known.filter(|leaf| self.cache.page_at(leaf.place).is_some()) {
            Some(leaf) => Some(leaf),
            None => self.find_leaf(volume, slot),
        }
    }

    /// The extent that is all of a slot, if it is one and the way to it is in memory.
    #[inline]
    pub(crate) fn whole_extent(&mut self, volume: u64, slot: u64) -> Option<WholeExtent> {
        let version = self.table.version();
        match self.leaves.whole_extent(volume, slot, version) {
            Some(known) => Some(known),
            None => self.find_whole_extent(volume, slot),
        }
    }

    /// Both of the above, of which the first is needed and the second may be unknown or not there.
    #[inline]
    pub(crate) fn leaf_and_extent(&mut self, volume: u64, slot: u64) -> Option<(Leaf, Option<WholeExtent>)> {
        let version = self.table.version();
        match self.leaves.get_with_extent(volume, slot, version) {
            Some((leaf, Some(whole))) if self.cache.page_at(leaf.place).is_some() => {
                Some((leaf, Some(whole)))
            }
            _ => {
                let leaf = self.leaf(volume, slot)?;
                Some((leaf, self.find_whole_extent(volume, slot)))
            }
        }
    }

    /// Whether the intent of a slot's region is active and durable, and a write in place may begin; if so it
    /// is used. `durable` is how far the journal is.
    #[inline]
    pub(crate) fn has_durable_intent(&mut self, volume: u64, slot: u64, durable: u64) -> bool {
        let round = self.intents.round();
        if self.leaves.has_intent(volume, slot, round) {
            return self.intents.has_room_for_use();
        }
        let is_durable = self.intents.is_durable(volume, slot / REGION_SLOTS, durable);
        if is_durable {
            self.leaves.learn_intent(volume, slot, round);
        }
        is_durable
    }

    /// Whether places of a slot's own extents may be free by records that are not durable.
    #[inline]
    pub(crate) fn has_emptied(&self, volume: u64, slot: u64) -> bool {
        !self.emptied.is_empty() && self.emptied.contains_key(&(volume, slot))
    }

    fn find_whole_extent(&mut self, volume: u64, slot: u64) -> Option<WholeExtent> {
        let leaf = self.leaf(volume, slot)?;
        let page = self.cache.page_at(leaf.place)?;
        let view = SlotView::new(page.entry(slot % MAP_SHAPE.leaf_entries))?;
        let (extent, birth) = view.fragment_with_all(u16::MAX)?;
        let whole = WholeExtent {
            extent,
            is_own: birth > leaf.parent_generation,
        };
        self.leaves.learn(volume, slot, whole);
        Some(whole)
    }

    fn find_leaf(&mut self, volume: u64, slot: u64) -> Option<Leaf> {
        let tree = self.table.tree(self.table.get(volume)?);
        let pointer = tree.leaf(&self.metadata(), slot).ok().flatten()?;
        let leaf = Leaf {
            volume,
            number: slot / MAP_SHAPE.leaf_entries,
            table_version: self.table.version(),
            place: self.cache.place(&pointer)?,
            parent_generation: tree.parent_generation_of(slot),
        };
        self.leaves.put(leaf);
        Some(leaf)
    }

    /// Whether the page of a leaf may be changed where it is.
    #[inline]
    pub(crate) fn is_leaf_open(&mut self, leaf: &Leaf) -> bool {
        let closed = self.generations.closed;
        self.cache.open_page_at(leaf.place).is_some_and(|page| {
            let birth = page.identity().birth;
            birth > closed && birth > leaf.parent_generation
        })
    }

    fn check_running(&self) -> Result<(), PoolError> {
        self.stopped
            .map_or(Ok(()), |error| Err(PoolError::Stopped(error)))
    }
}

impl Pool {
    /// The pool's UUID.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much of it is used.
    pub fn space(&self) -> Space {
        let state = self.state.borrow();
        let SpaceCounts { freeing, pages, .. } = state.space.counts();
        let volumes = state.table.entries().filter(|entry| {
            entry.kind == crate::layout::volume::VolumeKind::Volume
                && entry.state == crate::layout::volume::VolumeState::InUse
        });
        let blocks: u64 = volumes.map(|entry| entry.size_blocks).sum();
        let (free, set_aside) = (state.space.free_extents(), state.table.set_aside());
        Space {
            total_bytes: state.space.extents() * EXTENT_BYTES,
            free_bytes: free.saturating_sub(set_aside) * EXTENT_BYTES,
            set_aside_bytes: set_aside * EXTENT_BYTES,
            freeing_bytes: freeing * EXTENT_BYTES,
            metadata_bytes: pages * EXTENT_BYTES,
            provisioned_bytes: blocks * crate::layout::BLOCK_BYTES as u64,
        }
    }

    /// What happened since the import.
    pub fn counters(&self) -> PoolCounters {
        self.state.borrow().counters
    }

    /// Whether it was imported so that nothing is written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a volume may lack what was acknowledged and not flushed: it was there when the pool was
    /// left, not in good order, with the records of some writes in memory.
    pub(crate) fn has_lost_caches(&self, volume: u64) -> bool {
        volume <= self.lost_caches_of.get()
    }

    /// Why it takes no more changes, if so. A journal that cannot be written is such a reason from then on,
    /// not from the next checkpoint on, which may never come.
    pub fn stopped(&self) -> Option<IoError> {
        self.state.borrow().stopped.or_else(|| self.journal.failure())
    }

    pub(crate) fn state(&self) -> &RefCell<State> {
        &self.state
    }

    pub(crate) fn journal(&self) -> &Rc<Journal> {
        &self.journal
    }

    /// The alignment of memory that all devices want.
    pub(crate) fn memory_align_bytes(&self) -> u32 {
        let devices = self.devices.borrow();
        let wanted = devices
            .iter()
            .flatten()
            .map(|device| device.geometry().memory_align_bytes);
        wanted.max().unwrap_or(1)
    }

    /// A device by its number.
    pub(crate) fn device(&self, number: u8) -> Result<PoolDevice, IoError> {
        let devices = self.devices.borrow();
        let device = devices.get(usize::from(number)).and_then(Option::as_ref);
        device.cloned().ok_or_else(|| self.no_device(number))
    }

    /// Gives a device to a function, by its number.
    #[inline]
    pub(crate) fn with_device<T>(
        &self,
        number: u8,
        act: impl FnOnce(&PoolDevice) -> T,
    ) -> Result<T, IoError> {
        let devices = self.devices.borrow();
        let device = devices.get(usize::from(number)).and_then(Option::as_ref);
        device.map(act).ok_or_else(|| self.no_device(number))
    }

    /// What is on a device that is not there cannot be read.
    fn no_device(&self, number: u8) -> IoError {
        match self.is_absent(number) {
            true => IoError::MediaRead,
            false => IoError::Gone,
        }
    }

    /// Whether a device is missing, of a pool that was opened without it.
    pub(crate) fn is_absent(&self, number: u8) -> bool {
        self.absent.checked_shr(number.into()).unwrap_or(0) & 1 == 1
    }

    /// Whether nothing stands against changes.
    #[inline]
    pub(crate) fn takes_changes(&self, state: &State) -> bool {
        !self.closed.get() && !self.read_only && state.stopped.is_none()
    }

    /// Nothing is durable any more.
    pub(crate) fn stop(&self, error: IoError) {
        let mut state = self.state.borrow_mut();
        if state.stopped.is_none() {
            tracing::error!(pool = %self.name, %error, "the pool takes no more changes");
            state.stopped = Some(error);
        }
    }

    pub(crate) fn check_open(&self) -> Result<(), PoolError> {
        if self.closed.get() {
            return Err(PoolError::Closed);
        }
        self.state.borrow().check_running()
    }

    /// Whether the pool takes changes.
    ///
    /// # Errors
    ///
    /// [`PoolError::ReadOnly`], [`PoolError::Closed`], [`PoolError::Stopped`].
    pub(crate) fn check_changes(&self) -> Result<(), PoolError> {
        match self.read_only {
            true => Err(PoolError::ReadOnly),
            false => self.check_open(),
        }
    }

    /// Makes all that was acknowledged durable.
    ///
    /// # Errors
    ///
    /// [`PoolError::Journal`], [`PoolError::Device`].
    pub(crate) async fn flush(&self, has_unrecorded_writes: bool) -> Result<(), PoolError> {
        if has_unrecorded_writes {
            let devices: Vec<PoolDevice> = self.devices.borrow().iter().flatten().cloned().collect();
            for device in devices {
                device.flush().await?;
            }
        }
        self.journal.commit().await?;
        Ok(())
    }
}
