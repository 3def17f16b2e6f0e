//! Entries of the table of volumes: 256 bytes for each volume and each snapshot.
//!
//! | byte | field |
//! | --- | --- |
//! | 0 | id, u64; 0 for none |
//! | 8 | kind, u8: 1 volume, 2 snapshot; 9: state, u8: 0 in use, 1 kept, 2 being deleted |
//! | 10 | flags, u16: bit 0 checksums off, bit 1 thick, bit 2 covered slots are to be counted again |
//! | 16 | size in blocks of 4 KiB, u64 |
//! | 24 | root of the map: page pointer |
//! | 56 | parent, u64: the snapshot that it comes from; 0 for none |
//! | 64 | generation, u64: of a snapshot, the one that it closed; of a volume, that of its parent |
//! | 72 | deletion cursor, u64: slots before it are done |
//! | 80 | time of making, u64: seconds since 1970 |
//! | 88 | UUID, 16 bytes |
//! | 104 | origin, u64: the volume that a snapshot was taken of, or the snapshot that a clone was made of |
//! | 112 | own extents, u64: those born after the generation of the parent that its map points to |
//! | 120 | covered slots, u64: of a thick volume, those with an own extent; never more than there are |
//! | 128 | name: length u16, text of up to 95 bytes |

use uuid::Uuid;

use super::field::{bytes_at, put, put_text, put_u16, put_u64, require, text_at, u16_at, u64_at, uuid_at};
use super::label::{NAME_BYTES_MAX, is_name};
use super::{EXTENT_BLOCKS, LayoutError, PagePointer};

const STRUCTURE: &str = "volume";
const FLAG_CHECKSUMS_OFF: u16 = 1;
const FLAG_THICK: u16 = 2;
const FLAG_COUNT_COVERED: u16 = 4;

/// What an entry is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// Can be written.
    Volume,
    /// Does not change.
    Snapshot,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// It is there for its users.
    InUse,
    /// Its users deleted it; it holds what two or more descendants share.
    Kept,
    /// It goes, up to the cursor it is gone.
    Deleting,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its number, never used again; not 0.
    pub id: u64,
    /// Volume or snapshot.
    pub kind: VolumeKind,
    /// What becomes of it.
    pub state: VolumeState,
    /// Blocks are kept with their checksums.
    pub checksums: bool,
    /// Space is set aside for all of it.
    pub thick: bool,
    /// Blocks of 4 KiB.
    pub size_blocks: u64,
    /// The root of its map; `None` for all zeros.
    pub root: Option<PagePointer>,
    /// The snapshot that it comes from, 0 for none.
    pub parent: u64,
    /// What was born after this is its own.
    pub generation: u64,
    /// Slots before this one are deleted.
    pub delete_cursor: u64,
    /// When it was made, in seconds since 1970.
    pub created_seconds: u64,
    /// Its UUID.
    pub uuid: Uuid,
    /// The volume that a snapshot was taken of, the snapshot that a clone was made of; 0 for none. It may be
    /// gone by now.
    pub origin: u64,
    /// Extents that its map points to and its parent's does not. While its parent is being deleted some of
    /// them are still counted there, so that it may be less than 0, modulo 2^64.
    pub own_extents: u64,
    /// Of a thick volume: slots that have an extent of its own, so that writing them takes no other. May be
    /// less than there are, and never more.
    pub covered_slots: u64,
    /// It is less, maybe: a parent was deleted, and what that had is its own now.
    pub count_covered: bool,
    /// Its name.
    pub name: String,
}

impl VolumeEntry {
    /// Bytes of an entry.
    pub const BYTES: usize = 256;

    /// Slots of 64 KiB that it has.
    pub fn slots(&self) -> u64 {
        self.size_blocks.div_ceil(EXTENT_BLOCKS as u64)
    }

    /// The 256 bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put_u64(&mut bytes, 0, self.id);
        let kind = match self.kind {
            VolumeKind::Volume => 1,
            VolumeKind::Snapshot => 2,
        };
        let state = match self.state {
            VolumeState::InUse => 0,
            VolumeState::Kept => 1,
            VolumeState::Deleting => 2,
        };
        put(&mut bytes, 8, &[kind, state]);
        let flags = [
            (!self.checksums, FLAG_CHECKSUMS_OFF),
            (self.thick, FLAG_THICK),
            (self.count_covered, FLAG_COUNT_COVERED),
        ];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
        put_u16(&mut bytes, 10, flags.fold(0, |all, (_, flag)| all | flag));
        put_u64(&mut bytes, 16, self.size_blocks);
        PagePointer::put(self.root.as_ref(), &mut bytes, 24);
        put_u64(&mut bytes, 56, self.parent);
        put_u64(&mut bytes, 64, self.generation);
        put_u64(&mut bytes, 72, self.delete_cursor);
        put_u64(&mut bytes, 80, self.created_seconds);
        put(&mut bytes, 88, self.uuid.as_bytes());
        put_u64(&mut bytes, 104, self.origin);
        put_u64(&mut bytes, 112, self.own_extents);
        put_u64(&mut bytes, 120, self.covered_slots);
        put_text(&mut bytes, 128, &self.name);
        bytes
    }

    /// Decodes an entry; `None` where there is none.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, LayoutError> {
        let wrong = |field| LayoutError::Field {
            structure: STRUCTURE,
            field,
        };
        let id = u64_at(bytes, 0);
        if id == 0 {
            let empty = bytes.iter().all(|byte| *byte == 0);
            return if empty { Ok(None) } else { Err(wrong("id")) };
        }
        let [kind, state] = bytes_at(bytes, 8);
        let flags = u16_at(bytes, 10);
        require(
            flags & !(FLAG_CHECKSUMS_OFF | FLAG_THICK | FLAG_COUNT_COVERED) == 0,
            STRUCTURE,
            "flags",
        )?;
        let name = text_at(bytes, 128, NAME_BYTES_MAX).filter(|name| is_name(name));
        let entry = Self {
            id,
            kind: match kind {
                1 => VolumeKind::Volume,
                2 => VolumeKind::Snapshot,
                _ => return Err(wrong("kind")),
            },
            state: match state {
                0 => VolumeState::InUse,
                1 => VolumeState::Kept,
                2 => VolumeState::Deleting,
                _ => return Err(wrong("state")),
            },
            checksums: flags & FLAG_CHECKSUMS_OFF == 0,
            thick: flags & FLAG_THICK != 0,
            size_blocks: u64_at(bytes, 16),
            root: PagePointer::get(bytes, 24, STRUCTURE)?,
            parent: u64_at(bytes, 56),
            generation: u64_at(bytes, 64),
            delete_cursor: u64_at(bytes, 72),
            created_seconds: u64_at(bytes, 80),
            uuid: uuid_at(bytes, 88),
            origin: u64_at(bytes, 104),
            own_extents: u64_at(bytes, 112),
            covered_slots: u64_at(bytes, 120),
            count_covered: flags & FLAG_COUNT_COVERED != 0,
            name: name.ok_or(wrong("name"))?.to_owned(),
        };
        let is_counted = entry.covered_slots > 0 || entry.count_covered;
        require(
            (entry.thick || !is_counted) && entry.covered_slots <= entry.slots(),
            STRUCTURE,
            "covered slots",
        )?;
        Ok(Some(entry))
    }
}
