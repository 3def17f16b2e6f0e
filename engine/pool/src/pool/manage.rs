//! Volumes and snapshots are made, changed and deleted.
//!
//! Everything here is a record of the journal: appended and applied to memory in one step, and answered when
//! it is durable.

use std::rc::Rc;

use pollux_device::IoError;
use uuid::Uuid;

use super::create::random_uuid;
use super::thick::set_aside_for;
use super::{Claim, Pool, PoolError, SLOTS_MAX, State};
use crate::journal::{AppendFor, JournalError};
use crate::layout::EXTENT_BLOCKS;
use crate::layout::journal::Record;
use crate::layout::label::is_name;
use crate::layout::volume::{VolumeEntry, VolumeKind, VolumeState};
use crate::volume::{Head, Volume};

/// Blocks that a volume may have.
const BLOCKS_MAX: u64 = SLOTS_MAX * EXTENT_BLOCKS as u64;

/// How a volume is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Its size, in blocks of 4 KiB.
    pub size_blocks: u64,
    /// Whether its blocks have checksums.
    pub checksums: bool,
    /// Whether space is set aside for all of it.
    pub thick: bool,
    /// Its UUID; one is drawn if there is none.
    pub uuid: Option<Uuid>,
    /// When it is made, in seconds since 1970.
    pub created_seconds: u64,
}

impl VolumeOptions {
    /// A volume of a size, with checksums.
    pub fn new(size_blocks: u64) -> Self {
        Self {
            size_blocks,
            checksums: true,
            thick: false,
            uuid: None,
            created_seconds: 0,
        }
    }
}

/// A volume that is made smaller: it ends where it will, and where it did if nothing comes of it.
struct Shrinking<'a> {
    volume: &'a Volume,
    before: u64,
}

impl<'a> Shrinking<'a> {
    fn new(volume: &'a Volume, before: u64, size_blocks: u64) -> Self {
        volume.resized(size_blocks);
        Self { volume, before }
    }

    fn done(mut self) {
        self.before = 0;
    }
}

impl Drop for Shrinking<'_> {
    fn drop(&mut self) {
        if self.before > 0 {
            self.volume.resized(self.before);
        }
    }
}

impl Pool {
    /// The volumes and snapshots that are in use.
    pub fn volumes(&self) -> Vec<VolumeEntry> {
        let state = self.state.borrow();
        let in_use = |entry: &&VolumeEntry| entry.state == VolumeState::InUse;
        state.table.entries().filter(in_use).cloned().collect()
    }

    /// A volume or snapshot by its name.
    ///
    /// # Errors
    ///
    /// [`PoolError::NotFound`].
    pub fn volume(&self, name: &str) -> Result<VolumeEntry, PoolError> {
        let state = self.state.borrow();
        let entry = state.table.by_name(name).cloned();
        entry.ok_or_else(|| PoolError::NotFound {
            name: name.to_owned(),
        })
    }

    /// Volumes and snapshots that were deleted, and whose space is not free yet.
    pub fn deleting(&self) -> usize {
        let state = self.state.borrow();
        let deleted = |entry: &&VolumeEntry| entry.state != VolumeState::InUse;
        state.table.entries().filter(deleted).count()
    }

    /// Makes a volume of zeros.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn create_volume(
        self: &Rc<Self>,
        name: &str,
        options: &VolumeOptions,
    ) -> Result<VolumeEntry, PoolError> {
        self.check_changes()?;
        check_size(options.size_blocks)?;
        let uuid = options.uuid.unwrap_or_else(random_uuid);
        if options.thick {
            self.allow_thick().await?;
        }
        self.with_room(async || {
            let _admitted = self.admit(Claim::Rest).await?;
            self.record(|state| {
                let entry = VolumeEntry {
                    size_blocks: options.size_blocks,
                    checksums: options.checksums,
                    thick: options.thick,
                    ..state.new_entry(name, uuid, options.created_seconds)?
                };
                state.check_set_aside(0, set_aside_for(&entry))?;
                Ok(vec![Record::Volume(Box::new(entry))])
            })
            .await
        })
        .await?;
        self.volume(name)
    }

    /// Takes a snapshot of a volume. Its writes under way are waited for, and new ones wait meanwhile.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn snapshot(
        self: &Rc<Self>,
        volume: &str,
        name: &str,
        created_seconds: u64,
    ) -> Result<VolumeEntry, PoolError> {
        let id = self.volume_of_kind(volume, VolumeKind::Volume)?.id;
        self.with_room(async || self.cut_snapshot(volume, id, name, created_seconds).await)
            .await?;
        self.journal.commit().await?;
        self.volume(name)
    }

    async fn cut_snapshot(
        self: &Rc<Self>,
        volume: &str,
        id: u64,
        name: &str,
        created_seconds: u64,
    ) -> Result<(), PoolError> {
        let uuid = random_uuid();
        let head = self.head_of(id);
        let held = match &head {
            Some(head) => Some(head.hold().await),
            None => None,
        };
        // After that: those who are held may wait to be admitted.
        let _admitted = self.admit(Claim::Rest).await?;
        let result = self
            .append(|state| {
                let of = state.table.get(id).filter(|of| of.state == VolumeState::InUse);
                let of = of.cloned().ok_or_else(|| PoolError::NotFound {
                    name: volume.to_owned(),
                })?;
                let entry = state.new_entry(name, uuid, created_seconds)?;
                // None of its slots has an extent of its own then.
                let uncovered = VolumeEntry {
                    covered_slots: 0,
                    ..of.clone()
                };
                state.check_set_aside(set_aside_for(&of), set_aside_for(&uncovered))?;
                let entry = VolumeEntry {
                    kind: VolumeKind::Snapshot,
                    size_blocks: of.size_blocks,
                    checksums: of.checksums,
                    parent: of.parent,
                    generation: state.generations.open,
                    origin: id,
                    ..entry
                };
                Ok(vec![Record::Snapshot {
                    volume: id,
                    entry: Box::new(entry),
                }])
            })
            .await;
        // Writes go on: whatever they change comes later in the journal.
        drop(held);
        result
    }

    /// Makes a volume that begins as a snapshot is.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn clone_snapshot(
        self: &Rc<Self>,
        snapshot: &str,
        name: &str,
        created_seconds: u64,
    ) -> Result<VolumeEntry, PoolError> {
        let uuid = random_uuid();
        let _admitted = self.admit(Claim::Rest).await?;
        self.record(|state| {
            let of = state.named(snapshot, VolumeKind::Snapshot)?;
            let entry = state.new_entry(name, uuid, created_seconds)?;
            Ok(vec![Record::Volume(Box::new(entry.cloned_from(&of)))])
        })
        .await?;
        self.volume(name)
    }

    /// Makes a volume what it was when a snapshot was taken. What was written since then goes, and so
    /// nobody may use the volume.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn roll_back(self: &Rc<Self>, volume: &str, snapshot: &str) -> Result<VolumeEntry, PoolError> {
        self.with_room(async || {
            self.record(|state| {
                let of = state.named(snapshot, VolumeKind::Snapshot)?;
                let old = state.named(volume, VolumeKind::Volume)?;
                state.check_unused(&old)?;
                let fresh = VolumeEntry {
                    id: state.table.next_id(),
                    ..old.clone()
                };
                let fresh = fresh.cloned_from(&of);
                state.check_set_aside(set_aside_for(&old), set_aside_for(&fresh))?;
                let gone = VolumeEntry {
                    root: None,
                    state: VolumeState::Kept,
                    ..old
                };
                Ok(vec![
                    Record::Volume(Box::new(gone)),
                    Record::Volume(Box::new(fresh)),
                ])
            })
            .await
        })
        .await?;
        self.wanted.wake();
        self.volume(volume)
    }

    /// Deletes a volume or a snapshot. Its space comes back in the background.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn delete(self: &Rc<Self>, name: &str) -> Result<(), PoolError> {
        self.record(|state| {
            let entry = state.table.by_name(name).cloned();
            let entry = entry.ok_or_else(|| PoolError::NotFound {
                name: name.to_owned(),
            })?;
            state.check_unused(&entry)?;
            let gone = VolumeEntry {
                root: None,
                state: VolumeState::Kept,
                ..entry
            };
            Ok(vec![Record::Volume(Box::new(gone))])
        })
        .await?;
        self.wanted.wake();
        Ok(())
    }

    /// Gives a volume or snapshot another name.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn rename(self: &Rc<Self>, name: &str, new: &str) -> Result<(), PoolError> {
        self.record(|state| {
            let entry = state.table.by_name(name).cloned();
            let entry = entry.ok_or_else(|| PoolError::NotFound {
                name: name.to_owned(),
            })?;
            state.check_name(new)?;
            let renamed = VolumeEntry {
                root: None,
                name: new.to_owned(),
                ..entry
            };
            Ok(vec![Record::Volume(Box::new(renamed))])
        })
        .await
    }

    /// Changes the size of a volume. A smaller size needs `may_drop`: what is past it is deallocated first,
    /// and nobody may use the volume.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub async fn resize(
        self: &Rc<Self>,
        name: &str,
        size_blocks: u64,
        may_drop: bool,
    ) -> Result<(), PoolError> {
        self.check_changes()?;
        check_size(size_blocks)?;
        let entry = self.volume_of_kind(name, VolumeKind::Volume)?;
        if size_blocks < entry.size_blocks {
            if !may_drop {
                return Err(PoolError::Shrink {
                    name: name.to_owned(),
                    from: entry.size_blocks,
                    to: size_blocks,
                });
            }
            self.state.borrow().check_unused(&entry)?;
            let volume = self.open_volume(name)?;
            // Whoever opens it from now on cannot write past the end that it will have.
            let shrinking = Shrinking::new(&volume, entry.size_blocks, size_blocks);
            let dropped = entry.size_blocks - size_blocks;
            volume.deallocate_blocks(size_blocks, dropped).await?;
            self.record_size(name, &entry, size_blocks).await?;
            shrinking.done();
            return Ok(());
        }
        self.with_room(async || self.record_size(name, &entry, size_blocks).await)
            .await?;
        if let Some(head) = self.head_of(entry.id) {
            head.resized(size_blocks);
        }
        Ok(())
    }

    async fn record_size(
        self: &Rc<Self>,
        name: &str,
        before: &VolumeEntry,
        size_blocks: u64,
    ) -> Result<(), PoolError> {
        self.record(|state| {
            let entry = state.named(name, VolumeKind::Volume)?;
            if entry.id != before.id || entry.size_blocks != before.size_blocks {
                // Another change of its size, or a roll-back, was faster.
                return Err(PoolError::Busy {
                    name: name.to_owned(),
                });
            }
            let resized = VolumeEntry {
                root: None,
                size_blocks,
                ..entry.clone()
            };
            state.check_set_aside(set_aside_for(&entry), set_aside_for(&resized))?;
            Ok(vec![Record::Volume(Box::new(resized))])
        })
        .await
    }

    /// Opens a volume or snapshot for I/O on this reactor. Snapshots cannot be written.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub fn open_volume(self: &Rc<Self>, name: &str) -> Result<Rc<Volume>, PoolError> {
        self.check_open()?;
        let entry = self.volume(name)?;
        let head = self.head_of(entry.id).unwrap_or_else(|| {
            let head = Rc::new(Head::new(&entry, self.read_only, self.memory_align_bytes()));
            let mut state = self.state.borrow_mut();
            state.heads.insert(entry.id, Rc::downgrade(&head));
            head
        });
        Ok(Rc::new(Volume::new(self.clone(), head)))
    }

    pub(super) fn head_of(&self, id: u64) -> Option<Rc<Head>> {
        self.state.borrow().heads.get(&id)?.upgrade()
    }

    /// Waits for all writes under way, and lets no new ones begin. For good.
    pub(super) async fn drain_all(&self) {
        let heads: Vec<Rc<Head>> = {
            let state = self.state.borrow();
            state.heads.values().filter_map(std::rc::Weak::upgrade).collect()
        };
        heads.iter().for_each(|head| head.close());
        for head in heads {
            let hold = head.hold().await;
            self.drained.borrow_mut().push(hold);
        }
    }

    fn volume_of_kind(&self, name: &str, kind: VolumeKind) -> Result<VolumeEntry, PoolError> {
        self.state.borrow().named(name, kind)
    }

    /// Appends records and does what they say, and waits until they are durable.
    async fn record(
        self: &Rc<Self>,
        make: impl FnMut(&mut State) -> Result<Vec<Record>, PoolError>,
    ) -> Result<(), PoolError> {
        self.append(make).await?;
        self.journal.commit().await?;
        Ok(())
    }

    /// Appends records and does what they say.
    async fn append(
        self: &Rc<Self>,
        mut make: impl FnMut(&mut State) -> Result<Vec<Record>, PoolError>,
    ) -> Result<(), PoolError> {
        loop {
            self.check_changes()?;
            {
                let mut state = self.state.borrow_mut();
                let records = make(&mut state)?;
                match self.journal.append_together(&records, AppendFor::Change) {
                    Ok(_) => {
                        let applied = records.iter().try_for_each(|record| match record {
                            Record::Volume(entry) => state.apply_volume(entry),
                            Record::Snapshot { volume, entry } => state.apply_snapshot(*volume, entry),
                            Record::Slot { .. }
                            | Record::Clear { .. }
                            | Record::Intent { .. }
                            | Record::Move { .. }
                            | Record::Checksum { .. } => None,
                        });
                        return applied.ok_or(PoolError::Device(IoError::Internal));
                    }
                    Err(JournalError::Full) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.make_room().await?;
        }
    }
}

impl State {
    fn check_name(&self, name: &str) -> Result<(), PoolError> {
        if !is_name(name) {
            return Err(PoolError::Name {
                name: name.to_owned(),
            });
        }
        if self.table.by_name(name).is_some() {
            return Err(PoolError::Exists {
                name: name.to_owned(),
            });
        }
        Ok(())
    }

    fn new_entry(&self, name: &str, uuid: Uuid, created_seconds: u64) -> Result<VolumeEntry, PoolError> {
        self.check_name(name)?;
        Ok(VolumeEntry {
            id: self.table.next_id(),
            kind: VolumeKind::Volume,
            state: VolumeState::InUse,
            checksums: true,
            thick: false,
            size_blocks: 0,
            root: None,
            parent: 0,
            generation: 0,
            delete_cursor: 0,
            created_seconds,
            uuid,
            origin: 0,
            own_extents: 0,
            covered_slots: 0,
            count_covered: false,
            name: name.to_owned(),
        })
    }

    fn named(&self, name: &str, kind: VolumeKind) -> Result<VolumeEntry, PoolError> {
        let entry = self.table.by_name(name).ok_or_else(|| PoolError::NotFound {
            name: name.to_owned(),
        })?;
        if entry.kind != kind {
            return Err(PoolError::Kind {
                name: name.to_owned(),
                wanted: match kind {
                    VolumeKind::Volume => "volume",
                    VolumeKind::Snapshot => "snapshot",
                },
            });
        }
        Ok(entry.clone())
    }

    fn check_unused(&self, entry: &VolumeEntry) -> Result<(), PoolError> {
        let in_use = self
            .heads
            .get(&entry.id)
            .is_some_and(|head| head.strong_count() > 0);
        if in_use {
            return Err(PoolError::Busy {
                name: entry.name.clone(),
            });
        }
        Ok(())
    }
}

impl VolumeEntry {
    /// A volume that begins as a snapshot is; its map is found by the parent.
    fn cloned_from(self, snapshot: &Self) -> Self {
        Self {
            kind: VolumeKind::Volume,
            size_blocks: snapshot.size_blocks,
            checksums: snapshot.checksums,
            root: None,
            parent: snapshot.id,
            generation: snapshot.generation,
            delete_cursor: 0,
            origin: snapshot.id,
            own_extents: 0,
            covered_slots: 0,
            count_covered: false,
            ..self
        }
    }
}

fn check_size(blocks: u64) -> Result<(), PoolError> {
    match blocks {
        0 => Err(PoolError::Empty),
        1..=BLOCKS_MAX => Ok(()),
        _ => Err(PoolError::TooLarge { max: BLOCKS_MAX }),
    }
}
