//! Memory for I/O: huge pages, the arenas mapped on them, and the buffers cut from those arenas.
//!
//! - [`discover`] tells which huge pages and NUMA nodes the machine has, [`reserve`] asks the kernel for
//!   more.
//! - [`Arena`] is one mapped region. It is shared between threads the way a drive is: bytes are copied in and
//!   out, no reference to them is ever handed out.
//! - [`BufferPool`] belongs to one thread (a reactor) and cuts [`Buffer`]s from an arena of its own. A
//!   [`Buffer`] is the only view of its bytes and can be written; frozen, it becomes a [`Slice`], shared and
//!   read-only.
//!
//! Memory that is not there is never a failure of what uses it: without huge pages an arena is mapped on
//! ordinary memory, and a pool that is short answers `None` and wakes whoever waits once memory comes back.

mod arena;
mod buffer;
mod error;
mod page;
mod pool;
mod prefetch;
mod reserve;
mod slice;
mod slot;
mod topology;

pub use arena::{Arena, ArenaOptions};
pub use buffer::Buffer;
pub use error::Error;
pub use page::{PageKind, PagePreference};
pub use pool::{
    BufferPool, BufferWait, ClassStatistics, DEFAULT_CLASSES_BYTES, MAX_CLASSES, PoolOptions, PoolStatistics,
};
pub use prefetch::prefetch;
pub use reserve::reserve;
pub use slice::Slice;
pub use topology::{HugePages, NumaNode, SYSFS_ROOT, Topology, TransparentHugePages, discover};

/// Every buffer starts at a multiple of this, and no size class is smaller: the block size of the drives.
pub const BUFFER_ALIGNMENT_BYTES: usize = 4096;
