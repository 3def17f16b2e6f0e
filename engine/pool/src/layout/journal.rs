//! Blocks of the journal and the records in them.
//!
//! The journal is a ring of blocks. A block that was ever durable is told from the torn end by what later
//! blocks say: each carries the sequence up to which all was durable when it was written.
//!
//! | byte | field of a block |
//! | --- | --- |
//! | 0 | magic `PLXJRNL1` |
//! | 8 | format version, u32; 12: bytes of records, u16; 14: zeros |
//! | 16 | pool, 16 bytes |
//! | 32 | incarnation, u64 |
//! | 40 | sequence, u64 |
//! | 48 | durable sequence, u64: blocks before this one were durable |
//! | 56 | checkpoint, u64: the last one that was durable |
//! | 64 | records |
//! | 4092 | CRC-32C |
//!
//! A record begins with its kind, u8, and is of a fixed length. It is in one block as a whole. Records are
//! images of what they change (redo): doing one twice is the same as once.
//!
//! | kind | record |
//! | --- | --- |
//! | 1 | slot: volume u64, slot u64, the 128 bytes of the slot |
//! | 2 | clear: volume u64, first slot u64, number of slots u32 |
//! | 3 | intent: volume u64, region u64 |
//! | 4 | volume: the 256 bytes of its entry; root, parent, generation and cursor of one that is there stay |
//! | 5 | snapshot: the volume u64, and the 256 bytes of the entry of its new snapshot, without root |
//! | 6 | checksum: volume u64, slot u64, block of the slot u8, its checksum u32 |
//! | 7 | move: volume u64, slot u64, an extent u64, the one that its data was copied to u64 |
//! | 8 | move with losses: the same, and the blocks that could not be copied, u16 and not 0 |
//!
//! Moves are there only if the labels say so: [`MOVES`](super::label::MOVES), and with losses
//! [`LOST`](super::label::LOST).
//!
//! An intent ends with the checkpoint that does not write it again. A volume or snapshot that is gone was in
//! the state kept or being deleted before, and is gone in a checkpoint: its space comes back with it.

use uuid::Uuid;

use super::field::{
    bytes_at, check_block, put, put_u16, put_u32, put_u64, require, seal_in_place, start_block, u16_at,
    u32_at, u64_at, uuid_at,
};
use super::slot::Slot;
use super::volume::VolumeEntry;
use super::{Block, EXTENT_BLOCKS, ExtentId, LayoutError};

const MAGIC: [u8; 8] = *b"PLXJRNL1";
const STRUCTURE: &str = "journal block";
const RECORDS_AT: usize = 64;

/// Bytes for records in a block.
pub const RECORDS_BYTES_MAX: usize = 4092 - RECORDS_AT;

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A slot is like this now.
    Slot {
        /// Of which volume.
        volume: u64,
        /// Which slot.
        index: u64,
        /// What it is now.
        slot: Slot,
    },
    /// Slots are empty now.
    Clear {
        /// Of which volume.
        volume: u64,
        /// The first slot.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Blocks of a region may be overwritten in place from now on.
    Intent {
        /// Of which volume.
        volume: u64,
        /// Which region.
        region: u64,
    },
    /// A volume or snapshot is like this now. A new one with a parent has the map of that.
    Volume(Box<VolumeEntry>),
    /// A block was overwritten in place.
    Checksum {
        /// Of which volume.
        volume: u64,
        /// In which slot.
        index: u64,
        /// Which block of it.
        block: u8,
        /// Its checksum now.
        checksum: u32,
    },
    /// An extent of a slot is another one, in all volumes and snapshots related to one.
    Move {
        /// One of them.
        volume: u64,
        /// Which slot.
        index: u64,
        /// The extent.
        from: ExtentId,
        /// The one that has its data now.
        to: ExtentId,
        /// Blocks of it that are lost from now on.
        lost: u16,
    },
    /// A snapshot was made.
    Snapshot {
        /// Of which volume.
        volume: u64,
        /// The snapshot.
        entry: Box<VolumeEntry>,
    },
}

/// The longest record.
pub const RECORD_BYTES_MAX: usize = 9 + VolumeEntry::BYTES;

impl Record {
    /// Puts the record at the start of `into`; returns its length, or `None` if there is no room.
    pub fn encode(&self, into: &mut [u8]) -> Option<usize> {
        let len = record_bytes(self.kind())?;
        let into = into.get_mut(..len)?;
        put(into, 0, &[self.kind()]);
        match self {
            Self::Slot { volume, index, slot } => {
                put_u64(into, 1, *volume);
                put_u64(into, 9, *index);
                put(into, 17, &slot.encode());
            }
            Self::Clear { volume, first, count } => {
                put_u64(into, 1, *volume);
                put_u64(into, 9, *first);
                put_u32(into, 17, *count);
            }
            Self::Intent { volume, region } => {
                put_u64(into, 1, *volume);
                put_u64(into, 9, *region);
            }
            Self::Checksum {
                volume,
                index,
                block,
                checksum,
            } => put_checksum(into, *volume, *index, *block, *checksum),
            Self::Move {
                volume,
                index,
                from,
                to,
                lost,
            } => {
                put_u64(into, 1, *volume);
                put_u64(into, 9, *index);
                put_u64(into, 17, from.raw());
                put_u64(into, 25, to.raw());
                if *lost != 0 {
                    put_u16(into, 33, *lost);
                }
            }
            Self::Volume(entry) => put(into, 1, &entry.encode()),
            Self::Snapshot { volume, entry } => {
                put_u64(into, 1, *volume);
                put(into, 9, &entry.encode());
            }
        }
        Some(len)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Slot { .. } => 1,
            Self::Clear { .. } => 2,
            Self::Intent { .. } => 3,
            Self::Volume(_) => 4,
            Self::Snapshot { .. } => 5,
            Self::Checksum { .. } => 6,
            Self::Move { lost: 0, .. } => 7,
            Self::Move { .. } => 8,
        }
    }

    /// The record at the start of `bytes` and its length.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`].
    fn decode(bytes: &[u8]) -> Result<(Self, usize), LayoutError> {
        let wrong = |field| LayoutError::Field {
            structure: STRUCTURE,
            field,
        };
        let kind = bytes.first().copied().unwrap_or(0);
        let len = record_bytes(kind).ok_or(wrong("kind of a record"))?;
        let bytes = bytes.get(..len).ok_or(wrong("length of a record"))?;
        let entry_at = |at: usize| {
            let entry = VolumeEntry::decode(bytes.get(at..).unwrap_or_default())?;
            let entry = entry.filter(|entry| entry.root.is_none());
            entry.map(Box::new).ok_or(wrong("entry of a volume"))
        };
        let (volume, second) = (u64_at(bytes, 1), u64_at(bytes, 9));
        let record = match kind {
            1 => Self::Slot {
                volume,
                index: second,
                slot: Slot::decode(bytes.get(17..).unwrap_or_default())?,
            },
            2 => Self::Clear {
                volume,
                first: second,
                count: u32_at(bytes, 17),
            },
            3 => Self::Intent {
                volume,
                region: second,
            },
            4 => Self::Volume(entry_at(1)?),
            5 => Self::Snapshot {
                volume,
                entry: entry_at(9)?,
            },
            6 => {
                let [block] = bytes_at(bytes, 17);
                if usize::from(block) >= EXTENT_BLOCKS {
                    return Err(wrong("block of a checksum"));
                }
                Self::Checksum {
                    volume,
                    index: second,
                    block,
                    checksum: u32_at(bytes, 18),
                }
            }
            7 | 8 => {
                let extents = [17, 25].map(|at| ExtentId::from_raw(u64_at(bytes, at)));
                let [Some(from), Some(to)] = extents else {
                    return Err(wrong("extent of a move"));
                };
                let lost = if kind == 8 { u16_at(bytes, 33) } else { 0 };
                if kind == 8 && lost == 0 {
                    return Err(wrong("lost blocks of a move"));
                }
                Self::Move {
                    volume,
                    index: second,
                    from,
                    to,
                    lost,
                }
            }
            _ => return Err(wrong("kind of a record")),
        };
        Ok((record, len))
    }
}

fn record_bytes(kind: u8) -> Option<usize> {
    match kind {
        1 => Some(17 + Slot::BYTES),
        2 => Some(21),
        3 => Some(17),
        4 => Some(1 + VolumeEntry::BYTES),
        5 => Some(9 + VolumeEntry::BYTES),
        6 => Some(CHECKSUM_BYTES),
        7 => Some(33),
        8 => Some(35),
        _ => None,
    }
}

/// Bytes of the record of a checksum.
const CHECKSUM_BYTES: usize = 22;

#[inline]
fn put_checksum(into: &mut [u8], volume: u64, index: u64, block: u8, checksum: u32) {
    put(into, 0, &[6]);
    put_u64(into, 1, volume);
    put_u64(into, 9, index);
    put(into, 17, &[block]);
    put_u32(into, 18, checksum);
}

/// Which block of the journal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// The pool.
    pub pool: Uuid,
    /// Of the superblock since the last import.
    pub incarnation: u64,
    /// The number of the block.
    pub sequence: u64,
    /// Blocks before this one were durable when it was written.
    pub durable_sequence: u64,
    /// The last checkpoint that was durable.
    pub checkpoint: u64,
}

/// A block of the journal that is being filled.
#[derive(Debug, Clone)]
pub struct JournalBlock {
    bytes: Box<Block>,
    used: usize,
}

impl Default for JournalBlock {
    fn default() -> Self {
        Self {
            bytes: Box::new(start_block(MAGIC)),
            used: 0,
        }
    }
}

impl JournalBlock {
    /// A block without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Appends a record; whether there was room.
    pub fn push(&mut self, record: &Record) -> bool {
        let end = RECORDS_AT + RECORDS_BYTES_MAX;
        let room = self
            .bytes
            .get_mut(RECORDS_AT + self.used..end)
            .unwrap_or_default();
        match record.encode(room) {
            Some(len) => {
                self.used += len;
                true
            }
            None => false,
        }
    }

    /// Appends the record of a slot, given its 128 bytes; whether there was room.
    pub(crate) fn push_slot(&mut self, volume: u64, index: u64, slot: &[u8]) -> bool {
        let end = RECORDS_AT + RECORDS_BYTES_MAX;
        let room = self.bytes.get_mut(RECORDS_AT + self.used..end);
        let Some(into) = room.and_then(|room| room.get_mut(..17 + Slot::BYTES)) else {
            return false;
        };
        if slot.len() != Slot::BYTES {
            return false;
        }
        put(into, 0, &[1]);
        put_u64(into, 1, volume);
        put_u64(into, 9, index);
        put(into, 17, slot);
        self.used += 17 + Slot::BYTES;
        true
    }

    /// Appends the record of a block that was overwritten in place; whether there was room.
    #[inline]
    pub(crate) fn push_checksum(&mut self, volume: u64, index: u64, block: u8, checksum: u32) -> bool {
        let end = RECORDS_AT + RECORDS_BYTES_MAX;
        let room = self.bytes.get_mut(RECORDS_AT + self.used..end);
        let Some(into) = room.and_then(|room| room.first_chunk_mut::<CHECKSUM_BYTES>()) else {
            return false;
        };
        put_checksum(into, volume, index, block, checksum);
        self.used += CHECKSUM_BYTES;
        true
    }

    /// Appends all records or none; whether there was room.
    pub fn push_all(&mut self, records: &[Record]) -> bool {
        let used = self.used;
        let fit = records.iter().all(|record| self.push(record));
        if !fit {
            self.used = used;
        }
        fit
    }

    /// The bytes on the device.
    pub fn seal(mut self, header: &JournalHeader) -> Box<Block> {
        let bytes = &mut *self.bytes;
        if let Some(rest) = bytes.get_mut(RECORDS_AT + self.used..RECORDS_AT + RECORDS_BYTES_MAX) {
            rest.fill(0);
        }
        put_u16(bytes, 12, self.used as u16);
        put(bytes, 16, header.pool.as_bytes());
        put_u64(bytes, 32, header.incarnation);
        put_u64(bytes, 40, header.sequence);
        put_u64(bytes, 48, header.durable_sequence);
        put_u64(bytes, 56, header.checkpoint);
        seal_in_place(bytes);
        self.bytes
    }

    /// Decodes a block.
    ///
    /// # Errors
    ///
    /// [`LayoutError`].
    pub fn decode(block: &Block) -> Result<(JournalHeader, Vec<Record>), LayoutError> {
        check_block(block, MAGIC, STRUCTURE)?;
        let header = JournalHeader {
            pool: uuid_at(block, 16),
            incarnation: u64_at(block, 32),
            sequence: u64_at(block, 40),
            durable_sequence: u64_at(block, 48),
            checkpoint: u64_at(block, 56),
        };
        let used = usize::from(u16_at(block, 12));
        require(used <= RECORDS_BYTES_MAX, STRUCTURE, "length of its records")?;
        require(
            header.durable_sequence <= header.sequence,
            STRUCTURE,
            "durable sequence",
        )?;
        let mut rest = block.get(RECORDS_AT..RECORDS_AT + used).unwrap_or_default();
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (record, len) = Record::decode(rest)?;
            records.push(record);
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok((header, records))
    }
}
