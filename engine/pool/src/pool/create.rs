//! Making a pool of devices.
//!
//! The labels come last: a power cut before that leaves devices without a pool, or with some labels of one
//! whose other devices are missing, which is refused at import and can be created over.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use arrayvec::ArrayVec;
use pollux_device::{BlockDevice, IoError};
use pollux_reactor::random_u64;
use uuid::Uuid;

use super::labels::{self, extents_of};
use super::{Parts, Pool, PoolCounters, PoolError, PoolOptions, State, Table};
use crate::allocator::DeviceSpace;
use crate::cache::PageCache;
use crate::device::PoolDevice;
use crate::journal::{
    COPIES_MAX, Journal, JournalCopy, JournalIdentity, RING_BLOCKS_MIN, Ring, RingPosition,
};
use crate::layout::label::{DEVICE_EXTENTS_MIN, Features, Label, is_name};
use crate::layout::superblock::{DeviceEntry, DeviceState, Superblock};
use crate::layout::{BLOCK_BYTES, DEVICES_MAX, EXTENT_BLOCKS, EXTENT_BYTES, ExtentId};
use crate::space::PoolSpace;
use crate::tree::Generations;

/// The journal of a pool that does not say how long it is, in bytes: a part of the first device, within
/// limits. Its upper limit is what an import can replay within a second.
const JOURNAL_PART: u64 = 64;
const JOURNAL_BYTES_MAX: u64 = 64 << 20;

/// Where the journal begins on its devices, in extents.
pub(super) const JOURNAL_FIRST: u64 = 2;

/// The most of a device that a journal takes, as one in so many extents.
pub(super) const JOURNAL_PART_MAX: u64 = 4;

/// The part of a device that only metadata may use, as one in so many extents, and the fewest.
const RESERVE_PART: u64 = 64;
const RESERVE_EXTENTS_MIN: u64 = 8;

/// How a pool is made.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Bytes of the journal; 0 for what suits the first device.
    pub journal_bytes: u64,
    /// Devices that belong to another pool are taken all the same.
    pub overwrite: bool,
}

/// Extents of a device that data leaves to metadata.
pub(super) fn reserve_extents(extents: u64) -> u64 {
    (extents / RESERVE_PART).max(RESERVE_EXTENTS_MIN)
}

/// The space of a device on which nothing is used but labels and journal.
pub(super) fn empty_space(number: u8, label: &Label) -> Result<DeviceSpace, PoolError> {
    let mut space = DeviceSpace::new(number, label.extents, reserve_extents(label.extents));
    let journal = label.journal_first..label.journal_first + label.journal_extents;
    let labels = [0, 1, label.extents - 2, label.extents - 1];
    for extent in labels.into_iter().chain(journal) {
        space.mark_extent(ExtentId::new(number, extent), false)?;
    }
    Ok(space)
}

/// The copies of the journal, as labels say where they are.
pub(super) fn journal_copies(
    devices: &[Option<PoolDevice>],
    labels: &[Option<Label>],
) -> ArrayVec<JournalCopy, COPIES_MAX> {
    let both = devices.iter().zip(labels);
    let copies = both.filter_map(|(device, label)| {
        let (device, label) = (device.as_ref()?, label.as_ref()?);
        Some(JournalCopy {
            device: device.clone(),
            ring: label.journal_ring()?,
        })
    });
    copies.take(COPIES_MAX).collect()
}

/// A device that a pool can use.
pub(super) fn check_device(at: usize, device: Rc<dyn BlockDevice>) -> Result<PoolDevice, PoolError> {
    let geometry = device.geometry();
    let device = PoolDevice::new(device)?;
    let atomic = u64::from(geometry.atomic_write_blocks) * u64::from(geometry.block_bytes);
    // Nothing is torn where nothing is written.
    if atomic < BLOCK_BYTES as u64 && !geometry.read_only {
        return Err(PoolError::TornWrites { device: at });
    }
    if extents_of(&device) < DEVICE_EXTENTS_MIN {
        return Err(PoolError::TooSmall {
            device: at,
            blocks: device.blocks(),
            needed: DEVICE_EXTENTS_MIN * EXTENT_BLOCKS as u64,
        });
    }
    Ok(device)
}

impl Label {
    /// The blocks that the journal has on the device, if any.
    pub(super) fn journal_ring(&self) -> Option<Ring> {
        (self.journal_extents > 0).then_some(Ring {
            first_block: self.journal_first * EXTENT_BLOCKS as u64,
            blocks: self.journal_extents * EXTENT_BLOCKS as u64,
        })
    }
}

impl Pool {
    /// Makes a pool of devices, whose content is lost, and opens it.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: nothing was written, unless it is [`PoolError::Device`].
    pub async fn create(
        name: &str,
        devices: Vec<Rc<dyn BlockDevice>>,
        create: &CreateOptions,
        options: PoolOptions,
    ) -> Result<Rc<Self>, PoolError> {
        if !is_name(name) {
            return Err(PoolError::Name {
                name: name.to_owned(),
            });
        }
        if devices.is_empty() || devices.len() > DEVICES_MAX {
            return Err(PoolError::DeviceCount { found: devices.len() });
        }
        let mut checked = Vec::new();
        let mut written_over = Vec::new();
        for (at, device) in devices.into_iter().enumerate() {
            let device = check_device(at, device)?;
            if let Ok(label) = labels::read_label(&device).await {
                if !create.overwrite {
                    return Err(PoolError::InUse {
                        device: at,
                        pool: label.name,
                        uuid: label.pool,
                    });
                }
                written_over.push((device.clone(), label.extents));
            }
            checked.push(device);
        }
        for (device, extents) in written_over {
            // Else a power cut could leave a label of the old pool with what is half written over.
            labels::wipe_label(&device, extents.min(extents_of(&device))).await?;
        }
        let uuid = random_uuid();
        let smallest = checked.iter().take(COPIES_MAX).map(extents_of).min();
        let journal_extents = journal_extents(create.journal_bytes, smallest.unwrap_or(0));
        let labels: Vec<Label> = (0..)
            .zip(&checked)
            .map(|(number, device)| Label {
                pool: uuid,
                device: random_uuid(),
                features: Features::default(),
                generation: 1,
                extents: extents_of(device),
                journal_first: JOURNAL_FIRST,
                journal_extents: if usize::from(number) < COPIES_MAX {
                    journal_extents
                } else {
                    0
                },
                device_number: number,
                devices: checked.len() as u16,
                name: name.to_owned(),
            })
            .collect();
        let pool = Self::begin(uuid, name, &checked, &labels, options)?;
        for areas in pool.label_areas() {
            // Else an old superblock of a label that is written over might be found with the new one.
            areas.device.flush().await?;
        }
        pool.make_checkpoint(false).await?;
        for (device, label) in checked.iter().zip(&labels) {
            labels::write_label(device, label).await?;
        }
        pool.start_maintenance();
        Ok(pool)
    }

    fn begin(
        uuid: Uuid,
        name: &str,
        devices: &[PoolDevice],
        labels: &[Label],
        options: PoolOptions,
    ) -> Result<Rc<Self>, PoolError> {
        let devices: Vec<Option<PoolDevice>> = devices.iter().cloned().map(Some).collect();
        let mut space = PoolSpace::new();
        for (number, label) in (0..).zip(labels) {
            space.insert(number, empty_space(number, label)?, false);
        }
        let entries = labels.iter().map(|label| DeviceEntry {
            id: label.device,
            extents: label.extents,
            state: DeviceState::InUse,
            allocation: None,
        });
        let superblock = Superblock {
            pool: uuid,
            exported: false,
            checkpoint: 0,
            incarnation: random_u64(),
            generation: 0,
            journal_sequence: 0,
            journal_position: 0,
            next_volume: 1,
            // The first checkpoint says.
            journal_copies: 0,
            journal_blocks: 0,
            revision: 0,
            volumes: None,
            scrub: Default::default(),
            devices: entries.collect(),
        };
        let labels: Vec<Option<Label>> = labels.iter().cloned().map(Some).collect();
        let copies = journal_copies(&devices, &labels);
        Ok(Self::assemble(Parts {
            name: name.to_owned(),
            options,
            devices,
            labels,
            copies,
            superblock,
            space,
            journal_start: RingPosition {
                sequence: 0,
                place: 0,
            },
            read_only: false,
        }))
    }

    /// A pool in memory.
    pub(super) fn assemble(parts: Parts) -> Rc<Self> {
        let Parts {
            name,
            options,
            devices,
            labels,
            copies,
            superblock,
            space,
            journal_start,
            read_only,
        } = parts;
        let uuid = superblock.pool;
        let identity = JournalIdentity {
            pool: uuid,
            incarnation: superblock.incarnation,
        };
        let journal = Journal::new(identity, copies, journal_start, superblock.checkpoint);
        journal.set_data_devices(devices.iter().flatten().cloned().collect());
        let numbered = (0u32..).zip(&superblock.devices);
        let absent = numbered.filter(|(number, entry)| {
            let device = devices.get(*number as usize).and_then(Option::as_ref);
            entry.state != DeviceState::Absent && device.is_none()
        });
        let absent = absent.fold(0, |bits, (number, _)| bits | 1 << number);
        let allocation = (0..).zip(&superblock.devices);
        let allocation = allocation.map(|(number, device)| (number, device.allocation));
        let state = State {
            space,
            cache: PageCache::new(uuid, options.cache_bytes, superblock.generation),
            table: Table::new(superblock.next_volume),
            intents: Default::default(),
            heads: HashMap::new(),
            emptied: HashMap::new(),
            loads: HashMap::new(),
            counters: PoolCounters::default(),
            volumes: superblock.volumes,
            allocation: allocation.collect(),
            scrub: superblock.scrub.clone(),
            usages: HashMap::new(),
            maps_changed: 0,
            recount: None,
            generations: Generations {
                open: superblock.generation + 1,
                closed: superblock.generation,
            },
            members: superblock.devices.clone(),
            sizes_before: BTreeMap::new(),
            superblock,
            checkpoints_wanted: 0,
            checkpoints_done: 0,
            checkpoint_running: false,
            writes_admitted: 0,
            suspects: Default::default(),
            leaves: Default::default(),
            trimmed: Default::default(),
            looked_for_space: 0,
            stopped: None,
        };
        let pool = Rc::new(Self {
            uuid,
            name,
            options,
            devices: devices.into(),
            labels: labels.into(),
            changing_devices: Default::default(),
            change_is_ending: Default::default(),
            change_ended: Default::default(),
            successor: Default::default(),
            journal,
            state: state.into(),
            checkpoint_done: Default::default(),
            recorded: Default::default(),
            admission: Default::default(),
            wanted: Default::default(),
            reclaiming: Default::default(),
            scrubbing: Default::default(),
            closed: Default::default(),
            read_only,
            lost_caches_of: Default::default(),
            absent,
            superblock_held: Default::default(),
            superblock_free: Default::default(),
            uncounted: Default::default(),
            sealed: Default::default(),
            opened: pollux_reactor::now(),
            drained: Default::default(),
        });
        let weak = Rc::downgrade(&pool);
        pool.journal.set_gives_up(Rc::new(move |device| {
            let pool = weak.upgrade();
            Box::pin(async move {
                match pool {
                    Some(pool) => pool.copy_lost(device).await,
                    None => Err(IoError::Gone),
                }
            })
        }));
        pool
    }
}

/// Extents of the journal, for so many bytes or the smallest of its devices.
fn journal_extents(bytes: u64, device_extents: u64) -> u64 {
    let fewest = RING_BLOCKS_MIN / EXTENT_BLOCKS as u64;
    let wanted = if bytes == 0 {
        (device_extents / JOURNAL_PART).min(JOURNAL_BYTES_MAX / EXTENT_BYTES)
    } else {
        bytes.div_ceil(EXTENT_BYTES)
    };
    // Less on the smallest.
    wanted.min(device_extents / JOURNAL_PART_MAX).max(fewest)
}

pub(super) fn random_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(random_bytes()).into_uuid()
}

fn random_bytes() -> [u8; 16] {
    (u128::from(random_u64()) << 64 | u128::from(random_u64())).to_le_bytes()
}
