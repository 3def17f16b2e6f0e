//! Labels: which pool a device is of, and what a program must know to touch it.
//!
//! Four copies a device: block 0 of the first two and of the last two extents. Changed only when devices
//! come, go or grow, one copy after the other, so that a power cut leaves three.
//!
//! | byte | field |
//! | --- | --- |
//! | 0 | magic `PLXLABEL` |
//! | 8 | format version, u32 |
//! | 16 | pool, 16 bytes |
//! | 32 | device, 16 bytes |
//! | 48, 56, 64 | features: compatible, read-only-compatible, incompatible; u64 each |
//! | 72 | generation of the label, u64 |
//! | 80 | extents of the device, u64 |
//! | 88, 96 | first extent and number of extents of the journal, u64 each; 0 for none on this device |
//! | 104, 106 | number of this device in the pool, u16; devices of the pool, u16 |
//! | 128 | name of the pool: length u16, text of up to 95 bytes |
//! | 4092 | CRC-32C |

use uuid::Uuid;

use super::field::{
    check_block, put, put_text, put_u16, put_u64, require, seal, start_block, text_at, u16_at, u64_at,
    uuid_at,
};
use super::{Block, DEVICES_MAX, LayoutError};

const MAGIC: [u8; 8] = *b"PLXLABEL";
const STRUCTURE: &str = "label";

/// Extents that a device must have: the label areas and a little room.
pub const DEVICE_EXTENTS_MIN: u64 = 64;

/// Extents that a device may have.
pub const DEVICE_EXTENTS_MAX: u64 = 1 << 40;

/// Bytes of a name of a pool, a volume or a snapshot.
pub const NAME_BYTES_MAX: usize = 95;

/// Compatible features that this program knows.
pub const KNOWN_COMPATIBLE: u64 = 0;
/// Read-only-compatible features that this program knows.
pub const KNOWN_READ_ONLY_COMPATIBLE: u64 = THICK;
/// Incompatible features that this program knows.
pub const KNOWN_INCOMPATIBLE: u64 = MOVES | LOST;

/// Incompatible: the journal may have records of moved extents. Set before a device is drained for the first
/// time.
pub const MOVES: u64 = 1;

/// Incompatible: slots may have blocks that are lost, and the journal records of moves that lost some. Who
/// does not know of them would return what lies in their places. Set before the first one is given up, and
/// kept.
pub const LOST: u64 = 2;

/// Read-only-compatible: there may be thick volumes. Who does not know of them would give away the space that
/// is set aside for them, and leave their covered slots uncounted. Set before the first one is made.
pub const THICK: u64 = 1;

/// What a pool uses beyond version 1, one bit a feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Who does not know one of these may read and write all the same.
    pub compatible: u64,
    /// Who does not know one of these may read, and must not write.
    pub read_only_compatible: u64,
    /// Who does not know one of these must leave the pool alone.
    pub incompatible: u64,
}

/// What may be done with a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Reading; these read-only-compatible features are not known.
    ReadOnly {
        /// The bits that are not known.
        unknown: u64,
    },
    /// Nothing, not even a write of the label; these incompatible features are not known.
    Refused {
        /// The bits that are not known.
        unknown: u64,
    },
}

impl Features {
    /// What this program may do.
    pub fn access(&self) -> Access {
        let unknown = self.incompatible & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Access::Refused { unknown };
        }
        match self.read_only_compatible & !KNOWN_READ_ONLY_COMPATIBLE {
            0 => Access::ReadWrite,
            unknown => Access::ReadOnly { unknown },
        }
    }
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The pool.
    pub pool: Uuid,
    /// The device.
    pub device: Uuid,
    /// What the pool uses.
    pub features: Features,
    /// Raised with each change of the labels; the highest is right.
    pub generation: u64,
    /// Extents of the device when this was written.
    pub extents: u64,
    /// First extent of the journal.
    pub journal_first: u64,
    /// Extents of the journal, 0 for none on this device.
    pub journal_extents: u64,
    /// The number of the device in the pool.
    pub device_number: u16,
    /// Devices of the pool.
    pub devices: u16,
    /// The name of the pool.
    pub name: String,
}

impl Label {
    /// The bytes on the device.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] for what could not be decoded.
    pub fn encode(&self) -> Result<Block, LayoutError> {
        self.check()?;
        let mut block = start_block(MAGIC);
        put(&mut block, 16, self.pool.as_bytes());
        put(&mut block, 32, self.device.as_bytes());
        put_u64(&mut block, 48, self.features.compatible);
        put_u64(&mut block, 56, self.features.read_only_compatible);
        put_u64(&mut block, 64, self.features.incompatible);
        put_u64(&mut block, 72, self.generation);
        put_u64(&mut block, 80, self.extents);
        put_u64(&mut block, 88, self.journal_first);
        put_u64(&mut block, 96, self.journal_extents);
        put_u16(&mut block, 104, self.device_number);
        put_u16(&mut block, 106, self.devices);
        put_text(&mut block, 128, &self.name);
        Ok(seal(block))
    }

    /// Decodes a label. Features are not judged here: see [`Features::access`].
    ///
    /// # Errors
    ///
    /// [`LayoutError`].
    pub fn decode(block: &Block) -> Result<Self, LayoutError> {
        check_block(block, MAGIC, STRUCTURE)?;
        let name = text_at(block, 128, NAME_BYTES_MAX);
        let label = Self {
            pool: uuid_at(block, 16),
            device: uuid_at(block, 32),
            features: Features {
                compatible: u64_at(block, 48),
                read_only_compatible: u64_at(block, 56),
                incompatible: u64_at(block, 64),
            },
            generation: u64_at(block, 72),
            extents: u64_at(block, 80),
            journal_first: u64_at(block, 88),
            journal_extents: u64_at(block, 96),
            device_number: u16_at(block, 104),
            devices: u16_at(block, 106),
            name: name
                .ok_or(LayoutError::Field {
                    structure: STRUCTURE,
                    field: "name",
                })?
                .to_owned(),
        };
        label.check()?;
        Ok(label)
    }

    fn check(&self) -> Result<(), LayoutError> {
        let extents = DEVICE_EXTENTS_MIN..=DEVICE_EXTENTS_MAX;
        require(extents.contains(&self.extents), STRUCTURE, "extents")?;
        let journal_end = self.journal_first.checked_add(self.journal_extents);
        let journal_inside = journal_end.is_some_and(|end| end <= self.extents - 2)
            && (self.journal_extents == 0 || self.journal_first >= 2);
        require(journal_inside, STRUCTURE, "journal")?;
        let devices = 1..=DEVICES_MAX as u16;
        require(devices.contains(&self.devices), STRUCTURE, "devices")?;
        require(
            self.device_number < DEVICES_MAX as u16,
            STRUCTURE,
            "device number",
        )?;
        require(is_name(&self.name), STRUCTURE, "name")
    }
}

/// Whether something can be a name: 1 to 95 bytes, none of them a control character or a slash.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(|letter: char| letter.is_control() || letter == '/')
}

/// The blocks of the four label areas of a device, by their first block in units of 4 KiB.
pub fn area_blocks(extents: u64) -> [u64; 4] {
    [0, 1, extents.saturating_sub(2), extents.saturating_sub(1)]
        .map(|extent| extent * super::EXTENT_BLOCKS as u64)
}
