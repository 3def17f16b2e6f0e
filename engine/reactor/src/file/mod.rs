//! Files and block devices through the ring of a reactor.
//!
//! A [`SharedFile`] is open for the whole process; a [`File`] is what one reactor uses it by. The buffers of
//! an operation belong to the kernel until it is done, however early its future is dropped: a read that is
//! given up may still fill its buffer, a write that is given up may still be written.
//!
//! Lengths may come out short: the end of the file, a signal, more than [`WRITE_PIECES_MAX`] pieces. Whoever
//! needs all bytes asks again for the rest.

mod blocking;
mod open;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use pollux_hugepages::{Buffer, Slice};

use crate::context::Reactor;
use crate::real::{Action, Cargo, Ring};

pub use open::{FileKind, OpenOptions, SharedFile};

/// Pieces that one write takes; with more it is short.
pub const WRITE_PIECES_MAX: usize = crate::real::PIECES_MAX;

/// What happens to a range of a file in [`File::allocate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Its space is reserved, and the file grows to its end if it was shorter. For regular files.
    Reserve,
    /// It reads as zeros, and its space is freed where that is possible. The length of the file stays.
    PunchHole,
    /// It reads as zeros, and its space stays reserved. The length of the file stays.
    Zero,
}

impl Allocate {
    /// The mode of `fallocate(2)`.
    fn mode(self) -> i32 {
        match self {
            Self::Reserve => 0,
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Self::Zero => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// A file on the reactor that it is attached to. Clones are the same file.
#[derive(Clone)]
pub struct File {
    shared: Arc<SharedFile>,
    ring: Ring,
}

impl File {
    /// Opens a file and attaches it to the current reactor. The opening happens on another thread: it may
    /// take long.
    ///
    /// # Errors
    ///
    /// Those of [`SharedFile::open`] and [`File::attach`].
    pub async fn open(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let (path, options) = (path.to_owned(), options.clone());
        let shared = blocking::run(move || SharedFile::open(&path, &options)).await?;
        Self::attach(Arc::new(shared))
    }

    /// Attaches an open file to the current reactor.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] outside a reactor and on one whose driver has no files.
    pub fn attach(shared: Arc<SharedFile>) -> io::Result<Self> {
        let reactor = Reactor::try_current();
        let ring = reactor.as_ref().and_then(|reactor| reactor.driver().ring());
        let Some(ring) = ring.cloned() else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "there are no files here: only a reactor with a real driver has them",
            ));
        };
        Ok(Self { shared, ring })
    }

    /// The file as the process knows it, to be attached to other reactors.
    pub fn shared(&self) -> &Arc<SharedFile> {
        &self.shared
    }

    /// Reads from `offset_bytes` on into the whole of `into`; returns it with the number of bytes read.
    ///
    /// # Errors
    ///
    /// Those of the kernel. The buffer comes back in any case, its content unspecified.
    pub async fn read_at(&self, offset_bytes: u64, into: Buffer) -> (io::Result<usize>, Buffer) {
        if let Err(error) = check(offset_bytes) {
            return (Err(error), into);
        }
        let mut operation = match self.ring.operation().await {
            Ok(operation) => operation,
            Err(error) => return (Err(error), into),
        };
        let load = |cargo: &mut Cargo| cargo.buffer = Some(into);
        let result = operation
            .run(&self.shared, Action::Read { offset_bytes }, load)
            .await;
        (result, operation.take_buffer().unwrap_or_default())
    }

    /// Writes the pieces, in order, from `offset_bytes` on; returns the number of bytes written. With `dsync`
    /// they are on stable media then, with all that is needed to read them back (`RWF_DSYNC`).
    ///
    /// # Errors
    ///
    /// Those of the kernel. Part of the data may have been written.
    pub async fn write_at(
        &self,
        offset_bytes: u64,
        from: impl IntoIterator<Item = Slice>,
        dsync: bool,
    ) -> io::Result<usize> {
        check(offset_bytes)?;
        let action = Action::Write { offset_bytes, dsync };
        let mut operation = self.ring.operation().await?;
        operation
            .run(&self.shared, action, |cargo| cargo.slices.extend(from))
            .await
    }

    /// Brings all completed writes to stable media. With `data_only` without what is not needed to read them
    /// back.
    ///
    /// # Errors
    ///
    /// Those of the kernel. After one it is unknown what is on stable media.
    pub async fn fsync(&self, data_only: bool) -> io::Result<()> {
        self.act(Action::Sync { data_only }).await
    }

    /// Reserves, frees or zeroes a range. Works on regular files and on block devices; a block device that
    /// cannot free without writing zeros refuses [`Allocate::PunchHole`].
    ///
    /// # Errors
    ///
    /// Those of the kernel; [`io::ErrorKind::Unsupported`] when the file system or device cannot do it.
    pub async fn allocate(&self, what: Allocate, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        check(offset_bytes.saturating_add(len_bytes))?;
        if len_bytes == 0 {
            return Ok(());
        }
        self.act(Action::Allocate {
            mode: what.mode(),
            offset_bytes,
            len_bytes,
        })
        .await
    }

    /// Tells a block device that a range is no longer needed. What it reads as afterwards is unspecified: use
    /// [`Allocate::PunchHole`] where it has to be zeros.
    ///
    /// # Errors
    ///
    /// Those of the kernel; [`io::ErrorKind::Unsupported`] when the device cannot do it.
    pub async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        check(offset_bytes.saturating_add(len_bytes))?;
        if self.ring.supports_commands() {
            let action = Action::Discard {
                offset_bytes,
                len_bytes,
            };
            match self.act(action).await {
                // Before Linux 6.12 block devices took no commands; the ioctl tells what the device itself
                // can do.
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
        }
        let shared = self.shared.clone();
        blocking::run(move || shared.discard(offset_bytes, len_bytes)).await
    }

    /// Changes the length of a regular file; what is added reads as zeros.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub async fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        check(len_bytes)?;
        if self.ring.supports_truncate() {
            return self.act(Action::Truncate { len_bytes }).await;
        }
        let shared = self.shared.clone();
        blocking::run(move || shared.set_len(len_bytes)).await
    }

    /// Bytes of the file or device now.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn len_bytes(&self) -> io::Result<u64> {
        self.shared.len_bytes()
    }

    /// Where a range holds data, in order, at most `ranges_max` of them, and where the search ended: what is
    /// before that and in none of them are holes, which read as zeros. A file system that does not tell, and
    /// a block device, have data everywhere. Asked on another thread: it may take long.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub async fn data_ranges(
        &self,
        range: Range<u64>,
        ranges_max: usize,
    ) -> io::Result<(Vec<Range<u64>>, u64)> {
        check(range.end)?;
        let shared = self.shared.clone();
        blocking::run(move || shared.data_ranges(range, ranges_max)).await
    }

    async fn act(&self, action: Action) -> io::Result<()> {
        let mut operation = self.ring.operation().await?;
        operation.run(&self.shared, action, |_| ()).await.map(drop)
    }
}

impl fmt::Debug for File {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("File").field(&self.shared.path()).finish()
    }
}

/// Offsets are signed in the kernel, and one of them means something else.
fn check(offset_bytes: u64) -> io::Result<()> {
    if i64::try_from(offset_bytes).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the offset is beyond the end of any file",
        ));
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS)
    )
}
