//! Why something could not be done with a pool.

use pollux_device::{ByteSize, IoError};

use crate::allocator::StateError;
use crate::cache::{LoadError, Unsealed};
use crate::device::BlockSizeError;
use crate::journal::{JournalError, ScanError};
use crate::layout::LayoutError;
use crate::tree::TreeError;

/// Why something could not be done with a pool; nothing was changed, unless the variant says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A device failed.
    #[error("{0}")]
    Device(#[from] IoError),
    /// A device with blocks of a size that pools do not use.
    #[error("{0}")]
    BlockSize(#[from] BlockSizeError),
    /// A device whose writes of 4 KiB may be torn.
    #[error(
        "device {device} does not promise that a write of 4 KiB is not torn by a power loss: \
         format it with blocks of 4096 bytes, or use another"
    )]
    TornWrites {
        /// Which, by its place in the list given.
        device: usize,
    },
    /// A device that is too small.
    #[error(
        "device {device} has {}, and a pool needs {} at least",
        block_bytes(*.blocks),
        block_bytes(*.needed)
    )]
    TooSmall {
        /// Which, by its place in the list given.
        device: usize,
        /// Its blocks.
        blocks: u64,
        /// What is needed.
        needed: u64,
    },
    /// A device that belongs to a pool already.
    #[error("device {device} belongs to the pool {pool} ({uuid}): import that, or destroy it first")]
    InUse {
        /// Which, by its place in the list given.
        device: usize,
        /// The name of the pool.
        pool: String,
        /// The pool.
        uuid: uuid::Uuid,
    },
    /// Not one device, or too many.
    #[error("a pool has 1 to {max} devices, and {found} were given", max = crate::layout::DEVICES_MAX)]
    DeviceCount {
        /// How many.
        found: usize,
    },
    /// A device without a label.
    #[error("device {device} holds no pool: {error}")]
    NoPool {
        /// Which, by its place in the list given.
        device: usize,
        /// What is in the place of a label.
        error: LayoutError,
    },
    /// A device of another pool among the others.
    #[error("device {device} belongs to the pool {found}, and not to {wanted}")]
    OtherPool {
        /// Which, by its place in the list given.
        device: usize,
        /// Its pool.
        found: uuid::Uuid,
        /// The pool of the first device.
        wanted: uuid::Uuid,
    },
    /// A device that is there twice.
    #[error("devices {first} and {second} are the same device of the pool, or one is a copy of the other")]
    Twice {
        /// One, by its place in the list given.
        first: usize,
        /// The other.
        second: usize,
    },
    /// A device is missing.
    #[error("device {number} ({id}) of the pool is missing: give all its devices")]
    Missing {
        /// Its number in the pool.
        number: usize,
        /// Its id.
        id: uuid::Uuid,
    },
    /// A device is missing, and none is there whose copy of the journal is sure to have everything.
    #[error(
        "device {number} ({id}) of the pool is missing, and no other one is sure to have all of the journal: \
         give all its devices"
    )]
    JournalMissing {
        /// Its number in the pool.
        number: usize,
        /// Its id.
        id: uuid::Uuid,
    },
    /// A device that has been replaced or removed, or whose addition was cut short.
    #[error(
        "device {device} ({id}) is no part of the pool: it was removed, replaced, or never wholly added; \
         open the pool without it"
    )]
    Foreign {
        /// Which, by its place in the list given.
        device: usize,
        /// Its id.
        id: uuid::Uuid,
    },
    /// Devices are being changed already.
    #[error("a device of the pool is being added, removed or changed: wait for the end of that")]
    DevicesChanging,
    /// There is no device of this number.
    #[error("the pool has no device {number}: `pool show` lists them")]
    NoDevice {
        /// What was asked for.
        number: u8,
    },
    /// The only device of a pool cannot leave it.
    #[error("device {number} is the only one that takes data: add another one first")]
    LastDevice {
        /// Its number.
        number: u8,
    },
    /// The other devices have no room for what a device has.
    #[error(
        "device {number} has {} of data and metadata, and the others have room for {}: add a device, or \
         delete something",
        ByteSize(*.used_bytes),
        ByteSize(*.free_bytes)
    )]
    NoRoomToDrain {
        /// Its number.
        number: u8,
        /// What is on it.
        used_bytes: u64,
        /// What the others can take.
        free_bytes: u64,
    },
    /// The journal cannot be put on another device.
    #[error(
        "no other device has {extents} free extents of 64 KiB side by side for the journal: add a device"
    )]
    NoRoomForJournal {
        /// Extents of the journal.
        extents: u64,
    },
    /// A device cannot be copied as a whole.
    #[error(
        "device {number} cannot be read at block {block} of 4 KiB: {source}; the pool keeps it: a scrub \
         tells which blocks of volumes these are; write or deallocate them and begin again, or remove the \
         device and give them up (--lose-unreadable)"
    )]
    CannotCopy {
        /// Its number.
        number: u8,
        /// The first block that was to be read.
        block: u64,
        /// What is wrong.
        source: IoError,
    },
    /// A device that wants its memory aligned otherwise.
    #[error(
        "the device wants memory aligned to {wanted} bytes, more than the volumes that are in use say: stop \
         their use first"
    )]
    Alignment {
        /// The alignment.
        wanted: u32,
    },
    /// A device that is one of the pool already.
    #[error("it is device {number} of the pool already")]
    Member {
        /// Its number.
        number: usize,
    },
    /// A device that missed checkpoints.
    #[error(
        "device {device} is at checkpoint {found} and the pool at {wanted}: it is an older copy of itself, \
         or its newest superblocks are damaged"
    )]
    Stale {
        /// Which, by its number in the pool.
        device: usize,
        /// The newest checkpoint that it knows.
        found: u64,
        /// The oldest one that it must know.
        wanted: u64,
    },
    /// A device with fewer blocks than it had.
    #[error("device {device} has {found} extents of 64 KiB and had {wanted}: it was shrunk")]
    Shrunk {
        /// Which, by its place in the list given.
        device: usize,
        /// What it has.
        found: u64,
        /// What it had.
        wanted: u64,
    },
    /// The pool uses features that this program does not know.
    #[error("the pool uses features that this program does not know ({unknown:#x}): use a newer one")]
    Features {
        /// The bits that are not known.
        unknown: u64,
    },
    /// No superblock can be read.
    #[error("no copy of the superblock is any good: {0}")]
    NoSuperblock(LayoutError),
    /// The newest superblock is lost on all devices.
    #[error(
        "the newest superblock found is of checkpoint {found}, and checkpoint {newest} was durable: all \
         copies of the newer one are damaged"
    )]
    SuperblockLost {
        /// The checkpoint of what is there.
        found: u64,
        /// The newest one that the journal knows.
        newest: u64,
    },
    /// Pages of metadata are lost.
    #[error("{0}")]
    Page(#[from] LoadError),
    /// The journal is damaged.
    #[error("{0}")]
    Scan(#[from] ScanError),
    /// The journal cannot be written, or is full.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// Metadata contradicts itself.
    #[error("the metadata contradicts itself: {0}")]
    State(#[from] StateError),
    /// A record of the journal that does not fit.
    #[error("the journal speaks of volume {volume}, which there is not")]
    Record {
        /// The volume.
        volume: u64,
    },
    /// A mistake of this program.
    #[error("{0}")]
    Unsealed(#[from] Unsealed),
    /// No space.
    #[error("no space is left in the pool; delete something or add a device")]
    NoSpace,
    /// No space to be set aside.
    #[error(
        "{} more would have to be set aside for thick volumes and their metadata, and {} are free: delete \
         something, add a device, or make the volume thin",
        ByteSize(*.needed_bytes),
        ByteSize(*.free_bytes)
    )]
    NoRoomForThick {
        /// What is to be set aside.
        needed_bytes: u64,
        /// What is free, and not set aside.
        free_bytes: u64,
    },
    /// Past the end of what a volume can be.
    #[error("a volume can have {} at most", block_bytes(*.max))]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// A volume of no blocks.
    #[error("a volume has at least one block of 4 KiB")]
    Empty,
    /// Not a name.
    #[error("{name:?} is no name: 1 to 95 bytes without control characters and slashes")]
    Name {
        /// What was given.
        name: String,
    },
    /// The name is taken.
    #[error("there is a volume or snapshot {name:?} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is no such volume or snapshot.
    #[error("there is no volume or snapshot {name:?}")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// A volume where a snapshot is needed, or the other way round.
    #[error("{name:?} is no {wanted}")]
    Kind {
        /// Its name.
        name: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// It is in use.
    #[error("{name:?} is in use: disconnect its users first")]
    Busy {
        /// Its name.
        name: String,
    },
    /// A smaller size, without leave to drop what is past it.
    #[error(
        "{name:?} has {}: making it {} drops what is past that, and must be asked for",
        block_bytes(*.from),
        block_bytes(*.to)
    )]
    Shrink {
        /// Its name.
        name: String,
        /// Its blocks.
        from: u64,
        /// What was asked for.
        to: u64,
    },
    /// Something failed before, and the pool takes no more changes.
    #[error("the pool takes no changes since {0}; export it, see to its devices and import it again")]
    Stopped(IoError),
    /// The pool is read-only.
    #[error("the pool is open read-only: nothing in it or of it can be changed")]
    ReadOnly,
    /// The pool is not read-only.
    #[error("the pool is open for writing: import it read-only for this")]
    ReadWrite,
    /// The pool was exported.
    #[error("the pool is closed")]
    Closed,
}

/// So many blocks of 4 KiB as a size.
fn block_bytes(count: u64) -> ByteSize {
    ByteSize(count.saturating_mul(4_096))
}

impl PoolError {
    /// What a request for a volume returns.
    pub fn as_io(&self) -> IoError {
        match self {
            Self::Device(error) | Self::Stopped(error) | Self::Journal(JournalError::Failed(error)) => *error,
            Self::NoSpace | Self::NoRoomForThick { .. } => IoError::CapacityExceeded,
            Self::ReadOnly => IoError::ReadOnly,
            Self::Closed => IoError::Gone,
            Self::Page(_) => IoError::MediaRead,
            _ => IoError::Internal,
        }
    }
}

impl From<PoolError> for IoError {
    fn from(error: PoolError) -> Self {
        error.as_io()
    }
}

/// What is left of a [`TreeError`] once absent pages are loaded.
pub(crate) fn of_tree(error: TreeError) -> PoolError {
    match error {
        TreeError::NoSpace => PoolError::NoSpace,
        TreeError::OutOfRange => PoolError::Device(IoError::OutOfRange),
        TreeError::Absent { .. } => PoolError::Device(IoError::Internal),
    }
}
