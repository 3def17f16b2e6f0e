//! The structures of the area, encoded and decoded.
//!
//! All begin and end alike:
//!
//! | byte | field |
//! | --- | --- |
//! | 0 | magic, 8 bytes |
//! | 8 | format version, u32: 1 |
//! | 16, 32 | volume, replica, 16 bytes each |
//! | 48 | sequence, u64 |
//! | 56 | index: of a map block, u64; 0 in all others |
//! | 4092 | CRC-32C of all before |
//!
//! What is between them:
//!
//! | structure | byte | field |
//! | --- | --- | --- |
//! | label `PLXVLABL` | 64, 72, 80 | features: compatible, read-only-compatible, incompatible; u64 each |
//! | | 88, 96 | blocks of data, blocks of a region; u64 each, in 4 KiB |
//! | | 104 | blocks that the map has room for, counted once; u64 |
//! | promise `PLXVPROM` | 64 | epoch, u64 |
//! | record `PLXVRECD` | 64, 72, 80 | epoch, version, size in blocks; u64 each |
//! | | 88, 92 | block size, u32; min_in_sync, u32 |
//! | | 96 | epoch of the last opening that found caches lost, 0 for none; u64 |
//! | | 128 + 32 n | slot n: state, u32 (0 none, 1 in sync, 2 behind, 3 empty); 16 on: replica, 16 bytes |
//! | | 288 | number of snapshots, u32 |
//! | | 292 + 36 n | snapshot n: name, cut, 16 bytes each; who has it, who is owed it, a bit a slot each |
//! | | 3892 | roll-back, u32: 0 none, 1 under way, 2 over; its name and snapshot, 16 bytes each |
//! | map `PLXVRMAP` | 64 | 4028 regions, a byte each |

use crc_fast::{CrcAlgorithm, checksum};
use uuid::Uuid;

use super::field::{bytes_at, put, put_u32, put_u64, u8_at, u32_at, u64_at, uuid_at};
use super::{BLOCK_BYTES, Block};
use crate::membership::{
    Epoch, Membership, MembershipError, REPLICAS_MAX, ReplicaEntry, ReplicaState, RollBack, SNAPSHOTS_MAX,
    SlotSet, SnapshotEntry,
};

/// The version of the format that this program writes.
pub const FORMAT_VERSION: u32 = 1;

/// Regions in a map block.
pub const MAP_BLOCK_REGIONS: usize = CRC_AT - PAYLOAD_AT;

/// Incompatible features that this program knows: who does not know one that is set leaves the device alone.
pub const KNOWN_INCOMPATIBLE: u64 = 0;
/// Read-only-compatible features that this program knows; a replica with others is not written.
pub const KNOWN_READ_ONLY_COMPATIBLE: u64 = 0;

const CRC_AT: usize = BLOCK_BYTES - 4;
const PAYLOAD_AT: usize = 64;
const SLOTS_AT: usize = 128;
const SLOT_BYTES: usize = 32;
const SNAPSHOT_COUNT_AT: usize = SLOTS_AT + REPLICAS_MAX * SLOT_BYTES;
const SNAPSHOTS_AT: usize = SNAPSHOT_COUNT_AT + 4;
const SNAPSHOT_BYTES: usize = 36;
const ROLL_BACK_AT: usize = SNAPSHOTS_AT + SNAPSHOTS_MAX * SNAPSHOT_BYTES;
const ROLL_BACK_BYTES: usize = 36;

/// All of them fit.
const _: () = assert!(ROLL_BACK_AT + ROLL_BACK_BYTES <= CRC_AT);

/// Why a block is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Something else is there, or nothing.
    #[error("there is no {0}")]
    Magic(&'static str),
    /// It is damaged.
    #[error("the {0} does not match its checksum")]
    Checksum(&'static str),
    /// A newer program wrote it.
    #[error("the {structure} has format version {version}, and only {FORMAT_VERSION} is known")]
    Version {
        /// Which structure.
        structure: &'static str,
        /// Its version.
        version: u32,
    },
    /// It is of another volume or replica, or belongs elsewhere.
    #[error("the {0} belongs to another volume, another replica or another place")]
    Foreign(&'static str),
    /// A field cannot be.
    #[error("the {field} of the {structure} is not valid")]
    Field {
        /// Which structure.
        structure: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// It uses what this program does not know.
    #[error("features {0:#x} of the label are not known: use a newer program")]
    Features(u64),
    /// A record that must not be.
    #[error(transparent)]
    Record(#[from] MembershipError),
}

/// Whose a structure is, and of which write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: Uuid,
    /// The replica.
    pub replica: Uuid,
    /// The number of the write.
    pub sequence: u64,
}

/// The kinds of structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// See [`Label`].
    Label,
    /// The newest epoch promised.
    Promise,
    /// A copy of the record of the volume.
    Record,
    /// A block of the region map, with its index.
    Map(u64),
}

impl Kind {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Promise => "promise",
            Self::Record => "copy of the record",
            Self::Map(_) => "region map",
        }
    }

    fn magic(self) -> [u8; 8] {
        match self {
            Self::Label => *b"PLXVLABL",
            Self::Promise => *b"PLXVPROM",
            Self::Record => *b"PLXVRECD",
            Self::Map(_) => *b"PLXVRMAP",
        }
    }

    fn index(self) -> u64 {
        match self {
            Self::Map(index) => index,
            Self::Label | Self::Promise | Self::Record => 0,
        }
    }
}

fn start(kind: Kind, header: &Header) -> Block {
    let mut block = [0; BLOCK_BYTES];
    put(&mut block, 0, &kind.magic());
    put_u32(&mut block, 8, FORMAT_VERSION);
    put(&mut block, 16, header.volume.as_bytes());
    put(&mut block, 32, header.replica.as_bytes());
    put_u64(&mut block, 48, header.sequence);
    put_u64(&mut block, 56, kind.index());
    block
}

fn crc32c(bytes: &[u8]) -> u32 {
    // A CRC of 32 bits, in the lower half.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn seal(mut block: Block) -> Block {
    let crc = crc32c(&block[..CRC_AT]);
    put_u32(&mut block, CRC_AT, crc);
    block
}

/// Checks what all structures have in common; whose it is.
///
/// # Errors
///
/// [`CodecError`].
pub fn check(block: &Block, kind: Kind) -> Result<Header, CodecError> {
    let structure = kind.name();
    if bytes_at::<8>(block, 0) != kind.magic() {
        return Err(CodecError::Magic(structure));
    }
    if crc32c(&block[..CRC_AT]) != u32_at(block, CRC_AT) {
        return Err(CodecError::Checksum(structure));
    }
    match u32_at(block, 8) {
        FORMAT_VERSION => {}
        version => return Err(CodecError::Version { structure, version }),
    }
    if u64_at(block, 56) != kind.index() {
        return Err(CodecError::Foreign(structure));
    }
    Ok(Header {
        volume: uuid_at(block, 16),
        replica: uuid_at(block, 32),
        sequence: u64_at(block, 48),
    })
}

fn require(valid: bool, kind: Kind, field: &'static str) -> Result<(), CodecError> {
    let structure = kind.name();
    if valid {
        Ok(())
    } else {
        Err(CodecError::Field { structure, field })
    }
}

/// What a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The volume.
    pub volume: Uuid,
    /// The replica.
    pub replica: Uuid,
    /// Blocks of 4 KiB for data.
    pub data_blocks: u64,
    /// Blocks of 4 KiB in a region; a power of two.
    pub region_blocks: u64,
    /// Blocks of the region map that there is room for, counted once.
    pub map_blocks: u64,
}

impl Label {
    /// The bytes on the device.
    pub fn encode(&self, sequence: u64) -> Block {
        let (volume, replica) = (self.volume, self.replica);
        let mut block = start(
            Kind::Label,
            &Header {
                volume,
                replica,
                sequence,
            },
        );
        put_u64(&mut block, 88, self.data_blocks);
        put_u64(&mut block, 96, self.region_blocks);
        put_u64(&mut block, 104, self.map_blocks);
        seal(block)
    }

    /// Decodes a label, and says of which write it is.
    ///
    /// # Errors
    ///
    /// [`CodecError`], among them [`CodecError::Features`] for a replica that this program must not touch.
    pub fn decode(block: &Block) -> Result<(Self, u64), CodecError> {
        let header = check(block, Kind::Label)?;
        let unknown =
            u64_at(block, 80) & !KNOWN_INCOMPATIBLE | u64_at(block, 72) & !KNOWN_READ_ONLY_COMPATIBLE;
        if unknown != 0 {
            return Err(CodecError::Features(unknown));
        }
        let label = Self {
            volume: header.volume,
            replica: header.replica,
            data_blocks: u64_at(block, 88),
            region_blocks: u64_at(block, 96),
            map_blocks: u64_at(block, 104),
        };
        require(!label.volume.is_nil(), Kind::Label, "volume")?;
        require(!label.replica.is_nil(), Kind::Label, "replica")?;
        Ok((label, header.sequence))
    }
}

/// Encodes a promise.
pub fn encode_promise(header: &Header, epoch: Epoch) -> Block {
    let mut block = start(Kind::Promise, header);
    put_u64(&mut block, PAYLOAD_AT, epoch.0);
    seal(block)
}

/// The epoch of a promise that was checked.
pub fn promise_of(block: &Block) -> Epoch {
    Epoch(u64_at(block, PAYLOAD_AT))
}

/// Encodes a copy of the record. Its volume is that of the header.
pub fn encode_record(header: &Header, record: &Membership) -> Block {
    let mut block = start(Kind::Record, header);
    put_u64(&mut block, 64, record.epoch.0);
    put_u64(&mut block, 72, record.version);
    put_u64(&mut block, 80, record.size_blocks);
    put_u32(&mut block, 88, record.block_bytes);
    put_u32(&mut block, 92, u32::from(record.min_in_sync));
    put_u64(&mut block, 96, record.caches_lost.map_or(0, |epoch| epoch.0));
    for (slot, entry) in record.replicas.iter().enumerate() {
        let Some(entry) = entry else { continue };
        let at = SLOTS_AT + slot * SLOT_BYTES;
        let state = match entry.state {
            ReplicaState::InSync => 1,
            ReplicaState::Behind => 2,
            ReplicaState::Empty => 3,
        };
        put_u32(&mut block, at, state);
        put(&mut block, at + 16, entry.id.as_bytes());
    }
    put_u32(&mut block, SNAPSHOT_COUNT_AT, record.snapshots.len() as u32);
    for (index, entry) in record.snapshots.iter().enumerate().take(SNAPSHOTS_MAX) {
        let at = SNAPSHOTS_AT + index * SNAPSHOT_BYTES;
        put(&mut block, at, entry.id.as_bytes());
        put(&mut block, at + 16, entry.cut.as_bytes());
        put(&mut block, at + 32, &[entry.held_by.bits(), entry.owed_to.bits()]);
    }
    if let Some(roll_back) = &record.roll_back {
        put_u32(&mut block, ROLL_BACK_AT, if roll_back.is_done { 2 } else { 1 });
        put(&mut block, ROLL_BACK_AT + 4, roll_back.id.as_bytes());
        put(&mut block, ROLL_BACK_AT + 20, roll_back.snapshot.as_bytes());
    }
    seal(block)
}

fn snapshots_of(block: &Block) -> Result<Vec<SnapshotEntry>, CodecError> {
    let count = u32_at(block, SNAPSHOT_COUNT_AT) as usize;
    require(count <= SNAPSHOTS_MAX, Kind::Record, "number of snapshots")?;
    let slots = |at| {
        let slots = SlotSet::from_bits(u8_at(block, at));
        slots.ok_or(CodecError::Field {
            structure: Kind::Record.name(),
            field: "replicas of a snapshot",
        })
    };
    let entry = |index: usize| {
        let at = SNAPSHOTS_AT + index * SNAPSHOT_BYTES;
        Ok(SnapshotEntry {
            id: uuid_at(block, at),
            cut: uuid_at(block, at + 16),
            held_by: slots(at + 32)?,
            owed_to: slots(at + 33)?,
        })
    };
    (0..count).map(entry).collect()
}

fn roll_back_of(block: &Block) -> Result<Option<RollBack>, CodecError> {
    let is_done = match u32_at(block, ROLL_BACK_AT) {
        0 => return Ok(None),
        1 => false,
        2 => true,
        _ => {
            let (structure, field) = (Kind::Record.name(), "state of a roll-back");
            return Err(CodecError::Field { structure, field });
        }
    };
    Ok(Some(RollBack {
        id: uuid_at(block, ROLL_BACK_AT + 4),
        snapshot: uuid_at(block, ROLL_BACK_AT + 20),
        is_done,
    }))
}

/// The record in a block that was checked.
///
/// # Errors
///
/// [`CodecError`] for a record that cannot be.
pub fn record_of(block: &Block) -> Result<Membership, CodecError> {
    let mut replicas = [None; REPLICAS_MAX];
    for (slot, entry) in replicas.iter_mut().enumerate() {
        let at = SLOTS_AT + slot * SLOT_BYTES;
        let state = match u32_at(block, at) {
            0 => continue,
            1 => ReplicaState::InSync,
            2 => ReplicaState::Behind,
            3 => ReplicaState::Empty,
            _ => {
                let (structure, field) = (Kind::Record.name(), "state of a replica");
                return Err(CodecError::Field { structure, field });
            }
        };
        let id = uuid_at(block, at + 16);
        *entry = Some(ReplicaEntry { id, state });
    }
    let min_in_sync = u8::try_from(u32_at(block, 92)).unwrap_or(0);
    let record = Membership {
        volume: uuid_at(block, 16),
        epoch: Epoch(u64_at(block, 64)),
        version: u64_at(block, 72),
        size_blocks: u64_at(block, 80),
        block_bytes: u32_at(block, 88),
        min_in_sync,
        replicas,
        snapshots: snapshots_of(block)?,
        roll_back: roll_back_of(block)?,
        caches_lost: match u64_at(block, 96) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        },
    };
    record.check()?;
    Ok(record)
}

/// Encodes a map block; regions past the end are left out.
pub fn encode_map(header: &Header, index: u64, regions: &[u8]) -> Block {
    let mut block = start(Kind::Map(index), header);
    let len = regions.len().min(MAP_BLOCK_REGIONS);
    put(&mut block, PAYLOAD_AT, regions.get(..len).unwrap_or_default());
    seal(block)
}

/// The byte of a region in a map block that was checked.
pub fn region_of(block: &Block, region: usize) -> u8 {
    u8_at(&block[..CRC_AT], PAYLOAD_AT + region)
}
