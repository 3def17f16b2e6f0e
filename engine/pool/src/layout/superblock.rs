//! Superblocks: the root of everything, as of one checkpoint.
//!
//! Two slots in each of the four label areas of each device: checkpoint `n` goes to slot `n % 2`, so that a
//! power cut while it is written leaves checkpoint `n - 1` everywhere. The newest that is valid in any copy
//! is right: that of the highest checkpoint, and of the highest revision of it.
//!
//! | byte | field |
//! | --- | --- |
//! | 0 | magic `PLXSUPER` |
//! | 8 | format version, u32; 12: state, u32 (0 in use, 1 exported) |
//! | 16 | pool, 16 bytes |
//! | 32 | checkpoint, u64 |
//! | 40 | incarnation, u64: drawn anew at each import; blocks of the journal carry it |
//! | 48 | generation, u64: the highest birth in this checkpoint |
//! | 56, 64 | first block of the journal to replay: sequence, u64, and place in the ring, u64 |
//! | 72 | the next volume or snapshot, u64 |
//! | 80 | devices whose copy of the journal counts, a bit for each number, u32; 0 if that is not known |
//! | 84 | revision, u32: raised when the superblock of a checkpoint is written again |
//! | 88 | blocks of the ring of the journal, u64; 0 if nothing is known of that |
//! | 96 | table of volumes: page pointer |
//! | 512 | the last [scrub](super::scrub), 512 bytes |
//! | 1024 | 32 devices of 80 bytes: id, extents u64 (16), state u32 (24), pointer to its allocation (32) |
//! | 4092 | CRC-32C |
//!
//! A device's state is 0 for none, 1 in use, 2 draining.

use arrayvec::ArrayVec;
use uuid::Uuid;

use super::field::{check_block, put, put_u32, put_u64, require, seal, start_block, u32_at, u64_at, uuid_at};
use super::label::{DEVICE_EXTENTS_MAX, DEVICE_EXTENTS_MIN};
use super::scrub::ScrubRecord;
use super::{Block, DEVICES_MAX, LayoutError, PagePointer};

const MAGIC: [u8; 8] = *b"PLXSUPER";
const STRUCTURE: &str = "superblock";
const SCRUB_AT: usize = 512;
const DEVICES_AT: usize = 1024;
const DEVICE_BYTES: usize = 80;

const _: () = assert!(SCRUB_AT + ScrubRecord::BYTES <= DEVICES_AT);

/// What becomes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// There is none of this number.
    Absent,
    /// It takes data.
    InUse,
    /// Its data goes elsewhere.
    Draining,
}

/// A device in a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Its id; all zeros for an absent one.
    pub id: Uuid,
    /// Its extents.
    pub extents: u64,
    /// Its state.
    pub state: DeviceState,
    /// The root of its allocation state.
    pub allocation: Option<PagePointer>,
}

/// A superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// The pool was left in order: no journal to replay.
    pub exported: bool,
    /// The number of the checkpoint.
    pub checkpoint: u64,
    /// What the blocks of the journal carry.
    pub incarnation: u64,
    /// The highest birth.
    pub generation: u64,
    /// The first block of the journal that is not in the checkpoint.
    pub journal_sequence: u64,
    /// Its place in the ring, in blocks.
    pub journal_position: u64,
    /// The next volume or snapshot.
    pub next_volume: u64,
    /// The devices whose copies of the journal have all blocks from its first one on, a bit for each number.
    /// 0 if nothing is known of that: programs did not always tell.
    pub journal_copies: u32,
    /// Blocks of the ring of the journal; 0 if nothing is known of that.
    pub journal_blocks: u64,
    /// How often the superblock of this checkpoint was written again.
    pub revision: u32,
    /// The table of volumes.
    pub volumes: Option<PagePointer>,
    /// How far a scrub has come, or what the last one found.
    pub scrub: ScrubRecord,
    /// The devices, by number.
    pub devices: ArrayVec<DeviceEntry, DEVICES_MAX>,
}

impl Superblock {
    /// The slot of a label area that it goes to, as a block of the area.
    pub fn slot_block(checkpoint: u64) -> u64 {
        1 + checkpoint % 2
    }

    /// Whether it was written after another one of the pool.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.checkpoint, self.revision) > (other.checkpoint, other.revision)
    }

    /// The bytes on the device.
    pub fn encode(&self) -> Block {
        let mut block = start_block(MAGIC);
        put_u32(&mut block, 12, u32::from(self.exported));
        put(&mut block, 16, self.pool.as_bytes());
        put_u64(&mut block, 32, self.checkpoint);
        put_u64(&mut block, 40, self.incarnation);
        put_u64(&mut block, 48, self.generation);
        put_u64(&mut block, 56, self.journal_sequence);
        put_u64(&mut block, 64, self.journal_position);
        put_u64(&mut block, 72, self.next_volume);
        put_u32(&mut block, 80, self.journal_copies);
        put_u32(&mut block, 84, self.revision);
        put_u64(&mut block, 88, self.journal_blocks);
        PagePointer::put(self.volumes.as_ref(), &mut block, 96);
        self.scrub.put(&mut block, SCRUB_AT);
        for (number, device) in self.devices.iter().enumerate() {
            let at = DEVICES_AT + number * DEVICE_BYTES;
            let state = match device.state {
                DeviceState::Absent => 0,
                DeviceState::InUse => 1,
                DeviceState::Draining => 2,
            };
            put(&mut block, at, device.id.as_bytes());
            put_u64(&mut block, at + 16, device.extents);
            put_u32(&mut block, at + 24, state);
            PagePointer::put(device.allocation.as_ref(), &mut block, at + 32);
        }
        seal(block)
    }

    /// Decodes a superblock.
    ///
    /// # Errors
    ///
    /// [`LayoutError`].
    pub fn decode(block: &Block) -> Result<Self, LayoutError> {
        check_block(block, MAGIC, STRUCTURE)?;
        require(u32_at(block, 12) <= 1, STRUCTURE, "state")?;
        let mut devices = ArrayVec::new();
        for number in 0..DEVICES_MAX {
            devices.push(device_at(block, DEVICES_AT + number * DEVICE_BYTES)?);
        }
        while devices
            .last()
            .is_some_and(|device: &DeviceEntry| device.state == DeviceState::Absent)
        {
            devices.pop();
        }
        Ok(Self {
            pool: uuid_at(block, 16),
            exported: u32_at(block, 12) == 1,
            checkpoint: u64_at(block, 32),
            incarnation: u64_at(block, 40),
            generation: u64_at(block, 48),
            journal_sequence: u64_at(block, 56),
            journal_position: u64_at(block, 64),
            next_volume: u64_at(block, 72),
            journal_copies: u32_at(block, 80),
            revision: u32_at(block, 84),
            journal_blocks: u64_at(block, 88),
            volumes: PagePointer::get(block, 96, STRUCTURE)?,
            scrub: ScrubRecord::get(block, SCRUB_AT, STRUCTURE)?,
            devices,
        })
    }
}

fn device_at(block: &Block, at: usize) -> Result<DeviceEntry, LayoutError> {
    let state = match u32_at(block, at + 24) {
        0 => DeviceState::Absent,
        1 => DeviceState::InUse,
        2 => DeviceState::Draining,
        _ => {
            return Err(LayoutError::Field {
                structure: STRUCTURE,
                field: "state of a device",
            });
        }
    };
    let entry = DeviceEntry {
        id: uuid_at(block, at),
        extents: u64_at(block, at + 16),
        state,
        allocation: PagePointer::get(block, at + 32, STRUCTURE)?,
    };
    let extents_valid = match state {
        DeviceState::Absent => entry.extents == 0 && entry.allocation.is_none() && entry.id.is_nil(),
        _ => (DEVICE_EXTENTS_MIN..=DEVICE_EXTENTS_MAX).contains(&entry.extents),
    };
    require(extents_valid, STRUCTURE, "extents of a device")?;
    Ok(entry)
}
