//! Opening a pool that devices hold: after an export, a power cut, or anything in between.
//!
//! 1. Labels say which devices belong together, and what this program must know; the newest superblock of
//!    all devices is the right one.
//! 2. The allocation state and the table of volumes are read.
//! 3. The journal is replayed; see [`replay`](super::replay).
//! 4. Devices that miss the newest superblock get it.
//! 5. A checkpoint with a new incarnation makes it durable, before anything is served. Until its superblock
//!    is written nothing that the old one needs is changed, so that a power cut in between begins anew.
//!
//! Read-only, devices may be missing if one is there whose copy of the journal counts: what is on the
//! others cannot be read, and all else is as it was when the pool was left. It ends after the third: what
//! the replay changed is in memory alone, and pages that it made have places that nobody writes to. Every
//! device is behind one that lets no write through.

use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pollux_device::BlockDevice;
use pollux_reactor::random_u64;

use super::counted::found_copies;
use super::create::{check_device, reserve_extents};
use super::labels::{self, Areas, extents_of};
use super::{ALLOCATION_SHAPE, Parts, Pool, PoolError, PoolOptions, VOLUMES_SHAPE};
use crate::allocator::DeviceSpace;
use crate::cache::{LoadError, load};
use crate::device::{PoolDevice, Protected};
use crate::journal::{JournalIdentity, RingPosition, Scanner};
use crate::layout::journal::Record;
use crate::layout::label::{Access, Label};
use crate::layout::page::{Page, PageIdentity};
use crate::layout::superblock::{DeviceState, Superblock};
use crate::layout::volume::VolumeEntry;
use crate::layout::{DEVICES_MAX, ExtentId, PagePointer};
use crate::space::PoolSpace;
use crate::tree::Shape;

/// Pages read at a time.
const READS_MAX: usize = 64;

/// A block of a volume that was found damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostBlock {
    /// The volume, by its id.
    pub volume: u64,
    /// The block of it.
    pub block: u64,
}

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// The pool was left in order.
    pub was_exported: bool,
    /// Blocks of the journal that were replayed.
    pub journal_blocks: u64,
    /// Records in them.
    pub records: u64,
    /// Blocks that were being overwritten when the pool was left, and are newer than their checksums were.
    pub newer_blocks: u64,
    /// Blocks of those regions that cannot be read.
    pub unreadable: Vec<LostBlock>,
    /// Devices that are missing, by number: what is on them cannot be read.
    pub missing: Vec<u8>,
    /// Nothing was written, and nothing can be.
    pub read_only: bool,
    /// Read-only-compatible features that this program does not know: they are why, if there are any.
    pub unknown_features: u64,
}

/// What devices say of a pool, before anything of it is read.
pub(super) struct Found {
    label: Label,
    pub(super) superblock: Superblock,
    /// By number.
    pub(super) devices: Vec<Option<PoolDevice>>,
    pub(super) labels: Vec<Option<Label>>,
    /// The newest checkpoint that each device knows of, by number; nothing for one that was just added.
    checkpoints: Vec<Option<u64>>,
    /// Read-only-compatible features that are not known.
    pub(super) unknown_features: u64,
    /// Devices that left with the newest checkpoint, and still have labels; with their extents.
    left: Vec<(PoolDevice, u64)>,
}

impl Found {
    /// Every device was written at each checkpoint, so one that does not know of a durable one is an older
    /// copy of itself.
    fn check_stale(&self, durable: u64) -> Result<(), PoolError> {
        for (device, known) in self.checkpoints.iter().enumerate() {
            if let Some(found) = known.filter(|known| *known < durable) {
                return Err(PoolError::Stale {
                    device,
                    found,
                    wanted: durable,
                });
            }
        }
        Ok(())
    }

    /// The numbers of devices that are missing.
    fn missing(&self) -> Vec<u8> {
        let members = (0u8..).zip(self.superblock.devices.iter().zip(&self.devices));
        let missing =
            members.filter(|(_, (entry, device))| entry.state != DeviceState::Absent && device.is_none());
        missing.map(|(number, _)| number).collect()
    }

    /// Devices that miss the newest superblock: the power was cut while it was written.
    fn behind(&self) -> Vec<Areas> {
        let newest = self.superblock.checkpoint;
        let is_behind = |number: u8| {
            let known = self.checkpoints.get(usize::from(number)).copied().flatten();
            known.is_none_or(|known| known < newest)
        };
        let all = self.label_areas().filter(|(number, _)| is_behind(*number));
        all.map(|(_, areas)| areas).collect()
    }

    /// The label areas of all devices that are there, by number; of both sizes where one had become larger.
    pub(super) fn label_areas(&self) -> impl Iterator<Item = (u8, Areas)> {
        let all = self
            .devices
            .iter()
            .zip(&self.labels)
            .zip(&self.superblock.devices);
        (0u8..).zip(all).filter_map(|(number, ((device, label), entry))| {
            let areas = Areas::new(device.clone()?, entry.extents);
            Some((number, areas.and_of(label.as_ref()?.extents)))
        })
    }

    /// Devices that had become larger, and whose labels do not say so yet: number, and size before and now
    /// in extents.
    fn growing(&self) -> Vec<(u8, u64, u64)> {
        let all = (0u8..).zip(self.labels.iter().zip(&self.superblock.devices));
        all.filter_map(|(number, (label, entry))| {
            let before = label.as_ref()?.extents;
            (before < entry.extents).then_some((number, before, entry.extents))
        })
        .collect()
    }
}

impl Pool {
    /// Opens the pool that devices hold. All of its devices have to be given. One that uses features with
    /// which this program may only read is opened as by [`Pool::import_read_only`].
    ///
    /// # Errors
    ///
    /// [`PoolError`]: nothing was written, unless it is of a device.
    pub async fn import(
        devices: Vec<Rc<dyn BlockDevice>>,
        options: PoolOptions,
    ) -> Result<(Rc<Self>, ImportReport), PoolError> {
        let found = find(devices.clone(), false).await?;
        match found.unknown_features {
            0 => Self::import_found(found, options, false).await,
            _ => Self::import_read_only(devices, options).await,
        }
    }

    /// The same without a write to any device, now or later: what a crash left in the journal is done again
    /// in memory only. Devices may be missing, see [`ImportReport::missing`]. Changes are refused with
    /// [`PoolError::ReadOnly`], writes to volumes with
    /// [`IoError::ReadOnly`](pollux_device::IoError::ReadOnly).
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn import_read_only(
        devices: Vec<Rc<dyn BlockDevice>>,
        options: PoolOptions,
    ) -> Result<(Rc<Self>, ImportReport), PoolError> {
        let protected = devices
            .into_iter()
            .map(|device| Rc::new(Protected(device)) as Rc<dyn BlockDevice>);
        let found = find(protected.collect(), true).await?;
        Self::import_found(found, options, true).await
    }

    async fn import_found(
        found: Found,
        options: PoolOptions,
        read_only: bool,
    ) -> Result<(Rc<Self>, ImportReport), PoolError> {
        // The power may have been cut while the newest was written.
        found.check_stale(found.superblock.checkpoint.saturating_sub(1))?;
        let space = load_space(&found).await?;
        let identity = JournalIdentity {
            pool: found.label.pool,
            incarnation: found.superblock.incarnation,
        };
        let copies = found_copies(&found.devices, &found.labels, &found.superblock);
        let start = RingPosition {
            sequence: found.superblock.journal_sequence,
            place: found.superblock.journal_position,
        };
        let mut scanner = Scanner::new(identity, copies.counted, start);
        let mut records: Vec<Record> = Vec::new();
        let mut report = ImportReport {
            was_exported: found.superblock.exported,
            read_only,
            missing: found.missing(),
            unknown_features: found.unknown_features,
            ..ImportReport::default()
        };
        while let Some(scanned) = scanner.next().await? {
            if scanned.header.checkpoint > found.superblock.checkpoint {
                return Err(PoolError::SuperblockLost {
                    found: found.superblock.checkpoint,
                    newest: scanned.header.checkpoint,
                });
            }
            found.check_stale(scanned.header.checkpoint)?;
            report.journal_blocks += 1;
            records.extend(scanned.records);
        }
        report.records = records.len() as u64;
        let superblock = Superblock {
            incarnation: new_incarnation(found.superblock.incarnation),
            // It is on no device, and so not to be written again.
            journal_copies: 0,
            ..found.superblock.clone()
        };
        let entries = load_entries(&found).await?;
        let (behind, growing) = (found.behind(), found.growing());
        let newest = found.superblock.clone();
        let pool = Self::assemble(Parts {
            name: found.label.name.clone(),
            options,
            devices: found.devices,
            labels: found.labels,
            copies: copies.all,
            superblock,
            space,
            journal_start: scanner.position(),
            read_only,
        });
        {
            let mut state = pool.state.borrow_mut();
            for entry in entries {
                state.table.put(entry);
            }
            state.table.clear_dirty();
            for (number, before, extents) in growing {
                state.hold_old_areas(number, before, extents)?;
            }
        }
        pool.replay(&records, &mut report).await?;
        pool.state.borrow_mut().suspect_what_was_found();
        if !report.was_exported {
            let next = pool.state.borrow().table.next_id();
            pool.lost_caches_of.set(next.saturating_sub(1));
        }
        for number in &report.missing {
            let pool = &pool.name;
            tracing::warn!(%pool, device = number, "a device is missing: what is on it cannot be read");
        }
        if read_only {
            return Ok((pool, report));
        }
        // So that no device is ever more than one checkpoint behind, however often an import is cut.
        labels::write_superblock(&behind, &newest).await?;
        pool.make_checkpoint(false).await?;
        pool.repair_labels().await;
        for (device, extents) in found.left {
            labels::wipe_label(&device, extents).await?;
        }
        pool.forget_thick().await;
        pool.start_maintenance();
        Ok((pool, report))
    }

    /// Writes labels again of which a copy is missing, damaged or old. The pool can do with one good copy:
    /// what fails is told, and tried again with the next import.
    async fn repair_labels(&self) {
        if let Err(error) = self.finish_growth().await {
            tracing::warn!(pool = %self.name, %error, "labels do not tell yet that a device has grown");
        }
        let labels = self.labels.borrow().clone();
        for (number, label) in (0u8..).zip(labels) {
            let (Some(label), Ok(device)) = (label, self.device(number)) else {
                continue;
            };
            if !labels::is_label_whole(&device, &label).await
                && let Err(error) = labels::write_label(&device, &label).await
            {
                tracing::warn!(pool = %self.name, device = number, %error, "a label cannot be written again");
            }
        }
    }

    /// Ends the use of the pool: everything is made durable, and the journal is left empty; of one that is
    /// read-only all is left as it is. Volumes that are still open fail from now on.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: the pool can be imported all the same.
    pub async fn export(self: &Rc<Self>) -> Result<(), PoolError> {
        self.check_open()?;
        self.closed.set(true);
        self.recorded.wake();
        self.wanted.wake();
        // Nothing is written any more when this returns: others may have the devices by then.
        self.change_ended
            .until(|| (!self.changing_devices.get()).then_some(()))
            .await;
        self.drain_all().await;
        if self.read_only {
            return Ok(());
        }
        self.journal.commit().await?;
        self.checkpoint_idle().await;
        self.state.borrow().check_running()?;
        // What goes on in the background must not begin one beside it, nor after it.
        self.sealed.set(true);
        self.make_checkpoint(true).await
    }

    /// Wipes the labels of all devices of a pool, which needs not be open nor complete: they hold no pool any
    /// more. Done again after a power cut it goes on with the devices that still have labels.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`] if none of them has; [`PoolError::Device`].
    pub async fn destroy(devices: Vec<Rc<dyn BlockDevice>>) -> Result<(), PoolError> {
        let mut found = false;
        let mut first_error = None;
        for (at, device) in devices.into_iter().enumerate() {
            let device = PoolDevice::new(device)?;
            match labels::read_label(&device).await {
                Ok(label) => {
                    labels::wipe_label(&device, label.extents.min(extents_of(&device))).await?;
                    found = true;
                }
                // The power was cut while it was destroyed: the others are to be wiped all the same.
                Err(error) => drop(first_error.get_or_insert(PoolError::NoPool { device: at, error })),
            }
        }
        match first_error {
            Some(error) if !found => Err(error),
            _ => Ok(()),
        }
    }
}

/// A number other than the last one.
fn new_incarnation(last: u64) -> u64 {
    match random_u64() {
        drawn if drawn == last => drawn.wrapping_add(1),
        drawn => drawn,
    }
}

/// Reads the labels and superblocks, and judges them. With `may_miss` devices may be missing as long as
/// there is a copy of the journal that counts.
pub(super) async fn find(devices: Vec<Rc<dyn BlockDevice>>, may_miss: bool) -> Result<Found, PoolError> {
    if devices.is_empty() || devices.len() > DEVICES_MAX {
        return Err(PoolError::DeviceCount { found: devices.len() });
    }
    let mut given: Vec<(PoolDevice, Label)> = Vec::new();
    let mut unknown_features = 0;
    for (at, device) in devices.into_iter().enumerate() {
        let device = check_device(at, device)?;
        let label = labels::read_label(&device).await;
        let label = label.map_err(|error| PoolError::NoPool { device: at, error })?;
        if let Some((_, first)) = given.first()
            && first.pool != label.pool
        {
            return Err(PoolError::OtherPool {
                device: at,
                found: label.pool,
                wanted: first.pool,
            });
        }
        if let Some(first) = given.iter().position(|(_, other)| other.device == label.device) {
            return Err(PoolError::Twice { first, second: at });
        }
        match label.features.access() {
            Access::ReadWrite => {}
            Access::ReadOnly { unknown } => unknown_features |= unknown,
            Access::Refused { unknown } => return Err(PoolError::Features { unknown }),
        }
        if extents_of(&device) < label.extents {
            return Err(PoolError::Shrunk {
                device: at,
                found: extents_of(&device),
                wanted: label.extents,
            });
        }
        given.push((device, label));
    }
    let (superblock, known) = newest_superblock(&given).await?;
    let mut devices = vec![None; superblock.devices.len()];
    let mut checkpoints = vec![None; superblock.devices.len()];
    let mut by_number: Vec<Option<Label>> = vec![None; superblock.devices.len()];
    let mut newest: Option<Label> = None;
    let mut left = Vec::new();
    for (at, ((device, label), known)) in given.into_iter().zip(known).enumerate() {
        let number = superblock
            .devices
            .iter()
            .position(|entry| entry.state != DeviceState::Absent && entry.id == label.device);
        let Some(number) = number else {
            if known.left_with == Some(superblock.checkpoint) {
                left.push((device, label.extents));
                continue;
            }
            return Err(PoolError::Foreign {
                device: at,
                id: label.device,
            });
        };
        let entry_extents = superblock.devices.get(number).map_or(0, |entry| entry.extents);
        if extents_of(&device) < entry_extents {
            return Err(PoolError::Shrunk {
                device: at,
                found: extents_of(&device),
                wanted: entry_extents,
            });
        }
        if label.extents > entry_extents {
            // A label follows the superblock that says so.
            return Err(PoolError::SuperblockLost {
                found: superblock.checkpoint,
                newest: superblock.checkpoint + 1,
            });
        }
        if newest
            .as_ref()
            .is_none_or(|newest| label.generation > newest.generation)
        {
            newest = Some(label.clone());
        }
        devices[number] = Some(device);
        checkpoints[number] = known.member_at;
        by_number[number] = Some(label);
    }
    let has_journal = !found_copies(&devices, &by_number, &superblock).counted.is_empty();
    for (number, (entry, device)) in superblock.devices.iter().zip(&devices).enumerate() {
        if entry.state == DeviceState::Absent || device.is_some() {
            continue;
        }
        let id = entry.id;
        match may_miss && superblock.journal_copies != 0 {
            true if has_journal => {}
            true => return Err(PoolError::JournalMissing { number, id }),
            false => return Err(PoolError::Missing { number, id }),
        }
    }
    let label = newest.ok_or(PoolError::DeviceCount { found: 0 })?;
    Ok(Found {
        label,
        superblock,
        devices,
        labels: by_number,
        checkpoints,
        unknown_features,
        left,
    })
}

/// What the newest superblock of a device says.
#[derive(Default)]
struct Known {
    /// The checkpoint of it, if it names the device.
    member_at: Option<u64>,
    /// The checkpoint of it, if it does not.
    left_with: Option<u64>,
}

/// The newest superblock of all devices, and what that of each says.
async fn newest_superblock(given: &[(PoolDevice, Label)]) -> Result<(Superblock, Vec<Known>), PoolError> {
    let mut found: Option<Superblock> = None;
    let mut known = Vec::new();
    let mut error = crate::layout::LayoutError::Magic("superblock");
    for (device, label) in given {
        match labels::read_superblock(device, label.pool, label.extents).await {
            Ok(superblock) => {
                let mut entries = superblock.devices.iter();
                let checkpoint = Some(superblock.checkpoint);
                known.push(match entries.any(|entry| entry.id == label.device) {
                    true => Known {
                        member_at: checkpoint,
                        left_with: None,
                    },
                    false => Known {
                        member_at: None,
                        left_with: checkpoint,
                    },
                });
                if found.as_ref().is_none_or(|found| superblock.is_newer_than(found)) {
                    found = Some(superblock);
                }
            }
            Err(other) => {
                known.push(Known::default());
                error = other;
            }
        }
    }
    let found = found.ok_or(PoolError::NoSuperblock(error))?;
    Ok((found, known))
}

/// Reads all leaves of a tree, in no order.
async fn each_leaf(
    found: &Found,
    shape: Shape,
    root: Option<PagePointer>,
    mut leaf: impl FnMut(Page) -> Result<(), PoolError>,
) -> Result<(), PoolError> {
    let identity = |pointer: &PagePointer, level, index| PageIdentity {
        kind: shape.kind,
        level,
        tree: 0,
        index,
        birth: pointer.birth,
    };
    let mut open: Vec<(PagePointer, PageIdentity)> = root
        .map(|root| (root, identity(&root, shape.height, 0)))
        .into_iter()
        .collect();
    let mut reads = FuturesUnordered::new();
    loop {
        while reads.len() < READS_MAX
            && let Some((pointer, identity)) = open.pop()
        {
            reads.push(async move {
                let page = load(found.label.pool, &found.devices, &pointer, &identity).await;
                page.map(|page| (page, identity))
            });
        }
        let Some(result) = reads.next().await else {
            return Ok(());
        };
        let (page, PageIdentity { level, index, .. }): (Page, PageIdentity) =
            result.map_err(|error: LoadError| PoolError::Page(error))?;
        if level == 0 {
            leaf(page)?;
            continue;
        }
        for at in 0..crate::layout::page::FAN_OUT {
            if let Some(pointer) = page.pointer(at) {
                let index = index * crate::layout::page::FAN_OUT + at;
                open.push((pointer, identity(&pointer, level - 1, index)));
            }
        }
    }
}

async fn load_space(found: &Found) -> Result<PoolSpace, PoolError> {
    let mut space = PoolSpace::new();
    for (number, entry) in (0..).zip(&found.superblock.devices) {
        if entry.state == DeviceState::Absent {
            continue;
        }
        let mut device = DeviceSpace::new(number, entry.extents, reserve_extents(entry.extents));
        each_leaf(found, ALLOCATION_SHAPE, entry.allocation, |page| {
            let first = page.identity().index * ALLOCATION_SHAPE.leaf_entries;
            for at in 0..ALLOCATION_SHAPE.leaf_entries {
                let bytes = page.entry(at).try_into().unwrap_or([0; 2]);
                device.load(first + at, u16::from_le_bytes(bytes))?;
            }
            Ok(())
        })
        .await?;
        // A journal that was being moved here has its label before a checkpoint knows of it.
        let label = found.labels.get(usize::from(number)).and_then(Option::as_ref);
        if let Some(label) = label.filter(|label| label.journal_extents > 0) {
            for extent in label.journal_first..label.journal_first + label.journal_extents {
                device.mark_extent(ExtentId::new(number, extent), true)?;
            }
        }
        space.insert(number, device, entry.state == DeviceState::Draining);
    }
    Ok(space)
}

async fn load_entries(found: &Found) -> Result<Vec<VolumeEntry>, PoolError> {
    let mut entries = Vec::new();
    each_leaf(found, VOLUMES_SHAPE, found.superblock.volumes, |page| {
        for at in 0..VOLUMES_SHAPE.leaf_entries {
            // Checked when the page was opened.
            if let Ok(Some(entry)) = VolumeEntry::decode(page.entry(at)) {
                entries.push(entry);
            }
        }
        Ok(())
    })
    .await?;
    Ok(entries)
}
