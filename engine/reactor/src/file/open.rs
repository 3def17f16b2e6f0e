//! Opening files and block devices, and what has no operation in the ring.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, SeekFrom, StatxFlags};

/// `BLKDISCARD`, `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// How to open a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For writing too. Default: for reading only.
    pub write: bool,
    /// Make a regular file if nothing is there; needs `write`. Default: no.
    pub create: bool,
    /// Past the page cache (`O_DIRECT`): offsets, lengths and memory have to be aligned as [`SharedFile`]
    /// says. Default: no.
    pub direct: bool,
    /// For nobody else: a block device must not be mounted or in use by the kernel, a regular file not be
    /// open in this way elsewhere. Default: no.
    pub exclusive: bool,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
}

/// An open file or block device, for the whole process.
#[derive(Debug)]
pub struct SharedFile {
    file: File,
    path: PathBuf,
    kind: FileKind,
    direct_memory_align_bytes: u32,
    direct_offset_align_bytes: u32,
}

impl SharedFile {
    /// Opens a file; blocks the calling thread.
    ///
    /// # Errors
    ///
    /// Those of the kernel, with the path; [`io::ErrorKind::ResourceBusy`] when it was to be opened
    /// exclusively and is in use; [`io::ErrorKind::InvalidInput`] when it is neither a regular file nor a
    /// block device.
    pub fn open(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        Self::try_open(path, options)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display())))
    }

    fn try_open(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        // Looked at first: opening a pipe or a device of another kind may block, or do something.
        let is_block_device = match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => true,
            Ok(metadata) if metadata.file_type().is_file() => false,
            Ok(_) => return Err(wrong_kind()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.create => false,
            Err(error) => return Err(error),
        };
        let mut flags = if options.direct { libc::O_DIRECT } else { 0 };
        if options.exclusive && is_block_device {
            flags |= libc::O_EXCL;
        }
        let file = File::options()
            .read(true)
            .write(options.write)
            .create(options.create && options.write && !is_block_device)
            .custom_flags(flags)
            .open(path)?;
        let kind = match file.metadata()?.file_type() {
            kind if kind.is_block_device() => FileKind::BlockDevice,
            kind if kind.is_file() => FileKind::Regular,
            _ => return Err(wrong_kind()),
        };
        if options.exclusive && kind == FileKind::Regular {
            let lock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
            lock.map_err(|error| match error {
                rustix::io::Errno::WOULDBLOCK => io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "it is in use by another process or device",
                ),
                error => error.into(),
            })?;
        }
        let (direct_memory_align_bytes, direct_offset_align_bytes) = direct_alignment(&file, kind)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            kind,
            direct_memory_align_bytes,
            direct_offset_align_bytes,
        })
    }

    /// The end of a pipe, on which operations take as long as a test wants.
    #[cfg(test)]
    pub(crate) fn of_pipe(reader: std::io::PipeReader) -> Self {
        Self {
            file: File::from(std::os::fd::OwnedFd::from(reader)),
            path: PathBuf::new(),
            kind: FileKind::Regular,
            direct_memory_align_bytes: 1,
            direct_offset_align_bytes: 1,
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// What memory has to be aligned to for direct I/O, in bytes.
    pub fn direct_memory_align_bytes(&self) -> u32 {
        self.direct_memory_align_bytes
    }

    /// What offsets and lengths have to be multiples of for direct I/O, in bytes.
    pub fn direct_offset_align_bytes(&self) -> u32 {
        self.direct_offset_align_bytes
    }

    /// Bytes of the file or device now.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn len_bytes(&self) -> io::Result<u64> {
        match self.kind {
            FileKind::Regular => Ok(self.file.metadata()?.len()),
            // The position is used by nobody: all reads and writes say where.
            FileKind::BlockDevice => Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?),
        }
    }

    /// See [`File::data_ranges`](super::File::data_ranges).
    pub(super) fn data_ranges(
        &self,
        range: Range<u64>,
        ranges_max: usize,
    ) -> io::Result<(Vec<Range<u64>>, u64)> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end && found.len() < ranges_max {
            // The position that this sets is used by nobody: all reads and writes say where.
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => return Ok((found, range.end)),
                // Not told here.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
                Err(error) => return Err(error.into()),
            };
            if start >= range.end {
                return Ok((found, range.end));
            }
            let end = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
                Ok(end) => end.min(range.end),
                // The file was cut meanwhile, or this is not told: nothing is called a hole.
                Err(_) => range.end,
            };
            found.push(start.max(at)..end);
            at = end;
        }
        Ok((found, at))
    }

    pub(super) fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    pub(super) fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let range = [offset_bytes, len_bytes];
        // SAFETY: the kernel reads two 64-bit numbers from the pointer before the call returns; the
        // descriptor is open.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn wrong_kind() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is neither a regular file nor a block device",
    )
}

/// What direct I/O asks of memory, and of offsets and lengths.
fn direct_alignment(file: &File, kind: FileKind) -> io::Result<(u32, u32)> {
    let told = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(told) = told
        && told.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && told.stx_dio_offset_align != 0
    {
        return Ok((told.stx_dio_mem_align.max(1), told.stx_dio_offset_align));
    }
    match kind {
        FileKind::BlockDevice => {
            let bytes = rustix::fs::ioctl_blksszget(file)?;
            Ok((bytes, bytes))
        }
        // Before Linux 6.1, and on file systems that do not tell: the largest that any of them asks for.
        FileKind::Regular => Ok((4096, 4096)),
    }
}
