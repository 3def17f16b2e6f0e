//! Opening or making the file of a device, and finding out what it can do. All of it blocks.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pollux_reactor::file::{FileKind, OpenOptions, SharedFile};
use rustix::fs::FallocateFlags;

use super::sysfs::{self, QueueFacts};
use crate::geometry::{Geometry, GeometryError};
use crate::null::DEFAULT_BLOCK_BYTES;
use crate::uri::ByteSize;

/// The largest transfer in bytes.
const TRANSFER_BYTES_MAX: u32 = 16 << 20;

/// Rights of a file that is made: its owner alone reads and writes it.
const FILE_MODE: u32 = 0o600;

/// How to open a file or block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UringOptions {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes: a file that does not exist, or is empty, is made so large; one that exists must be.
    pub size_bytes: Option<u64>,
    /// Block size in bytes. Default: the logical block size of a block device, 4096 for a file.
    pub block_bytes: Option<u32>,
    /// Past the page cache. Default: where the file system can, with a warning where it cannot.
    pub direct: Option<bool>,
    /// For reading only. Default: no.
    pub read_only: bool,
}

impl UringOptions {
    /// What is at `path`, as it is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            size_bytes: None,
            block_bytes: None,
            direct: None,
            read_only: false,
        }
    }
}

/// Why a file or block device cannot be a device.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// Nothing is there.
    #[error(
        "{} does not exist; give a size to make a file there, or correct the path",
        .path.display()
    )]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A directory, a pipe or something else.
    #[error("{} is neither a file nor a block device; choose one that is", .path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error(
        "{} is in use by another process, a mount or another device; stop that, or choose another one",
        .path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The rights are missing.
    #[error(
        "{}: permission denied; run as its owner or as root, or open it with readonly=true",
        .path.display()
    )]
    Permission {
        /// The path.
        path: PathBuf,
    },
    /// It exists, and is not as large as it should be.
    #[error(
        "{} has {is_bytes} bytes ({}), not the {asked_bytes} ({}) asked for; leave the size out to use it \
         as it is",
        .path.display(),
        ByteSize(*.is_bytes),
        ByteSize(*.asked_bytes)
    )]
    Size {
        /// The path.
        path: PathBuf,
        /// Its size, in bytes.
        is_bytes: u64,
        /// The size asked for, in bytes.
        asked_bytes: u64,
    },
    /// Not even one block.
    #[error("{} has {bytes} bytes, less than a block of {block_bytes}; make it larger", .path.display())]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Its size, in bytes.
        bytes: u64,
        /// The block size, in bytes.
        block_bytes: u32,
    },
    /// A block size that cannot be.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Blocks smaller than those of the drive.
    #[error(
        "{} has logical blocks of {logical_bytes} bytes, more than the {block_bytes} asked for; use \
         block={logical_bytes}",
        .path.display()
    )]
    LogicalBlock {
        /// The path.
        path: PathBuf,
        /// Those of the drive, in bytes.
        logical_bytes: u32,
        /// Those asked for, in bytes.
        block_bytes: u32,
    },
    /// Direct I/O was asked for and cannot be had.
    #[error(
        "{}: no direct I/O: {reason}; leave direct=true out to go through the page cache",
        .path.display()
    )]
    Direct {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file cannot be made and not be written.
    #[error(
        "{} does not exist and cannot be made with readonly=true; leave that or the size out",
        .path.display()
    )]
    ReadOnlyNew {
        /// The path.
        path: PathBuf,
    },
    /// Any other error of the operating system.
    #[error("cannot {action} {}: {source}; {}", .path.display(), mend(.source))]
    System {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread to open it on.
    #[error("no thread could be started to open the file; raise the limit on threads")]
    NoThread,
}

/// What to do about an error of the operating system.
fn mend(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "make its directory first",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space, or choose a smaller size",
        io::ErrorKind::ReadOnlyFilesystem => "choose a path that can be written, or give readonly=true",
        io::ErrorKind::FileTooLarge => "choose a smaller size, or a file system that takes larger files",
        _ => "check the path and the file system",
    }
}

/// A file that is open, and what is known about it.
pub(super) struct Opened {
    pub(super) file: SharedFile,
    pub(super) geometry: Geometry,
    pub(super) direct: bool,
}

/// Opens or makes what the options say.
pub(super) fn open(options: &UringOptions) -> Result<Opened, UringError> {
    let path = &options.path;
    let is_block_device = look(options)?;
    let mut direct = options.direct.unwrap_or(true);
    let mut file = match open_file(options, direct) {
        Err(refused) if direct && is_no_direct(&refused) => {
            let reason = "the file system has none".to_owned();
            direct = give_up_direct(options, reason)?;
            open_file(options, direct)
        }
        result => result,
    };
    if let Ok(opened) = &file {
        let align = opened.direct_offset_align_bytes();
        let block_bytes = options.block_bytes.unwrap_or(default_block_bytes(opened));
        if is_block_device && block_bytes < align {
            return Err(UringError::LogicalBlock {
                path: path.clone(),
                logical_bytes: align,
                block_bytes,
            });
        }
        if direct && !block_bytes.is_multiple_of(align.max(1)) {
            let reason = format!("it needs multiples of {align} bytes, and blocks have {block_bytes}");
            direct = give_up_direct(options, reason)?;
            // Closed first: the lock on it would be in the way.
            drop(file);
            file = open_file(options, direct);
        }
    }
    let file = file.map_err(|source| open_error(path, source))?;
    let bytes = size(options, &file)?;
    let geometry = geometry(options, &file, bytes, direct)?;
    Ok(Opened {
        file,
        geometry,
        direct,
    })
}

/// Whether it is a block device. Makes the file that is to be made.
fn look(options: &UringOptions) -> Result<bool, UringError> {
    let path = &options.path;
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() => Ok(true),
        Ok(found) if found.file_type().is_file() => Ok(false),
        Ok(_) => Err(UringError::Kind { path: path.clone() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if options.size_bytes.is_none() {
                return Err(UringError::NotFound { path: path.clone() });
            }
            if options.read_only {
                return Err(UringError::ReadOnlyNew { path: path.clone() });
            }
            // A size that cannot be must not leave an empty file behind.
            let block_bytes = options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
            Geometry::new(options.size_bytes.unwrap_or_default(), block_bytes)?;
            let made = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(FILE_MODE)
                .open(path);
            made.map_err(|source| open_error(path, source))?;
            Ok(false)
        }
        Err(source) => Err(open_error(path, source)),
    }
}

fn open_file(options: &UringOptions, direct: bool) -> io::Result<SharedFile> {
    let how = OpenOptions {
        write: !options.read_only,
        create: false,
        direct,
        exclusive: true,
    };
    SharedFile::open(&options.path, &how)
}

/// What opening with `O_DIRECT` fails with where there is no direct I/O.
fn is_no_direct(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
    )
}

/// Through the page cache then, unless direct I/O was asked for.
fn give_up_direct(options: &UringOptions, reason: String) -> Result<bool, UringError> {
    if options.direct == Some(true) {
        return Err(UringError::Direct {
            path: options.path.clone(),
            reason,
        });
    }
    tracing::warn!(
        path = %options.path.display(),
        reason,
        "no direct I/O: the device goes through the page cache, which costs speed and memory"
    );
    Ok(false)
}

fn open_error(path: &Path, source: io::Error) -> UringError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => UringError::System {
            action: "make",
            path,
            source,
        },
        io::ErrorKind::ResourceBusy => UringError::InUse { path },
        io::ErrorKind::PermissionDenied => UringError::Permission { path },
        _ => UringError::System {
            action: "open",
            path,
            source,
        },
    }
}

fn default_block_bytes(file: &SharedFile) -> u32 {
    match file.kind() {
        FileKind::Regular => DEFAULT_BLOCK_BYTES,
        FileKind::BlockDevice => file.direct_offset_align_bytes(),
    }
}

/// The size of what is there, after making a new file as large as it is to be.
fn size(options: &UringOptions, file: &SharedFile) -> Result<u64, UringError> {
    let path = &options.path;
    let failed = |action: &'static str| {
        move |source: io::Error| UringError::System {
            action,
            path: path.clone(),
            source,
        }
    };
    let is_bytes = file.len_bytes().map_err(failed("tell the size of"))?;
    match options.size_bytes {
        None => Ok(is_bytes),
        Some(asked_bytes) if asked_bytes == is_bytes => Ok(is_bytes),
        // A new file, or one whose making was cut short: there is nothing in it to lose.
        Some(asked_bytes) if is_bytes == 0 && file.kind() == FileKind::Regular && !options.read_only => {
            let block_bytes = options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
            Geometry::new(asked_bytes, block_bytes)?;
            rustix::fs::ftruncate(file, asked_bytes)
                .map_err(|error| failed("set the size of")(error.into()))?;
            rustix::fs::fsync(file).map_err(|error| failed("sync")(error.into()))?;
            sync_directory(path).map_err(failed("sync the directory of"))?;
            Ok(asked_bytes)
        }
        Some(asked_bytes) => Err(UringError::Size {
            path: path.clone(),
            is_bytes,
            asked_bytes,
        }),
    }
}

/// A new file survives a power loss when its directory does.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

fn geometry(
    options: &UringOptions,
    file: &SharedFile,
    bytes: u64,
    direct: bool,
) -> Result<Geometry, UringError> {
    let block_bytes = options.block_bytes.unwrap_or(default_block_bytes(file));
    // What is left after the last whole block is not used.
    let whole_bytes = bytes - bytes.checked_rem(u64::from(block_bytes)).unwrap_or(0);
    if whole_bytes == 0 && matches!(block_bytes, 512 | 4096) {
        return Err(UringError::TooSmall {
            path: options.path.clone(),
            bytes,
            block_bytes,
        });
    }
    let whole = Geometry::new(whole_bytes, block_bytes)?;
    let facts = facts(options, file)?;
    let blocks_of = |bytes: u64| {
        u32::try_from(bytes / u64::from(block_bytes))
            .unwrap_or(u32::MAX)
            .max(1)
    };
    Ok(Geometry {
        optimal_blocks: blocks_of(facts.optimal_bytes.max(facts.physical_block_bytes)),
        transfer_blocks_max: TRANSFER_BYTES_MAX / block_bytes,
        // The page cache is one.
        volatile_write_cache: facts.volatile_write_cache || !direct,
        atomic_write_blocks: blocks_of(facts.atomic_write_bytes.max(facts.physical_block_bytes)),
        deallocates: facts.deallocates,
        read_only: options.read_only,
        ..whole
    })
}

fn facts(options: &UringOptions, file: &SharedFile) -> Result<QueueFacts, UringError> {
    let status = rustix::fs::fstat(file).map_err(|error| UringError::System {
        action: "look at",
        path: options.path.clone(),
        source: error.into(),
    })?;
    Ok(match file.kind() {
        FileKind::BlockDevice => {
            let (major, minor) = (
                rustix::fs::major(status.st_rdev),
                rustix::fs::minor(status.st_rdev),
            );
            sysfs::read_queue(Path::new(sysfs::BLOCK_DEVICES_ROOT), major, minor)
        }
        FileKind::Regular => QueueFacts {
            volatile_write_cache: true,
            physical_block_bytes: 0,
            optimal_bytes: u64::try_from(status.st_blksize).unwrap_or(0),
            atomic_write_bytes: 0,
            deallocates: !options.read_only && punches_holes(file, status.st_size),
        },
    })
}

/// Whether the file system can free a part of a file: asked with a part after its end, where nothing is.
fn punches_holes(file: &SharedFile, len: i64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let after = u64::try_from(len).unwrap_or(0).next_multiple_of(1 << 20);
    rustix::fs::fallocate(file.as_fd(), flags, after, 4096).is_ok()
}
